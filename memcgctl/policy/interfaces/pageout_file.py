"""Shmem that nobody maps: the file is mapped, then MADV_PAGEOUT."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from memcgctl.model import FileTarget
from memcgctl.policy.cases import Part, movable
from memcgctl.policy.interfaces.base import (
    AFTER_SWAPIN,
    Action,
    Interface,
    Reach,
    Served,
    cannot,
)
from memcgctl.policy.interfaces.common import (
    backing_of,
    evicted,
    file_words,
    group_of,
    only,
    rest_of_file,
    waits_in_swap_cache,
)
from memcgctl.policy.interfaces.world import World

_RECLAIMED = (
    "; what a disk has not written at once is left to memory.reclaim, which takes more "
    "than it is asked for"
)


def reach(part: Part, world: World) -> Reach:
    backing, group = backing_of(part), part.group
    assert group
    if backing is None or group.kind != "shmem":
        # Or its file was truncated, and somebody has it still.
        _, why = movable(group)
        return cannot(part, why or "it is in the swap cache")
    if not world.leads_to(backing):
        return cannot(part, "no path leads to its file")
    reach = evicted(part, world.file(backing), world)
    if reach.deeds and (why := waits_in_swap_cache(part, world)):
        return cannot(part, why)
    return reach._replace(unaimed=world.untargeted(world.room.ancestor(part.memcg)))


def action(target: FileTarget, served: Served, world: World) -> Action:
    backing = group_of(served).backing
    assert backing
    asked = world.asked(*_ancestors(served, world))
    return Action(
        replace(target, file=backing, unaimed=asked.unaimed),
        file_words(backing),
        only("pageout-file", served),
        "whoever reads it next waits for the swap device"
        + (_RECLAIMED if asked.directories else ""),
    )


def _ancestors(served: Served, world: World) -> list[int]:
    return [world.room.ancestor(part.memcg) for part, _ in served]


def collateral(target: FileTarget, served: Served, world: World) -> int:
    asked = _in_reach(_ancestors(served, world), world)
    return rest_of_file(target, served, world) + asked


def _in_reach(ancestors: Iterable[int], world: World) -> int:
    return world.asked(*ancestors).in_reach


INTERFACE = Interface(
    name="pageout-file",
    options=("evict",),
    cases=("swap-backed-unmapped",),
    needs=("pageout",),
    seen=("5.10", "6.1", "6.12", "6.18", "7.0", "7.3"),
    requires="root or the file's owner, Python 3.8, swap",
    effect="the nearest online ancestor is charged for the swap",
    touches="what others are charged for of the same file",
    cannot="locked and pinned pages, a tmpfs mounted with noswap; what a disk has "
    "not written at once stays in the swap cache where there is no memory.reclaim",
    reach=reach,
    action=action,
    collateral=collateral,
    whole=_in_reach,
    rank=AFTER_SWAPIN,
)
