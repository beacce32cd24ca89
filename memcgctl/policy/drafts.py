"""What becomes of each part of each zombie, and by which steps, equal ones merged."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import NamedTuple

from memcgctl.model import Memcg
from memcgctl.policy.cases import Part, placed_parts
from memcgctl.policy.choice import Chooser
from memcgctl.policy.effects import Effect
from memcgctl.policy.headroom import Move
from memcgctl.policy.interfaces import Deed, Interface, Served, World, evicted_whole
from memcgctl.policy.outcome import IN_VAIN
from memcgctl.policy.policies import Option
from memcgctl.policy.whole import File, Whole


class Share(NamedTuple):
    """What a step does to one part, which is the memcg's ``place``-th."""

    place: int
    part: Part
    deed: Deed


class Draft(NamedTuple):
    """A step in the making."""

    interface: Interface
    key: Hashable
    option: Option
    shares: list[Share]

    @property
    def bytes(self) -> int:
        return sum(deed.bytes for _, _, deed in self.shares)

    @property
    def served(self) -> Served:
        return [(part, deed.bytes) for _, part, deed in self.shares]


class Drafts:
    """All steps that a chooser has for ``memcgs``, by number.

    Those from ``whole_from`` on are for files that go whole, of which a draft is only
    made when it is asked for. By number are ``interfaces``, ``bytes``, ``collateral``
    (what a step can move of others'), and ``firsts``: the position of the first memcg
    that it is for, and the place of that one's part, in one number. ``effects`` are by
    the memcg's id and the part's place, without those of such files.
    """

    def __init__(self, memcgs: Sequence[Memcg], chooser: Chooser, world: World) -> None:
        self.world = world
        self.effects: dict[int, dict[int, Effect]] = {}
        self.firsts: list[int] = []
        self._memcgs = memcgs
        self._positions: list[dict[int, None]] = []
        self._drafts: list[Draft] = []
        self._whole = Whole(memcgs, chooser, world)
        self._choose(chooser)
        files, drafts = self._whole.files, self._drafts
        self.whole_from = len(drafts)
        firsts = [file.portions[0] for file in files]
        self.firsts += [position << 32 | place for position, place, *_ in firsts]
        self.interfaces = [one.interface for one in drafts]
        self.interfaces += [file.kind.interface for file in files]
        self.bytes = [one.bytes for one in drafts]
        self.bytes += [file.bytes for file in files]
        self.collateral = [
            one.interface.collateral(one.key, one.served, world) for one in drafts
        ]
        self.collateral += self._whole.collateral

    def _choose(self, chooser: Chooser) -> None:
        numbers: dict[tuple[str, Hashable], int] = {}
        room, page_size = self.world.room, self.world.page_size
        swapped = self._whole.swapped() if room.bounded else {}
        for position, memcg in enumerate(self._memcgs):
            mine = self.effects[memcg.id] = {}
            if position in swapped:
                room.charge(swapped[position])
            taken = self._whole.taken[position]
            for place, part in placed_parts(memcg, page_size, taken):
                interface, reach = chooser.choose(part)
                mine[place] = reach.effect
                for deed in reach.deeds if interface else ():
                    assert interface
                    key = interface.name, deed.key
                    number = numbers.setdefault(key, len(numbers))
                    if number == len(self._drafts):
                        option = chooser.option(interface, part.case)
                        self._drafts.append(Draft(interface, deed.key, option, []))
                        self._positions.append({})
                        self.firsts.append(position << 32 | place)
                    self._drafts[number].shares.append(Share(place, part, deed))
                    self._positions[number][position] = None

    def __len__(self) -> int:
        return len(self.bytes)

    def draft(self, number: int) -> Draft:
        if number < self.whole_from:
            return self._drafts[number]
        file = self._file(number)
        shares = [
            Share(place, part, deed)
            for place, part in self._parts(file)
            for deed in evicted_whole(part, file.key, self.world).deeds
        ]
        return Draft(file.kind.interface, file.key, file.kind.option, shares)

    def _file(self, number: int) -> File:
        return self._whole.files[number - self.whole_from]

    def _parts(self, file: File) -> Iterator[tuple[int, Part]]:
        """The parts of memcgs, and their places, that are of a file that goes whole."""
        for position, place, *_ in file.portions:
            memcg = self._memcgs[position]
            assert memcg.details
            group = memcg.details.charge_groups[place]
            yield place, Part(memcg, file.kind.case, group.bytes, group)

    def recharged_bytes(self, number: int) -> int:
        """What a step charges at once to those who use it, or have it in swap."""
        draft = self._drafts[number]
        charged = any(share.deed.charged is not None for share in draft.shares)
        return draft.bytes if charged and draft.option == "recharge-mapper" else 0

    def positions(self) -> tuple[list[int], list[int]]:
        """The positions of the memcgs that drafts serve, and how many each does.

        A memcg with two groups of a file is there twice.
        """
        found = [list(mine) for mine in self._positions]
        files = self._whole.files
        counts = [len(mine) for mine in found] + [len(file.portions) for file in files]
        places = [one for mine in found for one in mine]
        places += [portion[0] for file in files for portion in file.portions]
        return counts, places

    def moves(self, number: int) -> list[Move]:
        """What a step changes in the counters of online memcgs."""
        if number >= self.whole_from:
            return self._whole.moves(self._file(number))
        moves: list[Move] = []
        for place, part, deed in self._drafts[number].shares:
            size, origin = deed.bytes, self.world.room.ancestor(part.memcg)
            in_swap = part.case == "swap"
            moves.append((origin, 0, -size) if in_swap else (origin, -size, 0))
            if (payer := deed.charged) is not None:
                swapped = self.effects[part.memcg.id][place].swapped_bytes
                moves.append((payer, 0, size) if swapped else (payer, size, 0))
        return moves

    def leave(self, number: int, why: str) -> None:
        """Take back what a step that is left out would have done."""
        for place, part, deed in self.draft(number).shares:
            mine = self.effects[part.memcg.id]
            effect = mine.get(place) or evicted_whole(part, None, self.world).effect
            mine[place] = _without(effect, deed, why)

    def looked_at(self) -> dict[int, list[Effect]]:
        """What becomes of the parts of each memcg (by id) that ``effects`` has."""
        return {memcg_id: _sorted(mine) for memcg_id, mine in self.effects.items()}

    def all_effects(self) -> dict[int, list[Effect]]:
        """What becomes of all parts of each memcg (by id)."""
        found = {memcg_id: dict(mine) for memcg_id, mine in self.effects.items()}
        for file in self._whole.files:
            for place, part in self._parts(file):
                effect = evicted_whole(part, None, self.world).effect
                found[part.memcg.id].setdefault(place, effect)
        return {memcg_id: _sorted(mine) for memcg_id, mine in found.items()}


def _sorted(effects: dict[int, Effect]) -> list[Effect]:
    return [effects[place] for place in sorted(effects)]


def _without(effect: Effect, deed: Deed, why: str) -> Effect:
    """An effect without the share that a step would have had in it."""
    charged = tuple(
        (one, size - deed.bytes if one == deed.charged else size)
        for one, size in effect.charged
    )
    whys = [one for one in (effect.why, why) if one]
    if IN_VAIN in whys:
        whys = whys[:1]
    evicted = effect.evicted_bytes - (deed.bytes if deed.charged is None else 0)
    return effect._replace(
        evicted_bytes=evicted,
        written_bytes=min(effect.written_bytes, evicted),
        swapped_bytes=effect.swapped_bytes
        - (deed.bytes if effect.swapped_bytes and deed.charged is not None else 0),
        charged=tuple((one, size) for one, size in charged if size),
        left_bytes=effect.left_bytes + deed.bytes,
        why="; ".join(dict.fromkeys(whys)),
    )
