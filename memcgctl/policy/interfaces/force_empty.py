"""What cannot be aimed: an ancestor's memory.force_empty (cgroup v1)."""

from __future__ import annotations

from memcgctl.model import CgroupTarget
from memcgctl.policy.commands import quote
from memcgctl.policy.interfaces.base import (
    AFTER_SWAPIN,
    FILES,
    SWAP_BACKED,
    Action,
    Interface,
    Served,
)
from memcgctl.policy.interfaces.common import all_below, reach_ancestor
from memcgctl.policy.interfaces.context import PlanContext


def action(target: CgroupTarget, served: Served, context: PlanContext) -> Action:
    return Action(
        target,
        target.memcg_path,
        command(context.directory(target.memcg_id)),
        "it takes all it can of everybody below",
    )


def command(directory: str) -> str:
    return f"echo > {quote(f'{directory}/memory.force_empty')}"


INTERFACE = Interface(
    name="memory.force_empty",
    does="evicts all it can below an ancestor",
    harm=160,
    options=("evict",),
    cases=(*FILES, *SWAP_BACKED, "metadata"),
    needs=("memory.force_empty",),
    seen=("5.10", "6.1"),
    requires="root, cgroup v1; swap for what is not a file's",
    effect="what is swapped out is charged to the nearest online ancestor",
    touches="all memory at or below the ancestor",
    cannot="locked and pinned pages; the root has no such file",
    reach=reach_ancestor,
    action=action,
    collateral=all_below,
    targeted=False,
    rank=AFTER_SWAPIN,
)
