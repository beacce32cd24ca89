"""What a process maps: process_madvise with MADV_PAGEOUT."""

from __future__ import annotations

from dataclasses import replace

from memcgctl.model import HostTarget, Process, ProcessTarget
from memcgctl.policy.cases import Part, nobody, swapped_users, users
from memcgctl.policy.interfaces.base import (
    AFTER_SWAPIN,
    Action,
    Interface,
    Move,
    Reach,
    Served,
    cannot,
)
from memcgctl.policy.interfaces.common import (
    backing_of,
    beyond_madvise,
    charged_to_ancestor,
    evicted,
    group_of,
    only,
    process_of,
    process_words,
    waits_in_swap_cache,
)
from memcgctl.policy.interfaces.context import Asked, PlanContext, identity


def reach(part: Part, context: PlanContext) -> Reach:
    found = users(part, context.page_size)
    if not found:
        return cannot(part, nobody(part))
    if part.group and part.group.mapper_missing_bytes:
        return cannot(part, "not all who map it were found")
    if why := next(filter(None, map(beyond_madvise, found)), ""):
        return cannot(part, why)
    total, group = sum(process.bytes for process in found), part.group
    if total > part.bytes or (group and 0 < group.mapped_bytes < total):
        return cannot(part, "several processes map it, which MADV_PAGEOUT passes by")
    if group and group.repeated_bytes:
        return cannot(part, "a process maps it twice, which MADV_PAGEOUT passes by")
    if _in_part(part, found, context):
        return cannot(part, "large folios of it are mapped in part")
    ancestor = context.room.ancestor(part.memcg)
    if not ancestor:
        return cannot(part, "its ancestor is not in the census")
    # A file's dirty pages are not written by MADV_PAGEOUT.
    reach = evicted(part, HostTarget(), context)
    if reach.moves and (why := waits_in_swap_cache(part, context)):
        return cannot(part, why)
    moves, rest = [], [move.bytes for move in reach.moves]
    for process in found:
        target = context.process(process, ancestor)
        size = process.bytes if process is not found[-1] else part.bytes
        for n, move in enumerate(reach.moves):
            moved = min(size, rest[n])
            size -= moved
            rest[n] -= moved
            if moved:
                moves.append(Move(target, moved, move.charged))
    shmem = part.group is not None and part.group.kind == "shmem"
    return Reach(
        reach.effect, tuple(moves), shmem and context.reclaim_untargeted(ancestor)
    )


def _in_part(part: Part, found: list[Process], context: PlanContext) -> bool:
    """Whether pages of a file's mapped folios are mapped by nobody.

    They stay where they are when the others go.
    """
    group = part.group
    assert group
    large = group.bytes > group.folios * context.page_size
    mapped = sum(process.bytes for process in found)
    return bool(group.backing) and large and mapped < part.bytes


def action(target: ProcessTarget, served: Served, context: PlanContext) -> Action:
    files = {identity(backing_of(part)) for part, _ in served}
    asked = _asked_for_shmem(target, served, context)
    process = process_of(target, served, context)
    return Action(
        replace(
            target,
            process=process,
            file=group_of(served).backing if len(files) == 1 else None,
            untargeted=asked.untargeted,
        ),
        process_words(process),
        only("pageout", served),
        "it waits for the device when it touches them next",
    )


def _asked_for_shmem(
    target: ProcessTarget, served: Served, context: PlanContext
) -> Asked:
    shmem = any(part.group and part.group.kind == "shmem" for part, _ in served)
    return context.asked(*target.shown_ids) if shmem else Asked()


def collateral(target: ProcessTarget, served: Served, context: PlanContext) -> int:
    asked = _asked_for_shmem(target, served, context)
    return charged_to_ancestor(target, served, context) + asked.collateral_bytes


def reach_cached(part: Part, context: PlanContext) -> Reach:
    """In the swap cache: mapped again when its entry is read, paged out after that."""
    found = swapped_users(part.memcg, context.page_size)
    ancestor = context.room.ancestor(part.memcg)
    if not part.group or part.group.kind != "anon" or not ancestor:
        return cannot(part, "")
    if len(found) != 1 or found[0].bytes < part.bytes:
        return cannot(part, "not just one process has its swap entries")
    if why := beyond_madvise(found[0]):
        return cannot(part, why)
    reach = evicted(part, context.process(found[0], ancestor), context, anew=True)
    # Half of it would only make a zombie's entries a zombie's pages.
    return cannot(part, reach.effect.why) if reach.effect.why else reach


def action_again(target: ProcessTarget, served: Served, context: PlanContext) -> Action:
    (process,) = swapped_users(served[0][0].memcg, context.page_size)
    return Action(
        replace(target, process=process),
        process_words(process),
        only("pageout", served),
        "it waits for the device when it touches them next",
    )


INTERFACE = Interface(
    name="pageout",
    does="pages out what processes map",
    harm=60,
    options=("evict",),
    cases=("file-mapped", "swap-backed-mapped"),
    needs=("process_madvise", "pageout", "pagemap", "kpagecgroup"),
    seen=("5.10", "6.12", "7.3"),
    requires="root, Python 3.9; swap for what is not a file's",
    effect="nobody is charged for a file's pages until they are touched; what is "
    "swapped out is charged to the nearest online ancestor's swap",
    touches="what the process maps that is charged to the ancestor itself",
    cannot="locked and pinned pages, dirty files, pages that several map",
    reach=reach,
    action=action,
    collateral=collateral,
    rank=AFTER_SWAPIN,
    disturbs=True,
)


# After swapin, which maps them.
AGAIN = Interface(
    name="pageout",
    does="pages out what processes map",
    harm=80,
    options=("evict",),
    cases=("swap-backed-unmapped",),
    needs=("process_madvise", "pageout", "pagemap", "kpagecgroup"),
    seen=("6.12",),
    requires="root, Python 3.9, swap",
    effect="the nearest online ancestor is charged for the swap",
    touches="what the process maps that is charged to the ancestor itself",
    cannot="locked and pinned pages, pages that several map",
    reach=reach_cached,
    action=action_again,
    collateral=charged_to_ancestor,
    rank=AFTER_SWAPIN,
    after="swapin",
    disturbs=True,
)
