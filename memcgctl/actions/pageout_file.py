"""Page out a tmpfs file, memfd or SysV segment through a mapping of our own.

Only what is in memory (``mincore``) is touched, so that holes stay holes and what is
in swap stays there; then MADV_PAGEOUT. A window at a time is mapped.
"""

from __future__ import annotations

import os
from contextlib import suppress

import numpy as np

from memcgctl.actions.host import lru, pages, swapcache
from memcgctl.actions.host.libc import MADV_PAGEOUT, Mapping
from memcgctl.actions.host.machine import (
    ENDED,
    Guard,
    Machine,
    Outcome,
    aim,
    no_room,
)
from memcgctl.actions.host.pages import U64, Bools
from memcgctl.actions.host.target import open_file, windows, words
from memcgctl.model import FileTarget, Step

_WINDOW = 16 << 20

NAME = "pageout-file"


def probe(machine: Machine) -> str | None:
    return machine.lacks_swap() or machine.lacks(
        "dac_read_search", "dac_override", "sys_admin"
    )


def apply(
    step: Step, machine: Machine, guard: Guard, kept: U64 = pages.NONE
) -> Outcome:
    """Page the file out, window by window; what stays is what others map or lock.

    ``kept`` are the offsets of pages that are not meant.
    """
    target = aim(step, FileTarget)
    moved, left, why = 0, 0, ""
    waiting: list[int] = []
    guard.note(f"opening {words(target.file)}", target.file.device)
    with open_file(target.file, target.users, machine) as fd:
        size = os.fstat(fd).st_size
        full = _is_full(fd)
        for offset in range(0, size, _WINDOW) if full else windows(fd, size, _WINDOW):
            with Mapping(fd, offset, min(_WINDOW, size - offset)) as mapping:
                meant = _meant(mapping, offset, kept, machine)
                if full:
                    _touch_reserved(fd, offset, mapping, meant, machine)
                frames = _touch(mapping, meant, machine)
                there = len(frames) * machine.page_size
                if not guard.allows(there):
                    why = ENDED
                    break
                if not there:
                    continue
                done = moved + len(waiting) * machine.page_size
                if why := _cannot(there, done, machine, guard):
                    break
                cached = _page_out(mapping, meant, frames, machine)
                if len(cached) and not swapcache.can_be_asked(
                    machine, untargeted=target.untargeted
                ):
                    swapcache.use_up_slots(machine)
                    frames = _touch(mapping, meant, machine)
                    cached = _page_out(mapping, meant, frames, machine)
                waiting += cached.tolist()
                # mincore has what is in the swap cache, too.
                rest = (
                    int((_resident(mapping, machine) & meant).sum()) * machine.page_size
                )
                moved += there - rest
                left += max(0, rest - len(cached) * machine.page_size)
    why = why or (f"{left} bytes stay in memory" if left else "")
    return Outcome(moved, why, tuple(waiting))


def _meant(mapping: Mapping, offset: int, kept: U64, machine: Machine) -> Bools:
    """Which pages of the mapping are to go."""
    size = machine.page_size
    result: Bools = ~np.isin(np.arange(offset, offset + mapping.size, size), kept)
    return result


def _is_full(fd: int) -> bool:
    """Whether the file has no holes: each of its pages is in memory or in swap."""
    status = os.fstat(fd)
    return 512 * status.st_blocks >= status.st_size


def _touch_reserved(
    fd: int, offset: int, mapping: Mapping, meant: Bools, machine: Machine
) -> None:
    """Read what a full file has no data for, which fills it with zeros.

    What fallocate(2) has reserved is charged, but neither mincore(2) nor SEEK_DATA
    tells it from a hole.
    """
    size = machine.page_size
    data = pages.with_data(fd, offset, offset + mapping.size, machine)
    rest = meant.copy()
    rest[((data - np.uint64(offset)) // np.uint64(size)).astype(np.intp)] = False
    _read(mapping, rest, machine)


def _resident(mapping: Mapping, machine: Machine) -> Bools:
    result: Bools = np.frombuffer(mapping.resident(machine.page_size), np.bool_)
    return result


def _page_out(mapping: Mapping, meant: Bools, frames: U64, machine: Machine) -> U64:
    """Page out what is meant; which of its frames are in the swap cache then."""
    lru.drain(machine)
    size = machine.page_size
    addresses = np.flatnonzero(meant).astype(np.uint64) * np.uint64(size)
    for start, length in pages.runs(addresses, size, _WINDOW):
        mapping.advise(MADV_PAGEOUT, start, length)
    cached: U64 = frames[pages.flagged(frames, pages.SWAPCACHE, machine)]
    return cached


def _cannot(size: int, moved: int, machine: Machine, guard: Guard) -> str:
    """Why no more is paged out; the file may have more in memory than was planned."""
    if guard.most is not None and moved + size > guard.most:
        return "the rest is more than --max-bytes leaves"
    return "" if guard.make_room else no_room(size, machine, swap=True)


def _touch(mapping: Mapping, meant: Bools, machine: Machine) -> U64:
    """Map what is meant and in memory, and say in which page frames it is."""
    size = machine.page_size
    _read(mapping, _resident(mapping, machine) & meant, machine)
    area = pages.Area.of(mapping.address, mapping.size)
    found = [pages.NONE]
    for addresses, values in pages.entries(os.getpid(), area, machine):
        indexes = (addresses - np.uint64(mapping.address)) // np.uint64(size)
        found.append(pages.frames(values[meant[indexes.astype(np.intp)]]))
    frames = np.concatenate(found)
    present: U64 = frames[frames != 0]
    return present


def _read(mapping: Mapping, meant: Bools, machine: Machine) -> None:
    """Have the kernel read a byte of each page for us.

    Where the file has been truncated meanwhile that is an error, and no SIGBUS.
    """
    memory = os.open(machine.proc / "self/mem", os.O_RDONLY | os.O_CLOEXEC)
    try:
        for page in np.flatnonzero(meant).tolist():
            with suppress(OSError):
                os.pread(memory, 1, mapping.address + page * machine.page_size)
    finally:
        os.close(memory)
