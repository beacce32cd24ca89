"""Have a CPU's charge stock name another memcg (``struct memcg_stock_pcp``).

A process of another memcg charges memory on that CPU. Up to 6.15 a stock is for one
memcg, so that the old one is let go of. Since 6.16 it is for seven, which all go when
the other memcg does and has pages in it (``drain_stock_fully``): that passes by a stock
that was used up (``drain_all_stock``), where the next memcg takes its place.
"""

from __future__ import annotations

import time

from memcgctl.actions.host import helper, lru
from memcgctl.actions.host.machine import (
    ActionError,
    Guard,
    Machine,
    Outcome,
    aim,
)
from memcgctl.actions.host.thresholds import count_zombies
from memcgctl.model import CpuTarget, Step

_TRIES = 3
_GONE_WITHIN = 1.0

NAME = "charge-on-cpu"


def probe(machine: Machine) -> str | None:
    return helper.probe(machine)


def apply(step: Step, machine: Machine, guard: Guard) -> Outcome:
    """Charge a megabyte on the CPU, in a memcg that is gone afterwards."""
    cpu = aim(step, CpuTarget).cpu
    if cpu not in machine.cpus:
        raise ActionError(f"CPU {cpu} is offline")
    for _ in range(_TRIES):
        before = count_zombies(machine).count
        guard.note(f"making a memcg and charging it on CPU {cpu}", "")
        helper.use(machine, cpu)
        lru.drain(machine)  # its pages wait there still, on 6.18, and keep it
        if not step.frees or before is None or _fewer(before, machine):
            break
    return Outcome(None)


def _fewer(before: int, machine: Machine) -> bool:
    """Whether there are fewer zombies now; they go asynchronously."""
    deadline = time.monotonic() + _GONE_WITHIN
    while (now := count_zombies(machine).count) is None or now >= before:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
