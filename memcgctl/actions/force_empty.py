"""Have the kernel reclaim all it can of a cgroup v1 memcg (``memory.force_empty``)."""

from __future__ import annotations

from memcgctl.actions.host.machine import ActionError, Guard, Machine, Outcome, predict
from memcgctl.actions.host.target import open_cgroup, write_at
from memcgctl.model import Step

__all__ = ["apply", "predict", "probe"]


def probe(machine: Machine) -> str | None:
    if machine.cgroup1 is None:
        return "only cgroup v1 has it"
    if machine.cgroup1.read_only:
        return f"{machine.cgroup1.point} is mounted read-only"
    return machine.lacks("dac_override")


def apply(step: Step, machine: Machine, guard: Guard) -> Outcome:
    """Write to the file, once."""
    aim = step.aim
    with open_cgroup(aim.memcg_id or 0, aim.memcg_path or "", machine) as directory:
        try:
            write_at(directory, "memory.force_empty", "0")
        except OSError as error:
            raise ActionError(
                f"{aim.memcg_path}: memory.force_empty: {error.strerror}"
            ) from error
    return Outcome(None)
