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
    meminfo,
)
from memcgctl.actions.host.pages import U64
from memcgctl.actions.host.target import open_file, windows, words
from memcgctl.model import FileTarget, Step

_WINDOW = 16 << 20


def probe(machine: Machine) -> str | None:
    if not machine.swap_total_bytes:
        return "no swap is switched on"
    return machine.lacks("dac_read_search", "dac_override", "sys_admin")


def apply(step: Step, machine: Machine, guard: Guard) -> Outcome:
    """Page the file out, window by window; what stays is what others map or lock."""
    target = aim(step, FileTarget)
    moved, left, why = 0, 0, ""
    waiting: list[int] = []
    guard.note(f"opening {words(target.file)}", target.file.device)
    with open_file(target.file, target.users, machine) as fd:
        size = os.fstat(fd).st_size
        for offset in windows(fd, size, _WINDOW):
            with Mapping(fd, offset, min(_WINDOW, size - offset)) as mapping:
                frames = _touch(mapping, machine)
                there = len(frames) * machine.page_size
                if not guard.allows(there):
                    why = ENDED
                    break
                if not there:
                    continue
                done = moved + len(waiting) * machine.page_size
                if why := _cannot(there, done, machine, guard):
                    break
                cached = _page_out(mapping, frames, machine)
                if len(cached) and not swapcache.can_be_asked(
                    machine, unaimed=target.unaimed
                ):
                    swapcache.use_up_slots(machine)
                    cached = _page_out(mapping, _touch(mapping, machine), machine)
                waiting += cached.tolist()
                # mincore has what is in the swap cache, too.
                rest = sum(mapping.resident(machine.page_size)) * machine.page_size
                moved += there - rest
                left += max(0, rest - len(cached) * machine.page_size)
    why = why or (f"{left} bytes stay in memory" if left else "")
    return Outcome(moved, why, tuple(waiting))


def _page_out(mapping: Mapping, frames: U64, machine: Machine) -> U64:
    """Page these frames out; those that are in the swap cache then."""
    lru.drain(machine)
    mapping.advise(MADV_PAGEOUT)
    cached: U64 = frames[pages.flagged(frames, pages.SWAPCACHE, machine)]
    return cached


def _cannot(size: int, moved: int, machine: Machine, guard: Guard) -> str:
    """Why no more is paged out; the file may have more in memory than was planned."""
    if guard.most is not None and moved + size > guard.most:
        return "the rest is more than --max-bytes leaves"
    free = meminfo(machine.proc).get("SwapFree", size)
    return "no room in swap" if free < size else ""


def _touch(mapping: Mapping, machine: Machine) -> U64:
    """Map what is in memory, and say in which page frames it is.

    The kernel reads for us: where the file has been truncated meanwhile that is an
    error, and no SIGBUS.
    """
    size = machine.page_size
    memory = os.open(machine.proc / "self/mem", os.O_RDONLY | os.O_CLOEXEC)
    try:
        for page, resident in enumerate(mapping.resident(size)):
            if resident:
                with suppress(OSError):
                    os.pread(memory, 1, mapping.address + page * size)
    finally:
        os.close(memory)
    area = pages.Area.of(mapping.address, mapping.size)
    found = [values for _, values in pages.entries(os.getpid(), area, machine)]
    frames = pages.frames(np.concatenate([pages.NONE, *found]))
    present: U64 = frames[frames != 0]
    return present
