"""Swap entries that processes have: their addresses are read."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from memcgctl.model import ProcessTarget
from memcgctl.policy.cases import Part, nobody, users
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
from memcgctl.policy.interfaces.common import (
    only,
    process_of,
    process_words,
    swapped_file,
)
from memcgctl.policy.interfaces.context import PlanContext, is_synchronous

_NOT_FOUND = "not all of them are in page tables that were found"
_CACHED = "what is in the swap cache stays charged when it is read"
_FREED = "freed ones stay charged in a CPU's cache until that is full"


def reach(part: Part, context: PlanContext) -> Reach:
    found = [
        u for u in users(part, context.page_size) if u.memcg_id in context.room.memcgs
    ]
    if not found:
        if swapped_file(part):
            return cannot(part, "")
        return cannot(part, nobody(part))
    if "swap entries stay" in context.census.kernel.interfaces and not is_synchronous(
        part
    ):
        return cannot(part, "this kernel keeps them on the disk when they are read")
    if frozen := next((u for u in found if context.frozen(u.memcg_id)), None):
        return cannot(part, f"{frozen.memcg} is frozen (pid {frozen.pid})")
    cached = min(part.bytes, context.stuck[part.memcg.id])
    again = min(part.bytes - cached, context.mapped_again[part.memcg.id])
    freed = min(part.bytes - cached - again, _freed(part, context))
    left_over = part.bytes - cached - again - freed
    moves: list[Move] = []
    charged: Counter[int] = Counter()
    if again:  # the entry goes, its page stays the zombie's until it is paged out
        moves.append(Move(context.process(found[0]), again))
    if context.rule == "first":
        found.sort(key=lambda process: process.start_ticks)
    # What processes share by fork each gets a copy of: entries go by a write fault. Who
    # is the first pays for the page that was shared as well.
    total = sum(process.bytes for process in found) - again
    copies = max(0, total - left_over) if left_over else 0
    parents = (part.device.parents_entries if part.device else 0) * context.page_size
    for process in found:
        size = min(process.bytes, left_over)
        left_over -= size
        # What is in the swap cache stays with whoever is charged for its folio.
        mine = min(size, parents)
        parents -= mine
        # All who share an entry have to read it, though it is charged once.
        payer = context.pays_for_swapin(part, process)
        for one, share in (
            (context.room.ancestor(part.memcg), mine),
            (payer, size - mine),
        ):
            copied = 0
            if copies and one == payer:
                copied = process.bytes - share + min(process.bytes, copies)
            if share or copied:
                moves.append(Move(context.process(process), share, one, copied))
                charged[one] += share
    stay = {_NOT_FOUND: left_over, _CACHED: cached, _FREED: freed}
    done = Effect(
        part,
        "recharge-mapper",
        evicted_bytes=again,
        charged=tuple((one, size) for one, size in charged.items() if size),
        left_bytes=sum(stay.values()),
        why=", ".join(why for why, size in stay.items() if size),
    )
    return Reach(done, tuple(moves), used=(cached, again))


def _freed(part: Part, context: PlanContext) -> int:
    """What nobody has any more and is charged still, in a CPU's cache (up to 6.13)."""
    owners = part.device.owners if part.device else ()
    nobodys = (one for one in owners if one.pid is None and one.file is None)
    return sum(one.entries for one in nobodys) * context.page_size


def action(target: ProcessTarget, served: Served, context: PlanContext) -> Action:
    process = process_of(target, served, context)
    return Action(
        replace(target, process=process),
        process_words(process),
        only("swapin", served),
        "all it has in swap comes back to memory, other memcgs' as well; what lies "
        "beside that on a disk is read ahead (vm.page-cluster)",
    )


def collateral(target: ProcessTarget, served: Served, context: PlanContext) -> int:
    process = process_of(target, served, context)
    return context.swapped_of(process.memcg_id)


INTERFACE = Interface(
    name="swapin",
    does="reads swap back for its processes",
    harm=90,
    way="back",
    options=("recharge-mapper",),
    cases=("swap",),
    needs=("pagemap",),
    seen=("5.10", "6.1", "6.12", "6.18", "7.3"),
    requires="root, Python 3",
    effect="the memcg of the process whose addresses are read is charged",
    touches="all else that this process has in swap",
    cannot="entries of shmem that nobody maps, entries without an owner",
    reach=reach,
    action=action,
    collateral=collateral,
    rank=SWAPIN,
    disturbs=True,
)
