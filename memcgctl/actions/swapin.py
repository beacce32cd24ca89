"""Bring back what a process has in swap, as if it had touched it itself.

A byte of each swapped page is read through /proc/PID/mem. The kernel charges the memcg
of that process then if the swap entry's own memcg is offline.
"""

from __future__ import annotations

import os
from contextlib import suppress

from memcgctl.actions import pages
from memcgctl.actions.machine import (
    ENDED,
    ActionError,
    Guard,
    Machine,
    Outcome,
    predict,
)
from memcgctl.actions.target import hold
from memcgctl.model import Step

__all__ = ["apply", "predict", "probe"]

_WINDOW = 256


def probe(machine: Machine) -> str | None:
    if not machine.swap_total_bytes:
        return "no swap is switched on"
    return machine.lacks("sys_ptrace")


def apply(step: Step, machine: Machine, guard: Guard) -> Outcome:
    """Read all addresses in swap, a megabyte's worth between two looks at the guard."""
    (process,) = step.aim.processes
    with hold(process, machine):
        at = _swapped(process.pid, machine)
        try:
            memory = os.open(
                machine.proc / str(process.pid) / "mem", os.O_RDONLY | os.O_CLOEXEC
            )
        except OSError as error:
            raise ActionError(f"pid {process.pid}: {error.strerror}") from error
        ended = False
        try:
            for first in range(0, len(at), _WINDOW):
                window = at[first : first + _WINDOW]
                if not guard.allows(len(window) * machine.page_size):
                    ended = True
                    break
                for address in window:
                    with suppress(OSError):  # unmapped by now
                        os.pread(memory, 1, address)
        finally:
            os.close(memory)
        left = len(_swapped(process.pid, machine)) * machine.page_size
    why = ENDED if ended else f"{left} bytes stay in swap" if left else ""
    return Outcome(max(0, len(at) * machine.page_size - left), why)


def _swapped(pid: int, machine: Machine) -> list[int]:
    found: list[int] = []
    for area in pages.areas(pid, machine):
        if area.swapped_bytes:
            for at, values in pages.entries(pid, area, machine):
                found += at[pages.swapped(values)].tolist()
    return found
