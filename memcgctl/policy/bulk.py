"""Files of which all that zombies are charged for goes at once, planned in bulk.

On a machine with very many zombies most of what they hold is page cache and shmem that
nobody maps and nothing is in the way of. The first interface that a policy may use
takes all of such a file, so that its parts need not be tried one by one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Container, Hashable, Iterator, Mapping, Sequence
from functools import cache, cached_property
from typing import NamedTuple

import numpy as np

from memcgctl.model import Backing, FileTarget, Memcg
from memcgctl.policy.cases import Case, Part
from memcgctl.policy.choice import Chooser
from memcgctl.policy.headroom import Change
from memcgctl.policy.interfaces.base import AnyInterface
from memcgctl.policy.interfaces.context import PlanContext, identity
from memcgctl.policy.policies import Option

_CASES: tuple[tuple[str, Case], ...] = (
    ("file", "file-unmapped"),
    ("shmem", "swap-backed-unmapped"),
)
# What is no file that could be opened, or has its own ways.
_OTHERS = ("bdev", "hugetlb")


class Kind(NamedTuple):
    """What takes files of a kind; the numbers of those that were found.

    ``reach`` is ``interface.whole``.
    """

    case: Case
    interface: AnyInterface
    option: Option
    is_shmem: bool
    numbers: dict[Hashable, int]
    reach: Callable[[tuple[int, ...]], int]


class BulkPlan:
    """The files that go whole, in columns by number, and which groups are theirs.

    ``keys`` say which file it is, ``collateral`` what of others' it can move. Each of
    their groups has its file in ``numbers``, its memcg's position in ``positions``, and
    its index in ``charge_groups`` in ``indexes``; ``taken`` has these by position.
    """

    def __init__(
        self, memcgs: Sequence[Memcg], chooser: Chooser, context: PlanContext
    ) -> None:
        self._memcgs = memcgs
        self._context = context
        self._above = [context.room.ancestor(memcg) for memcg in memcgs]
        self.keys: list[Hashable] = []
        self.kinds: list[Kind] = []
        self.bytes: list[int] = []
        self._backings: list[Backing] = []
        self._ancestors: list[tuple[int, ...]] = []
        kinds = {
            kind: Kind(
                *(case, first, chooser.option(first, case), kind == "shmem"),
                *({}, _reach(first, context)),
            )
            for kind, case in _CASES
            for first in chooser.usable(case)[:1]
            if first.whole and (kind == "file" or _room_in_swap(memcgs, context))
        }
        found, barred = self._find(kinds, context) if kinds else ([], set())
        if barred:
            found = self._leave(barred, found)
        self.taken: list[Container[int]] = [*found] or [()] * len(memcgs)
        self.numbers = np.array([n for mine in found for n in mine.values()], dtype=int)
        self.indexes = np.array([index for mine in found for index in mine], dtype=int)
        counts = np.array([len(mine) for mine in found], dtype=int)
        self.positions = np.arange(len(found)).repeat(counts)
        columns = self.kinds, self._ancestors, self._backings, self.bytes, self.keys
        self.collateral = [
            kind.reach(above)
            + (
                # Or else nobody has any other of it.
                max(0, cached - context.known[key])
                if (cached := backing.cached_bytes or 0) > size
                else 0
            )
            for kind, above, backing, size, key in zip(*columns, strict=True)
        ]

    def _find(
        self, kinds: Mapping[str, Kind], context: PlanContext
    ) -> tuple[list[dict[int, int]], set[int]]:
        """Number the files: by memcg those of its groups, by their indexes.

        And which of the files are barred: if something is in the way of any group, all
        of its file is looked at more closely.
        """
        found: list[dict[int, int]] = []
        barred: set[int] = set()
        for memcg, ancestor in zip(self._memcgs, self._above, strict=True):
            groups = memcg.details.charge_groups if memcg.details else ()
            waits = context.waits_in_swap_cache(ancestor)
            above = (ancestor,)
            mine: dict[int, int] = {}
            huge = False
            for index, group in enumerate(groups):
                mappers, backing, size = group.mappers, group.backing, group.bytes
                if mappers and not huge:
                    huge = any(user.huge_bytes for user in mappers)
                kind = kinds.get(group.kind)
                if kind is None or backing is None or group.mapped:
                    continue
                key = identity(backing)
                number = kind.numbers.get(key)
                if number is None:
                    number = kind.numbers[key] = len(self.keys)
                    self.keys.append(key)
                    self.kinds.append(kind)
                    self.bytes.append(size)
                    self._backings.append(backing)
                    self._ancestors.append(above)
                    if backing.kind in _OTHERS or not context.leads_to(backing):
                        barred.add(number)
                else:
                    self.bytes[number] += size
                    if above != (others := self._ancestors[number]):
                        self._ancestors[number] = tuple({*others, *above})
                    if backing != self._backings[number]:
                        barred.add(number)
                mine[index] = number
                if (
                    mappers
                    or group.obstacles
                    or not size
                    or (
                        kind.is_shmem
                        and (waits or not 0 <= group.swap_entry_bytes <= size)
                    )
                ):
                    barred.add(number)
            if huge:  # a part of its own, which asks for room in the mapper's memcg
                barred.update(mine.values())
            found.append(mine)
        return found, barred

    def _leave(
        self, barred: Container[int], found: list[dict[int, int]]
    ) -> list[dict[int, int]]:
        """Number anew those that are not barred."""
        numbers = [n for n in range(len(self.keys)) if n not in barred]
        self.keys = [self.keys[n] for n in numbers]
        self.kinds = [self.kinds[n] for n in numbers]
        self.bytes = [self.bytes[n] for n in numbers]
        self._backings = [self._backings[n] for n in numbers]
        self._ancestors = [self._ancestors[n] for n in numbers]
        anew = {n: number for number, n in enumerate(numbers)}
        return [
            {index: anew[n] for index, n in mine.items() if n in anew} for mine in found
        ]

    def __len__(self) -> int:
        return len(self.keys)

    def target(self, number: int) -> FileTarget:
        return self._context.file(self._backings[number])

    @cached_property
    def _by_number(self) -> list[list[tuple[int, int]]]:
        found: list[list[tuple[int, int]]] = [[] for _ in self.keys]
        columns = self.numbers, self.positions, self.indexes
        for n, position, index in zip(*(one.tolist() for one in columns), strict=True):
            found[n].append((position, index))
        return found

    def parts(self, number: int) -> Iterator[tuple[int, Part]]:
        """The parts of memcgs that are of a file, and their indexes."""
        case = self.kinds[number].case
        for position, index in self._by_number[number]:
            memcg = self._memcgs[position]
            assert memcg.details
            group = memcg.details.charge_groups[index]
            yield index, Part(memcg, case, group.bytes, group)

    def changes(self, number: int) -> list[Change]:
        """What it changes in the counters of online memcgs that a file goes."""
        return [self._change(number, *pair) for pair in self._by_number[number]]

    def _change(self, number: int, position: int, index: int) -> Change:
        details = self._memcgs[position].details
        assert details
        group = details.charge_groups[index]
        new = group.bytes - group.swap_entry_bytes
        swapped = new if self.kinds[number].is_shmem else 0
        return self._above[position], -group.bytes, swapped

    def swapped(self) -> dict[int, list[Change]]:
        """The same for what is swapped out, by the memcg's position."""
        found: dict[int, list[Change]] = defaultdict(list)
        for number, pairs in enumerate(self._by_number):
            if self.kinds[number].is_shmem:
                for position, index in pairs:
                    found[position].append(self._change(number, position, index))
        return found


def _reach(
    interface: AnyInterface, context: PlanContext
) -> Callable[[tuple[int, ...]], int]:
    whole = interface.whole
    assert whole
    return cache(lambda ancestors: whole(ancestors, context))


def _room_in_swap(memcgs: Sequence[Memcg], context: PlanContext) -> bool:
    """Whether there is room for all that could be swapped out or stay in swap."""
    above = {context.room.ancestor(memcg) for memcg in memcgs}
    if any(map(context.reclaim_untargeted, above)):
        return False
    size = 0
    for memcg in memcgs:
        groups = memcg.details.charge_groups if memcg.details else ()
        size += sum([group.bytes for group in groups if group.kind != "file"])
        size += memcg.swap.bytes if memcg.swap else 0
    return all(context.room.swap_room(one) >= size for one in above)
