"""Who would fault the swap entries of a memcg in again?

The swap map (``swap``) says which entries are charged to a memcg. Anonymous ones are
looked for in the page tables of the processes that swapoff would visit
(``mm_struct.mmlist``), those of shmem in ``i_pages`` of the inodes on
``shmem_swaplist``. An entry can have several owners, or none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import drgn
import numpy as np
from drgn.helpers.linux.percpu import per_cpu
from numpy.typing import NDArray

from memcgctl.census.swap.maps import IDS, MAX_DEVICES, entry_ids, synchronous
from memcgctl.census.swap.zswap import read_zswap
from memcgctl.kernel.layout import (
    has_member,
    offset_of,
    size_of,
    value_of,
)
from memcgctl.kernel.trouble import (
    Topic,
    reading,
)
from memcgctl.linux.backing import read_backings
from memcgctl.linux.pagetables import swap_entries, walk
from memcgctl.linux.paths import file_paths
from memcgctl.linux.rmap import file_vmas
from memcgctl.linux.structs import (
    U64,
    addresses,
    find,
    possible_cpus,
    read_pointers,
    read_rows,
    read_structs,
    unique,
    xarray_entries,
)
from memcgctl.model import Backing, SwapDeviceUse, SwapOwner

if TYPE_CHECKING:
    from memcgctl.census.processes import Processes
    from memcgctl.kernel.program import OpenedKernel
    from memcgctl.linux.tasks import Tasks

# include/linux/swapops.h: a swp_entry_t is the number of the device and, from this bit
# down, the offset on it. Files and xarrays keep entries so, page tables do not.
_TYPE_SHIFT = np.uint64(58)
_OFFSET_MASK = np.uint64((1 << 58) - 1)

# mm/swap_table.h, SWP_TB_PFN_MARK: the entry's folio is in the swap cache.
_CACHED, _CACHED_MASK = np.uint64(0b10), np.uint64(0b11)

# More inodes with swapped pages than this are a damaged list.
_INODES_LIMIT = 1 << 20
# A swapped folio of shmem is no larger than a PMD maps, with pages of 64 KiB.
_MAX_RUN = 1 << 13
# SWAP_SLOTS_CACHE_SIZE (include/linux/swap_slots.h) is 64.
_SLOTS = 1024


# Who holds an entry (by its position among those who do), whose it is, its device.
Cell = tuple[int, int, int]
# The same, with the holder as a position in ``tasks``, as a file or as a name.
Held = tuple[int | str | Backing, int, int]


@dataclass(frozen=True)
class Charged:
    """The charged entries, sorted: ``swp_entry_t``, and whose they are.

    ``memcg`` is a position among the memcgs asked for.
    """

    entry: U64
    memcg: NDArray[np.int64]

    def find(self, entries: U64) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """The position of each of ``entries``, and whether it is a charged one."""
        row = np.searchsorted(self.entry, entries).clip(max=len(self.entry) - 1)
        return row, self.entry[row] == entries

    def count(self, row: NDArray[np.intp], holder: NDArray[np.int64]) -> Counter[Cell]:
        """How many of the entries at ``row``, each of a holder, are in each cell."""
        device = (self.entry[row] >> _TYPE_SHIFT).astype(np.int64)
        key = ((holder << 20 | self.memcg[row]) << 6) | device
        keys, counts = np.unique(key, return_counts=True)
        cells = zip(
            (keys >> 26).tolist(),
            (keys >> 6 & (1 << 20) - 1).tolist(),
            (keys & 63).tolist(),
            strict=True,
        )
        return Counter(dict(zip(cells, counts.tolist(), strict=True)))


def swap_devices(
    kernel: OpenedKernel,
    private_ids: NDArray[np.int64],
    cached: Mapping[int, Counter[int]],
    processes: Processes,
) -> list[tuple[SwapDeviceUse, ...]]:
    """The swap entries of memcgs, by device, with their owners.

    ``private_ids`` has the ``memcg->id.id`` of each, 0 for one that has none.
    ``cached`` says who maps how many pages of a folio in the swap cache, by its first
    entry and by the process's position.
    """
    charged = _charged_entries(kernel, private_ids)
    result: list[tuple[SwapDeviceUse, ...]] = [() for _ in private_ids]
    if not len(charged.entry):
        return result
    held = Counter[Held]()
    for looked in (
        _in_page_tables(kernel, charged, processes.tasks),
        _in_swap_cache(charged, cached),
        _in_shmem(kernel, charged, processes.tasks),
        _in_slot_caches(kernel, charged),
    ):
        held.update(looked)
    owners: dict[tuple[int, int], list[SwapOwner]] = {}
    for (holder, *cell), entries in held.most_common():
        memcg, device = cell
        owners.setdefault((memcg, device), []).append(
            _owner(processes, holder, entries)
        )
    every = np.arange(len(charged.entry))
    names, at_once = _device_names(kernel), synchronous(kernel)
    (cached_,) = _in_parents_cache(kernel, charged.entry).nonzero()
    parents = charged.count(cached_, cached_ * 0)
    zswap = read_zswap(kernel)
    (inside,) = np.isin(charged.entry, zswap.entry if zswap else ()).nonzero()
    in_zswap = charged.count(inside, inside * 0)
    for key, entries in charged.count(every, every * 0).items():
        _, memcg, device = key
        use = SwapDeviceUse(
            device=names.get(device) or f"swap device {device}",
            entries=entries,
            owners=tuple(owners.get((memcg, device), ())),
            parents_entries=parents[key],
            synchronous=at_once.get(device),
            zswap_entries=None if zswap is None else in_zswap[key],
        )
        result[memcg] = (*result[memcg], use)
    return result


def _owner(
    processes: Processes, holder: int | str | Backing, entries: int
) -> SwapOwner:
    if isinstance(holder, Backing):
        return SwapOwner(None, _inode_name(holder), "", 0, entries, file=holder)
    if isinstance(holder, str):
        return SwapOwner(None, holder, "", 0, entries)
    process = processes.process(holder, 0)
    return SwapOwner(
        pid=process.pid,
        comm=process.comm,
        memcg=process.memcg,
        memcg_id=process.memcg_id,
        entries=entries,
        start_ticks=process.start_ticks,
        tid=process.tid,
    )


@reading(Topic.SWAP_MAP)
def _charged_entries(kernel: OpenedKernel, private_ids: NDArray[np.int64]) -> Charged:
    position = np.full(IDS, -1, np.int64)
    position[private_ids & (IDS - 1)] = np.arange(len(private_ids))
    position[0] = -1
    entries = [addresses([])]
    memcgs: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]
    for device, offset, ids in entry_ids(kernel):
        (hits,) = ids.nonzero()
        memcg = position[ids[hits]]
        hits, memcg = hits[memcg >= 0], memcg[memcg >= 0]
        first = np.uint64(device << 58 | offset)
        entries.append(first + hits.astype(np.uint64))
        memcgs.append(memcg)
    entry, memcg = np.concatenate(entries), np.concatenate(memcgs)
    order = np.argsort(entry, kind="stable")
    return Charged(entry[order], memcg[order])


@reading(Topic.SWAP_MAP)
def _in_parents_cache(kernel: OpenedKernel, entry: U64) -> NDArray[np.bool_]:
    """Which entries have a folio in the swap cache that has gone to the parent.

    Folios of offline memcgs have since 7.1; the swap table (mm/swap_table.h) tells of
    cached ones as here since 7.2. On 7.1 none is said to be.
    """
    prog = kernel.prog
    # Since Linux kernel commit b197d41462c2 ("mm/memcg, swap: store cgroup id in
    # cluster table directly") (in v7.2).
    if not has_member(prog, "struct swap_cluster_info", "memcg_table"):
        return np.zeros(len(entry), np.bool_)
    table = np.dtype(("<u8", (size_of(prog, "struct swap_table") // 8,)))
    width = np.uint64(table.shape[0])
    offset = entry & _OFFSET_MASK
    keys, which = np.unique(
        (entry >> _TYPE_SHIFT << _TYPE_SHIFT) | offset // width, return_inverse=True
    )
    infos = kernel.symbol("swap_info") + 8 * (keys >> _TYPE_SHIFT)
    devices = read_structs(
        kernel,
        "struct swap_info_struct",
        read_pointers(kernel, addresses(infos)),
        {"clusters": "cluster_info"},
    )
    size = np.uint64(size_of(prog, "struct swap_cluster_info"))
    clusters = read_structs(
        kernel,
        "struct swap_cluster_info",
        addresses(devices["clusters"]) + (keys & _OFFSET_MASK) * size,
        {"table": "table"},
    )
    rows = read_rows(kernel, addresses(clusters["table"]), table)
    value = rows[which, offset % width]
    cached: NDArray[np.bool_] = value & _CACHED_MASK == _CACHED
    return cached


@reading(Topic.PAGE_TABLES)
def _in_page_tables(
    kernel: OpenedKernel, charged: Charged, tasks: Tasks
) -> Counter[Held]:
    """Entries in the page tables of processes."""
    mms = unique(tasks.mm)
    # Whoever had a page swapped out is on init_mm.mmlist until it exits.
    link = np.uint64(offset_of(kernel.prog, "struct mm_struct", "mmlist"))
    rows = read_structs(kernel, "struct mm_struct", mms, {"next": "mmlist.next"})
    mms = mms[rows["next"] != mms + link]
    counts = Counter[Cell]()
    for leaves in walk(kernel, mms):
        mm, device, offset = swap_entries(leaves)
        entry = (device.astype(np.uint64) << _TYPE_SHIFT) | (offset & _OFFSET_MASK)
        row, known = charged.find(entry)
        counts.update(charged.count(row[known], mm[known]))
    return _of_sharers(counts, mms, tasks)


def _of_sharers(counts: Counter[Cell], mms: U64, tasks: Tasks) -> Counter[Held]:
    """From positions in ``mms`` to those of all processes that have these."""
    positions: dict[int, list[int]] = {}
    for position, mm in enumerate(tasks.mm.tolist()):
        positions.setdefault(mm, []).append(position)
    return Counter(
        {
            (position, memcg, device): entries
            for (mm, memcg, device), entries in counts.items()
            for position in positions.get(int(mms[mm]), ())
        }
    )


def _in_swap_cache(
    charged: Charged, cached: Mapping[int, Counter[int]]
) -> Counter[Held]:
    """Entries whose folio is in the swap cache and mapped."""
    held = Counter[Held]()
    for first, sharers in cached.items():
        most = max(sharers.values(), default=0)
        entries = addresses([first + step for step in range(min(most, _MAX_RUN))])
        row, known = charged.find(entries)
        for position, pages in sharers.items():
            here = row[:pages][known[:pages]]
            held.update(charged.count(here, here * 0 + position))
    return held


@reading(Topic.SHMEM_SWAP)
def _in_shmem(kernel: OpenedKernel, charged: Charged, tasks: Tasks) -> Counter[Held]:
    """Entries in shmem inodes: of the processes that map them there, or the inodes'."""
    mappings = _swapped_mappings(kernel)
    heads = read_structs(
        kernel, "struct address_space", mappings, {"head": "i_pages.xa_head"}
    )["head"]
    values = xarray_entries(
        kernel, addresses(heads), Topic.SHMEM_SWAP, values_only=True
    )
    # A large entry stands for as many entries as it has pages.
    run = np.minimum(values.count, np.uint64(_MAX_RUN)).astype(np.int64)
    step = np.arange(run.sum()) - np.repeat(np.cumsum(run) - run, run)
    entry = np.repeat(values.entry >> np.uint64(1), run) + step.astype(np.uint64)
    row, known = charged.find(entry)
    holder = np.repeat(values.owner, run)[known]
    index = (np.repeat(values.index, run) + step.astype(np.uint64))[known]
    order = np.lexsort((index, holder))
    holder, index, row = holder[order], index[order], row[known][order]
    owners, holder = np.unique(holder, return_inverse=True)
    mappings = mappings[owners]
    vmas = file_vmas(kernel, mappings)
    mms = unique(tasks.mm)
    mm, alive = find(mms, vmas.mm)
    starts = np.searchsorted(holder, np.arange(len(mappings) + 1))
    mapped = np.zeros(len(row), np.bool_)
    counts = Counter[Cell]()
    page_size = np.uint64(kernel.memory.page_size)
    for area in alive.nonzero()[0].tolist():
        first, end = starts[vmas.owner[area] : vmas.owner[area] + 2]
        pages = (vmas.end[area] - vmas.start[area]) // page_size
        bounds = np.array([0, pages], np.uint64) + vmas.pgoff[area]
        inside = slice(*(first + np.searchsorted(index[first:end], bounds)))
        mapped[inside] = True
        counts.update(charged.count(row[inside], holder[inside] * 0 + mm[area]))
    held = _of_sharers(counts, mms, tasks)
    backings = read_backings(kernel, mappings, tasks, [()] * len(mappings), {})
    for cell, entries in charged.count(row[~mapped], holder[~mapped]).items():
        inode, memcg, device = cell
        held[backings[inode] or "shmem", memcg, device] += entries
    return held


