"""What stands in the way of evicting a folio?

Looks at the folio's own flags and references, at its buffers (``struct buffer_head``,
for the page cache of block devices), at the swap space that its memcg could use
(``mem_cgroup_get_nr_swap_pages``) and at memory.min (``page_counter``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import drgn
import numpy as np
from numpy.typing import NDArray

from memcgctl.census import folios
from memcgctl.census.charges.collect import GUP_PIN_COUNTING_BIAS, Folios
from memcgctl.kernel.layout import (
    size_of,
    value_of,
)
from memcgctl.kernel.trouble import (
    Topic,
    reading,
)
from memcgctl.linux.structs import U64, addresses, enumerators, read_structs

if TYPE_CHECKING:
    from memcgctl.census.tree import Tree
    from memcgctl.kernel.program import OpenedKernel

Mask = NDArray[np.bool_]

# The smallest buffer is a sector, so a page has no more buffers than this.
_SECTOR = 512
# enum bh_state_bits (include/linux/buffer_head.h): dirty or locked, so busy.
_BH_BUSY = np.uint64(1 << 1 | 1 << 2)


# What somebody beside page tables and page cache has, and the kernel's own pages.
REFERENCED = ("pinned", "extra references", "kernel memory")


@reading(Topic.MEMORY_MAP)
def obstacles(
    kernel: OpenedKernel,
    tree: Tree,
    wanted: U64,
    found: Folios,
    mapping_flags: U64,
    on_bdev: Mask,
) -> dict[str, Mask]:
    """For each obstacle, which folios it concerns; most concern few or none.

    ``wanted`` are the memcgs that ``found`` refers to; ``mapping_flags`` (0 for
    anonymous memory) and ``on_bdev`` are of each folio's mapping.
    """
    bits = enumerators(kernel.prog, "enum pageflags")

    def flag(name: str) -> Mask:
        mask: Mask = found.flags & np.uint64(1 << bits[name]) != 0
        return mask

    hugetlb, kernel_page = found.kind == folios.HUGETLB, found.kind == folios.KERNEL
    memory = ~(hugetlb | kernel_page)
    anon, swapcache = found.kind == folios.ANON, flag("PG_swapcache")
    swapbacked = flag("PG_swapbacked")
    locked = flag("PG_mlocked")
    # AS_UNEVICTABLE: the folios get the flag only once reclaim has met them.
    unevictable = 1 << enumerators(kernel.prog, "enum mapping_flags")["AS_UNEVICTABLE"]
    of_mapping = mapping_flags & np.uint64(unevictable) != 0
    space = swap_space(kernel, tree, wanted)
    no_slot = memory & swapbacked & ~swapcache
    pinned = found.pins > 0
    return {
        "locked (mlock)": memory & locked,
        "unevictable": memory & (flag("PG_unevictable") | of_mapping) & ~locked,
        "dirty": (found.kind == folios.FILE) & flag("PG_dirty"),
        "under writeback": memory & flag("PG_writeback"),
        "pinned": memory & pinned,
        "buffers in use": _busy_buffers(kernel, found, on_bdev & flag("PG_private")),
        "extra references": memory
        & (_extra(found, swapcache, flag("PG_private") & ~anon) > 0),
        "no swap": no_slot & (space.total == 0),
        "swap not read": no_slot & (space.total is None),
        "swap full": no_slot & bool(space.total and not space.free),
        "swap limit (memory.swap.max)": no_slot
        & bool(space.free)
        & space.limited[found.memcg],
        "memory.min protection": memory & protected(kernel, tree, wanted)[found.memcg],
        "kernel memory": kernel_page,
        # On no LRU list: nothing evicts it.
        "hugetlb (until truncated or unmapped)": hugetlb,
    }


def _extra(found: Folios, swapcache: Mask, private: Mask) -> NDArray[np.int64]:
    """References beyond the expected ones (``folio_expected_ref_count``).

    Expected are those of mappings, page or swap cache (one a page), private data such
    as buffers, per-CPU batches on the way to an LRU list, and pins, which are told
    apart.
    """
    cached = (found.kind != folios.ANON) & (found.mapping != 0)
    pins = np.where(found.pages > 1, found.pins, found.pins * GUP_PIN_COUNTING_BIAS)
    expected = (
        found.mapcount
        + np.where(cached | swapcache, found.pages, 0)
        + private
        + found.batched
        + pins
    )
    return np.asarray(found.refcount - expected, np.int64)


def _busy_buffers(kernel: OpenedKernel, found: Folios, candidates: Mask) -> Mask:
    """Which of the candidates have a buffer that is held, dirty or locked.

    File systems keep buffers of their metadata for as long as they are mounted
    (``drop_buffers``, fs/buffer.c).
    """
    busy = np.zeros(len(candidates), np.bool_)
    (candidate,) = candidates.nonzero()
    size = size_of(kernel.prog, "struct page")
    page = found.pfn[candidate].astype(np.uint64) * np.uint64(size)
    page += np.uint64(value_of(kernel.prog["vmemmap"]))
    buffer = first = found.private[candidate]
    most = (
        kernel.memory.page_size // _SECTOR * int(found.pages[candidate].max(initial=0))
    )
    for _ in range(most):
        rows = read_structs(
            kernel,
            "struct buffer_head",
            buffer,
            {
                "page": "b_page",
                "state": "b_state",
                "count": "b_count.counter",
                "next": "b_this_page",
            },
        )
        # Private data is not always buffers.
        own = rows["page"] == page
        held = own & ((rows["count"] > 0) | (rows["state"] & _BH_BUSY != 0))
        busy[candidate[held]] = True
        more = own & ~held & (rows["next"] != first)
        buffer, candidate = addresses(rows["next"][more]), candidate[more]
        page, first = page[more], first[more]
        if not len(candidate):
            break
    return busy


@dataclass(frozen=True)
class SwapSpace:
    """Pages of swap, all and free ones; which memcgs may use none of these.

    ``total`` is None where it could not be read.
    """

    total: int | None
    free: int
    limited: Mask


def swap_space(kernel: OpenedKernel, tree: Tree, wanted: U64) -> SwapSpace:
    """What swap the ``struct mem_cgroup *`` in ``wanted`` can use."""
    limited = np.zeros(len(wanted), np.bool_)
    try:
        total = value_of(kernel.declare("total_swap_pages", "long"))
        free = value_of(kernel.declare("nr_swap_pages", "atomic_long_t"), "counter")
    except LookupError:  # CONFIG_SWAP is off
        return SwapSpace(0, 0, limited)
    except drgn.FaultError:
        kernel.trouble.note(Topic.SWAP_SPACE, "how much swap there is cannot be read")
        return SwapSpace(None, 0, limited)
    if tree.cgroup_version == 1:
        return SwapSpace(total, max(free, 0), limited)
    chains, rows = _lineage(
        kernel, tree, wanted, {"max": "swap.max", "usage": "swap.usage.counter"}
    )
    full = rows["max"].astype(np.int64) <= rows["usage"]
    for index, chain in enumerate(chains):
        limited[index] = any(full[row] for row in chain)
    return SwapSpace(total, max(free, 0), limited)


def protected(kernel: OpenedKernel, tree: Tree, wanted: U64) -> Mask:
    """Which memcgs memory.min keeps from being reclaimed, as seen from the root.

    That is what ``mem_cgroup_below_min`` would find after
    ``mem_cgroup_calculate_protection``: an offline memcg has no memory.min of its own,
    but can have a part of its ancestors'.
    """
    result = np.zeros(len(wanted), np.bool_)
    if tree.cgroup_version == 1:
        return result
    chains, rows = _lineage(
        kernel,
        tree,
        wanted,
        {
            "min": "memory.min",
            "usage": "memory.usage.counter",
            "claimed": "memory.children_min_usage.counter",
        },
    )
    flags = value_of(kernel.declare("cgrp_dfl_root", "struct cgroup_root"), "flags")
    shared = bool(flags & value_of(kernel.prog["CGRP_ROOT_MEMORY_RECURSIVE_PROT"]))
    values = [tuple(map(int, row)) for row in rows.tolist()]
    for index, chain in enumerate(chains):
        effective = parent_usage = claimed = 0
        for depth, row in enumerate(reversed(chain)):
            setting, usage, children = values[row]
            if depth == 0:
                effective = setting
            else:
                effective = _effective(
                    usage, parent_usage, setting, effective, claimed, shared
                )
            parent_usage, claimed = usage, children
        result[index] = bool(chain) and effective > 0 and effective >= parent_usage
    return result


def _effective(
    usage: int,
    parent_usage: int,
    setting: int,
    parent: int,
    siblings: int,
    shared: bool,
) -> int:
    """``effective_protection`` (mm/memcontrol.c, since 6.11 mm/page_counter.c)."""
    own = min(usage, setting)
    if siblings > parent:
        return own * parent // siblings
    if shared and parent > siblings and parent_usage > siblings and usage > own:
        rest = (parent - siblings) * (usage - own)
        own += rest // (parent_usage - siblings)
    return own


def _lineage(
    kernel: OpenedKernel, tree: Tree, wanted: U64, members: dict[str, str]
) -> tuple[list[list[int]], NDArray[np.void]]:
    """Rows of the tree from each memcg up to below the root; members of all memcgs."""
    row_of = {address: row for row, address in enumerate(tree.address.tolist())}
    parents = tree.parent.tolist()
    chains: list[list[int]] = []
    for memcg in wanted.tolist():
        chain, row = [], row_of.get(memcg, -1)
        while row >= 0 and parents[row] >= 0:
            chain.append(row)
            row = parents[row]
        chains.append(chain)
    needed = np.zeros(len(parents), np.uint64)
    rows = sorted({row for chain in chains for row in chain})
    needed[rows] = tree.address[rows]
    return chains, read_structs(kernel, "struct mem_cgroup", needed, members)
