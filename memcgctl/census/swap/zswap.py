"""Which swap entries are compressed in memory by zswap, and how much do they take?

Each entry there has a ``struct zswap_entry`` (mm/zswap.c), in a tree of its device by
the entry's offset. Its ``length`` bytes are charged to an ``obj_cgroup``, and so, once
the memcg is removed, to its nearest online ancestor.
"""

from __future__ import annotations

from dataclasses import dataclass

import drgn
import numpy as np
from numpy.typing import NDArray

from memcgctl.census.swap.maps import IDS, MAX_DEVICES, entry_ids
from memcgctl.census.tree import Tree
from memcgctl.kernel.layout import LayoutError, has_member, offset_of, size_of
from memcgctl.kernel.program import OpenedKernel
from memcgctl.kernel.trouble import Topic, reading
from memcgctl.linux.records import read_variable
from memcgctl.linux.structs import (
    U64,
    addresses,
    read_pointers,
    read_structs,
    xarray_entries,
)

ENTRY = "struct zswap_entry"
# include/linux/swapops.h: a swp_entry_t is a device's number above an offset.
_TYPE_SHIFT = 58
# 64 TiB of swap have a tree for each 64 MiB.
_MAX_TREES = 1 << 20
# Entries of 4 KiB: 64 GiB of swap that is compressed in memory.
_MAX_ENTRIES = 1 << 24
# A red-black tree of n nodes is no higher than twice the logarithm of n.
_MAX_HEIGHT = 64


@dataclass(frozen=True)
class Zswap:
    """Swap entries (``swp_entry_t``), sorted, and the bytes that each takes."""

    entry: U64
    length: U64


NOTHING = Zswap(addresses([]), addresses([]))


@reading(Topic.SWAP_MAP)
def read_zswap(kernel: OpenedKernel) -> Zswap | None:
    """All entries in zswap; None if it cannot be read or has a shape not known."""
    try:
        trees = kernel.symbol("zswap_trees")
    except LookupError:  # CONFIG_ZSWAP is off
        return NOTHING
    try:
        return _read(kernel, trees)
    except (LookupError, LayoutError, drgn.FaultError) as error:
        kernel.trouble.note(
            Topic.SWAP_MAP, f"what of swap is in zswap is not known: {error}"
        )
        return None


def _read(kernel: OpenedKernel, trees: int) -> Zswap:
    devices = min(read_variable(kernel, "nr_swapfiles", 4), MAX_DEVICES)
    # A table for all that there can be: MAX_SWAPFILES is less than these.
    words = kernel.memory.read(trees, devices * 8)
    heads: U64 = np.frombuffer(words, "<u8").astype(np.uint64)
    try:
        counts = kernel.memory.read(kernel.symbol("nr_zswap_trees"), devices * 4)
        each = np.frombuffer(counts, "<u4").astype(np.int64)
    except LookupError:
        # Until Linux kernel commit 44c7c734a513 ("mm/zswap: split zswap rb-tree") (in
        # v6.9) there is one tree a device.
        each = np.ones(devices, np.int64)
    each[heads == 0] = 0
    if each.sum() > _MAX_TREES:
        raise LookupError("there are more trees than swap can have")
    device = np.repeat(np.arange(devices, dtype=np.uint64), each)
    number = np.concatenate([addresses([]), *(addresses(range(n)) for n in each)])
    # Since Linux kernel commit 796c2c23e14e ("zswap: replace RB tree with xarray") (in
    # v6.10) a tree is an xarray.
    if has_member(kernel.prog, "struct zswap_tree", "rbroot"):
        size, root = size_of(kernel.prog, "struct zswap_tree"), "rbroot.rb_node"
        root_at = offset_of(kernel.prog, "struct zswap_tree", root)
        look = _in_rb_trees
    else:
        size = size_of(kernel.prog, "struct xarray")
        root_at = offset_of(kernel.prog, "struct xarray", "xa_head")
        look = _in_xarrays
    at: U64 = number * np.uint64(size) + np.uint64(root_at)
    at += heads[device.astype(np.intp)]
    tree, offset, length = look(kernel, read_pointers(kernel, at))
    entry = (device[tree] << np.uint64(_TYPE_SHIFT)) | offset
    order = np.argsort(entry)
    return Zswap(entry[order], length[order])


def _in_xarrays(kernel: OpenedKernel, heads: U64) -> tuple[NDArray[np.int64], U64, U64]:
    """The tree, offset and length of each entry."""
    found = xarray_entries(kernel, heads, Topic.SWAP_MAP)
    rows = read_structs(kernel, ENTRY, found.entry, {"length": "length"})
    return found.owner, found.index, rows["length"].astype(np.uint64)


def _in_rb_trees(
    kernel: OpenedKernel, heads: U64
) -> tuple[NDArray[np.int64], U64, U64]:
    """The same, level by level; a cycle ends with the height that none can have."""
    node = np.uint64(offset_of(kernel.prog, ENTRY, "rbnode"))
    # Until Linux kernel commit 0bb488498c98 ("mm: zswap: remove zswap_header") (in
    # v6.5) an entry has its offset instead of its swp_entry_t.
    named = "offset" if has_member(kernel.prog, ENTRY, "offset") else "swpentry.val"
    members = {
        "left": "rbnode.rb_left",
        "right": "rbnode.rb_right",
        "offset": named,
        "length": "length",
    }
    owner: NDArray[np.int64] = np.arange(len(heads), dtype=np.int64)
    owner, at = owner[heads != 0], heads[heads != 0]
    owners, offsets, lengths = [owner[:0]], [heads[:0]], [heads[:0]]
    total = 0
    for _ in range(_MAX_HEIGHT):
        if not len(at):
            break
        total += len(at)
        if total > _MAX_ENTRIES:
            raise LookupError("there are more entries than zswap can have")
        rows = read_structs(kernel, ENTRY, at - node, members)
        owners.append(owner)
        offsets.append(rows["offset"] & np.uint64((1 << _TYPE_SHIFT) - 1))
        lengths.append(rows["length"].astype(np.uint64))
        at = np.concatenate([rows["left"], rows["right"]])
        owner = np.concatenate([owner, owner])[at != 0]
        at = at[at != 0]
    else:
        raise LookupError("a tree is higher than any can be")
    return np.concatenate(owners), np.concatenate(offsets), np.concatenate(lengths)


@reading(Topic.SWAP_MAP)
def compressed(
    kernel: OpenedKernel, tree: Tree
) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """Entries in zswap that each memcg is charged for, and the bytes that they take.

    None if that is not known.
    """
    zswap = read_zswap(kernel)
    if zswap is None:
        return None
    entries, sizes = np.zeros(IDS, np.int64), np.zeros(IDS, np.int64)
    for device, first, ids in entry_ids(kernel) if len(zswap.entry) else ():
        start = device << _TYPE_SHIFT | first
        low, high = np.searchsorted(zswap.entry, addresses([start, start + len(ids)]))
        index = (zswap.entry[low:high] - np.uint64(start)).astype(np.intp)
        whose = ids[index]
        entries += np.bincount(whose, minlength=IDS)
        weights = zswap.length[low:high].astype(np.float64)  # exact below 2^53
        sizes += np.bincount(whose, weights, minlength=IDS).astype(np.int64)
    entries[0] = sizes[0] = 0
    mine = tree.memcg["id.id"].astype(np.int64) & (IDS - 1)
    return entries[mine], sizes[mine]
