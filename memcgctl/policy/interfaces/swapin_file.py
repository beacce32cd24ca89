"""Swap entries of a shmem file that nobody maps: it is read within the ancestor."""

from __future__ import annotations

from dataclasses import replace

from memcgctl.model import Backing, SwappedFileTarget
from memcgctl.policy.cases import Part
from memcgctl.policy.effects import Effect
from memcgctl.policy.interfaces.base import (
    SWAPIN,
    Action,
    Interface,
    Move,
    Reach,
    Served,
    cannot,
)
from memcgctl.policy.interfaces.common import WAITS, file_words, only, swapped_file
from memcgctl.policy.interfaces.context import Asked, PlanContext, identity


def reach(part: Part, context: PlanContext) -> Reach:
    backing = swapped_file(part)
    if backing is None:
        return cannot(part, "")
    if not context.leads_to(backing):
        return cannot(part, "a file's that no path leads to")
    if not context.room.ancestor(part.memcg):
        return cannot(part, "its ancestor is not in the census")
    here = context.census.kernel.interfaces
    payer = context.pays_for_files(part)
    if context.frozen(payer):
        return cannot(part, f"{context.room.path(payer)} is frozen")
    move = Move(_target(backing, payer, context), part.bytes, payer)
    own = context.census.kernel.cgroup_version == 2 and context.room.path(payer) != "/"
    if own and (why := context.no_cgroup(payer)):
        return cannot(part, why)
    if not _pages_out(payer, context):
        if context.stuck[part.memcg.id]:
            return cannot(part, "what is in the swap cache stays charged when read")
        charged = ((payer, part.bytes),)
        return Reach(Effect(part, "recharge-parent", charged=charged), (move,))
    if not context.census.kernel.swaps_at_once and "memory.reclaim" not in here:
        return cannot(part, WAITS)
    done = Effect(part, "recharge-parent", swapped_bytes=part.bytes)
    return Reach(done, (move,), context.reclaim_untargeted(payer))


def _pages_out(payer: int, context: PlanContext) -> bool:
    """Whether what was read has to go again.

    cgroup v2 has no processes where there are memcgs below, the root aside: it is read
    from within a memcg that is made for it, which up to 7.0 is a zombie until its
    folios are gone, whose swap the ancestor is charged for then.
    """
    kernel = context.census.kernel
    here = kernel.cgroup_version == 1 or context.room.path(payer) == "/"
    return not here and "folios go to the parent" not in kernel.interfaces


def _target(backing: Backing, payer: int, context: PlanContext) -> SwappedFileTarget:
    known = context.file(backing)
    return SwappedFileTarget(
        known.file,
        known.users,
        memcg_id=payer,
        memcg_path=context.room.path(payer),
        page_out=_pages_out(payer, context),
        # Another step pages that out, once the zombies have no entries any more.
        keep=bool(context.known.get(identity(backing))),
    )


def action(target: SwappedFileTarget, served: Served, context: PlanContext) -> Action:
    backing = swapped_file(served[0][0])
    assert backing
    again = target.page_out
    asked = context.asked(target.memcg_id) if again else Asked()
    return Action(
        replace(target, file=backing, untargeted=asked.untargeted),
        file_words(backing),
        only("swapin-file", served),
        "the file comes back to memory, and what lies beside it on a disk is read ahead"
        + (
            "; it is paged out again, by memory.reclaim if it waits in the swap cache, "
            "which takes more than it is asked for"
            if again
            else ""
        ),
    )


def collateral(target: SwappedFileTarget, served: Served, context: PlanContext) -> int:
    backing = swapped_file(served[0][0])
    assert backing
    if not target.page_out:
        return 0
    return (backing.cached_bytes or 0) + context.asked(target.memcg_id).collateral_bytes


INTERFACE = Interface(
    name="swapin-file",
    does="reads swapped tmpfs files back",
    harm=100,
    way="back",
    options=("recharge-parent", "deferred"),
    cases=("swap",),
    needs=("pageout",),
    seen=("5.10", "6.12", "7.0", "7.3"),
    requires="root, Python 3.8",
    effect="the nearest online ancestor is charged, up to 5.13 the root: in "
    "memory, or, where that is no root of v2, up to 7.0 in swap again",
    touches="what others are charged for of the same file",
    cannot="files that no path leads to; on a disk where there is no "
    "memory.reclaim, from 5.14 on",
    reach=reach,
    action=action,
    collateral=collateral,
    rank=SWAPIN,
)
