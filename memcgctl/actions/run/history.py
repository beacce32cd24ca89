"""Which runs does a journal tell of, and where did those stop that have no end?

Reads what ``journal`` writes, and what is left of it: a line that was cut off by a full
disk or a crash, and anything else that is no entry, is counted and passed over.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from memcgctl import utf8
from memcgctl.actions.run.journal import SCHEMA
from memcgctl.model import History, PastRun, PastStep

# A line that follows one without an end shares its line.
_BEGIN = re.compile(r'(?=\{"schema": ")')

Entry = dict[str, Any]

# A run of 99,990 steps writes 100 MB; the end of a file is what is new.
_MOST_BYTES = 128 << 20
_LONGEST_LINE = 1 << 20


def read_history(path: Path) -> History:
    """The runs in a journal and in the file that came before it (``.1``).

    Raises OSError if the journal cannot be read.
    """
    runs: dict[str, list[Entry]] = {}
    damaged = unread = 0
    earlier = path.with_name(path.name + ".1")
    with suppress(FileNotFoundError):
        damaged, unread = _gather(earlier, runs)
    more, before = _gather(path, runs)
    found = tuple(map(_run, runs.values()))
    return History(str(path), found, damaged + more, unread + before)


def _gather(path: Path, runs: dict[str, list[Entry]]) -> tuple[int, int]:
    """Add a file's entries to those of their runs.

    How many lines are damaged, and how many bytes at its begin are too many.
    """
    damaged = 0
    with open(path, "rb", opener=_opener) as file:
        unread = max(0, os.fstat(file.fileno()).st_size - _MOST_BYTES)
        file.seek(unread)
        while raw := file.readline(_LONGEST_LINE):
            for piece in _pieces(raw.decode(errors="replace")):
                entry = _entry(piece)
                if entry:
                    runs.setdefault(_text(entry, "run"), []).append(entry)
                else:
                    damaged += 1
    return damaged, unread


def _opener(path: str, flags: int) -> int:
    """Open regular files only: a FIFO would never answer, /dev/zero never end."""
    fd = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    raise OSError(0, "it is not a regular file", path)


def _pieces(line: str) -> Iterator[str]:
    return (piece for piece in _BEGIN.split(line) if piece.strip())


def _entry(text: str) -> Entry | None:
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if isinstance(entry, dict) and entry.get("schema") == SCHEMA:
        return entry
    return None


def _run(entries: list[Entry]) -> PastRun:
    by_event = {_text(entry, "event"): entry for entry in entries}
    begin, end = by_event.get("begin", {}), by_event.get("end")
    steps = tuple(_steps(entries))
    return PastRun(
        run=_text(entries[0], "run"),
        time=_text(entries[0], "time"),
        pid=_number(begin, "pid"),
        policy=_text(begin, "policy"),
        release=_text(begin, "release"),
        planned=_number(begin, "steps"),
        steps=steps,
        ended=end is not None,
        stopped=_text(end or {}, "stopped"),
        moved_bytes=sum(step.moved_bytes or 0 for step in steps),
        freed=_length(end, "freed"),
        left=_length(end, "left"),
    )


def _steps(entries: list[Entry]) -> Iterator[PastStep]:
    """One for each number of a step: its last line says most."""
    last: dict[int | None, Entry] = {}
    for entry in entries:
        if entry.get("event") in ("before", "skipped", "after"):
            last[_number(entry, "n")] = entry
    for n, entry in last.items():
        status = {"before": "unfinished", "skipped": "skipped"}.get(entry["event"])
        yield PastStep(
            n=n,
            action=_text(entry, "action"),
            target=_text(entry, "target"),
            status=status or _text(entry, "status"),
            why=_text(entry, "why"),
            moved_bytes=_number(entry, "moved_bytes"),
            seconds=_seconds(entry.get("seconds")),
        )


def _text(entry: Entry, key: str) -> str:
    value = utf8.value(entry, key)
    return value if isinstance(value, str) else ""


def _number(entry: Entry, key: str) -> int | None:
    value = entry.get(key)
    return value if isinstance(value, int) and abs(value) < 1 << 63 else None


def _seconds(value: object) -> float | None:
    return value if isinstance(value, float) and math.isfinite(value) else None


def _length(entry: Entry | None, key: str) -> int | None:
    value = entry and entry.get(key)
    return len(value) if isinstance(value, list) else None
