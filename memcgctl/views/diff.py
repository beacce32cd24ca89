"""What became of the zombies between two censuses? Pure functions of both.

Of one boot of one machine a zombie is the same if its cgroup id is; otherwise only
what their names have in common can be compared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from memcgctl.model import Census, Kernel, Memcg
from memcgctl.views.overview import held_by
from memcgctl.views.workload import Rules, workload


@dataclass(frozen=True)
class Change:
    """Zombies of one family or holder, then and now; ``new`` and ``gone`` are None
    where the two censuses are not of one boot. Costs in bytes, memory and swap.
    """

    name: str
    before: int
    after: int
    new: int | None
    gone: int | None
    cost_before_bytes: int
    cost_after_bytes: int


@dataclass(frozen=True)
class Difference:
    """Two censuses, older first. ``same_boot`` is None where one does not tell.

    ``new``, ``gone`` and ``grown`` are zombies of one boot, most expensive first;
    ``grown`` are those that cost more now, with how many bytes more. ``seconds`` is
    what lies between, None if it is not known.
    """

    before: Kernel
    after: Kernel
    same_boot: bool | None
    seconds: float | None
    offline_before: int
    offline_after: int
    new: tuple[Memcg, ...]
    gone: tuple[Memcg, ...]
    grown: tuple[tuple[Memcg, int], ...]
    families: tuple[Change, ...]
    holders: tuple[Change, ...]
    warnings: tuple[str, ...]


def diff(before: Census, after: Census, rules: Rules = workload) -> Difference:
    """What is new, gone and grown, and the families that grow, fastest first."""
    old, new = _offline(before), _offline(after)
    same = _same_boot(before.kernel, after.kernel)
    comparable = same is not False
    then = {_key(memcg): memcg for memcg in old}
    now = {_key(memcg): memcg for memcg in new}
    came = [memcg for key, memcg in now.items() if key not in then]
    went = [memcg for key, memcg in then.items() if key not in now]
    grown = [
        (memcg, memcg.cost_bytes - then[key].cost_bytes)
        for key, memcg in now.items()
        if key in then and memcg.cost_bytes > then[key].cost_bytes
    ]
    times = before.kernel.taken_at, after.kernel.taken_at

    def family(memcg: Memcg) -> str:
        return rules(memcg.path, memcg.xattrs).family or memcg.path

    def changes(name: Callable[[Memcg], str]) -> tuple[Change, ...]:
        return _changes(old, new, came, went, name, comparable=comparable)

    return Difference(
        before=before.kernel,
        after=after.kernel,
        same_boot=same,
        seconds=None if None in times else times[1] - times[0],  # type: ignore[operator]
        offline_before=len(old),
        offline_after=len(new),
        new=_by_cost(came) if comparable else (),
        gone=_by_cost(went) if comparable else (),
        grown=tuple(sorted(grown, key=lambda one: -one[1])) if comparable else (),
        families=changes(family),
        holders=changes(held_by),
        warnings=tuple(dict.fromkeys((*before.warnings, *after.warnings))),
    )


def _offline(census: Census) -> list[Memcg]:
    return [memcg for memcg in census.memcgs if memcg.state == "offline"]


def _key(memcg: Memcg) -> tuple[int, int]:
    """Several memcgs can have one cgroup id; one address is used again."""
    return memcg.id, memcg.address


def _same_boot(before: Kernel, after: Kernel) -> bool | None:
    if before.release != after.release:
        return False
    if before.boot_id is None or after.boot_id is None:
        return None
    return before.boot_id == after.boot_id


def _by_cost(memcgs: Iterable[Memcg]) -> tuple[Memcg, ...]:
    return tuple(sorted(memcgs, key=lambda memcg: (-memcg.cost_bytes, memcg.path)))


def _changes(
    old: list[Memcg],
    new: list[Memcg],
    came: list[Memcg],
    went: list[Memcg],
    name: Callable[[Memcg], str],
    *,
    comparable: bool,
) -> tuple[Change, ...]:
    """Those that differ, the fastest growing first."""
    counts = [Counter(map(name, memcgs)) for memcgs in (old, new, came, went)]
    costs: list[Counter[str]] = [Counter(), Counter()]
    for cost, memcgs in zip(costs, (old, new), strict=True):
        for memcg in memcgs:
            cost[name(memcg)] += memcg.cost_bytes
    found = [
        Change(
            one,
            counts[0][one],
            counts[1][one],
            counts[2][one] if comparable else None,
            counts[3][one] if comparable else None,
            costs[0][one],
            costs[1][one],
        )
        for one in {*counts[0], *counts[1]}
        if (counts[0][one], costs[0][one]) != (counts[1][one], costs[1][one])
        or (comparable and counts[2][one])
    ]
    return tuple(
        sorted(found, key=lambda one: (one.before - one.after, one.name)),
    )
