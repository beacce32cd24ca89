"""What one process maps by whole huge pages: MADV_COLLAPSE."""

from __future__ import annotations

from dataclasses import replace

from memcgctl.model import ProcessTarget
from memcgctl.policy.cases import LOCKED, Part, movable, users
from memcgctl.policy.effects import Effect
from memcgctl.policy.interfaces.base import (
    Action,
    Interface,
    Move,
    Reach,
    Served,
    cannot,
)
from memcgctl.policy.interfaces.common import (
    beyond_madvise,
    charged_to_ancestor,
    group_of,
    only,
    process_of,
    process_words,
)
from memcgctl.policy.interfaces.context import PlanContext


def reach(part: Part, context: PlanContext) -> Reach:
    found = users(part, context.page_size)
    ancestor = context.room.ancestor(part.memcg)
    # Only where a huge page has nothing else in it, and nothing is missing.
    if len(found) != 1 or found[0].huge_bytes < part.bytes:
        return cannot(part, "")
    if why := beyond_madvise(found[0]):
        return cannot(part, why)
    if found[0].memcg_id not in context.room.memcgs or not ancestor:
        return cannot(part, "")
    group = group_of([(part, 0)])
    locked = any(name == LOCKED for name, _ in group.obstacles)
    swaps = bool(context.census.kernel.swap_total_bytes)
    if found[0].memcg_id == ancestor and swaps and not locked:
        # A pageout of the same process takes all that is the ancestor's of it, and with
        # it the new huge page, which then is in swap and was not to be.
        return cannot(part, "")
    _, why = movable(group, (LOCKED,))
    room = context.room.room(found[0].memcg_id)
    if room is not None and room < part.bytes:
        why = f"{found[0].memcg} has no room"
    if why:
        return cannot(part, why)
    done = Effect(part, "recharge-mapper", charged=((found[0].memcg_id, part.bytes),))
    target = context.process(found[0], ancestor)
    return Reach(done, (Move(target, part.bytes, found[0].memcg_id),))


def action(target: ProcessTarget, served: Served, context: PlanContext) -> Action:
    process = process_of(target, served, context)
    return Action(
        replace(target, process=process),
        process_words(process),
        only("collapse", served),
        "it stays where there is no free huge page, or the process asked for none",
    )


INTERFACE = Interface(
    name="collapse",
    does="makes huge pages of the mappers' own",
    harm=20,
    way="neither",
    options=("recharge-mapper",),
    cases=("swap-backed-mapped",),
    needs=("process_madvise", "collapse", "pagemap", "kpagecgroup"),
    seen=("6.12", "7.3"),
    requires="root, Python 3.9, transparent huge pages",
    effect="the process's memcg is charged at once",
    touches="what the process maps that is charged to the ancestor itself",
    cannot="what does not fill a huge page's addresses in one mapping, huge pages, "
    "pinned pages, pages that several map",
    reach=reach,
    action=action,
    collateral=charged_to_ancestor,
    rank=-1,  # pageout takes all that the process maps
    disturbs=True,
)
