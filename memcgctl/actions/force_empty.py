"""Have the kernel reclaim all it can of a cgroup v1 memcg (``memory.force_empty``)."""

from __future__ import annotations

from memcgctl.actions.host.machine import ActionError, Guard, Machine, Outcome, aim
from memcgctl.actions.host.target import open_cgroup, write_at
from memcgctl.model import CgroupTarget, Step

NAME = "memory.force_empty"


def probe(machine: Machine) -> str | None:
    if machine.cgroup1 is None:
        return "only cgroup v1 has it"
    if machine.cgroup1.read_only:
        return f"{machine.cgroup1.point} is mounted read-only"
    return machine.lacks("dac_override")


def apply(step: Step, machine: Machine, guard: Guard) -> Outcome:
    """Write to the file, once."""
    target = aim(step, CgroupTarget)
    with open_cgroup(target.memcg_id, target.memcg_path, machine) as directory:
        try:
            write_at(directory, "memory.force_empty", "0")
        except OSError as error:
            raise ActionError(
                f"{target.memcg_path}: memory.force_empty: {error.strerror}"
            ) from error
    return Outcome(None)
