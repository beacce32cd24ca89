"""How many swap entries is each memcg charged for, over all swap devices?

An entry's owner is kept as a private memcg id (``memcg->id.id``, 16 bits, 0: none), in
``swap_cgroup_ctrl`` (mm/swap_cgroup.c) or, since 7.2, in each swap cluster
(mm/swap_table.h). It stays there while the entry is in the swap cache, and until 6.13
while it is in a CPU's cache of freed slots: in both cases it is still charged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import drgn
import numpy as np
from drgn.helpers.linux.mm import phys_to_virt
from drgn.helpers.linux.percpu import per_cpu
from numpy.typing import NDArray

from memcgctl.census.tree import Tree
from memcgctl.kernel.layout import (
    LayoutError,
    dtype_of,
    has_member,
    offset_of,
    size_of,
    value_of,
)
from memcgctl.kernel.program import OpenedKernel
from memcgctl.kernel.trouble import Topic, reading
from memcgctl.linux.records import (
    BATCH,
    Records,
    first_member,
    gather_records,
    read_variable,
)
from memcgctl.linux.structs import addresses, possible_cpus, read_pointers

IDS = 1 << 16
ID = np.dtype("<u2")

# MAX_SWAPFILES is below 1 << MAX_SWAPFILES_SHIFT (include/linux/swap.h).
MAX_DEVICES = 32
# In an enum without a name; the same from 5.10 to 7.3.
SWP_WRITEOK = 1 << 1
SWP_SYNCHRONOUS_IO = 1 << 12
# A device's map is given up after so many faults.
MAX_FAULTS = 1024


# First entry and ids of a piece of a map; None for what cannot be read.
Pieces = Iterator["tuple[int, NDArray[np.uint16] | None]"]


@reading(Topic.SWAP_MAP)
def count_swap(kernel: OpenedKernel) -> NDArray[np.int64]:
    """Number of charged swap entries by private memcg id, an array of 65,536."""
    counts = np.zeros(IDS, np.int64)
    for _, _, ids in entry_ids(kernel):
        counts += np.bincount(ids[ids != 0], minlength=IDS)
    return counts


@reading(Topic.SWAP_MAP)
def entries(kernel: OpenedKernel, tree: Tree) -> NDArray[np.int64]:
    """Charged swap entries of each memcg of the tree."""
    counts = count_swap(kernel)
    ids = tree.memcg["id.id"].astype(np.int64) & (IDS - 1)
    found: NDArray[np.int64] = counts[ids]
    if lost := int(counts.sum() - counts[np.unique(ids)].sum()):
        kernel.trouble.note(
            Topic.MEMCGS,
            "a swap entry is charged to a memcg that is not in the tree",
            lost,
        )
    return found


@reading(Topic.SWAP_SPACE)
def synchronous(kernel: OpenedKernel) -> dict[int, bool]:
    """Whether each swap device, by number, writes and reads without delay, as zram.

    Those of which it could not be read are left out.
    """
    try:
        count = min(read_variable(kernel, "nr_swapfiles", 4), MAX_DEVICES)
        flags = _devices(kernel, count, {"flags": "flags"})["flags"]
    except drgn.FaultError:
        kernel.trouble.fault()
        return {}
    return dict(enumerate(((flags & SWP_SYNCHRONOUS_IO) != 0).tolist()))


@reading(Topic.SWAP_SPACE)
def at_once_bytes(kernel: OpenedKernel) -> int | None:
    """How much can be swapped out so that it is written before the call returns.

    On such devices (zram, pmem) it leaves the swap cache at once. They are filled by
    priority (``swap_avail_heads``), those of equal priority in turns. 0: the next page
    goes to another device; None: not known.
    """
    try:
        devices = min(read_variable(kernel, "nr_swapfiles", 4), MAX_DEVICES)
        # An atomic_long_t since Linux kernel commit b228386cf237 ("mm, swap: clean up
        # plist removal and adding") (in v6.14).
        used = first_member(
            kernel.prog,
            *("struct swap_info_struct", "inuse_pages.counter", "inuse_pages"),
        )
        info = _devices(
            kernel,
            devices,
            {"flags": "flags", "priority": "prio", "pages": "pages", "used": used},
        )
        begun = _begun(kernel)
    except (LookupError, LayoutError):
        return None
    except drgn.FaultError:
        kernel.trouble.fault()
        return None
    ready = (info["flags"] & SWP_WRITEOK != 0) & (info["used"] < info["pages"])
    if not ready.any():
        return None
    if not all(flags & SWP_SYNCHRONOUS_IO for flags in begun):
        return 0
    slow = ready & (info["flags"] & SWP_SYNCHRONOUS_IO == 0)
    least = info["priority"][slow].max() if slow.any() else np.iinfo(np.int32).min
    first = ready & ~slow & (info["priority"] > least)
    room = info["pages"][first].astype(np.int64) - info["used"][first].astype(np.int64)
    return int(room.sum()) * kernel.memory.page_size


def _begun(kernel: OpenedKernel) -> list[int]:
    """The flags of the devices that CPUs have a cluster of, which they fill up first.

    6.14 to 7.2; up to 6.13 there are at most 64 entries in a CPU's cache instead.
    """
    try:
        clusters = kernel.percpu("percpu_swap_cluster", "struct percpu_swap_cluster")
    except LookupError:
        return []
    first = offset_of(kernel.prog, "struct percpu_swap_cluster", "si")
    positions = [
        per_cpu(clusters, cpu).address_ + first for cpu in possible_cpus(kernel)
    ]
    used = set(read_pointers(kernel, addresses(positions)).tolist()) - {0}
    dtype = dtype_of(kernel.prog, "struct swap_info_struct", {"flags": "flags"})
    found: list[int] = gather_records(kernel.memory, sorted(used), dtype)[0][
        "flags"
    ].tolist()
    return found


@reading(Topic.SWAP_MAP)
def entry_ids(kernel: OpenedKernel) -> Iterator[tuple[int, int, NDArray[np.uint16]]]:
    """The private memcg ids of all swap entries, piece by piece.

    Yields the number of the swap device, the offset of the first entry on it, and an
    id for each entry from there on, 0 where none is charged.
    """
    try:
        kernel.symbol("nr_swapfiles")
    except LookupError:  # CONFIG_SWAP=n
        return
    try:
        devices = read_variable(kernel, "nr_swapfiles", 4)
        maps = _maps(kernel, min(devices, MAX_DEVICES))
    except (LookupError, drgn.FaultError):
        kernel.trouble.note(
            Topic.SWAP_MAP,
            "the swap devices cannot be found: swap entries are not counted",
        )
        return
    for device, pieces in maps:
        faults = 0
        for offset, ids in pieces:
            if ids is None:
                faults += 1
                if faults == MAX_FAULTS:
                    break
            else:
                yield device, offset, ids


def _maps(kernel: OpenedKernel, devices: int) -> Iterator[tuple[int, Pieces]]:
    """The number and the ids of each swap device that has a map."""
    for shape, maps in GENERATIONS:
        if shape is None or has_member(kernel.prog, *shape):
            return maps(kernel, devices)
    raise LookupError("no map of swap entries is known")


def _clusters(kernel: OpenedKernel, devices: int) -> Iterator[tuple[int, Pieces]]:
    """Each cluster of the swap table has its own array of ids."""
    info = _devices(kernel, devices, {"size": "max", "map": "cluster_info"})
    return _each(kernel, info["map"], info["size"], _cluster_ids)


def _pages(kernel: OpenedKernel, devices: int) -> Iterator[tuple[int, Pieces]]:
    """Each device has an array of pages of ids."""
    info = _controls(kernel, devices, {"size": "length", "map": "map"})
    return _each(kernel, info["map"], info["size"], _page_ids)


def _arrays(kernel: OpenedKernel, devices: int) -> Iterator[tuple[int, Pieces]]:
    """Each device has one array, of as many ids as entries."""
    info = _controls(kernel, devices, {"map": "map"})
    sizes = _devices(kernel, devices, {"size": "max"})["size"]
    return _each(kernel, info["map"], sizes, _array_ids)


Maps = Callable[[OpenedKernel, int], Iterator[tuple[int, Pieces]]]
# Where ids are, by the type and member that show it; the first that is there counts.
GENERATIONS: list[tuple[tuple[str, str] | None, Maps]] = [
    # Since Linux kernel commit b197d41462c2 ("mm/memcg, swap: store cgroup id in
    # cluster table directly") (in v7.2).
    (("struct swap_cluster_info", "memcg_table"), _clusters),
    # Until Linux kernel commit 2b3a58b12134 ("mm/swap_cgroup: remove global swap cgroup
    # lock") and its series (in v6.14).
    (("struct swap_cgroup_ctrl", "length"), _pages),
    (None, _arrays),
]


def _each(
    kernel: OpenedKernel,
    addresses: NDArray[np.void],
    sizes: NDArray[np.void],
    read: Callable[[OpenedKernel, int, int], Pieces],
) -> Iterator[tuple[int, Pieces]]:
    pairs = zip(addresses.tolist(), sizes.tolist(), strict=True)
    for device, (address, size) in enumerate(pairs):
        if address:
            yield device, read(kernel, address, size)


def _controls(
    kernel: OpenedKernel, devices: int, members: dict[str, str]
) -> NDArray[np.void]:
    """Members of ``swap_cgroup_ctrl`` of each device."""
    dtype = dtype_of(kernel.prog, "struct swap_cgroup_ctrl", members)
    address = kernel.symbol("swap_cgroup_ctrl")
    return np.frombuffer(kernel.memory.read(address, devices * dtype.itemsize), dtype)


def _devices(kernel: OpenedKernel, devices: int, members: dict[str, str]) -> Records:
    """Members of the ``struct swap_info_struct`` of each device."""
    table = kernel.memory.read(kernel.symbol("swap_info"), devices * 8)
    pointers = np.frombuffer(table, "<u8").tolist()
    dtype = dtype_of(kernel.prog, "struct swap_info_struct", members)
    return gather_records(kernel.memory, pointers, dtype)[0]


def _array_ids(kernel: OpenedKernel, address: int, entries: int) -> Pieces:
    """Ids from one array."""
    size = entries * ID.itemsize
    for at, data in kernel.memory.chunks(address, size, unit=ID.itemsize):
        ids = None if data is None else np.frombuffer(data, ID)
        yield (at - address) // ID.itemsize, ids


def _page_ids(kernel: OpenedKernel, address: int, pages: int) -> Pieces:
    """Ids from an array of pointers to the struct pages of pages full of ids."""
    prog, memory = kernel.prog, kernel.memory
    per_page = memory.page_size // ID.itemsize
    page_size = size_of(prog, "struct page")
    try:
        vmemmap = value_of(prog["vmemmap"])
    except LookupError:  # drgn could not read mem_section
        kernel.trouble.fault()
        yield 0, None
        return
    direct_map = value_of(phys_to_virt(prog, 0))
    for at, data in memory.chunks(address, pages * 8, BATCH * 8, unit=8):
        first = (at - address) // 8
        if data is None:
            yield first * per_page, None
            continue
        for position, page in enumerate(np.frombuffer(data, "<u8").tolist(), first):
            frame = (page - vmemmap) // page_size
            ids = memory.try_read(
                direct_map + frame * memory.page_size, memory.page_size
            )
            yield position * per_page, None if ids is None else np.frombuffer(ids, ID)


def _cluster_ids(kernel: OpenedKernel, address: int, entries: int) -> Pieces:
    """Ids from the tables of the clusters that have one (unused ones have none)."""
    prog, memory = kernel.prog, kernel.memory
    table_size = size_of(prog, "struct swap_memcg_table")
    per_table = table_size // ID.itemsize
    clusters = -(-entries // per_table)
    dtype = dtype_of(prog, "struct swap_cluster_info", {"table": "memcg_table"})
    for at, data in memory.chunks(
        address, clusters * dtype.itemsize, unit=dtype.itemsize
    ):
        first = (at - address) // dtype.itemsize
        if data is None:
            yield first * per_table, None
            continue
        for position, table in enumerate(np.frombuffer(data, dtype)["table"].tolist()):
            if table:
                ids = memory.try_read(table, table_size)
                ids_ = None if ids is None else np.frombuffer(ids, ID)
                yield (first + position) * per_table, ids_
