"""Whose page tables can map a file's or an anonymous folio, and what do they map?

The kernel's reverse map tells where to look: ``address_space.i_mmap`` of each inode
and the tree of each anonymous root (``anon_vma.root``), once each, hold the
``vm_area_struct``s. What is mapped there is then counted from the page tables, since
a VMA alone proves nothing.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from memcgctl.kernel.layout import offset_of
from memcgctl.kernel.trouble import Topic, reading
from memcgctl.linux.pagetables import Ranges, frames, maps, walk
from memcgctl.linux.structs import U64, addresses, read_structs, unique

if TYPE_CHECKING:
    from memcgctl.kernel.program import OpenedKernel

# A red-black tree of n nodes is at most 2 log2(n + 1) high.
_HEIGHT_LIMIT = 96
# So many counters at once are quicker than sorting.
_DENSE = 1 << 22
# 52 bits of physical addresses, less the 12 within a page.
_PFN_BITS = 40
_NONE = np.zeros(0, np.intp)


@dataclass(frozen=True)
class Vmas:
    """Areas that may map something: parallel arrays; ``mm`` and ``file`` are pointers.

    ``owner`` is the position of the address space (of the anonymous root) asked for;
    ``pgoff`` is ``vm_pgoff``, in pages.
    """

    owner: NDArray[np.int64]
    mm: U64
    start: U64
    end: U64
    pgoff: U64
    file: U64


@dataclass(frozen=True)
class Frames:
    """Page frames of interest: ranges [pfn, pfn + pages), sorted, each of one group."""

    pfn: U64
    pages: U64
    group: NDArray[np.int64]


@reading(Topic.AREAS)
def file_vmas(kernel: OpenedKernel, mappings: U64) -> Vmas:
    """The areas that map each ``struct address_space *``."""
    roots = read_structs(
        kernel, "struct address_space", mappings, {"root": "i_mmap.rb_root.rb_node"}
    )["root"]
    owner, nodes = _tree(kernel, addresses(roots))
    node = offset_of(kernel.prog, "struct vm_area_struct", "shared.rb")
    return _vmas(kernel, owner, nodes - np.uint64(node))


@reading(Topic.AREAS)
def anon_vmas(kernel: OpenedKernel, anon_vmas: U64) -> Vmas:
    """The areas that may map a page of each ``struct anon_vma *``, by its root.

    The root's tree has the areas of all processes forked from the one that made it
    (``anon_vma_clone`` links an area to all of its parent's), so it is enough to look
    at each root once. ``owner`` is the position of the root, in address order.
    """
    roots = unique(
        read_structs(kernel, "struct anon_vma", anon_vmas, {"root": "root"})["root"]
    )
    trees = read_structs(
        kernel, "struct anon_vma", roots, {"root": "rb_root.rb_root.rb_node"}
    )["root"]
    owner, nodes = _tree(kernel, addresses(trees))
    node = offset_of(kernel.prog, "struct anon_vma_chain", "rb")
    chains = read_structs(
        kernel, "struct anon_vma_chain", nodes - np.uint64(node), {"vma": "vma"}
    )
    return _vmas(kernel, owner, addresses(chains["vma"]))


class Seen:
    """How often each page of some frames was met in page tables."""

    def __init__(self, frames: Frames) -> None:
        self._frames = frames
        self._start = np.concatenate(
            (np.zeros(1, np.int64), np.cumsum(frames.pages.astype(np.int64)))
        )
        # Where runs of pages that were met begin (+1) and end (-1).
        self._edges = np.zeros(int(self._start[-1]) + 1, np.int32)

    def add(self, pfn: U64, pages: NDArray[np.int64]) -> None:
        """Runs of frames, all of them wanted ones, were met once more."""
        row = np.searchsorted(self._frames.pfn, pfn, side="right") - 1
        at = self._start[row] + (pfn - self._frames.pfn[row]).astype(np.int64)
        np.add.at(self._edges, at, 1)
        np.add.at(self._edges, at + pages, -1)

    def rows(
        self, least: NDArray[np.int64], large: NDArray[np.bool_]
    ) -> NDArray[np.intp]:
        """The rows with a page that was met less often than ``least``.

        Of ``large`` ones, which need not be mapped as a whole: that was never met.
        """
        if not len(least):
            return _NONE
        times = np.cumsum(self._edges[:-1], dtype=np.int32)
        some = np.maximum.reduceat(times, self._start[:-1]) > 0
        every = np.minimum.reduceat(times, self._start[:-1]) >= least
        return (~np.where(large, some, every)).nonzero()[0]

    def pages(
        self, rows: NDArray[np.intp]
    ) -> tuple[NDArray[np.intp], NDArray[np.int64], U64]:
        """Of each page of some rows: the row, how often it was met, its frame."""
        count = np.diff(self._start)[rows]
        row = np.repeat(rows, count)
        step = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
        times = np.cumsum(self._edges[:-1], dtype=np.int64)[self._start[row] + step]
        return row, times, self._frames.pfn[row] + step.astype(np.uint64)


class Mapped(NamedTuple):
    """How much of a group the page tables of an ``mm`` (its position) map.

    ``full_pages`` of these fill page tables without anything else.
    """

    mm: int
    group: int
    pages: int
    full_pages: int


def mapped_pages(
    kernel: OpenedKernel,
    mms: U64,
    wanted: Frames,
    ranges: Ranges | None = None,
    areas: Ranges | None = None,
    seen: Seen | None = None,
) -> tuple[list[Mapped], dict[int, int], dict[int, int]]:
    """How much of each group the page tables map, of each mm and of all together.

    The third is what an mm maps once more than it did already, of each group.

    A page counts once, however often an address space maps it: where two segments of a
    program share a page, both map it. ``ranges`` limits the walk to where these frames
    can be, ``areas`` are those that full tables count in.
    """
    groups = int(wanted.group.max(initial=0)) + 1
    runs = _runs(wanted)
    parts: list[tuple[NDArray[np.int64], ...]] = [(np.zeros(0, np.int64),) * 4]
    filled: Counter[int] = Counter()
    table = kernel.memory.page_size // 8  # entries of one of the lowest level
    for leaves in walk(kernel, mms, ranges, areas):
        mm, pfn = frames(kernel, leaves)
        full = leaves.full
        if len(full):  # where they begin among the entries that map something
            full = np.searchsorted(maps(leaves).nonzero()[0], full)
        first = _neighbours(mm, pfn, leaves.pages, full, table)
        size = np.diff(first, append=len(pfn)) * leaves.pages
        index, hit, start, count = _overlaps(runs, pfn[first], size.astype(np.uint64))
        if seen:
            seen.add(start.astype(np.uint64), count)
        owner, group = mm[first[hit]], runs.group[index]
        cell = owner * groups + group
        filled.update(_filled(full, first[hit], cell, count, table))
        parts.append((owner, group, start, count))
    owner, group, start, count = (np.concatenate(c) for c in zip(*parts, strict=True))
    own = _first_time(owner << _PFN_BITS | start, count)
    cells = _sums(owner * groups + group, own, len(mms) * groups)
    found = [
        Mapped(cell // groups, cell % groups, pages, table * filled[cell])
        for cell, pages in cells.items()
    ]
    together = _sums(group, _first_time(start, count), groups)
    return found, together, _sums(group, count - own, groups)


def _first_time(
    start: NDArray[np.int64], count: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Of each range [start, start + count), what no range before it has."""
    order = np.argsort(start, kind="stable")
    end = start[order] + count[order]
    before = np.maximum.accumulate(end)
    before[1:], before[:1] = before[:-1].copy(), 0
    new = np.zeros_like(count)
    new[order] = np.maximum(end - np.maximum(start[order], before), 0)
    return new


def _sums(
    key: NDArray[np.int64], pages: NDArray[np.int64], keys: int
) -> dict[int, int]:
    """The sum of the pages of each key that has any; ``keys`` is beyond the last."""
    if keys <= _DENSE:
        total = np.bincount(key, pages, keys)
        (key,) = total.nonzero()
        total = total[key]
    else:
        key, where = np.unique(key, return_inverse=True)
        total = np.bincount(where, pages, len(key))
    return dict(zip(key.tolist(), total.astype(np.int64).tolist(), strict=True))


def _neighbours(
    mm: NDArray[np.int64], pfn: U64, pages: int, full: NDArray[np.intp], table: int
) -> NDArray[np.intp]:
    """Where entries begin that map what follows on the one before; tables end them."""
    first = np.ones(len(pfn), np.bool_)
    first[1:] = (pfn[1:] - pfn[:-1] != pages) | (mm[1:] != mm[:-1])
    edges = np.concatenate((full, full + table))
    first[edges[edges < len(first)]] = True
    return first.nonzero()[0]


def _filled(
    full: NDArray[np.intp],
    at: NDArray[np.intp],
    cell: NDArray[np.int64],
    pages: NDArray[np.int64],
    size: int,
) -> list[int]:
    """The cell of each full table whose entries are all of one."""
    if not len(full) or not len(at):
        return []
    table = np.searchsorted(full, at, side="right") - 1
    inside = (table >= 0) & (at < full[table] + size)
    cells = int(cell.max()) + 1
    key, which = np.unique((table * cells + cell)[inside], return_inverse=True)
    whole = np.bincount(which, pages[inside], len(key)) == size
    found: list[int] = (key[whole] % cells).tolist()
    return found


def _runs(wanted: Frames) -> Frames:
    """Neighbours of one group as one range: there are far fewer of these."""
    if not len(wanted.pfn):
        return wanted
    ends = wanted.pfn + wanted.pages
    first = np.ones(len(ends), np.bool_)
    first[1:] = wanted.pfn[1:] != ends[:-1]
    first[1:] |= wanted.group[1:] != wanted.group[:-1]
    (start,) = first.nonzero()
    end = ends[np.append(start[1:], len(ends)) - 1]
    pfn = wanted.pfn[start]
    return Frames(pfn, end - pfn, wanted.group[start])


def _overlaps(
    wanted: Frames, pfn: U64, pages: U64
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.int64], NDArray[np.int64]]:
    """Where ranges meet frames of interest: (index, which range, first page, pages)."""
    ends = wanted.pfn + wanted.pages
    first = np.searchsorted(ends, pfn, side="right")
    last = np.searchsorted(wanted.pfn, pfn + pages, side="left")
    many = np.maximum(last - first, 0)
    hit = np.repeat(np.arange(len(pfn)), many)
    index = np.repeat(first - np.cumsum(many) + many, many) + np.arange(many.sum())
    start = np.maximum(wanted.pfn[index], pfn[hit])
    end = np.minimum(ends[index], (pfn + pages)[hit])
    return index, hit, start.astype(np.int64), (end - start).astype(np.int64)


