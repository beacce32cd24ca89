"""Files of which all that zombies are charged for goes at once, planned in bulk.

On a machine with very many zombies most of what they hold is page cache and shmem that
nobody maps and nothing is in the way of. The first interface that a policy may use
takes all of such a file, so that its parts need not be tried one by one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Container, Hashable, Mapping, Sequence
from functools import cache
from typing import NamedTuple

from memcgctl.model import Backing, Memcg
from memcgctl.policy.cases import Case
from memcgctl.policy.choice import Chooser
from memcgctl.policy.headroom import Move
from memcgctl.policy.interfaces import Interface, World, identity
from memcgctl.policy.policies import Option

_CASES: tuple[tuple[str, Case], ...] = (
    ("file", "file-unmapped"),
    ("shmem", "swap-backed-unmapped"),
)
# The position of a memcg, the place of its group, its bytes, and those new to swap.
Portion = tuple[int, int, int, int]
# What is no file that could be opened, or has its own ways.
_OTHERS = ("bdev", "hugetlb")


class Kind(NamedTuple):
    """What takes files of a kind; those that were found, by what they are.

    ``reach`` is ``interface.whole``.
    """

    case: Case
    interface: Interface
    option: Option
    is_shmem: bool
    files: dict[Hashable, File]
    reach: Callable[[tuple[int, ...]], int]


class File:
    """One file, and what the memcgs have of it; ``barred`` if that is not all.

    ``above`` are the online ancestors of these memcgs.
    """

    __slots__ = ("above", "backing", "barred", "bytes", "key", "kind", "portions")

    def __init__(
        self, key: Hashable, kind: Kind, backing: Backing, above: tuple[int, ...]
    ) -> None:
        self.key = key
        self.kind = kind
        self.backing = backing
        self.above = above
        self.portions: list[Portion] = []
        self.bytes = 0
        self.barred = False


class Whole:
    """The files that go whole, and which groups of the memcgs are theirs.

    ``collateral`` is by the number in ``files``; ``taken`` has the places of groups in
    ``charge_groups``, by the memcg's position.
    """

    def __init__(self, memcgs: Sequence[Memcg], chooser: Chooser, world: World) -> None:
        kinds = {
            kind: Kind(
                *(case, first, chooser.option(first, case), kind == "shmem"),
                *({}, _reach(first, world)),
            )
            for kind, case in _CASES
            for first in chooser.usable(case)[:1]
            if first.whole and (kind == "file" or _room_in_swap(memcgs, world))
        }
        self._world = world
        self._above = [world.room.ancestor(memcg) for memcg in memcgs]
        found = self._find(memcgs, kinds) if kinds else [{} for _ in memcgs]
        self.taken: list[Container[int]] = [
            {place for place, file in mine.items() if not file.barred} for mine in found
        ]
        self.files = [
            file
            for kind in kinds.values()
            for file in kind.files.values()
            if not file.barred
        ]
        self.collateral = [self._others(file) for file in self.files]

    def _find(
        self, memcgs: Sequence[Memcg], kinds: Mapping[str, Kind]
    ) -> list[dict[int, File]]:
        """By memcg, the files that its groups are of, by the group's place.

        A group that something is in the way of bars its file: all of that is looked at
        more closely then.
        """
        found = []
        leads_to = self._world.leads_to
        for position, memcg in enumerate(memcgs):
            groups = memcg.details.charge_groups if memcg.details else ()
            above = (self._above[position],)
            waits = self._world.waits_in_swap_cache(*above)
            mine: dict[int, File] = {}
            huge = False
            for place, group in enumerate(groups):
                mappers, backing = group.mappers, group.backing
                if mappers and not huge:
                    huge = any(user.huge_bytes for user in mappers)
                kind = kinds.get(group.kind)
                if kind is None or backing is None or group.mapped:
                    continue
                key = identity(backing)
                file = kind.files.get(key)
                if file is None:
                    file = kind.files[key] = File(key, kind, backing, above)
                    if backing.kind in _OTHERS or not leads_to(backing):
                        file.barred = True
                mine[place] = file
                shmem, size = kind.is_shmem, group.bytes
                new = size - group.swap_entry_bytes if shmem else 0
                if (
                    mappers
                    or group.obstacles
                    or (waits and shmem)
                    or not 0 <= new <= size > 0
                    or (backing is not file.backing and backing != file.backing)
                ):
                    file.barred = True
                    continue
                file.bytes += size
                file.portions.append((position, place, size, new))
                if above != file.above:
                    file.above = tuple({*file.above, *above})
            if huge:  # a part of its own, which asks for room in the mapper's memcg
                for file in mine.values():
                    file.barred = True
            found.append(mine)
        return found

    def _others(self, file: File) -> int:
        """What of others' it can move."""
        others = file.kind.reach(file.above)
        cached = file.backing.cached_bytes or 0
        if cached <= file.bytes:  # nobody has any other of it
            return others
        return others + max(0, cached - self._world.known[file.key])

    def moves(self, file: File) -> list[Move]:
        """What it changes in the counters of online memcgs that it goes."""
        return [(self._above[n], -size, new) for n, _, size, new in file.portions]

    def swapped(self) -> dict[int, list[Move]]:
        """The same for what is swapped out, by the memcg's position."""
        found: dict[int, list[Move]] = defaultdict(list)
        for file in self.files:
            for position, _, size, new in file.portions:
                if new:
                    found[position].append((self._above[position], -size, new))
        return found


def _reach(interface: Interface, world: World) -> Callable[[tuple[int, ...]], int]:
    whole = interface.whole
    assert whole
    return cache(lambda ancestors: whole(ancestors, world))


def _room_in_swap(memcgs: Sequence[Memcg], world: World) -> bool:
    """Whether there is room for all that could be swapped out or stay in swap."""
    if world.unaimed:
        return False
    size = 0
    for memcg in memcgs:
        groups = memcg.details.charge_groups if memcg.details else ()
        size += sum([group.bytes for group in groups if group.kind != "file"])
        size += memcg.swap.bytes if memcg.swap else 0
    above = {world.room.ancestor(memcg) for memcg in memcgs}
    return all(world.room.swap_room(one) >= size for one in above)
