"""What cannot be aimed: an ancestor's memory.reclaim."""

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
    size = sum(moved for _, moved in served)
    return Action(
        target,
        target.memcg_path,
        command(context.directory(target.memcg_id), size),
        "it takes what is coldest, whoever's it is",
    )


def command(directory: str, size_bytes: int) -> str:
    return f"echo {size_bytes} > {quote(f'{directory}/memory.reclaim')}"


INTERFACE = Interface(
    name="memory.reclaim",
    does="evicts the coldest below an ancestor",
    harm=150,
    options=("evict",),
    cases=(*FILES, *SWAP_BACKED, "metadata"),
    needs=("memory.reclaim",),
    seen=("6.1", "6.12", "7.3"),
    requires="write access to the cgroup; swap for what is not a file's",
    effect="what is swapped out is charged to the nearest online ancestor's swap",
    touches="everybody's memory at or below the ancestor, the coldest first",
    cannot="locked and pinned pages",
    reach=reach_ancestor,
    action=action,
    collateral=all_below,
    targeted=False,
    rank=AFTER_SWAPIN,
)