def _tree(kernel: OpenedKernel, roots: U64) -> tuple[NDArray[np.int64], U64]:
    """All nodes of red-black trees, level by level: (position of root, rb_node)."""
    owner, node = np.arange(len(roots), dtype=np.int64)[roots != 0], roots[roots != 0]
    owners, nodes = [owner], [node]
    seen = np.unique(node)
    for _ in range(_HEIGHT_LIMIT):
        if not len(node):
            return np.concatenate(owners), np.concatenate(nodes)
        rows = read_structs(
            kernel, "struct rb_node", node, {"left": "rb_left", "right": "rb_right"}
        )
        owner = np.concatenate((owner, owner))
        node = np.concatenate((rows["left"], rows["right"]))
        node, first = np.unique(node, return_index=True)
        owner = owner[first]
        # Damage may make a cycle: no node is met twice.
        new = (node != 0) & ~np.isin(node, seen)
        owner, node = owner[new], node[new]
        seen = np.union1d(seen, node)
        owners.append(owner)
        nodes.append(node)
    kernel.trouble.note(
        Topic.AREAS, "a tree of memory areas is damaged: not all were visited"
    )
    return np.concatenate(owners), np.concatenate(nodes)


def _vmas(kernel: OpenedKernel, owner: NDArray[np.int64], areas: U64) -> Vmas:
    rows = read_structs(
        kernel,
        "struct vm_area_struct",
        areas,
        {
            "start": "vm_start",
            "end": "vm_end",
            "mm": "vm_mm",
            "pgoff": "vm_pgoff",
            "file": "vm_file",
        },
    )
    sane = (rows["mm"] != 0) & (rows["start"] < rows["end"])
    rows = rows[sane]
    return Vmas(
        owner[sane], rows["mm"], rows["start"], rows["end"], rows["pgoff"], rows["file"]
    )
