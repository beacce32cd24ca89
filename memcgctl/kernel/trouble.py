"""What of a kernel could not be read, matched or understood?

One object in the opened kernel takes it all, by topic: whoever reads a structure notes
what it could not read there, and whoever answers from it asks whether all was read.
"Could not be read" is then never taken for "nobody", "none" or 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum


class Topic(Enum):
    """What an answer can rest on."""

    CORE = "the core"
    MEMCGS = "memcgs"
    MEMORY_MAP = "the memory map"
    SWAP_MAP = "the swap map"
    SLABS = "slab caches"
    PROCESSES = "processes"
    AREAS = "memory areas"
    PAGE_TABLES = "page tables"
    PAGE_CACHE = "page cache trees"
    CSS_SETS = "css_sets"
    WRITEBACK = "writeback"
    OBJCGS = "obj_cgroups"
    SOCKETS = "sockets"
    EVENTS = "events"
    MOUNTS = "mounts"
    HOLDERS = "holders"


class Trouble:
    """Sentences about trouble, each with its topic and how often it came up."""

    def __init__(self) -> None:
        self._met: Counter[tuple[Topic, str]] = Counter()
        self._opening: Counter[tuple[Topic, str]] = Counter()

    def note(self, topic: Topic, sentence: str, times: int = 1) -> None:
        """The same sentence about the same ``topic`` is counted, not repeated."""
        self._met[topic, sentence] += times

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

    def about(self, *topics: Topic) -> tuple[str, ...]:
        """The sentences about these topics, or about all, in the order they came up."""
        return tuple(
            f"{sentence} ({times} times)" if times > 1 else sentence
            for (topic, sentence), times in self._met.items()
            if not topics or topic in topics
        )
