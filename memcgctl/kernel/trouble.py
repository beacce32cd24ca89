"""What of a kernel could not be read, matched or understood?

One object in the opened kernel takes it all, by topic. A fault of memory counts for the
topic of the function that was reading (``reading``), so that no zero that stands for
what could not be read goes unnoticed; whoever answers from a topic asks whether it was
read in full. "Could not be read" is then never taken for "nobody", "none" or 0.
"""

from __future__ import annotations

import functools
import inspect
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar, cast

from memcgctl.model import Topic

__all__ = ["Topic", "Trouble", "reading", "the"]

Function = TypeVar("Function", bound=Callable[..., Any])

# What is to be said of the answers that rest on a topic.
_PROCESSES = "processes that map memory or would read swap may be missing"
_HOLDERS = "holders of references may be missing"
CONSEQUENCES: dict[Topic, str] = {
    Topic.MEMCGS: "memcgs and their names may be missing",
    Topic.MEMORY_MAP: "charged and folios are lower bounds",
    Topic.SWAP_MAP: "swap is a lower bound",
    Topic.PROCESSES: "processes that use memory or hold memcgs may be missing",
    Topic.AREAS: _PROCESSES,
    Topic.PAGE_TABLES: _PROCESSES,
    Topic.SHMEM_SWAP: "files that would read swap may be missing",
    Topic.FILE_TABLES: "processes that have files open may be missing",
    Topic.FILES: "files may be missing or without a name",
    Topic.SLABS: _HOLDERS,
    Topic.STOCKS: _HOLDERS,
    Topic.CSS_SETS: _HOLDERS,
    Topic.WRITEBACK: _HOLDERS,
    Topic.OBJCGS: _HOLDERS,
    Topic.SOCKETS: _HOLDERS,
    Topic.EVENTS: _HOLDERS,
    Topic.REFERENCES: _HOLDERS,
}


class Trouble:
    """Sentences about trouble, each with its topic and how often it came up.

    ``topic`` is what is being read right now; ``hint`` is why something may not be
    readable here, and told where something was not.
    """

    hint = ""

    def __init__(self) -> None:
        self._met: Counter[tuple[Topic | None, str]] = Counter()
        self._opening: Counter[tuple[Topic | None, str]] = Counter()
        self.topic: Topic | None = Topic.OTHER

    def note(self, topic: Topic | None, sentence: str, times: int = 1) -> None:
        """Trouble with ``topic``, or without one what a person should know.

        The same sentence about the same topic is counted, not repeated.
        """
        self._met[topic, sentence] += times

    def fault(self, times: int = 1) -> None:
        """A part of what is being read cannot be."""
        if self.topic:
            self.note(self.topic, f"a part of {the(self.topic)} cannot be read", times)

    @contextmanager
    def reading(self, topic: Topic | None) -> Iterator[None]:
        """Inside, faults are about ``topic``; None: about nothing, for a mere try."""
        before, self.topic = self.topic, topic
        try:
            yield
        finally:
            self.topic = before

    def settle(self) -> None:
        """What has been noted so far is of the kernel's opening: it stays for good."""
        self._opening = self._met.copy()

    def restart(self) -> None:
        """Forget what came up since the opening: all is to be read again."""
        self._met = self._opening.copy()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Forget what comes up inside: it is read again, or not of interest."""
        before = self._met.copy()
        try:
            yield
        finally:
            self._met = before

    @property
    def unread(self) -> tuple[Topic, ...]:
        """The topics that were not read in full."""
        return tuple(dict.fromkeys(topic for topic, _ in self._met if topic))

    def sentences(self) -> tuple[str, ...]:
        """What came up, in that order."""
        return tuple(
            f"{sentence} ({times:,} times)" if times > 1 else sentence
            for (_, sentence), times in self._met.items()
        )

    def consequences(self) -> tuple[str, ...]:
        """What the answers are to be taken for that rest on it, and why maybe."""
        topics: dict[str, list[Topic]] = {}
        for topic in self.unread:
            if topic in CONSEQUENCES:
                topics.setdefault(CONSEQUENCES[topic], []).append(topic)
        told = [
            f"{consequence}: {' and '.join(map(the, its))} could not be read in full"
            for consequence, its in topics.items()
        ]
        return (*told, self.hint) if told and self.hint else tuple(told)


def the(topic: Topic) -> str:
    return f"the {topic.value}"


class _Troubled(Protocol):
    """An opened kernel, or its memory."""

    trouble: Trouble


def reading(topic: Topic | None) -> Callable[[Function], Function]:
    """Faults in the function are about ``topic``; its first argument is the kernel.

    Of a generator that is what it does itself, not what is done with what it yields.
    """

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def generator(kernel: _Troubled, *args: Any, **named: Any) -> Iterator[Any]:
            items = function(kernel, *args, **named)
            while True:
                with kernel.trouble.reading(topic):
                    try:
                        item = next(items)
                    except StopIteration:
                        return
                yield item

        @functools.wraps(function)
        def plain(kernel: _Troubled, *args: Any, **named: Any) -> Any:
            with kernel.trouble.reading(topic):
                return function(kernel, *args, **named)

        wrapped = generator if inspect.isgeneratorfunction(function) else plain
        return cast("Function", wrapped)

    return decorate
