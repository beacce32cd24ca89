"""How do zombies come and go, from one look at the tree to the next? Pure functions.

One that comes and goes between two looks is in no look, so births and deaths are lower
bounds. A look that did not read the whole tree compares nothing: what is missing from
it may be there.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from memcgctl.model import Census, Kernel, Memcg, Topic
from memcgctl.views.workload import Rules, workload


@dataclass(frozen=True)
class Growth:
    """Zombies of one family: how many there are, and how many more than at first."""

    name: str
    now: int
    more: int


@dataclass(frozen=True)
class Watched:
    """What looks at one kernel have shown so far.

    ``seconds`` is from the first whole look to the last, ``born`` and ``gone`` what
    came and went between them; of one that is not ``whole`` the numbers are what was
    read. ``families`` are the fastest growing first, then the largest;
    ``oldest`` the longest removed, of those whose removal is known, with seconds.
    ``usage_bytes`` is on their counters, ``overhead_bytes`` the kernel's structures.
    """

    kernel: Kernel
    looks: int
    whole: bool
    seconds: float
    offline: int
    first: int
    born: int
    gone: int
    overhead_bytes: int
    usage_bytes: int
    families: tuple[Growth, ...]
    oldest: tuple[tuple[Memcg, float], ...]
    warnings: tuple[str, ...]

    def per_minute(self, events: int) -> float | None:
        """A rate; None before there is a second look."""
        return 60 * events / self.seconds if self.seconds > 0 else None


class Watch:
    """Takes one census after the other, of one kernel and oldest first."""

    def __init__(self, rules: Rules = workload) -> None:
        self._rules = rules
        self._began: float | None = None
        self._last = 0.0
        self._first: Counter[str] = Counter()
        self._known: frozenset[tuple[int, int]] = frozenset()
        self._born = self._gone = self._looks = 0

    def see(self, census: Census, at: float, rows: int = 20) -> Watched:
        """What is to be told once ``census`` was taken, at ``at`` seconds of a clock
        that never goes back; of families and of the oldest at most ``rows``.
        """
        zombies = [memcg for memcg in census.memcgs if memcg.state == "offline"]
        # Several memcgs can have one cgroup id; one address is used again.
        now = frozenset((memcg.id, memcg.address) for memcg in zombies)
        families = Counter(map(self._family, zombies))
        whole = Topic.MEMCGS.value not in census.unread
        self._looks += 1
        if whole and self._began is None:
            self._began, self._first, self._known = at, families, now
        if whole:
            self._born += len(now - self._known)
            self._gone += len(self._known - now)
            self._known, self._last = now, at
        first = families if self._began is None else self._first
        grown = sorted(
            (Growth(name, n, n - first[name]) for name, n in families.items()),
            key=lambda one: (-one.more, -one.now, one.name),
        )
        return Watched(
            kernel=census.kernel,
            looks=self._looks,
            whole=whole,
            seconds=0.0 if self._began is None else self._last - self._began,
            offline=len(zombies),
            first=first.total(),
            born=self._born,
            gone=self._gone,
            overhead_bytes=sum(memcg.overhead.total_bytes for memcg in zombies),
            usage_bytes=sum(memcg.usage_bytes for memcg in zombies),
            families=tuple(grown[:rows]),
            oldest=_oldest(zombies, census.kernel.taken_at)[:rows],
            warnings=census.warnings,
        )

    def _family(self, memcg: Memcg) -> str:
        return self._rules(memcg.path, memcg.xattrs).family or memcg.path


def _oldest(zombies: list[Memcg], now: float | None) -> tuple[tuple[Memcg, float], ...]:
    if now is None:
        return ()
    ages = [(m, now - m.removed_at) for m in zombies if m.removed_at is not None]
    return tuple(sorted(ages, key=lambda one: -one[1]))
