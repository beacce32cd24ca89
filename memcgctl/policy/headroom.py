"""Who has room for what is charged to it, and who would be pushed over a limit?

Keeps account of memory and swap while a policy moves them. A charge counts for a memcg
and all its ancestors; a zombie's already counts for its nearest online ancestor and
all above, so that moving it there changes nothing for them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from memcgctl.model import Census, Limits, Memcg

NO_LIMITS = Limits()

# A memcg's id, and what it is charged more (or less) in memory and in swap, in bytes.
Move = tuple[int, int, int]


class Headroom:
    """The counters of the online memcgs of a census, as they change."""

    def __init__(self, census: Census) -> None:
        self.memcgs = {m.id: m for m in census.memcgs if m.state == "online"}
        self.by_path = {m.path: m.id for m in self.memcgs.values()}
        self.free_swap = census.kernel.swap_free_bytes or 0
        self.page_size = census.kernel.page_size
        self._memory: Counter[int] = Counter()
        self._swap: Counter[int] = Counter()
        self._chains: dict[int, tuple[int, ...]] = {}

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

    def charge(self, moves: Iterable[Move]) -> list[int]:
        """Make some moves; who gained by them and uses more than it may now."""
        gains: dict[int, tuple[int, int]] = {}
        for memcg_id, in_memory, in_swap in moves:
            self.free_swap -= in_swap
            for one in self.chain(memcg_id):
                memory, swap = gains.get(one, (0, 0))
                gains[one] = memory + in_memory, swap + in_swap
        for one, (memory, swap) in gains.items():
            self._memory[one] += memory
            self._swap[one] += swap
        return [
            one
            for one, (memory, swap) in gains.items()
            if (memory > 0 or swap > 0)
            and (
                (memory > 0 and _is_over(self._memory_of(one)))
                or (swap > 0 and _is_over(self._swap_of(one)))
                or (memory + swap > 0 and _is_over(self._memsw_of(one)))
            )
        ]

    def is_over(self, memcg_id: int) -> bool:
        """Whether a memcg uses more than it may."""
        counters = self._memory_of, self._swap_of, self._memsw_of
        return any(_is_over(counter(memcg_id)) for counter in counters)

    def gained(self, memcg_id: int) -> bool:
        """Whether all charges together gave a memcg more than it lost."""
        return self._memory[memcg_id] > 0 or self._swap[memcg_id] > 0

    def swap_room(self, memcg_id: int) -> int:
        """How many bytes can be swapped out and charged to a memcg."""
        rooms = [
            limit - usage
            for one in self.chain(memcg_id)
            for limit, usage in (self._swap_of(one),)
            if limit is not None
        ]
        return max(0, min([self.free_swap, *rooms]))

    def room(self, memcg_id: int) -> int | None:
        """How much more a memcg can be charged, below all limits; None: no limit."""
        rooms = [
            limit - usage
            for one in self.chain(memcg_id)
            for limit, usage in (self._memory_of(one), self._memsw_of(one))
            if limit is not None
        ]
        return min(rooms, default=None)

    def _limits(self, memcg_id: int) -> Limits:
        return self.memcgs[memcg_id].limits or NO_LIMITS

    def _memory_of(self, memcg_id: int) -> tuple[int | None, int]:
        limits = self._limits(memcg_id)
        bounds = [b for b in (limits.max_bytes, limits.high_bytes) if b is not None]
        usage = self.memcgs[memcg_id].usage_bytes + self._memory[memcg_id]
        return min(bounds, default=None), usage

    def _swap_of(self, memcg_id: int) -> tuple[int | None, int]:
        limits = self._limits(memcg_id)
        return limits.swap_max_bytes, limits.swap_usage_bytes + self._swap[memcg_id]

    def _memsw_of(self, memcg_id: int) -> tuple[int | None, int]:
        limits = self._limits(memcg_id)
        moved = self._memory[memcg_id] + self._swap[memcg_id]
        return limits.memsw_max_bytes, limits.memsw_usage_bytes + moved


def _is_over(counter: tuple[int | None, int]) -> bool:
    limit, usage = counter
    return limit is not None and usage > limit
