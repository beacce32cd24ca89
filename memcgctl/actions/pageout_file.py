"""Page out a tmpfs file, memfd or SysV segment through a mapping of our own.

Only what is in memory (``mincore``) is touched, so that holes stay holes and what is
in swap stays there; then MADV_PAGEOUT. A window at a time is mapped.
"""

from __future__ import annotations

import ctypes
import os

from memcgctl.actions.libc import MADV_PAGEOUT, Mapping
from memcgctl.actions.machine import (
    ENDED,
    Guard,
    Machine,
    Outcome,
    predict,
)
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
    with open_file(file, step.aim.processes, machine) as fd:
        size = os.fstat(fd).st_size
        for offset in range(0, size, _WINDOW):
            with Mapping(fd, offset, min(_WINDOW, size - offset)) as mapping:
                there = _touch(mapping, machine)
                if not there:
                    continue
                if not guard.allows(there):
                    why = ENDED
                    break
                mapping.advise(MADV_PAGEOUT)
                rest = _resident(mapping, machine)
                moved, left = moved + there - rest, left + rest
    return Outcome(moved, why or (f"{left} bytes stay in memory" if left else ""))


def _touch(mapping: Mapping, machine: Machine) -> int:
    """Map what is in memory; bytes of it."""
    size = machine.page_size
    there = mapping.resident(size)
    for page, resident in enumerate(there):
        if resident:
            ctypes.string_at(mapping.address + page * size, 1)
    return sum(there) * size


def _resident(mapping: Mapping, machine: Machine) -> int:
    return sum(mapping.resident(machine.page_size)) * machine.page_size
