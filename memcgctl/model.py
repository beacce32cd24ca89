"""The plain data that all parts of memcgctl speak.

A census is a value: frozen, free of drgn objects, comparable and serialisable.
Units are in the names: ``_bytes``, ``_pages``, ``_folios``. Kernel names are kept
as they are, bytes that are not UTF-8 as surrogates (``os.fsencode`` undoes it);
escaping is the report's business.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Literal


class Topic(str, Enum):
    """What an answer rests on, and what may not have been read in full."""

    MEMCGS = "cgroup tree"
    MEMORY_MAP = "memory map"
    SWAP_MAP = "swap map"
    SWAP_SPACE = "state of the swap devices"
    PROCESSES = "process list"
    AREAS = "memory areas of processes"
    PAGE_TABLES = "page tables"
    SHMEM_SWAP = "swapped shmem"
    FILE_TABLES = "file tables of processes"
    FILES = "inodes and mounts"
    SLABS = "slab caches"
    STOCKS = "charge stocks"
    CSS_SETS = "css_sets"
    WRITEBACK = "writeback lists"
    OBJCGS = "obj_cgroups"
    SOCKETS = "sockets"
    EVENTS = "fsnotify groups and events"
    REFERENCES = "reference counts"
    OTHER = "kernel's structures"


@dataclass(frozen=True)
class Kernel:
    """The kernel a census was taken of, and how it was read.

    ``interfaces`` are those of user space by which memory can be moved, as this kernel
    was built (``census.traits`` has the names); ``cgroup_mount`` is where its
    memcgs' hierarchy is mounted. Swap is None where it was not looked at;
    ``swaps_at_once``: the device that is swapped to next writes without delay, as zram;
    ``at_once_bytes`` is the room on such devices before one comes that does not.
    ``host`` is the machine's name, ``taken_at`` the moment by its clock (of a core,
    when it was taken) in seconds since the epoch; they and the IDs are None where the
    kernel does not tell.
    """

    kind: Literal["live", "vmcore", "census"]
    path: str | None
    release: str
    types: Literal["btf", "dwarf"]
    cgroup_version: Literal[1, 2]
    page_size: int
    possible_cpus: int
    numa_nodes: int
    interfaces: tuple[str, ...] = ()
    cgroup_mount: str | None = None
    swap_total_bytes: int | None = None
    swap_free_bytes: int | None = None
    swaps_at_once: bool | None = None
    at_once_bytes: int | None = None
    host: str | None = None
    boot_id: str | None = None
    machine_id: str | None = None
    taken_at: float | None = None


@dataclass(frozen=True)
class Charges:
    """Folios charged to one memcg; ``file`` excludes ``shmem``.

    ``kernel`` counts whole kernel pages that are charged to the memcg (page
    tables, stacks), never slab objects.
    """

    file_bytes: int = 0
    shmem_bytes: int = 0
    anon_bytes: int = 0
    kernel_bytes: int = 0
    file_folios: int = 0
    shmem_folios: int = 0
    anon_folios: int = 0
    kernel_folios: int = 0

    @property
    def total_bytes(self) -> int:
        return self.file_bytes + self.shmem_bytes + self.anon_bytes + self.kernel_bytes


@dataclass(frozen=True)
class SwapUse:
    """Swap entries charged to one memcg, over all swap devices."""

    entries: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class Limits:
    """What a memcg may use, that of all memcgs below it included; None: no limit.

    ``swap`` is of cgroup v2, ``memsw``, which counts memory and swap together, of v1.
    """

    max_bytes: int | None = None
    high_bytes: int | None = None
    min_bytes: int = 0
    low_bytes: int = 0
    swap_max_bytes: int | None = None
    swap_usage_bytes: int = 0
    memsw_max_bytes: int | None = None
    memsw_usage_bytes: int = 0


@dataclass(frozen=True)
class Overhead:
    """What the kernel allocates for one memcg, whether it is used or not.

    ``percpu_accounted_bytes`` is the part that the parent's ``percpu`` line in
    ``memory.stat`` shows; ``percpu_bytes`` adds what is allocated unaccounted.
    """

    percpu_bytes: int
    percpu_accounted_bytes: int
    structs_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.percpu_bytes + self.structs_bytes


@dataclass(frozen=True)
class Holder:
    """Css references of one kind that one memcg is held by, and by what.

    ``transient``: on a live kernel, not yet there at the first of two looks.
    """

    kind: Literal[
        "folio",
        "kernel",
        "swap",
        "child",
        "writeback",
        "stock",
        "socket",
        "fsnotify",
        "event",
        "objcg",
        "other",
    ]
    count: int
    detail: str
    transient: bool = False


@dataclass(frozen=True)
class Process:
    """A process that uses charged memory; ``bytes`` is how much of it.

    ``start_ticks`` tells a process from a later one of the same pid. ``huge_bytes`` of
    the memory fill as many addresses as a huge page has (2 MiB), in one anonymous
    mapping, but page by page. ``tid`` is a thread that lives, where the first one has
    ended (0: it has not); ``memcg`` is that thread's.
    """

    pid: int
    comm: str
    memcg: str
    memcg_id: int
    bytes: int
    start_ticks: int = 0
    huge_bytes: int = 0
    tid: int = 0


@dataclass(frozen=True)
class Backing:
    """The object that folios belong to: an inode of some file system.

    ``device`` is ``major:minor``, or the block device's name for its own metadata.
    ``path`` is as the host sees it, ``container_path`` as the container's own mount
    namespace does where the two differ, and ``container_pid`` a process in that one;
    None where no dentry is left. ``cached_bytes`` is all its page cache, whoever is
    charged for it.
    """

    kind: Literal["file", "tmpfs", "memfd", "sysv", "shared-anon", "bdev", "hugetlb"]
    fs: str
    device: str
    inode: int
    generation: int
    path: str | None
    container_path: str | None
    deleted: bool
    size_bytes: int
    cached_bytes: int | None = None
    container_pid: int | None = None


@dataclass(frozen=True)
class Coldness:
    """How recently a group of folios was used, in bytes, by the kernel's own marks.

    ``generations`` pairs an MGLRU generation's age in seconds (None: unknown) with the
    bytes in it; empty without MGLRU.
    """

    active_bytes: int = 0
    referenced_bytes: int = 0
    workingset_bytes: int = 0
    generations: tuple[tuple[float | None, int], ...] = ()


@dataclass(frozen=True)
class ChargeGroup:
    """Folios of one memcg that share class, backing object and being mapped or not.

    ``obstacles`` names what stands in the way of eviction for some of them, with
    the bytes it concerns; ``evictable_bytes`` is what nothing stands in the way of.
    ``swap_entry_bytes`` have a swap entry, which somebody is charged for, beside their
    folio in the swap cache (not on cgroup v1, which charges when the folio goes).
    Of a large folio a process may map a part: ``mapped_bytes`` is what any of the
    ``mappers`` does, each page once, and so is less than their bytes where they share.
    """

    kind: Literal["file", "shmem", "anon", "kernel"]
    mapped: bool
    folios: int
    bytes: int
    evictable_bytes: int
    obstacles: tuple[tuple[str, int], ...]
    dirty_bytes: int
    backing: Backing | None
    mappers: tuple[Process, ...]
    openers: tuple[Process, ...]
    coldness: Coldness
    swap_entry_bytes: int = 0
    mapped_bytes: int = 0


@dataclass(frozen=True)
class SwapOwner:
    """Who would fault a swap entry in again; ``pid`` None: an inode, not a process.

    ``file`` is the inode, if it is one of shmem that nobody maps there.
    """

    pid: int | None
    comm: str
    memcg: str
    memcg_id: int
    entries: int
    start_ticks: int = 0
    file: Backing | None = None
    tid: int = 0


@dataclass(frozen=True)
class SwapDeviceUse:
    """Entries of one memcg on one swap device, by owner; the rest is unowned.

    Of these, ``parents_entries`` have a folio in the swap cache that is charged to the
    nearest online ancestor (from 7.1 on, where folios go to the parent).
    """

    device: str
    entries: int
    owners: tuple[SwapOwner, ...]
    parents_entries: int = 0


@dataclass(frozen=True)
class Inherited:
    """What a memcg has from one dead descendant: its ``obj_cgroup``s and their charges.

    ``path`` and ``id`` are the descendant's, None and 0 where its memcg is gone.
    ``refs`` counts the references to the obj_cgroups (folios, slab objects, stocks),
    ``structs_bytes`` what they themselves take.
    """

    path: str | None
    id: int
    objcgs: int
    refs: int
    structs_bytes: int
    folios: int
    charged_bytes: int


@dataclass(frozen=True)
class Details:
    """What ``explain`` adds to one memcg.

    ``unexplained`` is the css references that no holder accounts for, None where
    the kernel does not tell the total.
    """

    holders: tuple[Holder, ...]
    unexplained: int | None
    charge_groups: tuple[ChargeGroup, ...]
    swap_devices: tuple[SwapDeviceUse, ...]


def cost_bytes(
    charges: Charges | None, swap: SwapUse | None, overhead: Overhead
) -> int:
    """Memory and swap together; only the overhead where nothing was scanned."""
    charged = charges.total_bytes if charges else 0
    return charged + (swap.bytes if swap else 0) + overhead.total_bytes


@dataclass(frozen=True)
class Memcg:
    """One memory cgroup. ``charges`` and ``swap`` are None where nothing was scanned.

    ``id`` is the cgroup id (``cgroup->kn->id``), ``private_id`` the 16-bit one
    (``memcg->id.id``, 0 for an offline memcg without swap entries), ``refs`` the css
    references, None where the kernel keeps them per CPU. ``ancestor`` is the path of
    the nearest online ancestor, ``parent_id`` the parent's cgroup id (0: the root has
    none), since a path may have been used more than once. ``details`` and
    ``inherited``, which only an online memcg has, are there where they were asked for;
    ``limits`` are None in a census that an older memcgctl saved. ``created_at`` and
    ``removed_at`` are seconds since the epoch, and ``xattrs`` what its manager marked
    it with, of offline ones; None and none where the kernel does not tell.
    """

    id: int
    path: str
    state: Literal["offline", "online"]
    ancestor: str
    refs: int | None
    children: int
    usage_bytes: int
    overhead: Overhead
    address: int
    private_id: int
    charges: Charges | None
    swap: SwapUse | None
    details: Details | None = None
    parent_id: int = 0
    inherited: tuple[Inherited, ...] = ()
    limits: Limits | None = None
    created_at: float | None = None
    removed_at: float | None = None
    xattrs: tuple[tuple[str, str], ...] = ()

    @property
    def cost_bytes(self) -> int:
        return cost_bytes(self.charges, self.swap, self.overhead)


@dataclass(frozen=True)
class Census:
    """All memcgs of one kernel, parents before children, and what went wrong."""

    kernel: Kernel
    memcgs: tuple[Memcg, ...]
    warnings: tuple[str, ...]
    unread: tuple[str, ...] = ()


@dataclass(frozen=True)
class Group:
    """What several offline memcgs cost together; ``path`` names their ancestor.

    ``charges`` and ``swap`` are None where nothing was scanned.
    """

    path: str
    memcgs: int
    usage_bytes: int
    overhead: Overhead
    charges: Charges | None
    swap: SwapUse | None

    @property
    def cost_bytes(self) -> int:
        return cost_bytes(self.charges, self.swap, self.overhead)


@dataclass(frozen=True)
class Reason:
    """What holds ``memcgs`` offline memcgs above all, and what these cost.

    ``children`` and ``other`` stand for memcgs without a charged folio or swap entry.
    """

    kind: Literal["file", "shmem", "anon", "kernel", "swap", "children", "other"]
    memcgs: int
    cost_bytes: int


@dataclass(frozen=True)
class Listing:
    """The part of a census that was asked for, in the order that was asked for.

    ``total`` and ``reason`` are of all offline memcgs that match, the ``omitted``
    (memcgs, or groups where ``groups`` is not None) included. ``reason`` is None
    where nothing was scanned or nothing is offline.
    """

    kernel: Kernel
    memcgs: tuple[Memcg, ...]
    groups: tuple[Group, ...] | None
    omitted: int
    total: Group
    reason: Reason | None
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class User:
    """What the processes of one memcg use of another one's memory.

    A byte that several processes of the memcg share counts once; where it is not
    known how much they share, ``mapped_bytes`` and ``open_bytes`` are the largest
    process's, and ``exact`` is False: it is at least that.
    """

    memcg: str
    memcg_id: int
    processes: int
    mapped_bytes: int
    open_bytes: int
    swap_entries: int
    exact: bool


@dataclass(frozen=True)
class Explanation:
    """Why one memcg is there: what holds it and who uses it, largest first.

    ``explained`` is the css references that the holders of ``memcg.details`` account
    for. ``keeper`` is the memcg below it that really holds it, where only children
    do; ``unused_bytes`` is what nobody maps and nobody has open.
    """

    kernel: Kernel
    memcg: Memcg
    explained: int
    children: tuple[Memcg, ...]
    keeper: Memcg | None
    users: tuple[User, ...]
    unused_bytes: int
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Account:
    """The css references of one offline memcg, counted by kind of holder."""

    memcg: Memcg
    held: dict[str, int]
    unexplained: int | None


@dataclass(frozen=True)
class Audit:
    """The accounts of all offline memcgs, those that do not balance first.

    ``unexplained`` counts references without a holder, ``missing`` holders without a
    reference, ``unknown`` the memcgs whose references could not be counted. ``root``
    shows what has piled up at the root.
    """

    kernel: Kernel
    accounts: tuple[Account, ...]
    held: dict[str, int]
    unexplained: int
    missing: int
    unknown: int
    root: Memcg | None
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Frame:
    """One charged folio; ``pfn`` is its first page frame, ``inode`` None without one.

    ``mapcount`` counts the page-table entries that map any part of it, ``pins`` what
    ``pin_user_pages`` holds, which ``refcount`` includes.
    """

    pfn: int
    pages: int
    kind: Literal["file", "shmem", "anon", "kernel"]
    inode: int | None
    mapcount: int
    refcount: int
    pins: int
    flags: tuple[str, ...]


@dataclass(frozen=True)
class Frames:
    """The first folios of a memcg by page frame, and how many there are in all."""

    total: int
    frames: tuple[Frame, ...]


@dataclass(frozen=True)
class Remaining:
    """An offline memcg that would still be there, and why.

    ``kinds`` are the reasons again, without names and numbers.
    """

    id: int
    why: str
    kinds: tuple[str, ...] = ()


@dataclass(frozen=True)
class Aim:
    """What a step acts on, by what it is: no name that may come to mean another thing.

    ``file`` is an inode, ``processes`` those that are acted on or, with a ``file``,
    those that have it open or map it. ``memcg_id`` and ``memcg_path`` are the online
    memcg that is asked to give memory back, or in which to act, ``shown_ids`` the
    online memcgs under whose id /proc/kpagecgroup shows the pages that are meant.
    ``device`` is the name of a block device. ``private_id`` is an offline memcg's own
    (the other two are its as well then), of which ``swappiness`` says what to evict: 0
    files, 200 what is swap-backed first. ``page_out``: what was read goes out again.
    ``unaimed``: memory.reclaim may be asked although it takes files as well.
    """

    file: Backing | None = None
    processes: tuple[Process, ...] = ()
    memcg_id: int | None = None
    memcg_path: str | None = None
    shown_ids: tuple[int, ...] = ()
    cpu: int | None = None
    device: str | None = None
    private_id: int | None = None
    swappiness: int | None = None
    page_out: bool = False
    unaimed: bool = False


@dataclass(frozen=True)
class Step:
    """One action of a plan, for all offline memcgs that it serves.

    ``bytes`` is what it moves of theirs, ``collateral_bytes`` what it can move of
    others'. ``charged_to`` names who is charged afterwards, if anybody, and
    ``charged_bytes`` each one's part. ``frees`` are the memcgs that are gone after it.
    ``over_limit`` are the memcgs that it could push over a limit.
    """

    memcgs: tuple[int, ...]
    action: str
    option: str
    target: str
    command: str
    bytes: int
    charged_to: tuple[str, ...]
    collateral_bytes: int
    risk: str
    aim: Aim = Aim()
    frees: tuple[int, ...] = ()
    over_limit: tuple[str, ...] = ()
    charged_bytes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Plan:
    """What to do, in this order, and what would be left.

    ``left_out`` are steps that would push a memcg over a limit, or that there was no
    budget for. Of what ``steps`` move, ``recharged_bytes`` are charged to whoever uses
    them, ``returned_bytes`` come back.
    """

    kernel: Kernel
    policy: str
    steps: Sequence[Step]
    left_out: Sequence[Step]
    freed: tuple[int, ...]
    remaining: tuple[Remaining, ...]
    warnings: tuple[str, ...]
    returned_bytes: int
    recharged_bytes: int


@dataclass(frozen=True)
class Gain:
    """What a memcg is charged more; ``room_bytes`` it has left, None: no limit."""

    path: str
    bytes: int
    room_bytes: int | None


@dataclass(frozen=True)
class Leftover:
    """What would be left for one reason, and of how many memcgs."""

    why: str
    memcgs: int
    bytes: int


@dataclass(frozen=True)
class Simulation:
    """What one policy would do to all offline memcgs if a kernel followed it.

    All bytes of theirs are evicted (``written_bytes`` of these after they are written
    to a file), swapped out, charged to parents or to mappers, or left. Of what parents
    get for the time being (``deferred_bytes``), ``likely_bytes`` are likely touched by
    somebody. ``freed_here`` are the memcgs that user space can free on this kernel.
    """

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
    leftovers: tuple[Leftover, ...]
    over_limit: tuple[str, ...]
    gains: tuple[Gain, ...]


@dataclass(frozen=True)
class Ability:
    """An action, and why it cannot be carried out on this machine; None: it can.

    ``lack`` says what that is due to: the kernel's build or its cgroup version, the
    machine as it is set up, or that nothing here needs the action. ``ask`` is the word
    for ``--allow`` without which it is not carried out.
    """

    action: str
    why: str | None
    lack: Literal["kernel", "machine", "needless"] | None
    ask: str | None


@dataclass(frozen=True)
class Checkup:
    """What the running machine allows, as far as this user may see.

    ``kernel`` is None where the kernel cannot be read, for the reason ``unread``, and
    ``offline`` with it: the zombies in its memory. ``zombies`` is how many the kernel
    counts by ``zombies_source``, None where it does not tell; ``overhead_bytes`` is an
    estimate, of the least that these take. ``cgroups`` are version and mount point,
    those of the memory controller first; ``missing`` the capabilities that some action
    needs.
    """

    release: str
    kernel: Kernel | None
    unread: str | None
    lockdown: str | None
    cgroups: tuple[tuple[Literal[1, 2], str], ...]
    memory_controller: bool
    swap_total_bytes: int
    swap_free_bytes: int
    euid: int
    missing: tuple[str, ...]
    abilities: tuple[Ability, ...]
    zombies: int | None
    zombies_source: str
    overhead_bytes: int | None
    offline: int | None

    @property
    def refused(self) -> tuple[Ability, ...]:
        """Actions that would be taken unasked, and that the machine does not allow."""
        return tuple(
            one for one in self.abilities if one.lack == "machine" and not one.ask
        )

    @property
    def verdict(self) -> Literal["works", "part", "unread"]:
        if self.kernel is None:
            return "unread"
        return "part" if self.refused or not self.memory_controller else "works"


@dataclass(frozen=True)
class Prospect:
    """What one option comes to for one memcg, on this kernel if it is ``supported``.

    ``how`` names the interfaces and what these leave, ``effect`` says who is charged.
    """

    option: str
    bytes: int
    supported: bool
    how: str
    effect: str


@dataclass(frozen=True)
class StepResult:
    """What became of the ``n``-th step of a plan, counted from 1.

    ``moved_bytes`` is None where the action cannot tell; ``why`` says why it was
    skipped, failed or done in part. ``freed`` are those of ``step.frees`` that went.
    """

    n: int
    step: Step
    status: Literal["done", "part", "failed", "skipped"]
    why: str
    moved_bytes: int | None
    seconds: float
    freed: tuple[int, ...] = ()


@dataclass(frozen=True)
class Usage:
    """What an online memcg was charged for before and after, swap apart."""

    path: str
    before_bytes: int
    after_bytes: int
    swap_before_bytes: int
    swap_after_bytes: int


@dataclass(frozen=True)
class Harm:
    """What others lost: refaulted pages meanwhile, and page cache of living memcgs.

    ``file`` is what the kernel's statistics have of memcgs without any below them.
    """

    refaulted_file_pages: int
    refaulted_anon_pages: int
    file_before_bytes: int
    file_after_bytes: int


@dataclass(frozen=True)
class Result:
    """What carrying out a plan came to; ``stopped`` says why it ended early, if so.

    ``freed`` are the wanted memcgs that are gone, ``remaining`` those still there.
    ``dying_before`` and ``dying_after`` are the kernel's own counts, None where it has
    none. ``usages`` are of the memcgs that steps charge.
    """

    plan: Plan
    steps: tuple[StepResult, ...]
    freed: tuple[int, ...]
    remaining: tuple[Remaining, ...]
    usages: tuple[Usage, ...]
    harm: Harm
    dying_before: int | None
    dying_after: int | None
    moved_bytes: int
    seconds: float
    stopped: str
    journal: str

    @property
    def complete(self) -> bool:
        """Whether all that the plan promised is gone."""
        return not self.stopped and set(self.plan.freed) <= set(self.freed)


@dataclass(frozen=True)
class PastStep:
    """What the journal says of one step; None where the line does not tell.

    ``status`` is that of ``StepResult``, or ``unfinished``: it began and the journal
    does not say how it ended.
    """

    n: int | None
    action: str
    target: str
    status: str
    why: str
    moved_bytes: int | None
    seconds: float | None


@dataclass(frozen=True)
class PastRun:
    """One run of reclaim by its journal; ``time`` is its first line's, ISO 8601.

    ``planned`` is how many steps it was to take, ``ended`` whether it came to its end;
    ``freed`` and ``left`` count memcgs, None where it did not.
    """

    run: str
    time: str
    pid: int | None
    policy: str
    release: str
    planned: int | None
    steps: tuple[PastStep, ...]
    ended: bool
    stopped: str
    moved_bytes: int
    freed: int | None
    left: int | None


@dataclass(frozen=True)
class History:
    """A journal's runs, oldest first; ``damaged`` lines of it could not be read."""

    path: str
    runs: tuple[PastRun, ...]
    damaged: int
