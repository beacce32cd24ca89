"""A CPU's stock of charges: another memcg charges memory there."""

from __future__ import annotations

import re

from memcgctl.model import CpuTarget
from memcgctl.policy.cases import Part
from memcgctl.policy.commands import quote
from memcgctl.policy.effects import Effect
from memcgctl.policy.interfaces.base import (
    Action,
    Interface,
    Move,
    Reach,
    Served,
    cannot,
)
from memcgctl.policy.interfaces.context import PlanContext

_CPU = re.compile(r"CPU (\d+):")


def reach(part: Part, context: PlanContext) -> Reach:
    if why := context.no_cgroup():
        return cannot(part, why)
    cpu = _CPU.match(part.holder.detail) if part.holder else None
    if not cpu:
        return cannot(part, "its CPU is not known")
    return Reach(Effect(part, "evict"), (Move(CpuTarget(int(cpu[1])), 0),))


def action(target: CpuTarget, served: Served, context: PlanContext) -> Action:
    return Action(
        target,
        f"CPU {target.cpu}",
        command(target.cpu, context.mount),
        "none that is known",
    )


def command(cpu: int, mount: str) -> str:
    """Have another memcg's process charge memory on a CPU, which takes the stock."""
    return (
        f"d=$(mktemp -d {quote(mount)}/memcgctl.XXXXXX) && {{ "
        f"""taskset -c {cpu} sh -c 'echo $$ > "$1/cgroup.procs"; exec true' - "$d"; """
        'rmdir "$d"; }'
    )


INTERFACE = Interface(
    name="charge-on-cpu",
    does="has a CPU drop what it charged ahead",
    harm=120,
    options=("evict",),
    cases=("stock",),
    needs=(),
    seen=("5.10", "6.1", "6.12", "6.18", "7.0"),
    requires="root, taskset of util-linux",
    effect="nobody is charged",
    touches="nothing",
    cannot="nothing that a stock is",
    reach=reach,
    action=action,
)
