"""Journals, simulations, audits, machines, differences, saved censuses."""

from __future__ import annotations

from typing import Any, Literal, TypedDict

from memcgctl.report.documents.explain import Inherited
from memcgctl.report.documents.listing import Memcg2, Source2


class PastStep(TypedDict):
    n: int | None
    action: str
    target: str
    status: str
    why: str
    moved_bytes: int | None
    seconds: float | None


class PastRun(TypedDict):
    run: str
    time: str
    pid: int | None
    policy: str
    release: str
    planned: int | None
    steps: list[PastStep]
    ended: bool
    stopped: str
    moved_bytes: int
    freed: int | None
    left: int | None


class Runs(TypedDict):
    schema: Literal["memcgctl/runs/1"]
    path: str
    runs: list[PastRun]
    omitted: int
    damaged: int
    unread_bytes: int


class _Facts(TypedDict, total=False):
    """What a line has depends on its event."""

    pid: int
    policy: str
    release: str
    steps: int
    n: int
    action: str
    target: str
    command: str
    memcgs: list[int]
    bytes: int
    status: str
    why: str
    moved_bytes: int | None
    seconds: float
    pages: int
    stopped: str
    freed: list[int]
    left: list[int]


class JournalLine(_Facts):
    """One line of a journal."""

    schema: Literal["memcgctl/journal/1"]
    run: str
    time: str
    event: Literal["begin", "before", "after", "skipped", "swap-cache", "end"]


class Leftover(TypedDict):
    why: str
    memcgs: int
    bytes: int


class Gain(TypedDict):
    path: str
    bytes: int
    room_bytes: int | None


class Simulated(TypedDict):
    policy: str
    offline: int
    freed: int
    freed_here: int
    freed_by_transit: int
    freed_overhead_bytes: int
    evicted_bytes: int
    written_bytes: int
    swapped_bytes: int
    parent_bytes: int
    mapper_bytes: int
    deferred_bytes: int
    likely_bytes: int
    left_bytes: int
    leftovers: list[Leftover]
    over_limit: list[str]
    gains: list[Gain]


class Simulation(TypedDict):
    schema: Literal["memcgctl/simulation/1"]
    source: Source2
    policies: list[Simulated]
    warnings: list[str]


class AuditTotals(TypedDict):
    offline: int
    explained: int
    unexplained: int
    missing: int
    unknown: int
    holders: dict[str, int]


class Account(TypedDict):
    id: int
    path: str
    ancestor: str
    references: int | None
    explained: int
    unexplained: int | None
    holders: dict[str, int]


class Root(Memcg2):
    inherited: list[Inherited]


class Audit(TypedDict):
    schema: Literal["memcgctl/audit/1"]
    source: Source2
    totals: AuditTotals
    memcgs: list[Account]
    root: Root | None
    unread: list[str]
    warnings: list[str]


class Mount(TypedDict):
    version: Literal[1, 2]
    mount: str


class SwapSpace(TypedDict):
    total: int | None
    free: int | None
    transit_room: int | None
    transit_left: str | None


class Privileges(TypedDict):
    euid: int
    missing: list[str]


class Zombies(TypedDict):
    count: int | None
    source: str
    overhead_estimate: int | None
    in_kernel_memory: int | None
    dying_without_memcg: int | None
    memcg_ids_used: int | None


class Ability(TypedDict):
    action: str
    why: str | None
    lack: Literal["kernel", "machine", "needless"] | None
    ask: str | None


class Doctor(TypedDict):
    schema: Literal["memcgctl/doctor/1"]
    verdict: Literal["works", "part", "unread"]
    release: str
    source: Source2 | None
    unread: str | None
    lockdown: str | None
    cgroups: list[Mount]
    memory_controller: bool | None
    swap: SwapSpace
    privileges: Privileges
    zombies: Zombies
    actions: list[Ability]


class Count(TypedDict):
    before: int
    after: int


class Grown(TypedDict):
    memcg: Memcg2
    bytes: int


class Change(TypedDict):
    name: str
    before: int
    after: int
    new: int | None
    gone: int | None
    cost_before_bytes: int
    cost_after_bytes: int


class Diff(TypedDict):
    schema: Literal["memcgctl/diff/1"]
    before: Source2
    after: Source2
    same_boot: bool | None
    seconds: float | None
    offline: Count
    new: list[Memcg2]
    gone: list[Memcg2]
    grown: list[Grown]
    families: list[Change]
    holders: list[Change]
    warnings: list[str]


class Census(TypedDict):
    """Rows in the order of ``columns``; see ``memcgctl.snapshot``."""

    schema: Literal["memcgctl/census/1"]
    kernel: list[Any]
    warnings: list[int]
    unread: list[int]
    shared: dict[str, list[list[Any]]]
    columns: dict[str, list[str]]
    strings: list[str]
    strings_base64: dict[str, str]
    memcgs: list[list[Any]]
