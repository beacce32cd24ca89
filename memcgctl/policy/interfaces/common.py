"""What several interfaces have in common: eviction, files, processes."""

from __future__ import annotations

from dataclasses import replace

from memcgctl.model import (
    Backing,
    CgroupTarget,
    ChargeGroup,
    Process,
    ProcessTarget,
    Target,
)
from memcgctl.policy.cases import Part, charged_already, movable, users
from memcgctl.policy.effects import WRITTEN, Effect
from memcgctl.policy.interfaces.base import SWAP_BACKED, Move, Reach, Served, cannot
from memcgctl.policy.interfaces.context import PlanContext, identity

WAITS = "it would wait in the swap cache until memory is short"


def evicted(
    part: Part,
    target: Target,
    context: PlanContext,
    beaten: tuple[str, ...] = (),
    *,
    anew: bool = False,
) -> Reach:
    """Folios that nothing stubborn is in the way of leave memory by one action.

    ``anew``: they have no swap entries any more by then.
    """
    assert part.group
    if part.group.backing and part.group.backing.kind == "hugetlb":
        return cannot(part, "hugetlb pages are not reclaimed")
    size, why = movable(part.group, (*beaten, *context.beaten))
    swapped = part.case in SWAP_BACKED
    ancestor = context.room.ancestor(part.memcg)
    had = size if not swapped else 0 if anew else charged_already(part.group, size)
    if had < size and (limit := context.room.swap_room(ancestor)) < size - had:
        size, why = had + limit, ", ".join(filter(None, [why, "no room in swap"]))
    if not size:
        return cannot(part, why)
    done = _eviction(part, size, had, why)
    return Reach(done, _moves(target, ancestor, size, had))


def whole_eviction(part: Part) -> Effect:
    """All of a file's folios leave memory, as there is nothing in the way."""
    size, had = _whole(part)
    return _eviction(part, size, had, "")


def whole_moves(part: Part, target: Target, context: PlanContext) -> tuple[Move, ...]:
    """The same as shares in an action."""
    return _moves(target, context.room.ancestor(part.memcg), *_whole(part))


def _whole(part: Part) -> tuple[int, int]:
    """The bytes of a part, and how many of these are just dropped."""
    group = group_of([(part, 0)])
    swapped = part.case in SWAP_BACKED
    return group.bytes, charged_already(group, group.bytes) if swapped else group.bytes


def _eviction(part: Part, size: int, had: int, why: str) -> Effect:
    """``had`` of ``size`` bytes are just dropped, the others are swapped out."""
    assert part.group
    return Effect(
        part,
        "evict",
        evicted_bytes=had,
        written_bytes=0
        if part.case in SWAP_BACKED
        else min(size, part.group.dirty_bytes),
        swapped_bytes=size - had,
        left_bytes=part.bytes - size,
        why=why,
    )


def _moves(target: Target, ancestor: int, size: int, had: int) -> tuple[Move, ...]:
    if not had:
        return (Move(target, size, ancestor),)
    dropped = Move(target, had)
    if had == size:
        return (dropped,)
    return Move(target, size - had, ancestor), dropped


def backing_of(part: Part) -> Backing | None:
    return part.group.backing if part.group else None


def group_of(served: Served) -> ChargeGroup:
    group = served[0][0].group
    assert group
    return group


def file_words(backing: Backing) -> str:
    """A file as a step names it."""
    if backing.path and not backing.deleted:
        return backing.path
    return f"inode {backing.inode} of {backing.fs} {backing.device}"


def rest_of_file(target: Target, served: Served, context: PlanContext) -> int:
    backing = group_of(served).backing
    assert backing
    return max(0, (backing.cached_bytes or 0) - context.known[identity(backing)])


def waits_in_swap_cache(part: Part, context: PlanContext) -> str:
    shmem = part.group is not None and part.group.kind == "shmem"
    waits = shmem and context.waits_in_swap_cache(context.room.ancestor(part.memcg))
    return WAITS if waits else ""


def process_of(target: ProcessTarget, served: Served, context: PlanContext) -> Process:
    """The process, with all that it uses of what is served."""
    parts = {id(part): part for part, _ in served}.values()
    found = [user for part in parts for user in users(part, context.page_size)]
    same = [user for user in found if user.pid == target.process.pid]
    return replace(same[0], bytes=sum(user.bytes for user in same))


def beyond_madvise(process: Process) -> str:
    """Why process_madvise(2) does not reach a process: by its first thread's memory.

    A pidfd, even one of a thread, stands for that (``pidfd_get_task``, up to 7.3).
    """
    if not process.tid:
        return ""
    return (
        f"the first thread of pid {process.pid} has ended, and without it no advice on "
        "its memory is taken"
    )


def process_words(process: Process) -> str:
    return f"pid {process.pid} ({process.comm})"


def charged_to_ancestor(
    target: ProcessTarget, served: Served, context: PlanContext
) -> int:
    """What is its own, not a zombie's: /proc/kpagecgroup shows both the same."""
    return sum(map(context.charged_to, target.shown_ids))


def reach_ancestor(part: Part, context: PlanContext) -> Reach:
    if not context.room.ancestor(part.memcg):
        return cannot(part, "its ancestor is not in the census")
    if part.memcg.ancestor == "/":
        return cannot(part, "the root cannot be asked to reclaim")
    if context.room.ancestor(part.memcg) in context.swapped_in_below:
        return cannot(part, "it would take what others are swapped in before")
    target = context.memcg(context.room.ancestor(part.memcg))
    return evicted(part, target, context, WRITTEN)


def all_below(target: CgroupTarget, served: Served, context: PlanContext) -> int:
    return context.reclaimable_below[target.memcg_id]


def swapped_file(part: Part) -> Backing | None:
    """The shmem file whose entries these are, if nobody maps them."""
    owners = part.device.owners if part.device else ()
    return owners[0].file if owners else None


def only(action: str, served: Served) -> str:
    """The command of a step that a shell has no word for: this program's own."""
    ids = dict.fromkeys(part.memcg.id for part, _ in served)
    return f"memcgctl reclaim --yes --only {action} {' '.join(map(str, ids))}"
