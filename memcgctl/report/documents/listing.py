"""What was read, memcgs and what they cost: ``memcgctl/list``."""

from __future__ import annotations

from typing import Literal, TypedDict

State = Literal["offline", "online"]


class Source(TypedDict):
    """What was read."""

    kind: Literal["live", "vmcore", "census"]
    path: str | None
    release: str
    types: Literal["btf", "dwarf"]
    cgroup_version: Literal[1, 2]
    page_size: int
    possible_cpus: int
    numa_nodes: int


class Source2(Source):
    host: str | None
    boot_id: str | None
    machine_id: str | None
    taken_at: float | None


class Classes(TypedDict):
    """Bytes or folios by class."""

    file: int
    shmem: int
    anon: int
    kernel: int


class Folios2(Classes):
    hugetlb: int


class Charged2(Folios2):
    """``sock`` is null where it is not known."""

    sock: int | None


class Swap(TypedDict):
    entries: int
    bytes: int


class Swap2(Swap):
    """Of the entries, those in zswap and the memory they take; null: not known."""

    zswap_entries: int | None
    zswap_bytes: int | None


class Overhead(TypedDict):
    percpu: int
    percpu_accounted: int
    structs: int


class Costs(TypedDict):
    """Null where nothing was scanned."""

    charged: Classes | None
    folios: Classes | None
    swap: Swap | None
    overhead: Overhead
    usage_bytes: int


class Costs2(TypedDict):
    charged: Charged2 | None
    folios: Folios2 | None
    swap: Swap2 | None
    overhead: Overhead
    usage_bytes: int


class _Named(TypedDict):
    id: int
    path: str
    state: State
    ancestor: str
    refs: int | None
    children: int
    parent_id: int
    private_id: int
    address: str


class Memcg(_Named, Costs):
    pass


class Workload(TypedDict):
    runtime: str | None
    pod_uid: str | None
    container_id: str | None
    unit: str | None
    session: str | None
    name: str | None
    family: str | None
    invocation: str | None


class Memcg2(_Named, Costs2):
    workload: Workload
    created_at: float | None
    removed_at: float | None
    held_by: dict[str, int] | None
    freeable: Literal["yes", "no", "unknown"]
    why_not: str | None


class ListTotals(TypedDict):
    offline: int
    dying_cgroups: int | None
    dying_without_memcg: int | None
    charged_bytes: int | None
    swap_bytes: int | None
    overhead_bytes: int


class _Group(TypedDict):
    ancestor: str
    offline: int


class Group(_Group, Costs):
    pass


class Group2(_Group, Costs2):
    pass


class _ByAncestor(TypedDict, total=False):
    """With ``--group-by ancestor``."""

    groups: list[Group]


class _ByAncestor2(TypedDict, total=False):
    groups: list[Group2]


class List1(_ByAncestor):
    schema: Literal["memcgctl/list/1"]
    source: Source
    totals: ListTotals
    memcgs: list[Memcg]
    warnings: list[str]


class Row1(Memcg2):
    """One memcg on a line of its own, with what it was read of."""

    schema: Literal["memcgctl/row/1"]
    source: Source2
    warnings: list[str]


class List2(_ByAncestor2):
    schema: Literal["memcgctl/list/2"]
    source: Source2
    totals: ListTotals
    memcgs: list[Memcg2]
    warnings: list[str]
