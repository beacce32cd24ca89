"""What did an online memcg inherit from dead descendants, and what does that cost?

At offline time the ``obj_cgroup``s of a memcg, and with them what is charged through
them, go to its parent: ``memcg_reparent_objcgs`` (mm/memcontrol.c) puts them on the
``objcg_list`` of ``struct mem_cgroup``, since 7.1 of ``struct mem_cgroup_per_node``.
Whose they were is known as long as their memcg still exists, by its ``orig_objcg``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from memcgctl.census import folios
from memcgctl.census.overhead import read_machine
from memcgctl.census.pages import page_layout
from memcgctl.kernel.layout import (
    has_member,
    offset_of,
    size_of,
)
from memcgctl.kernel.trouble import (
    Topic,
    reading,
)
from memcgctl.linux.lists import list_walker, occupied
from memcgctl.linux.memmap import page_ranges
from memcgctl.linux.structs import U64, addresses, read_pointers, read_structs
from memcgctl.model import Holder, Inherited, Memcg

if TYPE_CHECKING:
    from memcgctl.kernel.program import OpenedKernel

Progress = Callable[[str, int, int], None]
Int64 = NDArray[np.int64]

MEMCG, PER_NODE = "struct mem_cgroup", "struct mem_cgroup_per_node"
OBJCG, REF_DATA = "struct obj_cgroup", "struct percpu_ref_data"
# The low bits of percpu_ref.percpu_count_ptr, include/linux/percpu-refcount.h.
REF_FLAGS = np.uint64(3)


@reading(Topic.OBJCGS)
def objcg_holders(kernel: OpenedKernel, online: U64) -> Iterator[tuple[int, Holder]]:
    """(``struct mem_cgroup *``, holder) for memcgs held by what they inherited.

    On 5.10, where kernel pages hold a css, an inherited ``obj_cgroup`` does as well
    (``css_get(&parent->css)``); an offline memcg has passed its own on.
    """
    # Until Linux kernel commit b4e0b68fbd9d ("mm: memcontrol: use obj_cgroup APIs to
    # charge kmem pages") (in v5.13).
    if has_member(kernel.prog, "struct page", "mem_cgroup"):
        for row, objcgs in _lists(kernel, online):
            yield int(online[row]), Holder("objcg", len(objcgs), "")


@reading(Topic.OBJCGS)
def inherited(
    kernel: OpenedKernel,
    memcgs: Sequence[Memcg],
    progress: Progress | None = None,
) -> dict[int, tuple[Inherited, ...]]:
    """What each memcg inherited, by origin, most bytes first; by the heir's address.

    ``memcgs`` are all of the kernel, since the origins are among them. If anything was
    inherited, the memory map is read once more: KernelError where there is none.
    """
    at = addresses([memcg.address for memcg in memcgs])
    # Offline, the head is left with links into the parent's list (list_splice).
    online = np.array([memcg.state == "online" for memcg in memcgs])
    lists = list(_lists(kernel, np.where(online, at, np.uint64(0))))
    if not lists:
        return {}
    objcgs = np.concatenate([found for _, found in lists])
    heir = np.repeat([row for row, _ in lists], [len(found) for _, found in lists])
    # One group for each heir and origin; -1 is an origin that is gone.
    keys, group = np.unique(
        heir * (len(at) + 1) + _origins(kernel, at, objcgs) + 1, return_inverse=True
    )
    columns = (
        np.ones(len(objcgs), np.int64),
        *_costs(kernel, objcgs),
        *_charges(kernel, objcgs, progress),
    )
    sums = [np.bincount(group, column).astype(np.int64).tolist() for column in columns]
    found: defaultdict[int, list[Inherited]] = defaultdict(list)
    for key, *numbers in zip(keys.tolist(), *sums, strict=True):
        row, origin = divmod(key, len(at) + 1)
        name = memcgs[origin - 1] if origin else None
        found[memcgs[row].address].append(
            Inherited(name.path if name else None, name.id if name else 0, *numbers)
        )
    return {
        address: tuple(sorted(parts, key=lambda part: -part.charged_bytes))
        for address, parts in found.items()
    }


def _lists(kernel: OpenedKernel, memcgs: U64) -> Iterator[tuple[int, U64]]:
    """(index of the memcg, ``struct obj_cgroup *``s on one of its lists)."""
    owner, parents, name = _holders_of(kernel, memcgs, "objcg_list")
    offset = offset_of(kernel.prog, name, "objcg_list")
    heads = np.where(parents, parents + np.uint64(offset), np.uint64(0))
    walk = list_walker(kernel, OBJCG, "list", {"memcg": "memcg"}, Topic.OBJCGS)
    for row in occupied(kernel, heads).nonzero()[0].tolist():
        objcgs, _ = walk(int(heads[row]))
        if len(objcgs):
            yield int(owner[row]), objcgs


def _holders_of(
    kernel: OpenedKernel, memcgs: U64, member: str
) -> tuple[Int64, U64, str]:
    """The structures with ``member``: index of their memcg, address, and type name."""
    rows = np.arange(len(memcgs))
    # One for each memcg and node since Linux kernel commit 01b9da291c49 ("mm:
    # memcontrol: convert objcg to be per-memcg per-node type") (in v7.1).
    if has_member(kernel.prog, MEMCG, member):
        return rows, memcgs, MEMCG
    nodes = np.arange(read_machine(kernel).node_ids, dtype=np.uint64)
    first = memcgs + np.uint64(offset_of(kernel.prog, MEMCG, "nodeinfo"))
    slots = first[:, None] + np.uint64(8) * nodes
    slots[memcgs == 0] = 0
    parts = read_pointers(kernel, slots.ravel())
    return np.repeat(rows, len(nodes)), parts, PER_NODE


def _origins(kernel: OpenedKernel, memcgs: U64, objcgs: U64) -> Int64:
    """The index of the memcg that each obj_cgroup was made for, -1 if it is gone."""
    # Since Linux kernel commit 675d6c9b59e3 ("mm: kmem: make memcg keep a reference to
    # the original objcg") (in v6.7).
    if not any(
        has_member(kernel.prog, name, "orig_objcg") for name in (MEMCG, PER_NODE)
    ):
        return np.full(len(objcgs), -1)
    owner, parents, name = _holders_of(kernel, memcgs, "orig_objcg")
    own = read_structs(kernel, name, parents, {"objcg": "orig_objcg"})["objcg"]
    order = np.argsort(own)
    row = order[np.searchsorted(own[order], objcgs).clip(max=len(own) - 1)]
    return np.where(own[row] == objcgs, owner[row], -1)


def _costs(kernel: OpenedKernel, objcgs: U64) -> tuple[Int64, Int64]:
    """Of each obj_cgroup: references to it, and bytes of its structures."""
    prog = kernel.prog
    refs = {"percpu": "refcnt.percpu_count_ptr", "data": "refcnt.data"}
    rows = read_structs(kernel, OBJCG, objcgs, refs)
    data = read_structs(kernel, REF_DATA, rows["data"], {"count": "count.counter"})
    sizes = np.full(len(objcgs), size_of(prog, OBJCG), np.int64)
    sizes += np.where(rows["data"], size_of(prog, REF_DATA), 0)
    # The per-CPU counters go soon after percpu_ref_kill (percpu_ref_call_confirm_rcu).
    counters = rows["percpu"] & ~REF_FLAGS != 0
    sizes += np.where(counters, 8 * read_machine(kernel).cpus, 0)
    # Negative: counted per CPU still.
    return np.maximum(data["count"].astype(np.int64), 0), sizes


def _charges(
    kernel: OpenedKernel,
    objcgs: U64,
    progress: Progress | None,
) -> tuple[Int64, Int64]:
    """Folios charged to each obj_cgroup, and their bytes."""
    layout = page_layout(kernel.prog)
    order = np.argsort(objcgs)
    known = objcgs[order]
    counts, pages = np.zeros(len(objcgs), np.int64), np.zeros(len(objcgs), np.int64)
    ranges = page_ranges(kernel)
    total, seen, end = sum(r.pages for r in ranges), 0, 0
    for pfn, data in folios.blocks(kernel.memory, ranges, layout.page.itemsize):
        seen += len(data) // layout.page.itemsize
        if progress:
            progress("looking for inherited folios", seen, total)
        charged = folios.charged_folios(data, layout, pfn, end)
        if charged is None:
            continue
        end = charged.end
        row = np.searchsorted(known, charged.pointer).clip(max=len(known) - 1)
        (hits,) = (known[row] == charged.pointer).nonzero()
        np.add.at(counts, order[row[hits]], 1)
        np.add.at(pages, order[row[hits]], charged.pages[hits])
    return counts, pages * kernel.memory.page_size
