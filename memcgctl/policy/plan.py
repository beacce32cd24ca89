"""What is to be done, in which order, so that zombies go; and which would stay?

For each part of each zombie the policy's options are tried with the interfaces that
the kernel has. Equal actions for several zombies are one step. What swaps out comes
after what takes swap entries; in each rank steps for children come before those for
their parents, and among these the ones that give back most for what they disturb.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from memcgctl.model import Census, Memcg, Plan, Shortfall
from memcgctl.policy.choice import Chooser
from memcgctl.policy.drafts import Drafts
from memcgctl.policy.effects import Effect
from memcgctl.policy.headroom import Headroom
from memcgctl.policy.interfaces.base import SWAP_BACKED
from memcgctl.policy.interfaces.context import PlanContext
from memcgctl.policy.outcome import (
    children_of,
    fates,
    offline,
    with_descendants,
)
from memcgctl.policy.policies import Policy
from memcgctl.policy.selection import Selection
from memcgctl.policy.steps import Steps

TRANSIT = "temp-swap"
Children = dict[int, list[Memcg]]


@dataclass(frozen=True)
class Worked:
    """A plan, and what it does to each part of each memcg (by id)."""

    plan: Plan
    drafts: Drafts

    @cached_property
    def effects(self) -> dict[int, list[Effect]]:
        return self.drafts.all_effects()


def plan(
    census: Census,
    policy: Policy,
    wanted: Iterable[int] | None = None,
    *,
    allow: Collection[str] = (),
    only: Collection[str] = (),
    max_bytes: int | None = None,
) -> Plan:
    """The steps that carry out ``policy`` for all offline memcgs, or wanted ones.

    ``wanted`` are cgroup ids; the offline memcgs below them count as wanted too.
    Steps that could push a memcg over a limit, or that move more than is left of
    ``max_bytes``, are left out; with ``least-harm`` also those that disturb processes
    for nothing. ``allow`` lets in what is barred otherwise (``choice.ALLOWED``);
    ``only``, unless it is empty, names the interfaces that may be used.
    """
    worked = work_out(
        census, policy, wanted, allow=allow, only=only, max_bytes=max_bytes
    )
    more = 0
    if _asks_for_transit(worked, census, allow, only):
        other = work_out(
            census, policy, wanted, allow={*allow, TRANSIT}, max_bytes=max_bytes
        )
        more = max(0, len(other.plan.freed) - len(worked.plan.freed))
    return replace(worked.plan, more_by_transit=more)


def _asks_for_transit(
    worked: Worked, census: Census, allow: Collection[str], only: Collection[str]
) -> bool:
    """Whether anything stays that a temporary swap device could move."""
    kernel = census.kernel
    if TRANSIT in allow or only or kernel.temp_swap or not kernel.interfaces:
        return False
    looked_at = worked.drafts.looked_at()
    return any(
        one.why and one.part.case in SWAP_BACKED
        for left in worked.plan.remaining
        for one in looked_at.get(left.id, ())
    )


def work_out(
    census: Census,
    policy: Policy,
    wanted: Iterable[int] | None = None,
    *,
    allow: Collection[str] = (),
    only: Collection[str] = (),
    max_bytes: int | None = None,
) -> Worked:
    """As ``plan``, with what becomes of each part."""
    every = offline(census)
    children = children_of(every)
    memcgs = with_descendants(census, wanted)
    context = PlanContext(_as_allowed(census, memcgs, allow), every, policy.mapper)
    drafts = Drafts(memcgs, Chooser(context, policy, allow, only), context)
    before = fates(memcgs, drafts.looked_at(), children)
    hopeful = frozenset(before[0])
    room_for_shmem = _room_for_shmem(context, drafts)
    selection = Selection(
        drafts,
        Headroom(census),
        hopeful if policy.least_harm else None,
        allow,
        max_bytes,
        room_for_shmem,
    )
    selection.select(_order(drafts, memcgs, children, hopeful, room_for_shmem))
    taken, left_out = selection.taken, selection.left_out
    freed, remaining = before
    if left_out:
        freed, remaining = fates(memcgs, drafts.looked_at(), children)
    recharged = sum(
        drafts.recharged_bytes(number) for number in taken if number < drafts.whole_from
    )
    made = Plan(
        kernel=census.kernel,
        policy=policy.name,
        steps=Steps(
            drafts,
            taken,
            _frees(drafts, freed, taken, memcgs, children),
            selection.over_limit,
        ),
        left_out=Steps(drafts, left_out, {}, selection.over_limit),
        freed=freed,
        remaining=remaining,
        warnings=(*census.warnings, *_unknown(census)),
        returned_bytes=sum(map(drafts.bytes.__getitem__, taken)) - recharged,
        recharged_bytes=recharged,
        falls_short=() if policy.least_harm else _falls_short(policy, drafts, taken),
    )
    return Worked(made, drafts)


def _room_for_shmem(context: PlanContext, drafts: Drafts) -> int | None:
    """The room on devices that write at once; None if there is enough for all."""
    room = context.room_for_shmem
    if room is None or sum(map(drafts.swaps, range(len(drafts)))) <= room:
        return None
    return room


def _falls_short(
    policy: Policy, drafts: Drafts, taken: Iterable[int]
) -> tuple[Shortfall, ...]:
    """Where the steps do another thing than the policy has a kernel do."""
    found: Counter[tuple[str, str]] = Counter()
    for number in taken:
        asked = policy.options.get(drafts.case(number), ())
        if asked and (done := drafts.interfaces[number].options[0]) not in asked:
            found[asked[0], done] += 1
    return tuple(Shortfall(*pair, steps) for pair, steps in found.items())


def _as_allowed(
    census: Census, memcgs: Iterable[Memcg], allow: Collection[str]
) -> Census:
    """As if nothing was swapped out at once, if memory.reclaim may take what waits.

    Otherwise shmem is only paged out while there is room on devices that write at once.
    """
    kernel = census.kernel
    asked = "unaimed" in allow and "memory.reclaim" in kernel.interfaces
    if not asked or kernel.at_once_bytes is None:
        return census
    details = [memcg.details for memcg in memcgs if memcg.details]
    groups = [group for one in details for group in one.charge_groups]
    if sum(one.bytes for one in groups if one.kind != "file") <= kernel.at_once_bytes:
        return census
    return replace(census, kernel=replace(kernel, swaps_at_once=False))


def _unknown(census: Census) -> Iterator[str]:
    """What a census that was taken without it does not tell."""
    if not census.kernel.interfaces:
        yield "the census does not tell which interfaces the kernel has: no steps"
    if any(m.state == "online" and m.limits is None for m in census.memcgs):
        yield "the census does not tell all limits: some steps may exceed one"


def _order(
    drafts: Drafts,
    memcgs: Sequence[Memcg],
    children: Children,
    hopeful: Collection[int],
    room_for_shmem: int | None,
) -> list[int]:
    """By rank and what is aimed; among these children first, and what it gives back.

    That is the bytes and structures that a step gives back for each byte it disturbs;
    a memcg's own structures are shared out among all its steps.
    """
    if not len(drafts):
        return []
    numbers, positions = drafts.numbers, drafts.positions
    steps = np.bincount(positions, minlength=len(memcgs))
    structures = np.array(
        [m.overhead.total_bytes if m.id in hopeful else 0 for m in memcgs], dtype=float
    )
    shares = (structures / np.maximum(steps, 1))[positions]
    size = np.array(drafts.bytes, dtype=float)
    disturbed = np.maximum(size + np.array(drafts.collateral, dtype=float), 1)
    given_back = size + np.bincount(numbers, weights=shares, minlength=len(drafts))
    heights = np.array(_heights(memcgs, children))[positions]
    height = np.maximum.reduceat(heights, np.flatnonzero(np.diff(numbers, prepend=-1)))
    kind = 2 * np.array(drafts.ranks) + [not one.targeted for one in drafts.interfaces]
    ratio = given_back / disturbed
    last: NDArray[np.bool_] = np.zeros(len(drafts), dtype=bool)
    if room_for_shmem is not None:  # shmem first, while there is room for it
        last = np.array([not drafts.is_of_shmem(n) for n in range(len(drafts))])
    keys = drafts.firsts, -ratio, last, height, kind
    order: list[int] = np.lexsort(keys).tolist()
    return order


def _heights(memcgs: Sequence[Memcg], children: Children) -> list[int]:
    """How many generations of offline memcgs are below each."""
    heights: dict[int, int] = {}
    for memcg in reversed(memcgs):
        below = (heights.get(child.id, 0) for child in children.get(memcg.id, ()))
        heights[memcg.id] = max(below, default=-1) + 1
    return [heights[memcg.id] for memcg in memcgs]


def _frees(
    drafts: Drafts,
    freed: Sequence[int],
    taken: Sequence[int],
    memcgs: Sequence[Memcg],
    children: Children,
) -> dict[int, tuple[int, ...]]:
    """By draft the memcgs that go with it: their last one, or their children's.

    ``freed`` has children before their parents.
    """
    order = np.full(len(drafts), -1)
    order[taken] = np.arange(len(taken))
    lasts = np.full(len(memcgs), -1)
    np.maximum.at(lasts, drafts.positions, order[drafts.numbers])
    last = {memcg.id: n for memcg, n in zip(memcgs, lasts.tolist(), strict=True)}
    gone: dict[int, list[int]] = {}
    for memcg_id in freed:
        below = (last.get(child.id, -1) for child in children.get(memcg_id, ()))
        last[memcg_id] = max([last.get(memcg_id, -1), *below])
        gone.setdefault(last[memcg_id], []).append(memcg_id)
    gone.pop(-1, None)  # nothing is to be done for them
    return {taken[n]: tuple(memcg_ids) for n, memcg_ids in gone.items()}
