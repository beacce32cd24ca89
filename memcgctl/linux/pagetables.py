"""What do the page tables of processes map, and which swap entries do they hold?

Walks page tables from ``mm_struct.pgd``, level by level for all address spaces
together, and reads the page-table pages in bulk; entries come out as NumPy arrays. What
they look like on a machine is in ``mmu``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from memcgctl.kernel.trouble import Topic, reading
from memcgctl.linux.mmu import Format, format_of
from memcgctl.linux.structs import U64, addresses, read_rows, read_structs

if TYPE_CHECKING:
    from memcgctl.kernel.program import OpenedKernel

_NOWHERE = np.zeros(0, np.intp)
# No page is smaller than 4 KiB: the unit of addresses in ``_Wanted``.
_UNIT = 12

# Page-table pages read at once (8 MiB), and in all: beyond it tables are damaged.
_BATCH = 2048
_TABLES_LIMIT = 1 << 24


@dataclass(frozen=True)
class Ranges:
    """Ranges of user addresses to look at: parallel arrays; ``mm`` is a position."""

    mm: NDArray[np.int64]
    start: U64
    end: U64


@dataclass(frozen=True)
class Leaves:
    """Page-table entries that are not empty, ``pages`` base pages each.

    ``mm`` is the position of the address space among those asked for; ``entry`` is
    the raw entry. ``full`` has the indexes where those of a table begin that all map
    something, and whose addresses one of the areas asked for spans.
    """

    mm: NDArray[np.int64]
    entry: U64
    pages: int
    format: Format
    full: NDArray[np.intp] = field(default_factory=lambda: _NOWHERE)


@reading(Topic.PAGE_TABLES)
def walk(
    kernel: OpenedKernel,
    mms: U64,
    ranges: Ranges | None = None,
    areas: Ranges | None = None,
) -> Iterator[Leaves]:
    """All non-empty leaf entries of each ``struct mm_struct *``'s user half.

    With ``ranges`` only page-table pages that serve some part of them are read: leaves
    close to a range come out as well. ``areas`` are those to look for full tables in.
    A table that an address space uses twice is damage and read once.
    """
    wanted = None if ranges is None else _Wanted(ranges)
    spanned = None if areas is None else _Wanted(areas)
    mm: NDArray[np.int64] = np.arange(len(mms), dtype=np.int64)
    table: U64 = read_structs(kernel, "struct mm_struct", mms, {"pgd": "pgd"})["pgd"]
    mm, table = mm[table != 0], addresses(table[table != 0])
    base: U64 = np.zeros(len(table), np.uint64)
    format_ = format_of(kernel)
    budget = _TABLES_LIMIT
    top, lowest = format_.shifts[0], format_.page_shift
    for shift in format_.shifts:
        size = format_.top if shift == top else format_.entries
        below: list[tuple[NDArray[np.int64], U64, U64]] = []
        budget -= len(table)
        if budget < 0:
            kernel.trouble.note(
                Topic.PAGE_TABLES, "page tables are damaged: not all were walked"
            )
            return
        for part in range(0, len(table), _BATCH):
            some = slice(part, part + _BATCH)
            entries = read_rows(kernel, table[some], np.dtype(("<u8", (size,))))
            if shift == top:
                entries[:, format_.user :] = 0  # the kernel's half
            flat = entries.ravel()
            (index,) = flat.nonzero()
            entry = flat[index]
            row = index // size
            owner = mm[some][row]
            if shift == lowest:
                full = _full(mm[some], base[some], row, entry, spanned, format_)
                yield Leaves(owner, entry, 1, format_, full)
                continue
            slot = (index % size).astype(np.uint64)
            at = base[some][row] + (slot << np.uint64(shift))
            if wanted is not None:
                keep = wanted.touched(owner, at, 1 << shift)
                owner, entry, at = owner[keep], entry[keep], at[keep]
            huge = format_.is_huge(entry, shift)
            if huge.any():
                pages = 1 << (shift - lowest)
                yield Leaves(owner[huge], entry[huge], pages, format_)
            down = format_.is_table(entry, shift)
            address = format_.physical(entry[down]) + format_.to_virtual
            below.append((owner[down], address, at[down]))
        if not below:
            return
        mm, table, base = _once(below)
        if not len(table):
            return


def _once(
    found: list[tuple[NDArray[np.int64], U64, U64]],
) -> tuple[NDArray[np.int64], U64, U64]:
    """Each table of an address space once, in the order of memory."""
    mm, table, base = (np.concatenate(column) for column in zip(*found, strict=True))
    if not len(table):
        return mm, table, base
    order = np.lexsort((table, mm))
    mm, table, base = mm[order], table[order], base[order]
    once = np.append(True, (np.diff(table) != 0) | (np.diff(mm) != 0))
    return mm[once], table[once], base[once]


def _full(
    mm: NDArray[np.int64],
    base: U64,
    row: NDArray[np.intp],
    entry: U64,
    areas: _Wanted | None,
    format_: Format,
) -> NDArray[np.intp]:
    """Where the entries of full tables begin; ``row`` is the table of each entry."""
    if areas is None:
        return _NOWHERE
    size = format_.entries
    (tables,) = areas.span(mm, base, size << format_.page_shift).nonzero()
    start = np.searchsorted(row, tables)
    start = start[np.searchsorted(row, tables, side="right") - start == size]
    used = format_.maps(entry[start[:, None] + np.arange(size)])
    full: NDArray[np.intp] = start[used.all(axis=1)]
    return full


def frames(kernel: OpenedKernel, leaves: Leaves) -> tuple[NDArray[np.int64], U64]:
    """Of entries that map memory: position of the mm and (first) page frame number."""
    mm, entry = leaves.mm, leaves.entry
    # A huge entry that is being split is not present, but still maps.
    if leaves.pages == 1:
        here = maps(leaves)
        if not here.all():
            mm, entry = mm[here], entry[here]
    frame = leaves.format.physical(entry)
    frame >>= np.uint64(leaves.format.page_shift)
    if leaves.pages > 1:
        frame &= ~np.uint64(leaves.pages - 1)
    return mm, frame


def maps(leaves: Leaves) -> NDArray[np.bool_]:
    """Which entries ``frames`` tells of: all huge ones, PTEs that map memory."""
    return leaves.format.maps(leaves.entry) | (leaves.pages > 1)


def swap_entries(leaves: Leaves) -> tuple[NDArray[np.int64], NDArray[np.int64], U64]:
    """Of PTEs that are neither empty nor mapping: position of the mm, type, offset.

    The type of a swap device is its number; the types above the last device are
    migration entries, markers and the like.
    """
    if leaves.pages > 1:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), addresses([])
    swapped = ~leaves.format.maps(leaves.entry)
    type_, offset = leaves.format.swap(leaves.entry[swapped])
    return leaves.mm[swapped], type_, offset


class _Wanted:
    """Ranges of many address spaces in one sorted space: mm's position, then page."""

    # 57 - 12 bits of page number leave 19 for the position.
    _BITS = np.uint64(45)

    def __init__(self, ranges: Ranges) -> None:
        start = self._key(ranges.mm, ranges.start)
        end = self._key(ranges.mm, ranges.end + np.uint64((1 << _UNIT) - 1))
        order = np.argsort(start)
        self._start, self._own_end = start[order], end[order]
        # Where ranges overlap, an end never lies before an earlier one's.
        self._end = np.maximum.accumulate(end[order]) if len(end) else end

    def _key(self, mm: NDArray[np.int64], address: U64) -> U64:
        page = (address >> np.uint64(_UNIT)) & (
            (np.uint64(1) << self._BITS) - np.uint64(1)
        )
        key: U64 = (mm.astype(np.uint64) << self._BITS) | page
        return key

    def touched(self, mm: NDArray[np.int64], at: U64, size: int) -> NDArray[np.bool_]:
        """Which of the areas [at, at + size) have a part in any range."""
        start = self._key(mm, at)
        end = start + np.uint64(size >> _UNIT)
        first = np.searchsorted(self._end, start, side="right")
        known = first < len(self._end)
        first = np.where(known, first, 0)
        if not len(self._start):
            return np.zeros(len(mm), np.bool_)
        touched: NDArray[np.bool_] = known & (self._start[first] < end)
        return touched

    def span(self, mm: NDArray[np.int64], at: U64, size: int) -> NDArray[np.bool_]:
        """Which of the areas [at, at + size) lie in one range; ranges are disjoint."""
        if not len(self._start):
            return np.zeros(len(mm), np.bool_)
        start = self._key(mm, at)
        last = np.searchsorted(self._start, start, side="right") - 1
        end = start + np.uint64(size >> _UNIT)
        spans: NDArray[np.bool_] = (last >= 0) & (self._own_end[last] >= end)
        return spans
