"""Let go of the writeback of memcgs that are offline (``struct bdi_writeback``).

What is dirty is written; then a memcg that goes offline has the kernel hand the clean
inodes of dead writebacks to living ones (``cleanup_offline_cgwbs_workfn``, 5.14+).
"""

from __future__ import annotations

import os

from memcgctl.actions import helper
from memcgctl.actions.machine import Guard, Machine, Outcome, predict
from memcgctl.model import Step

__all__ = ["apply", "predict", "probe"]


def probe(machine: Machine) -> str | None:
    if machine.cgroup2 is None or machine.cgroup1 is not None:
        return "only cgroup v2 has writeback by cgroup"
    return helper.probe(machine)


def apply(step: Step, machine: Machine, guard: Guard) -> Outcome:
    """Sync all file systems, then make and remove an empty cgroup."""
    os.sync()
    helper.use(machine)
    return Outcome(None)
