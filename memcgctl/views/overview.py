"""What holds each zombie, whose was it, how old is it, and can it go?

Pure functions of a census and of a plan that was made for it; no kernel structure is
read here, and nothing is decided: what can go is what the plan says.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from memcgctl.model import Census, Charges, Kernel, Memcg, Plan
from memcgctl.views.workload import Rules, Workload, workload

Freeable = Literal["yes", "no", "unknown"]
# What a memcg is held by above all; the first four are classes of charged memory.
CLASSES = ("file", "shmem", "anon", "kernel")
KINDS = (
    *CLASSES,
    *("sock", "hugetlb", "swap", "socket", "fsnotify", "event", "other"),
    *("writeback", "stock", "objcg", "child", "unknown"),
)
# Whom a person has to turn to comes before what goes with the next write.
_REFERENCES = tuple(kind for kind in KINDS if kind not in (*CLASSES, "swap"))


@dataclass(frozen=True)
class Row:
    """One zombie as a person asks for it.

    ``held_by`` is the kind that it is held by above all, ``why_not`` why it stays if
    ``freeable`` is ``no``; ``age_seconds`` is since its removal, None if that is not
    known.
    """

    memcg: Memcg
    workload: Workload
    held_by: str
    freeable: Freeable
    why_not: str
    kinds: tuple[str, ...]
    age_seconds: float | None

    @property
    def cost_bytes(self) -> int:
        return self.memcg.cost_bytes


@dataclass(frozen=True)
class Sum:
    """Zombies that have something in common; ``name`` says what.

    ``waits`` counts what those wait for that cannot go, most frequent first.
    """

    name: str
    rows: tuple[Row, ...]
    cost_bytes: int
    freeable: int
    unknown: int
    waits: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Filters:
    """What is asked for; all of it has to hold. Ages in seconds, sizes in bytes."""

    held_by: tuple[str, ...] = ()
    freeable: bool | None = None
    older: float | None = None
    min_size: int | None = None
    who: str | None = None
    match: str | None = None

    def __call__(self, row: Row) -> bool:
        said = row.workload
        names = (said.pod_uid, said.container_id, said.unit, said.session, said.name)
        return (
            (not self.held_by or row.held_by in self.held_by)
            and (self.freeable is None or (row.freeable == "yes") == self.freeable)
            and (self.older is None or (row.age_seconds or -1) >= self.older)
            and (self.min_size is None or row.cost_bytes >= self.min_size)
            and (self.who is None or any(self.who in (n or "") for n in names))
            and (self.match is None or self.match in row.memcg.path)
        )


@dataclass(frozen=True)
class Overview:
    """The zombies of a census that match, in order, and their sums by holder.

    ``offline`` is how many the census has in all. ``planned`` tells whether anybody
    asked what can go.
    """

    kernel: Kernel
    rows: tuple[Row, ...]
    offline: int
    holders: tuple[Sum, ...]
    planned: bool
    warnings: tuple[str, ...]


def overview(
    census: Census,
    memcgs: Sequence[Memcg],
    plan: Plan | None = None,
    filters: Filters | None = None,
    rules: Rules = workload,
) -> Overview:
    """Rows of the offline ones among ``memcgs``, in their order."""
    freed = frozenset(plan.freed) if plan else frozenset()
    stays = {one.id: one for one in plan.remaining} if plan else {}
    rows = []
    for memcg in memcgs:
        if memcg.state == "online":
            continue
        left = stays.get(memcg.id)
        yes = memcg.id in freed
        row = Row(
            memcg=memcg,
            workload=rules(memcg.path, memcg.xattrs),
            held_by=held_by(memcg),
            freeable="yes" if yes else "no" if left else "unknown",
            why_not=left.why if left and not yes else "",
            kinds=left.kinds if left and not yes else (),
            age_seconds=age(census.kernel, memcg),
        )
        if filters is None or filters(row):
            rows.append(row)
    return Overview(
        kernel=census.kernel,
        rows=tuple(rows),
        offline=sum(memcg.state == "offline" for memcg in census.memcgs),
        holders=sums(rows, lambda row: row.held_by),
        planned=plan is not None,
        warnings=census.warnings,
    )


def age(kernel: Kernel, memcg: Memcg) -> float | None:
    """Seconds since the removal, by the clock of the machine it was on."""
    if memcg.removed_at is None or kernel.taken_at is None:
        return None
    return max(0.0, kernel.taken_at - memcg.removed_at)


def held_by(memcg: Memcg) -> str:
    """The kind that holds most bytes of it, or a reference where it has no memory."""
    if memcg.charges is None or memcg.swap is None:
        return "unknown"
    held = {
        kind: charged(memcg.charges, kind) for kind in (*CLASSES, "sock", "hugetlb")
    }
    held["swap"] = memcg.swap.bytes
    most = max(held, key=lambda kind: held[kind])
    if held[most]:
        return most
    kinds = {one.kind for one in memcg.details.holders} if memcg.details else set()
    for kind in _REFERENCES:
        if kind in kinds:
            return kind
    return "child" if memcg.children else "unknown"


def charged(charges: Charges, kind: str) -> int:
    """Bytes of one class; 0 for socket memory that nobody knows."""
    size: int | None = getattr(charges, f"{kind}_bytes")
    return size or 0


def sums(rows: Iterable[Row], key: Callable[[Row], str]) -> tuple[Sum, ...]:
    """The rows by what they have in common, most expensive first."""
    members: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        members[key(row)].append(row)
    found = [
        Sum(
            name=name,
            rows=tuple(mine),
            cost_bytes=sum(row.cost_bytes for row in mine),
            freeable=sum(row.freeable == "yes" for row in mine),
            unknown=sum(row.freeable == "unknown" for row in mine),
            waits=tuple(
                Counter(row.kinds[0] for row in mine if row.kinds).most_common()
            ),
        )
        for name, mine in members.items()
    ]
    return tuple(sorted(found, key=lambda one: (-one.cost_bytes, one.name)))


def group_key(group: str) -> Callable[[Row], str]:
    """What rows of one group have in common, for a name that ``--group-by`` takes."""
    keys: dict[str, Callable[[Row], str]] = {
        "ancestor": lambda row: row.memcg.ancestor,
        "who": lambda row: whose(row.workload) or row.memcg.path,
        "unit": lambda row: row.workload.unit or "no unit",
        "pod": lambda row: row.workload.pod_uid or "no pod",
        "holder": lambda row: row.held_by,
        "file": lambda row: largest_file(row.memcg) or "no file",
        "family": lambda row: row.workload.family or row.memcg.path,
    }
    return keys[group]


def whose(said: Workload) -> str:
    """Pod, container, unit, session or machine in a few words; empty if not known."""
    container = said.container_id[:12] if said.container_id else ""
    if said.pod_uid:
        return f"pod {said.pod_uid[:8]}" + (f" {container}" if container else "")
    if container:
        return f"{said.runtime} {container}"
    if said.runtime in ("slurm", "android", "yarn", "lxc", "nspawn", "libvirt", "ecs"):
        return f"{said.runtime} {said.session or said.name or ''}".rstrip()
    return said.unit or said.name or ""


def largest_file(memcg: Memcg) -> str | None:
    """The path of the file that it is charged most of, or that its swap is of."""
    sizes: Counter[str] = Counter()
    for group in memcg.details.charge_groups if memcg.details else ():
        if group.backing and group.backing.path:
            sizes[group.backing.path] += group.bytes
    for device in memcg.details.swap_devices if memcg.details else ():
        for owner in device.owners:
            if owner.file and owner.file.path:
                sizes[owner.file.path] += owner.entries
    return max(sizes, key=lambda path: sizes[path]) if sizes else None


def ordered(rows: Iterable[Row], sort: str, *, reverse: bool = False) -> list[Row]:
    """Largest, oldest first; names and ids ascending. What is not known comes last."""
    keys: dict[str, Callable[[Row], tuple[float, str]]] = {
        "cost": lambda row: (-row.cost_bytes, row.memcg.path),
        "age": lambda row: (
            math.inf if row.age_seconds is None else -row.age_seconds,
            row.memcg.path,
        ),
        "who": lambda row: (0, whose(row.workload) or row.memcg.path),
    }
    return sorted(rows, key=keys[sort], reverse=reverse)
