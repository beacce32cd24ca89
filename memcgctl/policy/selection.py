"""Which of the drafted steps are done? One after the other, on paper.

What one takes, the next one does not have: room below limits, room on devices that
write at once, bytes of ``--max-bytes``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from memcgctl.model import ProcessTarget
from memcgctl.policy.drafts import Draft, Drafts
from memcgctl.policy.headroom import Change, Headroom
from memcgctl.policy.interfaces.common import WAITS
from memcgctl.policy.outcome import IN_VAIN

OVER_BUDGET = "it takes more than --max-bytes leaves"
NOT_READ_YET = "it has to be read from swap first"


@dataclass
class Selection:
    """The numbers of the drafts that are done, in this order, and of the others.

    ``over_limit`` are the paths of the memcgs that a draft could push over a limit.
    Without ``hopeful``, the memcgs that can go, nothing is in vain. ``budget`` is what
    is left of ``--max-bytes``, ``room_for_shmem`` the room on swap devices for shmem,
    in bytes; None if there is enough.
    """

    drafts: Drafts
    room: Headroom
    hopeful: Collection[int] | None
    allow: Collection[str]
    budget: int | None
    room_for_shmem: int | None
    taken: list[int] = field(default_factory=list)
    left_out: list[int] = field(default_factory=list)
    over_limit: dict[int, tuple[str, ...]] = field(default_factory=dict)
    # To which processes what was done, by the name of the interface.
    _done: set[tuple[str, int]] = field(default_factory=set)
    # Of files that go whole, which are over no limit: charged once it is asked for.
    _uncharged: list[Change] = field(default_factory=list)

    def select(self, order: Iterable[int]) -> None:
        """Do the drafts in this order, or leave them out."""
        limits = self.budget, self.room_for_shmem
        closely = self.room.bounded or any(one is not None for one in limits)
        for number in order:
            if number >= self.drafts.whole_from and not closely:
                self.taken.append(number)
            else:
                self._consider(number)

    def _consider(self, number: int) -> None:
        changes = self.drafts.changes(number) if self.room.bounded else []
        draft = None
        if number < self.drafts.whole_from:
            draft = self.drafts.draft(number)
        why = self._barred(number, draft, changes) if draft else ""
        why = self._spend(number, why)
        if why:
            self.left_out.append(number)
            self.drafts.leave(number, why)
            if draft:
                self.room.charge((m, -memory, -swap) for m, memory, swap in changes)
            return
        self.taken.append(number)
        if draft is None:
            self._uncharged += changes
        elif isinstance(draft.target, ProcessTarget):
            self._done.add((draft.interface.name, draft.target.process.pid))

    def _barred(self, number: int, draft: Draft, changes: Iterable[Change]) -> str:
        """Charge what it changes; why it is not to be done, "" if it is."""
        self.room.charge(self._uncharged)
        self._uncharged.clear()
        over = self.room.charge(changes)
        if over:
            self.over_limit[number] = tuple(map(self.room.path, over))
        if over and "over-limit" not in self.allow:
            return f"{self.room.path(over[0])} would be pushed over a limit"
        if not self._is_next(draft):
            return NOT_READ_YET
        return IN_VAIN if self._in_vain(draft) else ""

    def _spend(self, number: int, why: str) -> str:
        """Take what it needs of the room for shmem and of the budget.

        Nothing if there is not enough of either, or if it is barred already.
        """
        drafts, swapped = self.drafts, 0
        if self.room_for_shmem is not None and not why:
            swapped = drafts.swaps(number)
            if swapped > self.room_for_shmem and drafts.is_of_shmem(number):
                why = WAITS
        disturbed = drafts.bytes[number] + drafts.collateral[number]
        if self.budget is not None and not why and disturbed > self.budget:
            why = OVER_BUDGET
        if why:
            return why
        if self.budget is not None:
            self.budget -= disturbed
        if self.room_for_shmem is not None:
            self.room_for_shmem = max(0, self.room_for_shmem - swapped)
        return ""

    def _in_vain(self, draft: Draft) -> bool:
        """Whether processes would be disturbed, and no memcg would go."""
        if self.hopeful is None or not draft.interface.disturbs:
            return False
        served = {share.part.memcg.id for share in draft.shares}
        return served.isdisjoint(self.hopeful)

    def _is_next(self, draft: Draft) -> bool:
        """Whether the step that has to be done to its process before is done."""
        before, target = draft.interface.after, draft.target
        if before is None or not isinstance(target, ProcessTarget):
            return before is None
        return (before, target.process.pid) in self._done
