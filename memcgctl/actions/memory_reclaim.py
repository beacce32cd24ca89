"""Ask the kernel to reclaim from a memcg and all below it (``memory.reclaim``, 5.19+).

It takes what is coldest, whoever's it is.
"""

from __future__ import annotations

import errno

from memcgctl.actions.host.machine import (
    ENDED,
    ActionError,
    Guard,
    Machine,
    Outcome,
    aim,
)
from memcgctl.actions.host.target import open_cgroup, write_at
from memcgctl.model import CgroupTarget, Step

_WINDOW = 16 << 20

NAME = "memory.reclaim"


def probe(machine: Machine) -> str | None:
    if machine.cgroup2 is None or machine.cgroup1 is not None:
        return "only cgroup v2 has it"
    if machine.cgroup2.read_only:
        return f"{machine.cgroup2.point} is mounted read-only"
    return machine.lacks("dac_override")


def apply(step: Step, machine: Machine, guard: Guard) -> Outcome:
    """Ask for the step's bytes and no more, in windows, until the kernel gives up."""
    target = aim(step, CgroupTarget)
    asked, why = 0, ""
    with open_cgroup(target.memcg_id, target.memcg_path, machine) as directory:
        while asked < step.bytes:
            size = min(_WINDOW, step.bytes - asked)
            if not guard.allows(size):
                why = ENDED
                break
            try:
                write_at(directory, "memory.reclaim", str(size))
            except OSError as error:
                if error.errno != errno.EAGAIN:
                    raise ActionError(
                        f"{target.memcg_path}: memory.reclaim: {error.strerror}"
                    ) from error
                why = "the kernel found less to reclaim than asked"
                break
            asked += size
    return Outcome(asked, why)
