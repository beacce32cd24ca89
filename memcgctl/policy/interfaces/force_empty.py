"""What cannot be aimed: an ancestor's memory.force_empty (cgroup v1)."""

from __future__ import annotations

from collections.abc import Hashable
from typing import cast

from memcgctl.policy.commands import quote
from memcgctl.policy.interfaces.base import (
    FILES,
    SWAP_BACKED,
    Action,
    Interface,
    Served,
)
from memcgctl.policy.interfaces.common import all_below, reach_ancestor
from memcgctl.policy.interfaces.world import World


def action(key: Hashable, served: Served, world: World) -> Action:
    ancestor = cast("int", key)
    return Action(
        world.aim_at(ancestor),
        world.room.path(ancestor),
        command(world.directory(ancestor)),
        "it takes all it can of everybody below",
    )


def command(directory: str) -> str:
    return f"echo > {quote(f'{directory}/memory.force_empty')}"


INTERFACE = Interface(
    name="memory.force_empty",
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
    aimed=False,
)
