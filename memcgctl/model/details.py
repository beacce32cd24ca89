"""What holds one memcg, what it is charged for, and who uses it: its details."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

# Of a field that a census of an older memcgctl does not have: it was not looked at.
UNKNOWN_BEFORE = {"before": None}


@dataclass(frozen=True)
class Holder:
    """Css references of one kind that one memcg is held by, and by what.

    ``transient``: on a live kernel, not yet there at the first of two looks.
    ``devices`` (major:minor) are those of the file systems whose inodes a writeback is
    for, None where that is not known.
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
    devices: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Process:
    """A process that uses charged memory; ``bytes`` is how much of it.

    ``start_ticks`` tells a process from a later one of the same pid. ``huge_bytes`` of
    the memory fill as many addresses as a huge page has, in one anonymous mapping,
    but page by page. ``tid`` is a thread that lives, where the first one has
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


KeptHow = Literal[
    "untouched", "in flight", "io_uring file", "pipe", "DMA buffer", "io_uring"
]


@dataclass(frozen=True)
class Keeper:
    """A process that has charged memory otherwise than in page tables or open files.

    ``untouched``: it maps the file there, and never touched it. Otherwise the file
    waits in a socket, or is registered with an io_uring, or the pages are in a pipe, a
    DMA buffer or an io_uring, which the descriptors ``fds`` are.
    """

    how: KeptHow
    process: Process
    fds: tuple[int, ...] = ()


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
    ``repeated_bytes`` are mapped by one of them more than once.
    At least ``mapper_missing_bytes`` are mapped by somebody (``folio->_mapcount``) who
    was not found in any page tables.
    """

    kind: Literal["file", "shmem", "anon", "kernel", "hugetlb"]
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
    keepers: tuple[Keeper, ...] = ()
    repeated_bytes: int = 0
    mapper_missing_bytes: int = 0


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
    ``synchronous``: it writes and reads without delay, as zram (SWP_SYNCHRONOUS_IO);
    None: not known. ``zswap_entries`` have a place on it, and their data in memory.
    """

    device: str
    entries: int
    owners: tuple[SwapOwner, ...]
    parents_entries: int = 0
    synchronous: bool | None = None
    zswap_entries: int | None = field(default=0, metadata=UNKNOWN_BEFORE)


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
    the kernel does not tell the total. ``unread`` has the topics (``Topic``) that were
    not read in full: what rests on them is a lower bound. ``lives_in`` has the path of
    the memcg that each process is in which ``holders`` name, by its pid.
    """

    holders: tuple[Holder, ...]
    unexplained: int | None
    charge_groups: tuple[ChargeGroup, ...]
    swap_devices: tuple[SwapDeviceUse, ...]
    unread: tuple[str, ...] = ()
    lives_in: tuple[tuple[int, str], ...] = ()
