"""Who has room for what is charged to it, and who would be pushed over a limit?

Keeps account of memory and swap while a policy moves them. A charge counts for a memcg
and all its ancestors; a zombie's already counts for its nearest online ancestor and
all above, so that moving it there changes nothing for them.
"""

from __future__ import annotations

from collections.abc import Iterable

from memcgctl.model import Census, Limits, Memcg

# A memcg's id, and what it is charged more (or less) in memory and in swap, in bytes.
Change = tuple[int, int, int]


class Headroom:
    """What the online memcgs of a census have left below their limits, as it changes.

    ``memory``, ``swap`` and ``memsw`` are bytes by the id of a memcg that has such a
    limit, less than 0 where it uses more.
    """

    def __init__(self, census: Census) -> None:
        self.memcgs = {m.id: m for m in census.memcgs if m.state == "online"}
        self.by_path = {m.path: m.id for m in self.memcgs.values()}
        self.free_swap = census.kernel.swap_free_bytes or 0
        self.page_size = census.kernel.page_size
        self.memory: dict[int, int] = {}
        self.swap: dict[int, int] = {}
        self.memsw: dict[int, int] = {}
        for memcg in self.memcgs.values():
            if memcg.limits:
                self._limit(memcg, memcg.limits)
        self._chains: dict[int, tuple[int, ...]] = {}
        self._limited: dict[int, tuple[int, ...]] = {}

    def _limit(self, memcg: Memcg, limits: Limits) -> None:
        bounds = [b for b in (limits.max_bytes, limits.high_bytes) if b is not None]
        if bounds:
            self.memory[memcg.id] = min(bounds) - memcg.usage_bytes
        if limits.swap_max_bytes is not None:
            self.swap[memcg.id] = limits.swap_max_bytes - limits.swap_usage_bytes
        if limits.memsw_max_bytes is not None:
            self.memsw[memcg.id] = limits.memsw_max_bytes - limits.memsw_usage_bytes

    @property
    def bounded(self) -> bool:
        """Whether any memcg has a limit."""
        return bool(self.memory or self.swap or self.memsw)

    def ancestor(self, memcg: Memcg) -> int:
        """The id of the nearest online ancestor; 0 if that isn't in the census."""
        return self.by_path.get(memcg.ancestor, 0)

    def path(self, memcg_id: int) -> str:
        memcg = self.memcgs.get(memcg_id)
        return memcg.path if memcg else f"cgroup {memcg_id}"

    def chain(self, memcg_id: int) -> tuple[int, ...]:
        """An online memcg and all its ancestors, the root last."""
        known = self._chains.get(memcg_id)
        if known is None:
            found: dict[int, None] = {}
            here = memcg_id
            while here in self.memcgs and here not in found:
                found[here] = None
                here = self.memcgs[here].parent_id
            known = self._chains[memcg_id] = tuple(found)
        return known

    def common(self, memcg_ids: Iterable[int]) -> int:
        """The lowest common ancestor of online memcgs; 0 if there is none."""
        first, *others = [self.chain(memcg_id) for memcg_id in memcg_ids]
        shared = set(first).intersection(*others)
        return next((memcg_id for memcg_id in first if memcg_id in shared), 0)

    def limited(self, memcg_id: int) -> tuple[int, ...]:
        """Those of the chain that have a limit."""
        known = self._limited.get(memcg_id)
        if known is None:
            every = self.memory, self.swap, self.memsw
            known = self._limited[memcg_id] = tuple(
                one
                for one in self.chain(memcg_id)
                if any(one in rooms for rooms in every)
            )
        return known

    def charge(self, changes: Iterable[Change]) -> list[int]:
        """Make some moves; who gained by them and uses more than it may now."""
        gains: dict[int, tuple[int, int]] = {}
        for memcg_id, in_memory, in_swap in changes:
            self.free_swap -= in_swap
            for one in self.limited(memcg_id):
                memory, swap = gains.get(one, (0, 0))
                gains[one] = memory + in_memory, swap + in_swap
        return [one for one, gain in gains.items() if self._charge(one, *gain)]

    def _charge(self, memcg_id: int, memory: int, swap: int) -> bool:
        """Charge one memcg; whether it uses more than it may by this."""
        counters = (self.memory, memory), (self.swap, swap), (self.memsw, memory + swap)
        over = False
        for rooms, gain in counters:
            if memcg_id in rooms:
                rooms[memcg_id] -= gain
                over = over or gain > 0 > rooms[memcg_id]
        return over

    def is_over(self, memcg_id: int) -> bool:
        """Whether a memcg uses more than it may."""
        every = self.memory, self.swap, self.memsw
        return any(rooms.get(memcg_id, 0) < 0 for rooms in every)

    def swap_room(self, memcg_id: int) -> int:
        """How many bytes can be swapped out and charged to a memcg."""
        room = self.free_swap
        for one in self.limited(memcg_id):
            room = min(room, self.swap.get(one, room))
        return max(0, room)

    def swap_limit(self, memcg_id: int) -> int | None:
        """How much more swap a memcg can be charged; None: no limit."""
        rooms = [self.swap[one] for one in self.limited(memcg_id) if one in self.swap]
        return min(rooms, default=None)

    def room(self, memcg_id: int) -> int | None:
        """How much more a memcg can be charged, below all limits; None: no limit."""
        chain, limits = self.limited(memcg_id), (self.memory, self.memsw)
        rooms = [rooms[one] for rooms in limits for one in chain if one in rooms]
        return min(rooms, default=None)
