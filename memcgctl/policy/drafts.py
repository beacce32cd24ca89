"""What becomes of each part of each zombie, and by which steps, equal ones merged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from memcgctl.model import Memcg, Target
from memcgctl.policy.bulk import BulkPlan
from memcgctl.policy.cases import Case, Part, numbered_parts
from memcgctl.policy.choice import Chooser
from memcgctl.policy.effects import Effect
from memcgctl.policy.headroom import Change
from memcgctl.policy.interfaces.base import AnyInterface, Move, Served
from memcgctl.policy.interfaces.common import whole_eviction, whole_moves
from memcgctl.policy.interfaces.context import PlanContext
from memcgctl.policy.outcome import IN_VAIN
from memcgctl.policy.policies import Option


class Share(NamedTuple):
    """What a step does to one part, which is the memcg's ``nth``."""

    nth: int
    part: Part
    move: Move


class Draft(NamedTuple):
    """A step in the making."""

    interface: AnyInterface
    target: Target
    option: Option
    shares: list[Share]

    @property
    def bytes(self) -> int:
        return sum(move.bytes for _, _, move in self.shares)

    @property
    def rank(self) -> int:
        """As of its interface, but for what is mapped and has a swap entry.

        That is a zombie's own entry in a page table as soon as the page is gone.
        """
        groups = [part.group for _, part, _ in self.shares]
        has_entries = any(one and one.mapped and one.swap_entry_bytes for one in groups)
        return min(self.interface.rank, 0) if has_entries else self.interface.rank

    @property
    def served(self) -> Served:
        return [(part, move.bytes) for _, part, move in self.shares]


