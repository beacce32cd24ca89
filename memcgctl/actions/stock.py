"""Have a CPU's charge stock name another memcg (``struct memcg_stock_pcp``).

A process of another memcg charges memory on that CPU. Up to 6.15 a stock is for one
memcg, so that the old one is let go of.
"""

from __future__ import annotations

from memcgctl.actions import helper
from memcgctl.actions.machine import (
    ActionError,
    Guard,
    Machine,
    Outcome,
    predict,
)
from memcgctl.model import Step

__all__ = ["apply", "predict", "probe"]


def probe(machine: Machine) -> str | None:
    return helper.probe(machine)


def apply(step: Step, machine: Machine, guard: Guard) -> Outcome:
    """Charge a megabyte on the CPU, in a memcg that is gone afterwards."""
    cpu = step.aim.cpu
    if cpu not in machine.cpus:
        raise ActionError(f"CPU {cpu} is offline")
    helper.use(machine, cpu)
    return Outcome(None)