@reading(Topic.SHMEM_SWAP)
def _swapped_mappings(kernel: OpenedKernel) -> U64:
    """``struct address_space *`` of every shmem inode that has swapped pages."""
    try:
        head = kernel.symbol("shmem_swaplist")
    except LookupError:  # CONFIG_SHMEM or CONFIG_SWAP is off
        return addresses([])
    prog = kernel.prog
    link = offset_of(prog, "struct shmem_inode_info", "swaplist")
    mapping = offset_of(prog, "struct shmem_inode_info", "vfs_inode.i_data")
    seen: dict[int, None] = {}
    node = int(read_pointers(kernel, addresses([head]))[0])
    while node not in (0, head) and node not in seen and len(seen) < _INODES_LIMIT:
        seen[node] = None
        node = int(read_pointers(kernel, addresses([node]))[0])
    return addresses([node - link + mapping for node in seen])


def _inode_name(backing: Backing) -> str:
    return backing.path or f"{backing.fs} {backing.device} inode {backing.inode}"


@reading(Topic.SWAP_MAP)
def _in_slot_caches(kernel: OpenedKernel, charged: Charged) -> Counter[Held]:
    """Entries that are free but stay charged, in a CPU's cache until it is full.

    These caches went with 6.14.
    """
    held = Counter[Held]()
    try:
        caches = kernel.percpu("swp_slots", "struct swap_slots_cache")
    except LookupError:
        return held
    for cpu in possible_cpus(kernel):
        try:
            cache = per_cpu(caches, cpu)
            address, count = value_of(cache, "slots_ret"), value_of(cache, "n_ret")
        except drgn.FaultError:
            kernel.trouble.fault()
            continue
        if not 0 < count <= _SLOTS:
            continue
        slots = read_rows(kernel, addresses([address]), np.dtype(("<u8", (count,))))
        row, known = charged.find(slots[0])
        row = row[known]
        for (_, memcg, device), entries in charged.count(row, row * 0).items():
            held[f"freed entries in a cache of CPU {cpu}", memcg, device] += entries
    return held


@reading(Topic.SWAP_SPACE)
def _device_names(kernel: OpenedKernel) -> dict[int, str]:
    """The path of each swap device, by number."""
    count = min(value_of(kernel.declare("nr_swapfiles", "unsigned int")), MAX_DEVICES)
    slots = kernel.symbol("swap_info") + 8 * np.arange(count, dtype=np.uint64)
    info = read_pointers(kernel, addresses(slots))
    files = read_structs(
        kernel, "struct swap_info_struct", info, {"file": "swap_file"}
    )["file"]
    paths = file_paths(kernel, addresses(files))
    return {number: path for number, path in enumerate(paths) if path}
