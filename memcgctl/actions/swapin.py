"""Bring back what a process has in swap, charged to the memcg that it is in.

Each swapped page is faulted in from outside by a child of ours. A swap entry whose
memcg is offline is charged anew at that: for swap on a device, to the memcg of whoever
reads (``__read_swap_cache_async``; before 5.14 to the root), so the child joins that
of the process.
"""

from __future__ import annotations

import os
import select
import struct
import subprocess
from contextlib import suppress
from pathlib import Path

import numpy as np

from memcgctl.actions import helper, measure, pages
from memcgctl.actions.machine import (
    ENDED,
    ActionError,
    Guard,
    Machine,
    Outcome,
    meminfo,
    predict,
)
from memcgctl.actions.pages import U64
from memcgctl.actions.target import cgroup_of, hold
from memcgctl.model import Step

__all__ = ["apply", "predict", "probe"]

_WINDOW = 256
_PATIENCE = 30.0


def probe(machine: Machine) -> str | None:
    if not machine.swap_total_bytes:
        return "no swap is switched on"
    return machine.lacks("sys_ptrace")


def apply(step: Step, machine: Machine, guard: Guard) -> Outcome:
    """Fault in all addresses in swap, a megabyte between two looks at the guard."""
    (process,) = step.aim.processes
    with hold(process, machine):
        at = _swapped(process.pid, machine)
        directory = cgroup_of(process.pid, machine)
        size = len(at) * machine.page_size
        guard.afford(size, step.target)
        _must_fit(size, directory, step, machine)
        ended = not _touch(process.pid, at, directory, machine, guard)
        left = len(_swapped(process.pid, machine)) * machine.page_size
    why = ENDED if ended else f"{left} bytes stay in swap" if left else ""
    return Outcome(max(0, len(at) * machine.page_size - left), why)


def _must_fit(size: int, directory: Path, step: Step, machine: Machine) -> None:
    """All that it has in swap comes back, which can be more than the plan tells."""
    if not size:
        return
    if meminfo(machine.proc).get("MemAvailable", size) < size:
        raise ActionError(f"{step.target}: {size} bytes in swap, no room in memory")
    assert machine.cgroup
    path = str(directory).removeprefix(machine.cgroup.point)
    left = measure.room(path, machine, swap=False)
    if left is not None and left[0] < size and not step.over_limit:
        raise ActionError(
            f"{step.target} has {size} bytes in swap: {left[1]} would be pushed over "
            "a limit"
        )


def _touch(pid: int, at: U64, directory: Path, machine: Machine, guard: Guard) -> bool:
    """Have a child fault these addresses in; False: the guard ended it."""
    cpu = min(os.sched_getaffinity(0))
    words = str(pid), str(directory / "cgroup.procs"), str(cpu), str(machine.page_size)
    child = subprocess.Popen(
        helper.command("touch", *words),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # a Ctrl-C is for us alone
    )
    try:
        for first in range(0, len(at), _WINDOW):
            window = at[first : first + _WINDOW]
            if not guard.allows(len(window) * machine.page_size):
                return False
            tell(child, window)
        return True
    finally:
        finish(child)


def tell(child: subprocess.Popen[bytes], places: U64) -> None:
    """Have a child read at these places; ActionError if it does not."""
    assert child.stdin
    assert child.stdout
    assert child.stderr
    with suppress(BrokenPipeError):
        child.stdin.write(struct.pack("=Q", len(places)) + places.tobytes())
        child.stdin.flush()
        if not select.select([child.stdout], [], [], _PATIENCE)[0]:
            raise ActionError("the process that reads from swap hangs: is it frozen?")
        if child.stdout.read(1):
            return
    last = child.stderr.read().decode(errors="replace").strip().rpartition("\n")[2]
    raise ActionError(f"reading from swap: {last or 'the reader was killed'}")


def finish(child: subprocess.Popen[bytes]) -> None:
    """Let it end by itself, or else end it."""
    with suppress(BrokenPipeError):
        assert child.stdin
        child.stdin.close()
    try:
        child.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        child.kill()
        # One that cannot even be killed (v1 freezer) goes when it is let.
        with suppress(subprocess.TimeoutExpired):
            child.wait(_PATIENCE)
    for pipe in (child.stdout, child.stderr):
        assert pipe
        pipe.close()


def _swapped(pid: int, machine: Machine) -> U64:
    found: list[U64] = [pages.NONE]
    for area in pages.areas(pid, machine):
        if area.swapped_bytes:
            for at, values in pages.entries(pid, area, machine):
                found.append(at[pages.swapped(values)])
    return np.concatenate(found)
