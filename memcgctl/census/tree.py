"""Which memcgs are there, whose children are they, and what were they called?

Walks the tree of ``struct cgroup_subsys_state`` from ``root_mem_cgroup`` along
``css.children`` and ``css.sibling``: an offline css stays linked until its last
reference is gone (``css_release_work_fn``, kernel/cgroup/cgroup.c). Names come from
``struct kernfs_node``, references from ``struct percpu_ref_data``, both in bulk.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from operator import itemgetter
from typing import Literal, NamedTuple

import drgn
import numpy as np
from numpy.typing import NDArray

from memcgctl.census.names import names_of
from memcgctl.kernel.errors import KernelError
from memcgctl.kernel.layout import dtype_of, offset_of, size_of
from memcgctl.kernel.memory import Memory
from memcgctl.kernel.program import OpenedKernel
from memcgctl.kernel.trouble import Topic, reading
from memcgctl.linux.records import (
    BATCH,
    Records,
    decode,
    gather_records,
    present,
    read_variable,
)

# Bounds on what damaged memory can make of the tree.
MAX_MEMCGS = 1 << 20
# The largest slab that a struct mem_cgroup is in, and how many of a dump are kept.
BLOCK = 1 << 15
MAX_BLOCKS = 1 << 10
# On a live kernel a list of children that changes while it is read is read again.
LIVE_TRIES = 5

# include/linux/cgroup-defs.h, in an enum without a name; the same since v3.12.
CSS_ONLINE = 1 << 1
# include/linux/percpu-refcount.h: set once the count is in one place, which is what
# rmdir does first (percpu_ref_kill).
PERCPU_REF_ATOMIC = 1

OFF = "memory cgroups are off (cgroup_disable=memory)"


@dataclass(frozen=True)
class Tree:
    """All memcgs, parents before children; arrays have one element for each.

    ``parent`` and ``ancestor`` (the nearest online one above, that what a removed one
    was charged for goes to) are indices into the same arrays, -1 for the root's.
    ``refs`` is -1 where the kernel counts per CPU.
    ``memcg`` and ``cgroup`` have a field for each member that was asked for.
    """

    address: NDArray[np.uint64]
    parent: NDArray[np.int64]
    ancestor: NDArray[np.int64]
    children: NDArray[np.int64]
    online: NDArray[np.bool_]
    refs: NDArray[np.int64]
    id: NDArray[np.uint64]
    path: tuple[str, ...]
    memcg: Records
    cgroup: Records
    cgroup_version: Literal[1, 2]


@reading(Topic.MEMCGS)
def read_tree(
    kernel: OpenedKernel,
    memcg_members: Iterable[str] = (),
    cgroup_members: Iterable[str] = (),
) -> Tree:
    """Every memcg of the kernel, the root included.

    Further members (paths) of ``struct mem_cgroup`` and ``struct cgroup`` are read
    where they exist. Raises KernelError if there is no tree that can be read.
    """
    prog, memory = kernel.prog, kernel.memory
    own = ("css.cgroup", "css.flags", "id.id", "memory.usage.counter", "memory.parent")
    ref = ("css.refcnt.percpu_count_ptr", "css.refcnt.data")
    found = present(prog, "struct mem_cgroup", (*own, *ref, *memcg_members))
    dtype = dtype_of(prog, "struct mem_cgroup", found)
    address, parent, memcg = _walk(kernel, dtype)
    children = np.bincount(parent[1:], minlength=len(parent))
    members = ("kn", "root", "self.cgroup", "level", *cgroup_members)
    found = present(prog, "struct cgroup", members)
    dtype = dtype_of(prog, "struct cgroup", found)
    cgroup, _ = gather_records(memory, memcg["css.cgroup"].tolist(), dtype)
    ids, path = names_of(kernel, cgroup["kn"].tolist())
    # A cgroup is its own css's cgroup (init_cgroup_housekeeping); where it is not, it
    # was freed in the meantime or overwritten.
    good = (cgroup["self.cgroup"] == memcg["css.cgroup"]) & (ids != 0)
    if not good[0]:
        raise KernelError("the root memory cgroup cannot be read: memory is damaged")
    if lost := int(np.count_nonzero(~good)):
        kernel.trouble.note(
            Topic.MEMCGS, "a memcg went away or is damaged, and is left out", lost
        )
    online = (memcg["css.flags"] & CSS_ONLINE) != 0
    charged = _charged_above(kernel.prog, address, parent, memcg)
    parent, ancestor = _ancestors(parent, charged, good, online)
    refs = read_references(prog, memory, memcg)
    default_root = kernel.symbol("cgrp_dfl_root")
    return Tree(
        address=address[good],
        parent=parent,
        ancestor=ancestor,
        children=children[good],
        online=online[good],
        refs=refs[good],
        id=ids[good],
        path=tuple(p for p, kept in zip(path, good, strict=True) if kept),
        memcg=memcg[good],
        cgroup=cgroup[good],
        cgroup_version=2 if int(cgroup["root"][0]) == default_root else 1,
    )


class _Css(NamedTuple):
    """What links a css to its neighbours."""

    address: int
    parent: int
    subsystem: int
    first_child: int
    next_sibling: int


class _CssReader:
    """Reads a css and the bytes of its ``struct mem_cgroup``, by the css's address."""

    def __init__(self, prog: drgn.Program, memory: Memory) -> None:
        def at(path: str) -> int:
            return offset_of(prog, "struct mem_cgroup", path)

        self._memory = memory
        self._blocks: dict[int, bytes] | None = None if memory.live else {}
        self._size = size_of(prog, "struct mem_cgroup")
        self.css = at("css")
        # In the order of _Css.
        paths = ("parent", "ss", "children.next", "sibling.next")
        links = [at(f"css.{path}") for path in paths]
        self._first = min(links)
        words = (max(links) - self._first) // 8 + 1
        self._words = struct.Struct(f"<{words}Q").unpack_from
        self._links = itemgetter(*((link - self._first) // 8 for link in links))
        # Distances from a css to its list heads.
        self.children = at("css.children") - self.css
        self.sibling = at("css.sibling") - self.css

    def __call__(self, address: int) -> tuple[_Css, bytes] | None:
        data = self._read(address - self.css)
        if data is None:
            return None
        links = self._links(self._words(data, self._first))
        return _Css(address, *links), data

    def _read(self, start: int) -> bytes | None:
        """A structure; of a dump, which stays as it is, with its slab's others."""
        if self._blocks is None:
            return self._memory.try_read(start, self._size)
        at = start % BLOCK
        block = self._blocks.get(start - at)
        if block is None:
            if len(self._blocks) == MAX_BLOCKS:
                self._blocks.clear()
            try:
                block = self._memory.read(start - at, BLOCK)
            except drgn.FaultError:
                block = b""
            self._blocks[start - at] = block
        data = block[at : at + self._size]
        if len(data) == self._size:
            return data
        return self._memory.try_read(start, self._size)


def _walk(
    kernel: OpenedKernel, dtype: np.dtype[np.void]
) -> tuple[NDArray[np.uint64], NDArray[np.int64], Records]:
    """Addresses, parents' indices and structures of all memcgs, the root first."""
    read_css = _CssReader(kernel.prog, kernel.memory)
    root = read_css(_root_memcg(kernel) + read_css.css)
    if root is None:
        raise KernelError("root_mem_cgroup cannot be read: not in the dump?")
    tries = LIVE_TRIES if kernel.kind == "live" else 1
    found, parents = [root[0]], [-1]
    raw, records = [root[1]], []
    for index, parent in enumerate(found):  # which grows
        if parent.first_child == parent.address + read_css.children:
            continue
        room = MAX_MEMCGS - len(found)
        for child, memcg in _children(kernel, read_css, parent, room, tries):
            found.append(child)
            parents.append(index)
            raw.append(memcg)
            if len(raw) == BATCH:
                records.append(decode(raw, dtype))
                raw = []
    records.append(decode(raw, dtype))
    addresses = np.array([css.address - read_css.css for css in found], np.uint64)
    return addresses, np.array(parents, np.int64), np.concatenate(records)


def _root_memcg(kernel: OpenedKernel) -> int:
    try:
        root = read_variable(kernel, "root_mem_cgroup", 8)
    except LookupError:
        raise KernelError("this kernel has no memory cgroups (CONFIG_MEMCG)") from None
    except drgn.FaultError as error:
        raise KernelError(f"root_mem_cgroup cannot be read: {error}") from error
    if not root:
        raise KernelError(OFF)
    if not _enabled(kernel):
        raise KernelError(OFF)
    return root


def _enabled(kernel: OpenedKernel) -> bool:
    """Not ``mem_cgroup_disabled()``, which leaves the root memcg there alone."""
    try:
        at = kernel.symbol("memory_cgrp_subsys_enabled_key")
        at += offset_of(kernel.prog, "struct static_key", "enabled")
    except LookupError:  # no kallsyms of variables (CONFIG_KALLSYMS_ALL)
        return True
    data = kernel.memory.try_read(at, 4)
    return data is None or any(data)  # -1: it is being switched on


@reading(None)  # which is followed again, or noted
def _children(
    kernel: OpenedKernel, read_css: _CssReader, parent: _Css, room: int, tries: int
) -> Iterable[tuple[_Css, bytes]]:
    """The children of a css, offline ones included, in the order of their making."""
    best: dict[int, tuple[_Css, bytes]] = {}
    for _ in range(tries):
        found, sound = _follow(read_css, parent, room)
        if sound:
            return found.values()
        best = max(best, found, key=len)
        # Removed while it was read, if the kernel is live: start again.
        if again := read_css(parent.address):
            parent = again[0]
    kernel.trouble.note(
        Topic.MEMCGS,
        "a list of child memcgs is damaged or changes: some may be missing",
    )
    return best.values()


def _follow(
    read_css: _CssReader, parent: _Css, room: int
) -> tuple[dict[int, tuple[_Css, bytes]], bool]:
    """Up to ``room`` children by address, and whether that are all, none astray."""
    found: dict[int, tuple[_Css, bytes]] = {}
    link, end = parent.first_child, parent.address + read_css.children
    while link != end:
        read = read_css(link - read_css.sibling)
        if read is None:
            return found, False
        child, _ = read
        if (
            child.parent != parent.address
            or child.subsystem != parent.subsystem
            or child.address in found
            or len(found) == room
        ):
            return found, False
        found[child.address] = read
        link = child.next_sibling
    return found, True


def _charged_above(
    prog: drgn.Program,
    address: NDArray[np.uint64],
    parent: NDArray[np.int64],
    memcg: Records,
) -> NDArray[np.int64]:
    """The index of the memcg that each one's charges count for as well.

    Its parent (``parent_mem_cgroup``), but on cgroup v1 without use_hierarchy the root.
    Since Linux kernel commit bef8620cd8e0 ("mm: memcg: deprecate the non-hierarchical
    mode") (in v5.11) there is no such thing.
    """
    if "memory.parent" not in (memcg.dtype.names or ()):
        return parent
    above = memcg["memory.parent"] - np.uint64(
        offset_of(prog, "struct mem_cgroup", "memory")
    )
    order = np.argsort(address)
    row = order[np.searchsorted(address, above, sorter=order).clip(max=len(order) - 1)]
    known = (address[row] == above) & (row < np.arange(len(row)))
    charged: NDArray[np.int64] = np.where(known, row, parent)
    return charged


def _ancestors(
    parent: NDArray[np.int64],
    charged: NDArray[np.int64],
    good: NDArray[np.bool_],
    online: NDArray[np.bool_],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices, among the good ones, of each one's parent and online ancestor.

    Its ancestors are those that ``charged`` leads to.
    """
    new_index = (np.cumsum(good) - 1).tolist()
    above, nearest = [-1], [-1]
    for up, payer in zip(parent[1:].tolist(), charged[1:].tolist(), strict=True):
        above.append(new_index[up] if good[up] else above[up])
        counts = bool(good[payer] and online[payer])
        nearest.append(new_index[payer] if counts else nearest[payer])
    return np.array(above)[good], np.array(nearest)[good]


def read_references(
    prog: drgn.Program, memory: Memory, memcg: Records
) -> NDArray[np.int64]:
    """Css references, -1 where they are counted per CPU or cannot be read.

    Since Linux kernel commit 2b0d3d3e4fcf ("percpu_ref: reduce memory footprint of
    percpu_ref in fast path") (in v5.10) the count is in struct percpu_ref_data.
    """
    refs = np.full(len(memcg), -1, np.int64)
    pointer, data = memcg["css.refcnt.percpu_count_ptr"], memcg["css.refcnt.data"]
    atomic = np.flatnonzero(((pointer & PERCPU_REF_ATOMIC) != 0) & (data != 0))
    records, read = gather_records(
        memory,
        data[atomic].tolist(),
        dtype_of(prog, "struct percpu_ref_data", {"count": "count.counter"}),
    )
    # Negative: PERCPU_COUNT_BIAS is still in it while the CPUs' parts are summed up.
    counted = read & (records["count"] >= 0)
    refs[atomic[counted]] = records["count"][counted]
    return refs
