"""Let go of the writeback of memcgs that are offline (``struct bdi_writeback``).

What is dirty is written; then a memcg that goes offline has the kernel hand the clean
inodes of dead writebacks to living ones (``cleanup_offline_cgwbs_workfn``, 5.14+).
"""

from __future__ import annotations

from memcgctl.actions.host import helper
from memcgctl.actions.host.machine import Guard, Machine, Outcome, aim
from memcgctl.actions.host.sync import sync_disks
from memcgctl.model import HostTarget, Step

NAME = "writeback-cleanup"


def probe(machine: Machine) -> str | None:
    if machine.cgroup2 is None or machine.cgroup1 is not None:
        return "only cgroup v2 has writeback by cgroup"
    return helper.probe(machine)


def apply(step: Step, machine: Machine, guard: Guard) -> Outcome:
    """Sync the disks that have such writeback, then make and remove an empty cgroup.

    No file system without a disk has writeback by cgroup (``SB_I_CGROUPWB``).
    """
    left = sync_disks(machine, guard, aim(step, HostTarget).devices)
    guard.note("making and removing a memcg", "")
    helper.use(machine)
    return Outcome(None, "; ".join(left))
