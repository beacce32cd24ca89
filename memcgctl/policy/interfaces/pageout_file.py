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
from memcgctl.policy.interfaces.context import PlanContext

_RECLAIMED = (
    "; what a disk has not written at once is left to memory.reclaim, which takes more "
    "than it is asked for"
)


def reach(part: Part, context: PlanContext) -> Reach:
    backing, group = backing_of(part), part.group
    assert group
    if backing is None or group.kind != "shmem":
        # Or its file was truncated, and somebody has it still.
        _, why = movable(group)
        return cannot(part, why or "it is in the swap cache")
    if not context.leads_to(backing):
        return cannot(part, "no path leads to its file")
    reach = evicted(part, context.file(backing), context)
    if reach.moves and (why := waits_in_swap_cache(part, context)):
        return cannot(part, why)
    return reach._replace(
        untargeted=context.reclaim_untargeted(context.room.ancestor(part.memcg))
    )


def action(target: FileTarget, served: Served, context: PlanContext) -> Action:
    backing = group_of(served).backing
    assert backing
    asked = context.asked(*_ancestors(served, context))
    return Action(
        replace(target, file=backing, untargeted=asked.untargeted),
        file_words(backing),
        only("pageout-file", served),
        "whoever reads it next waits for the swap device"
        + (_RECLAIMED if asked.directories else ""),
    )


def _ancestors(served: Served, context: PlanContext) -> list[int]:
    return [context.room.ancestor(part.memcg) for part, _ in served]


def collateral(target: FileTarget, served: Served, context: PlanContext) -> int:
    asked = _in_reach(_ancestors(served, context), context)
    return rest_of_file(target, served, context) + asked


def _in_reach(ancestors: Iterable[int], context: PlanContext) -> int:
    return context.asked(*ancestors).collateral_bytes


INTERFACE = Interface(
    name="pageout-file",
    does="writes tmpfs files to swap",
    harm=70,
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
