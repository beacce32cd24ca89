"""Which part of a census was asked for? Filters, orders, groups and adds up.

Pure functions of the model; no kernel structure is read here.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, replace
from operator import attrgetter
from typing import Any, Literal, TypeVar

from memcgctl.model import (
    Census,
    Charges,
    Group,
    Listing,
    Memcg,
    Overhead,
    Reason,
    SwapUse,
)

Kind = Literal[
    "file", "shmem", "anon", "kernel", "hugetlb", "sock", "swap", "children", "other"
]
Row = TypeVar("Row", Memcg, Group)
Sum = TypeVar("Sum", Charges, Overhead, SwapUse)


def unscanned(census: Census) -> Census:
    """As it would have been taken without a scan: the tree and its counters."""
    bare = (replace(memcg, charges=None, swap=None) for memcg in census.memcgs)
    return replace(census, memcgs=tuple(bare))


def select(
    census: Census,
    *,
    online: bool = False,
    sort: str = "cost",
    limit: int | None = None,
    by_ancestor: bool = False,
) -> Listing:
    """Filter by state, then group, order and cut to ``limit`` rows.

    ``sort`` is one of ``sort_keys(by_ancestor)``. Groups are of offline memcgs only.
    """
    matching = census.memcgs
    offline = [m for m in matching if m.state == "offline"]
    memcgs: Sequence[Memcg] = ()
    groups: Sequence[Group] | None = None
    if by_ancestor:
        groups = ordered(group_by_ancestor(offline), sort)
        omitted = len(groups) - len(groups[:limit])
    else:
        memcgs = ordered(matching if online else offline, sort)
        omitted = len(memcgs) - len(memcgs[:limit])
    return Listing(
        kernel=census.kernel,
        memcgs=tuple(memcgs[:limit]),
        groups=None if groups is None else tuple(groups[:limit]),
        omitted=omitted,
        total=total("/", offline),
        reason=largest_reason(offline),
        warnings=census.warnings,
        unread=census.unread,
    )


def sort_keys(by_ancestor: bool) -> list[str]:
    """What memcgs, or groups of them, can be ordered by."""
    without = {"id", "refs", "children"} if by_ancestor else {"memcgs"}
    return [key for key in ("id", "path", *KEYS) if key not in without]


def ordered(rows: Iterable[Row], sort: str) -> list[Row]:
    """Largest first, but ids and paths ascending; what is not known comes last."""
    if sort in ("id", "path"):
        return sorted(rows, key=lambda row: (getattr(row, sort), row.path))
    return sorted(rows, key=lambda row: (_descending(KEYS[sort](row)), row.path))


def _descending(number: int | None) -> float:
    return math.inf if number is None else -number


def _charged(kind: str) -> Callable[[Memcg | Group], int | None]:
    value = attrgetter(f"charges.{kind}_bytes")
    return lambda row: None if row.charges is None else value(row)


KEYS: dict[str, Callable[[Any], int | None]] = {
    "cost": attrgetter("cost_bytes"),
    "memcgs": attrgetter("memcgs"),
    "refs": attrgetter("refs"),
    "children": attrgetter("children"),
    "file": _charged("file"),
    "shmem": _charged("shmem"),
    "anon": _charged("anon"),
    "kernel": _charged("kernel"),
    "hugetlb": _charged("hugetlb"),
    "sock": _charged("sock"),
    "swap": lambda row: None if row.swap is None else row.swap.bytes,
    "overhead": attrgetter("overhead.total_bytes"),
    "usage": attrgetter("usage_bytes"),
}


def group_by_ancestor(memcgs: Iterable[Memcg]) -> list[Group]:
    """One group for each nearest online ancestor, in order of first appearance."""
    members: defaultdict[str, list[Memcg]] = defaultdict(list)
    for memcg in memcgs:
        members[memcg.ancestor].append(memcg)
    return [total(ancestor, group) for ancestor, group in members.items()]


def total(path: str, memcgs: Sequence[Memcg]) -> Group:
    """The sum of ``memcgs``; charges and swap are None if one's are not known."""
    charges = [m.charges for m in memcgs]
    swap = [m.swap for m in memcgs]
    return Group(
        path=path,
        memcgs=len(memcgs),
        usage_bytes=sum(m.usage_bytes for m in memcgs),
        overhead=_sum(Overhead, [m.overhead for m in memcgs]),
        charges=None if None in charges else _sum(Charges, charges),
        swap=None if None in swap else _sum(SwapUse, swap),
    )


def _sum(kind: Callable[..., Sum], parts: Sequence[object]) -> Sum:
    columns = {
        field.name: [getattr(part, field.name) for part in parts]
        for field in fields(kind)  # type: ignore[arg-type]
    }
    # What is not known of one is not known of all together.
    return kind(**{name: None if None in v else sum(v) for name, v in columns.items()})


def largest_reason(offline: Iterable[Memcg]) -> Reason | None:
    """What holds the memcgs that cost most, each counted for what it has most of."""
    memcgs: Counter[Kind] = Counter()
    costs: Counter[Kind] = Counter()
    for memcg in offline:
        if (kind := _held_by(memcg)) is None:
            return None
        memcgs[kind] += 1
        costs[kind] += memcg.cost_bytes
    if not costs:
        return None
    kind, cost_bytes = costs.most_common(1)[0]
    return Reason(kind, memcgs[kind], cost_bytes)


def _held_by(memcg: Memcg) -> Kind | None:
    if memcg.charges is None or memcg.swap is None:
        return None
    held: dict[Kind, int] = {
        "file": memcg.charges.file_bytes,
        "shmem": memcg.charges.shmem_bytes,
        "anon": memcg.charges.anon_bytes,
        "kernel": memcg.charges.kernel_bytes,
        "hugetlb": memcg.charges.hugetlb_bytes,
        "sock": memcg.charges.sock_bytes or 0,
        "swap": memcg.swap.bytes,
    }
    kind = max(held, key=lambda kind: held[kind])
    if held[kind]:
        return kind
    if memcg.charges.sock_bytes is None:
        return None  # socket memory may be all that it has
    return "children" if memcg.children else "other"
