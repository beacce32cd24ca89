"""What is in each JSON document that memcgctl writes? One class a kind of object.

These are public: a key is never renamed or dropped within a version, only added. They
are independent of the model, whose fields may change. ``memcgctl/schemas`` has the same
as JSON Schema, for other programs: ``python -m tests.schemas`` writes it from here.
"""

from __future__ import annotations

from typing import Any, Literal, TypedDict

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
    swap: Swap | None
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


class List2(_ByAncestor2):
    schema: Literal["memcgctl/list/2"]
    source: Source2
    totals: ListTotals
    memcgs: list[Memcg2]
    warnings: list[str]


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


class Aim(TypedDict, total=False):
    """What a step acts on; what does not matter to it is left out."""

    file: Backing
    processes: list[Process]
    memcg_id: int
    memcg_path: str
    shown_ids: list[int]
    cpu: int
    device: str
    private_id: int
    swappiness: int
    page_out: bool
    unaimed: bool


class Step(TypedDict):
    """``n`` is null for a step that is left out."""

    n: int | None
    memcgs: list[int]
    action: str
    target: str
    command: str
    bytes: int
    charged_to: str | None
    collateral_bytes: int
    risk: str
    option: str
    charged: list[str]
    charged_bytes: list[int]
    frees: list[int]
    over_limit: list[str]
    aim: Aim


class Remaining(TypedDict):
    id: int
    why: str
    kinds: list[str]


class PlanPredicted(TypedDict):
    freed: list[int]
    remaining: list[Remaining]


class PlanTotals(TypedDict):
    offline: int
    freed: int
    freed_overhead_bytes: int
    bytes: int
    collateral_bytes: int


class Bill(TypedDict):
    leaves_memory: int
    to_swap: int
    comes_back: int
    others_at_most: int
    seconds: float


class _Plan(TypedDict):
    policy: str
    steps: list[Step]
    left_out: list[Step]
    predicted: PlanPredicted
    totals: PlanTotals
    warnings: list[str]


class Plan1(_Plan):
    schema: Literal["memcgctl/plan/1"]
    source: Source


class Plan2(_Plan):
    schema: Literal["memcgctl/plan/2"]
    source: Source2
    bill: Bill


class StepResult(TypedDict):
    n: int
    action: str
    target: str
    memcgs: list[int]
    status: Literal["done", "part", "failed", "skipped"]
    why: str | None
    bytes: int
    moved_bytes: int | None
    freed: list[int]
    seconds: float


class ResultPredicted(PlanPredicted):
    bytes: int
    collateral_bytes: int


class StillThere(Remaining):
    verdict: str | None


class Measured(TypedDict):
    freed: list[int]
    remaining: list[StillThere]
    bytes: int
    freed_overhead_bytes: int
    dying_before: int | None
    dying_after: int | None
    seconds: float


class Usage(TypedDict):
    path: str
    before_bytes: int | None
    after_bytes: int | None
    swap_before_bytes: int | None
    swap_after_bytes: int | None


class Harm(TypedDict):
    refaulted_file_pages: int | None
    refaulted_anon_pages: int | None
    file_before_bytes: int | None
    file_after_bytes: int | None


class Result(TypedDict):
    schema: Literal["memcgctl/result/1"]
    source: Source2
    policy: str
    complete: bool
    stopped: str | None
    steps: list[StepResult]
    predicted: ResultPredicted
    measured: Measured
    charged: list[Usage]
    harm: Harm
    journal: str
    warnings: list[str]


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


DOCUMENTS: tuple[Any, ...] = (
    *(List1, List2, Explain1, Explain2, Plan1, Plan2, Result, Runs, JournalLine),
    *(Simulation, Audit, Doctor, Diff, Census),
)
