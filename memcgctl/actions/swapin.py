"""Bring back what a process has in swap, charged to the memcg that it is in.

Each swapped page is faulted in from outside by a child of ours. A swap entry whose
memcg is offline is charged anew at that: for swap on a device, to the memcg of whoever
reads (``__read_swap_cache_async``; before 5.14 to the root), so the child joins that
of the process.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from memcgctl.actions.host import freezer, measure, pages
from memcgctl.actions.host.machine import (
    ENDED,
    ActionError,
    Guard,
    Machine,
    Outcome,
    aim,
    no_room,
)
from memcgctl.actions.host.pages import U64
from memcgctl.actions.host.reader import reader
from memcgctl.actions.host.target import alive, cgroup_of, hold
from memcgctl.model import ProcessTarget, Step

_WINDOW = 256

NAME = "swapin"


def probe(machine: Machine) -> str | None:
    return machine.lacks_swap() or machine.lacks("sys_ptrace")


def apply(step: Step, machine: Machine, guard: Guard) -> Outcome:
    """Fault in all addresses in swap, a megabyte between two looks at the guard."""
    process = aim(step, ProcessTarget).process
    with hold(process, machine):
        directory = cgroup_of(alive(process), machine)
        assert machine.cgroup
        freezer.must_run(str(directory).removeprefix(machine.cgroup.point), machine)
        at, size = _swapped(alive(process), machine)
        guard.afford(size, step.target)
        _must_fit(size, directory, step, machine)
        ended = not _touch(alive(process), at, directory, machine, guard)
        _, left = _swapped(alive(process), machine)
    why = ENDED if ended else f"{left} bytes stay in swap" if left else ""
    return Outcome(max(0, size - left), why)


def _must_fit(size: int, directory: Path, step: Step, machine: Machine) -> None:
    """All that it has in swap comes back, which can be more than the plan tells."""
    if not size:
        return
    if why := no_room(size, machine, swap=False):
        raise ActionError(f"{step.target}: {size} bytes in swap, {why}")
    assert machine.cgroup
    path = str(directory).removeprefix(machine.cgroup.point)
    room = measure.room(path, machine, swap=False)
    if not step.over_limit and (why := room.lacks(size) or room.unread):
        raise ActionError(f"{step.target} has {size} bytes in swap: {why}")


def _touch(pid: int, at: U64, directory: Path, machine: Machine, guard: Guard) -> bool:
    """Have a child fault these addresses in; False: the guard ended it."""
    cpu, home = min(os.sched_getaffinity(0)), cgroup_of(os.getpid(), machine)
    procs = (str(one / "cgroup.procs") for one in (directory, home))
    with reader("touch", str(pid), *procs, str(cpu), str(machine.page_size)) as read:
        for first in range(0, len(at), _WINDOW):
            window = at[first : first + _WINDOW]
            if not guard.allows(len(window) * machine.page_size):
                return False
            read(window)
    return True


def _swapped(pid: int, machine: Machine) -> tuple[U64, int]:
    """Where a process has what is in swap, and how many bytes that is.

    Of shmem also what is in memory and it has not touched yet, which costs nothing.
    """
    found: list[U64] = [pages.NONE]
    size = 0
    for area in pages.areas(pid, machine):
        if area.swapped_bytes:
            size += area.swapped_bytes
            for at, values in pages.entries(pid, area, machine):
                found.append(at[pages.swapped(values)])
            found.append(pages.absent(pid, area, machine))
    return np.concatenate(found), size