class Drafts:
    """All steps that a chooser has for ``memcgs``, by number.

    Those from ``whole_from`` on are for files that go whole, of which a draft is only
    made when it is asked for. By number are ``interfaces``, ``ranks``, ``bytes``,
    ``collateral`` (what a step can move of others'), and ``firsts``: the position of
    the first memcg that it is for, and the index of that one's part, in one number.
    Each pair of ``numbers`` and ``positions`` is a draft and a memcg that it is for.
    ``effects`` are
    by the memcg's id and the part's index, without those of files that go whole.
    """

    def __init__(
        self, memcgs: Sequence[Memcg], chooser: Chooser, context: PlanContext
    ) -> None:
        self.context = context
        self.effects: dict[int, dict[int, Effect]] = {}
        self._memcgs = memcgs
        self._drafts: list[Draft] = []
        self._bulk = whole = BulkPlan(memcgs, chooser, context)
        served = np.array([*self._choose(chooser)], dtype=int).reshape(-1, 3)
        drafts = self._drafts
        self.whole_from = len(drafts)
        self.interfaces = [one.interface for one in drafts]
        self.interfaces += [kind.interface for kind in whole.kinds]
        self.ranks = [one.rank for one in drafts]
        self.ranks += [kind.interface.rank for kind in whole.kinds]
        self.bytes = [one.bytes for one in drafts]
        self.bytes += whole.bytes
        self.collateral = [
            one.interface.collateral(one.target, one.served, context) for one in drafts
        ]
        self.collateral += whole.collateral
        numbers = np.concatenate([served[:, 0], whole.numbers + self.whole_from])
        order = np.argsort(numbers, kind="stable")  # by position and index it is sorted
        numbers = numbers[order]
        positions = np.concatenate([served[:, 1], whole.positions])[order]
        indexes = np.concatenate([served[:, 2], whole.indexes])[order]
        first = np.diff(numbers, prepend=-1) != 0
        self.firsts = positions[first] << 32 | indexes[first]
        once = first | (np.diff(positions, prepend=-1) != 0)
        self.numbers, self.positions = numbers[once], positions[once]

    def _choose(self, chooser: Chooser) -> Iterator[tuple[int, int, int]]:
        """Draft what is not for files that go whole.

        Yields each share's draft, its memcg's position and its part's index.
        """
        numbers: dict[tuple[int, Target], int] = {}
        room, page_size = self.context.room, self.context.page_size
        swapped = self._bulk.swapped() if room.bounded else {}
        for position, memcg in enumerate(self._memcgs):
            mine = self.effects[memcg.id] = {}
            if position in swapped:
                room.charge(swapped[position])
            taken = self._bulk.taken[position]
            for index, part in numbered_parts(memcg, page_size, taken):
                interface, reach = chooser.choose(part)
                chooser.take(part, interface, reach)
                mine[index] = reach.effect
                for move in reach.moves if interface else ():
                    assert interface
                    key = id(interface), move.target
                    number = numbers.setdefault(key, len(numbers))
                    if number == len(self._drafts):
                        option = chooser.option(interface, part.case)
                        self._drafts.append(Draft(interface, move.target, option, []))
                    self._drafts[number].shares.append(Share(index, part, move))
                    yield number, position, index

    def __len__(self) -> int:
        return len(self.bytes)

    def draft(self, number: int) -> Draft:
        if number < self.whole_from:
            return self._drafts[number]
        n = number - self.whole_from
        kind, target = self._bulk.kinds[n], self._bulk.target(n)
        shares = [
            Share(index, part, move)
            for index, part in self._bulk.parts(n)
            for move in whole_moves(part, target, self.context)
        ]
        return Draft(kind.interface, target, kind.option, shares)

    def recharged_bytes(self, number: int) -> int:
        """What a step charges at once to those who use it, or have it in swap."""
        draft = self._drafts[number]
        charged = any(share.move.charged is not None for share in draft.shares)
        return draft.bytes if charged and draft.option == "recharge-mapper" else 0

    def changes(self, number: int) -> list[Change]:
        """What a step changes in the counters of online memcgs."""
        if number >= self.whole_from:
            return self._bulk.changes(number - self.whole_from)
        changes: list[Change] = []
        for index, part, move in self._drafts[number].shares:
            size, origin = move.bytes, self.context.room.ancestor(part.memcg)
            in_swap = part.case == "swap"
            changes.append((origin, 0, -size) if in_swap else (origin, -size, 0))
            if (payer := move.charged) is not None:
                swapped = self.effects[part.memcg.id][index].swapped_bytes
                changes.append((payer, 0, size) if swapped else (payer, size, 0))
                if move.copied:
                    changes.append((payer, move.copied, 0))
        return changes

    def swaps(self, number: int) -> int:
        """How much it swaps out, in bytes."""
        return sum(max(0, swap) for _, _, swap in self.changes(number))

    def case(self, number: int) -> Case:
        """The case of what a draft moves, of the first part that it serves."""
        if number >= self.whole_from:
            return self._bulk.kinds[number - self.whole_from].case
        return self.draft(number).shares[0].part.case

    def is_of_shmem(self, number: int) -> bool:
        """Whether any of what it swaps out is shmem."""
        if number >= self.whole_from:
            return self._bulk.kinds[number - self.whole_from].is_shmem
        return any(
            part.group.kind == "shmem"
            if part.group
            else self.effects[part.memcg.id][index].swapped_bytes > 0
            for index, part, _ in self._drafts[number].shares
        )

    def leave(self, number: int, why: str) -> None:
        """Take back what a step that is left out would have done."""
        for index, part, move in self.draft(number).shares:
            mine = self.effects[part.memcg.id]
            effect = mine.get(index) or whole_eviction(part)
            mine[index] = _without(effect, move, why)

    def looked_at(self) -> dict[int, list[Effect]]:
        """What becomes of the parts of each memcg (by id) that ``effects`` has."""
        return {memcg_id: _sorted(mine) for memcg_id, mine in self.effects.items()}

    def all_effects(self) -> dict[int, list[Effect]]:
        """What becomes of all parts of each memcg (by id)."""
        found = {memcg_id: dict(mine) for memcg_id, mine in self.effects.items()}
        for n in range(len(self._bulk)):
            for index, part in self._bulk.parts(n):
                effect = whole_eviction(part)
                found[part.memcg.id].setdefault(index, effect)
        return {memcg_id: _sorted(mine) for memcg_id, mine in found.items()}


def _sorted(effects: dict[int, Effect]) -> list[Effect]:
    return [effects[index] for index in sorted(effects)]


def _without(effect: Effect, move: Move, why: str) -> Effect:
    """An effect without the share that a step would have had in it."""
    charged = tuple(
        (one, size - move.bytes if one == move.charged else size)
        for one, size in effect.charged
    )
    whys = [one for one in (effect.why, why) if one]
    if IN_VAIN in whys:
        whys = whys[:1]
    evicted = effect.evicted_bytes - (move.bytes if move.charged is None else 0)
    return effect._replace(
        evicted_bytes=evicted,
        written_bytes=min(effect.written_bytes, evicted),
        swapped_bytes=effect.swapped_bytes
        - (move.bytes if effect.swapped_bytes and move.charged is not None else 0),
        charged=tuple((one, size) for one, size in charged if size),
        left_bytes=effect.left_bytes + move.bytes,
        why="; ".join(dict.fromkeys(whys)),
    )
