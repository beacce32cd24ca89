"""Drop the clean, unmapped page cache of one file (``POSIX_FADV_DONTNEED``).

Dirty data is written first. Takes whatever the file has in memory, whoever is charged
for it; mapped and locked pages stay.
"""

from __future__ import annotations

import os

from memcgctl.actions.host.libc import Mapping
from memcgctl.actions.host.machine import (
    ENDED,
    ActionError,
    Guard,
    Machine,
    Outcome,
    aim,
)
from memcgctl.actions.host.target import open_file, windows, words
from memcgctl.model import FileTarget, Step

_WINDOW = 64 << 20
# Of a larger file, holes are not looked at one by one.
_LARGE = 256 << 30

NAME = "fadvise"


def probe(machine: Machine) -> str | None:
    return machine.lacks("dac_read_search")


def apply(step: Step, machine: Machine, guard: Guard) -> Outcome:
    """Write and forget the file, window by window; what is mapped stays."""
    target = aim(step, FileTarget)
    file = target.file
    moved, left, told = 0, 0, True
    guard.note(f"opening {words(file)}", file.device)
    with open_file(file, target.users, machine) as fd:
        # A read that met the end of the file can have left a page beyond it.
        size = os.fstat(fd).st_size + machine.page_size
        guard.note(f"writing {words(file)}", file.device)
        try:
            # In one go: an error would be told to the first window only.
            os.fsync(fd)
        except OSError as error:
            raise ActionError(f"{words(file)}: writing: {error.strerror}") from error
        large = size > _LARGE
        for offset in windows(fd, size, _WINDOW) if large else range(0, size, _WINDOW):
            length = min(_WINDOW, size - offset)
            before = _resident(fd, offset, length, machine)
            most = length if before is None else before
            if not guard.allows(most):
                return Outcome(moved, ENDED)
            # Forgotten even so: of a page that was written in part, where blocks are
            # smaller than pages, mincore tells nothing, as it is not up to date.
            if guard.most is not None and moved + most > guard.most:
                return Outcome(moved, "the rest is more than --max-bytes leaves")
            os.posix_fadvise(fd, offset, length, os.POSIX_FADV_DONTNEED)
            after = _resident(fd, offset, length, machine)
            if before is None or after is None:
                told = False
            else:
                moved, left = moved + before - after, left + after
        if large:  # what was read of holes
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    if not told:
        return Outcome(None, "how much of it stays in memory cannot be read")
    # The plan may know of mapped pages, and not have meant these.
    short = left and moved < step.bytes
    return Outcome(moved, f"{left} bytes stay in memory" if short else "")


def _resident(fd: int, offset: int, length: int, machine: Machine) -> int | None:
    """Bytes of part of a file that are in memory, by ``mincore``; None: not told."""
    try:
        with Mapping(fd, offset, length) as mapping:
            return sum(mapping.resident(machine.page_size)) * machine.page_size
    except OSError:  # a file system without mmap
        return None
