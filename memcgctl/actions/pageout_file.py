"""Page out a tmpfs file, memfd or SysV segment through a mapping of our own.

Only what is in memory (``mincore``) is touched, so that holes stay holes and what is
in swap stays there; then MADV_PAGEOUT. A window at a time is mapped.
"""

from __future__ import annotations

import ctypes
import os

import numpy as np

from memcgctl.actions import lru, pages
from memcgctl.actions.libc import MADV_PAGEOUT, Mapping
from memcgctl.actions.machine import (
    ENDED,
    Guard,
    Machine,
    Outcome,
    predict,
)
from memcgctl.actions.pages import U64
from memcgctl.actions.target import open_file
from memcgctl.model import Step

__all__ = ["apply", "predict", "probe"]

_WINDOW = 16 << 20


def probe(machine: Machine) -> str | None:
    if not machine.swap_total_bytes:
        return "no swap is switched on"
    return machine.lacks("dac_read_search", "dac_override", "sys_admin")


def apply(step: Step, machine: Machine, guard: Guard) -> Outcome:
    """Page the file out, window by window; what stays is what others map or lock."""
    file = step.aim.file
    assert file
    moved, left, why = 0, 0, ""
    waiting: list[int] = []
    with open_file(file, step.aim.processes, machine) as fd:
        size = os.fstat(fd).st_size
        for offset in range(0, size, _WINDOW):
            with Mapping(fd, offset, min(_WINDOW, size - offset)) as mapping:
                frames = _touch(mapping, machine)
                there = len(frames) * machine.page_size
                if not there:
                    continue
                if not guard.allows(there):
                    why = ENDED
                    break
                lru.drain(machine)
                mapping.advise(MADV_PAGEOUT)
                cached = frames[pages.flagged(frames, pages.SWAPCACHE, machine)]
                waiting += cached.tolist()
                # mincore has what is in the swap cache, too.
                rest = sum(mapping.resident(machine.page_size)) * machine.page_size
                moved += there - rest
                left += max(0, rest - len(cached) * machine.page_size)
    why = why or (f"{left} bytes stay in memory" if left else "")
    return Outcome(moved, why, tuple(waiting))


def _touch(mapping: Mapping, machine: Machine) -> U64:
    """Map what is in memory, and say in which page frames it is."""
    size = machine.page_size
    for page, resident in enumerate(mapping.resident(size)):
        if resident:
            ctypes.string_at(mapping.address + page * size, 1)
    area = pages.Area.of(mapping.address, mapping.size)
    found = [values for _, values in pages.entries(os.getpid(), area, machine)]
    frames = pages.frames(np.concatenate([pages.NONE, *found]))
    present: U64 = frames[frames != 0]
    return present
