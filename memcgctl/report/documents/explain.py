"""What holds a memcg and who uses it: ``memcgctl/explain``."""

from __future__ import annotations

from typing import Literal, TypedDict

from memcgctl.report.documents.listing import Memcg, Memcg2, Source, Source2, State


class Process(TypedDict):
    pid: int
    comm: str
    memcg: str
    memcg_id: int
    bytes: int
    start_ticks: int
    huge_bytes: int
    tid: int


class Keeper(TypedDict):
    how: str
    process: Process
    fds: list[int]


class Backing(TypedDict):
    kind: Literal["file", "tmpfs", "memfd", "sysv", "shared-anon", "bdev", "hugetlb"]
    fs: str
    device: str
    inode: int
    generation: int
    path: str | None
    container_path: str | None
    deleted: bool
    size_bytes: int
    cached_bytes: int | None
    container_pid: int | None


class Generation(TypedDict):
    age_seconds: float | None
    bytes: int


class Coldness(TypedDict):
    active_bytes: int
    referenced_bytes: int
    workingset_bytes: int
    generations: list[Generation]


class Charge(TypedDict("Charge", {"class": str})):
    """A group of folios; ``class`` is file, shmem, anon, kernel or hugetlb."""

    mapped: bool
    folios: int
    bytes: int
    evictable: bool
    obstacles: list[str]
    backing: Backing | None
    mappers: list[Process]
    openers: list[Process]
    keepers: list[Keeper]
    mapped_bytes: int
    mapper_missing_bytes: int
    evictable_bytes: int
    obstacle_bytes: dict[str, int]
    dirty_bytes: int
    coldness: Coldness


class Holder(TypedDict):
    kind: str
    count: int
    detail: str
    transient: bool
    devices: list[str] | None


class References(TypedDict):
    total: int | None
    explained: int
    unexplained: int | None
    holders: list[Holder]


class SwapOwner(TypedDict):
    pid: int | None
    comm: str
    memcg: str
    memcg_id: int
    entries: int
    start_ticks: int
    file: Backing | None
    tid: int


class SwapDevice(TypedDict):
    device: str
    entries: int
    owners: list[SwapOwner]
    parents_entries: int
    synchronous: bool | None
    zswap_entries: int | None
    unowned_entries: int


class User(TypedDict):
    memcg: str
    memcg_id: int
    processes: int
    mapped_bytes: int
    open_bytes: int
    swap_entries: int
    exact: bool
    kept_bytes: int


class Inherited(TypedDict):
    path: str | None
    id: int
    objcgs: int
    refs: int
    structs_bytes: int
    folios: int
    charged_bytes: int


class Child(TypedDict):
    id: int
    path: str
    state: State


class Frame(TypedDict):
    pfn: int
    pages: int
    kind: str
    inode: int | None
    mapcount: int
    refcount: int
    pins: int
    flags: list[str]


class Frames(TypedDict):
    total: int
    frames: list[Frame]


class Option(TypedDict):
    option: str
    bytes: int
    supported: bool
    how: str
    effect: str


class _WithFolios(TypedDict, total=False):
    """With ``--folios``."""

    frames: Frames


class _Explained(_WithFolios):
    verdict: str
    references: References | None
    charges: list[Charge]
    swap: list[SwapDevice]
    users: list[User]
    unused_bytes: int
    unfound_bytes: int
    inherited: list[Inherited]
    children: list[Child]
    options: list[Option]
    next: str | None
    unread: list[str]
    warnings: list[str]


class Explain1(_Explained):
    schema: Literal["memcgctl/explain/1"]
    source: Source
    memcg: Memcg
    held_below: Memcg | None


class Explain2(_Explained):
    schema: Literal["memcgctl/explain/2"]
    source: Source2
    memcg: Memcg2
    held_below: Memcg2 | None
