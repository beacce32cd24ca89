"""What a process maps: process_madvise with MADV_PAGEOUT."""

from __future__ import annotations

from dataclasses import replace

from memcgctl.model import HostTarget, Process, ProcessTarget
from memcgctl.policy.cases import Part, nobody, swapped_users, users
from memcgctl.policy.interfaces.base import (
    AFTER_SWAPIN,
    Action,
    Deed,
    Interface,
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
from memcgctl.policy.interfaces.world import Asked, World, identity


def reach(part: Part, world: World) -> Reach:
    found = users(part, world.page_size)
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
    if _in_part(part, found, world):
        return cannot(part, "large folios of it are mapped in part")
    ancestor = world.room.ancestor(part.memcg)
    if not ancestor:
        return cannot(part, "its ancestor is not in the census")
    # A file's dirty pages are not written by MADV_PAGEOUT.
    reach = evicted(part, HostTarget(), world)
    if reach.deeds and (why := waits_in_swap_cache(part, world)):
        return cannot(part, why)
    deeds, rest = [], [deed.bytes for deed in reach.deeds]
    for process in found:
        target = world.process(process, ancestor)
        size = process.bytes if process is not found[-1] else part.bytes
        for n, deed in enumerate(reach.deeds):
            moved = min(size, rest[n])
            size -= moved
            rest[n] -= moved
            if moved:
                deeds.append(Deed(target, moved, deed.charged))
    shmem = part.group is not None and part.group.kind == "shmem"
    return Reach(reach.effect, tuple(deeds), shmem and world.untargeted(ancestor))


def _in_part(part: Part, found: list[Process], world: World) -> bool:
    """Whether pages of a file's mapped folios are mapped by nobody.

    They stay where they are when the others go.
    """
    group = part.group
    assert group
    large = group.bytes > group.folios * world.page_size
    mapped = sum(process.bytes for process in found)
    return bool(group.backing) and large and mapped < part.bytes


def action(target: ProcessTarget, served: Served, world: World) -> Action:
    files = {identity(backing_of(part)) for part, _ in served}
    asked = _asked_for_shmem(target, served, world)
    process = process_of(target, served, world)
    return Action(
        replace(
            target,
            process=process,
            file=group_of(served).backing if len(files) == 1 else None,
            unaimed=asked.unaimed,
        ),
        process_words(process),
        only("pageout", served),
        "it waits for the device when it touches them next",
    )


def _asked_for_shmem(target: ProcessTarget, served: Served, world: World) -> Asked:
    shmem = any(part.group and part.group.kind == "shmem" for part, _ in served)
    return world.asked(*target.shown_ids) if shmem else Asked()


def collateral(target: ProcessTarget, served: Served, world: World) -> int:
    asked = _asked_for_shmem(target, served, world)
    return charged_to_ancestor(target, served, world) + asked.in_reach


def _reach_cached(part: Part, world: World) -> Reach:
    """In the swap cache: mapped again when its entry is read, paged out after that."""
    found = swapped_users(part.memcg, world.page_size)
    ancestor = world.room.ancestor(part.memcg)
    if not part.group or part.group.kind != "anon" or not ancestor:
        return cannot(part, "")
    if len(found) != 1 or found[0].bytes < part.bytes:
        return cannot(part, "not just one process has its swap entries")
    if why := beyond_madvise(found[0]):
        return cannot(part, why)
    reach = evicted(part, world.process(found[0], ancestor), world, anew=True)
    # Half of it would only make a zombie's entries a zombie's pages.
    return cannot(part, reach.effect.why) if reach.effect.why else reach


def action_again(target: ProcessTarget, served: Served, world: World) -> Action:
    (process,) = swapped_users(served[0][0].memcg, world.page_size)
    return Action(
        replace(target, process=process),
        process_words(process),
        only("pageout", served),
        "it waits for the device when it touches them next",
    )


INTERFACE = Interface(
    name="pageout",
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
    options=("evict",),
    cases=("swap-backed-unmapped",),
    needs=("process_madvise", "pageout", "pagemap", "kpagecgroup"),
    seen=("6.12",),
    requires="root, Python 3.9, swap",
    effect="the nearest online ancestor is charged for the swap",
    touches="what the process maps that is charged to the ancestor itself",
    cannot="locked and pinned pages, pages that several map",
    reach=_reach_cached,
    action=action_again,
    collateral=charged_to_ancestor,
    rank=AFTER_SWAPIN,
    after="swapin",
    disturbs=True,
)
