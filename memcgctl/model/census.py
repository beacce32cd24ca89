"""What a kernel's memcgs are: a census, from the kernel down to a group of folios."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

from memcgctl.model.details import UNKNOWN_BEFORE, Details, Inherited


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


# What answers rest on: who maps memory, who would read swap, who has files open, and
# what holds references.
MAPPERS = (Topic.PROCESSES, Topic.AREAS, Topic.PAGE_TABLES)
OWNERS = (*MAPPERS, Topic.SHMEM_SWAP, Topic.SWAP_MAP)
OPENERS = (Topic.PROCESSES, Topic.FILE_TABLES, Topic.FILES)
HOLDERS = (
    *(Topic.MEMCGS, Topic.MEMORY_MAP, Topic.SLABS, Topic.STOCKS, Topic.CSS_SETS),
    *(Topic.WRITEBACK, Topic.OBJCGS, Topic.SOCKETS, Topic.EVENTS, Topic.REFERENCES),
    *(Topic.PROCESSES, Topic.FILE_TABLES),
)


@dataclass(frozen=True)
class Kernel:
    """The kernel a census was taken of, and how it was read.

    ``interfaces`` are those of user space by which memory can be moved, as this kernel
    was built (``census.traits`` has the names); ``cgroup_mount`` is where its
    memcgs' hierarchy is mounted. Swap is None where it was not looked at;
    ``swaps_at_once``: the device that is swapped to next writes without delay, as zram;
    ``at_once_bytes`` is the room on such devices before one comes that does not.
    ``temp_swap`` says why no swap device can be made for a moment, nothing where one
    can; None where that is not known, as of a core.
    ``host`` is the machine's name, ``taken_at`` the moment by its clock (of a core,
    when it was taken) in seconds since the epoch; they and the IDs are None where the
    kernel does not tell. ``dying_cgroups`` is the kernel's own count, ``bare_cgroups``
    those among them that no memcg belongs to.
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
    temp_swap: str | None = None
    host: str | None = None
    boot_id: str | None = None
    machine_id: str | None = None
    taken_at: float | None = None
    dying_cgroups: int | None = None
    bare_cgroups: int | None = None


@dataclass(frozen=True)
class Charges:
    """Memory charged to one memcg; all but ``sock`` in folios.

    ``file`` excludes ``shmem``.
    ``kernel`` counts whole kernel pages that are charged to the memcg (page
    tables, stacks), never slab objects. ``sock`` is buffers of sockets, None where it
    is not known: it could not be read, or an older memcgctl saved the census.
    ``hugetlb`` is charged with the mount option memory_hugetlb_accounting alone, and in
    none of the other classes.
    """

    file_bytes: int = 0
    shmem_bytes: int = 0
    anon_bytes: int = 0
    kernel_bytes: int = 0
    file_folios: int = 0
    shmem_folios: int = 0
    anon_folios: int = 0
    kernel_folios: int = 0
    sock_bytes: int | None = field(default=0, metadata=UNKNOWN_BEFORE)
    hugetlb_bytes: int = 0
    hugetlb_folios: int = 0

    @property
    def user_bytes(self) -> int:
        """What is on LRU lists, and so can be reclaimed."""
        return self.file_bytes + self.shmem_bytes + self.anon_bytes

    @property
    def total_bytes(self) -> int:
        in_folios = self.user_bytes + self.kernel_bytes + self.hugetlb_bytes
        return in_folios + (self.sock_bytes or 0)


@dataclass(frozen=True)
class SwapUse:
    """Swap entries charged to one memcg, over all swap devices.

    ``zswap_entries`` of them are compressed in memory, where they take ``zswap_bytes``,
    for which a removed memcg's nearest online ancestor is charged; None: not known.
    """

    entries: int = 0
    bytes: int = 0
    zswap_entries: int | None = field(default=0, metadata=UNKNOWN_BEFORE)
    zswap_bytes: int | None = field(default=0, metadata=UNKNOWN_BEFORE)


@dataclass(frozen=True)
class Limits:
    """What a memcg may use, that of all memcgs below it included; None: no limit.

    ``swap`` is of cgroup v2, ``memsw``, which counts memory and swap together, of v1.
    ``descendants`` are the living cgroups below it, and ``max_depth`` levels of them.
    """

    max_bytes: int | None = None
    high_bytes: int | None = None
    min_bytes: int = 0
    low_bytes: int = 0
    swap_max_bytes: int | None = None
    swap_usage_bytes: int = 0
    memsw_max_bytes: int | None = None
    memsw_usage_bytes: int = 0
    max_descendants: int | None = None
    descendants: int = 0
    max_depth: int | None = None


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
    ``frozen``: whoever enters the cgroup stops there (the freezer of cgroup v2).
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
    frozen: bool = False

    @property
    def cost_bytes(self) -> int:
        return cost_bytes(self.charges, self.swap, self.overhead)


@dataclass(frozen=True)
class Census:
    """All memcgs of one kernel, parents before children, and what went wrong.

    ``unread`` has the topics (``Topic``) that were not read in full.
    """

    kernel: Kernel
    memcgs: tuple[Memcg, ...]
    warnings: tuple[str, ...]
    unread: tuple[str, ...] = ()


# MEM_CGROUP_ID_MAX: who has no id of these has no memory cgroup.
MEMCG_IDS = 65535


def ids_used(census: Census) -> int:
    """How many private ids are taken, by living memcgs and for swap entries."""
    return sum(1 for memcg in census.memcgs if memcg.private_id)
