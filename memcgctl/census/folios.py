"""What memory is charged to each memcg? Looks at every page frame of the kernel.

Reads the memory map, one ``struct page`` for each frame, in large blocks and in one
pass, and decodes ``memcg_data`` (before 5.11 ``mem_cgroup``), ``flags``, ``mapping``
and the order of large folios with NumPy. Being on an LRU list or not plays no part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from drgn.helpers.linux.mm import pfn_to_virt
from numpy.typing import NDArray

from memcgctl.census.pages import PAGE_TYPE_BASE, PageLayout, page_layout
from memcgctl.kernel.errors import KernelError
from memcgctl.kernel.layout import dtype_of, has_member, offset_of, size_of
from memcgctl.kernel.memory import Memory
from memcgctl.kernel.program import OpenedKernel
from memcgctl.kernel.trouble import Topic, reading
from memcgctl.linux.memmap import PageRange, page_ranges
from memcgctl.linux.records import gather_records
from memcgctl.linux.structs import read_structs

FILE, SHMEM, ANON, KERNEL, HUGETLB = range(5)
KINDS = 5
# The kind by three bits: swap-backed, anonymous, kernel.
_KIND = np.array([FILE, SHMEM, ANON, ANON, KERNEL, KERNEL, KERNEL, KERNEL])

# Low bits of memcg_data (enum page_memcg_data_flags, since 5.11). On 5.10 bit 0 marks
# a vector of obj_cgroups (memcg_set_page_obj_cgroups()) just the same. Pointers to
# memcgs and obj_cgroups are aligned to more than OBJEXTS_FLAGS_MASK (6.10).
MEMCG_DATA_OBJEXTS = 1
MEMCG_DATA_KMEM = 2
MEMCG_DATA_FLAGS_MASK = 7
# include/linux/page-flags.h: folio->mapping of an anonymous folio, and (until 5.10)
# page_type of a kernel page that is charged.
PAGE_MAPPING_ANON = 1
PG_KMEMCG = 0x200
KERNEL_HALF = np.uint64(1 << 63)
# Bit 0 of compound_head (7.1: compound_info) marks a tail page.
TAIL = 1

# 16 GiB of 64 KiB pages (arm64), 1 GiB of 4 KiB pages (x86-64): the largest hugetlb.
MAX_FOLIO_ORDER = 18
# Half a MiB of struct pages of 64 bytes: fits into a CPU's cache.
BLOCK_PAGES = 1 << 13
# A memory map full of garbage is not resolved to the last pointer.
MAX_POINTERS = 1 << 20
# The cache of a pointer's memcg has 2^n slots.
MIN_CACHE_BITS, MAX_CACHE_BITS = 10, 16
CACHE_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # the golden ratio's, as in hash_64()


class Charged(NamedTuple):
    """The charged folios in a run of page frames.

    ``at`` is the index of the head page in the run, ``pointer`` is to a memcg or an
    obj_cgroup, ``kind`` one of FILE to HUGETLB, ``pages`` the size.
    ``end`` is the first frame after the last large folio, ``damaged`` how many have an
    order that cannot be.
    """

    at: NDArray[np.int64]
    pointer: NDArray[np.uint64]
    kind: NDArray[np.int64]
    pages: NDArray[np.int64]
    end: int
    damaged: int


def charged_folios(
    data: bytes, layout: PageLayout, first_pfn: int, end: int = 0
) -> Charged | None:
    """Decode the struct pages of frames from ``first_pfn`` on; None: none is charged.

    ``data`` holds an even number of them and ``first_pfn`` is even, so that the first
    tail page of a large folio is never cut off. Frames below ``end`` belong to a large
    folio that was seen before.
    """
    pages = np.frombuffer(data, layout.page)
    if not np.count_nonzero(pages["charge"]):
        return None
    at = np.flatnonzero(pages["charge"])
    # Neither slab pages nor tail pages: in the first of these, memcg_data can be the
    # number of pages (_nr_pages, since 6.16).
    words = pages["charge"][at] | (pages["compound"][at] & TAIL)
    at = at.compress((words & MEMCG_DATA_OBJEXTS) == 0)
    size: NDArray[np.int64] = np.ones(len(at), np.int64)
    damaged = 0
    large = np.flatnonzero(pages["flags"][at] & np.uint64(1 << layout.head))
    if len(large):
        order, valid = _orders(data, pages, layout, at[large], first_pfn)
        size[large[valid]] = np.int64(1) << order[valid]
        # With hugetlb's optimised vmemmap (5.18 to 7.0) tail pages can be mapped to the
        # head's page of struct pages, and look like heads themselves.
        ends = np.maximum.accumulate(np.concatenate(([end], first_pfn + at + size)))
        outside = first_pfn + at >= ends[:-1]
        end = int(ends[-1])
        damaged = int(np.count_nonzero(outside[large[~valid]]))
        at, size = at[outside], size[outside]
    words = pages["charge"][at]
    bits = (pages["flags"][at] >> np.uint64(layout.swapbacked)) & 1
    bits |= (pages["mapping"][at] & PAGE_MAPPING_ANON) << 1
    bits |= _is_kernel(pages, at, words).astype(np.uint64) << 2
    pointer = words & ~np.uint64(MEMCG_DATA_FLAGS_MASK)
    kind = _KIND[bits.view(np.int64)]
    if layout.hugetlb and len(large):
        offset, mask, value = layout.hugetlb
        (large,) = ((size > 1) & (kind != KERNEL)).nonzero()
        slot = (at[large] * layout.page.itemsize + offset) // 4
        is_hugetlb = np.frombuffer(data, "<u4")[slot] & np.uint32(mask) == value
        kind[large[is_hugetlb]] = HUGETLB
    return Charged(at, pointer, kind, size, end, damaged)


def _orders(
    data: bytes,
    pages: NDArray[np.void],
    layout: PageLayout,
    heads: NDArray[np.int64],
    first_pfn: int,
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Orders of head pages, and which of them can be true."""
    # An odd frame is no large folio's: any even one will do, so as not to look beyond
    # the last.
    even = heads & ~1
    bytes_ = np.frombuffer(data, np.uint8)
    order = bytes_[even * layout.page.itemsize + layout.order].astype(np.int64)
    known = (order > 0) & (order <= MAX_FOLIO_ORDER)
    # A folio is aligned to its size, and its second page is a tail page.
    unaligned = (heads + first_pfn) & ((np.int64(1) << np.where(known, order, 0)) - 1)
    tail = pages["compound"][even + 1] & TAIL
    return order, known & (unaligned == 0) & (tail != 0)


def _is_kernel(
    pages: NDArray[np.void], at: NDArray[np.int64], charge: NDArray[np.uint64]
) -> NDArray[np.bool_]:
    """Which charged pages are kernel memory: page tables, stacks and the like.

    Of an allocation of several pages that is not compound only the first one names the
    memcg: see ``Roots``.
    """
    if "page_type" in (pages.dtype.names or ()):
        # Until Linux kernel commit 18b2db3b0385 ("mm: Convert page kmemcg type to a
        # page memcg flag") (in v5.11).
        types = pages["page_type"][at] & (PAGE_TYPE_BASE | PG_KMEMCG)
        kernel: NDArray[np.bool_] = types == PAGE_TYPE_BASE
    else:
        kernel = (charge & MEMCG_DATA_KMEM) != 0
    return kernel


class Roots:
    """Finds page-table roots of two pages: only their first page names the memcg.

    With page table isolation x86-64 allocates them as a pair that is not compound,
    until Linux kernel commits a9b3c355c2e6 ("asm-generic: pgalloc: provide generic
    __pgd_{alloc,free}") and d95936a2267c ("mm: introduce ctor/dtor at PGD level") (in
    v6.14): since then they are marked as page tables. They are known by the
    ``mm_struct`` that they name and whose ``pgd`` they are.
    """

    def __init__(self, kernel: OpenedKernel) -> None:
        self._kernel = kernel
        try:
            kernel.symbol("__pti_set_user_pgtbl")  # CONFIG_PAGE_TABLE_ISOLATION
        except LookupError:
            self._dtype = None
            return
        prog = kernel.prog
        # Since "pgtable: create struct ptdesc" (in v6.6) that overlays struct page.
        type_name = "struct ptdesc"
        if not has_member(prog, type_name, "pt_mm"):
            type_name = "struct page"
        self._dtype = np.dtype(
            {
                "names": ["type", "mm"],
                "formats": ["<u4", "<u8"],
                "offsets": [
                    offset_of(prog, "struct page", "page_type"),
                    offset_of(prog, type_name, "pt_mm"),
                ],
                "itemsize": size_of(prog, "struct page"),
            }
        )
        # Until Linux kernel commit 18b2db3b0385 ("mm: Convert page kmemcg type to a
        # page memcg flag") (in v5.11) a charged kernel page has a type of its own.
        kmemcg = has_member(prog, "struct page", "mem_cgroup")
        self._no_type = 0xFFFFFFFF & ~(PG_KMEMCG if kmemcg else 0)
        self._direct_map = pfn_to_virt(prog, 0).value_()

    def find(self, data: bytes, first_pfn: int, charged: Charged) -> NDArray[np.bool_]:
        """Which of the ``charged`` in this run of page frames are such roots."""
        roots: NDArray[np.bool_] = np.zeros(len(charged.at), np.bool_)
        (rows,) = ((charged.kind == KERNEL) & (charged.pages == 1)).nonzero()
        if self._dtype is None or not len(rows):
            return roots
        pages = np.frombuffer(data, self._dtype)[charged.at[rows]]
        likely = (pages["type"] == self._no_type) & (pages["mm"] >= KERNEL_HALF)
        rows, owners = rows[likely], pages["mm"][likely]
        mms, which = np.unique(owners, return_inverse=True)
        with self._kernel.trouble.aside():  # of any other page that is no mm_struct
            pgd = read_structs(self._kernel, "struct mm_struct", mms, {"pgd": "pgd"})
        at = (charged.at[rows] + first_pfn).astype(np.uint64)
        at = at * np.uint64(self._kernel.memory.page_size) + np.uint64(self._direct_map)
        roots[rows[pgd["pgd"][which] == at]] = True
        return roots


@dataclass(frozen=True)
class FolioCounts:
    """Folios and pages by memcg (row, in the order of the tree) and kind (column)."""

    folios: NDArray[np.int64]
    pages: NDArray[np.int64]


@reading(Topic.MEMORY_MAP)
def count_folios(
    kernel: OpenedKernel,
    memcgs: NDArray[np.uint64],
    progress: Callable[[str, int, int], None] | None = None,
) -> FolioCounts:
    """Count the charged folios of every memcg, given by address, in one pass.

    Raises KernelError if there is no memory map, as in a dump that excludes it.
    """
    layout = page_layout(kernel.prog)
    owners, roots = Owners(kernel, memcgs), Roots(kernel)
    # The last row is for folios of which no memcg is known.
    folios = np.zeros((len(memcgs) + 1) * KINDS, np.int64)
    pages = np.zeros_like(folios)
    ranges = page_ranges(kernel)
    total = sum(r.pages for r in ranges)
    seen = end = 0
    blank = True
    for pfn, data in blocks(kernel.memory, ranges, layout.page.itemsize):
        seen += len(data) // layout.page.itemsize
        blank = blank and not np.frombuffer(data, np.uint64).any()
        if progress:
            progress("scanning the memory map", seen, total)
        charged = charged_folios(data, layout, pfn, end)
        if charged is None:
            continue
        end = charged.end
        cell = owners.rows(charged.pointer) * KINDS + charged.kind
        np.add.at(folios, cell, 1)
        np.add.at(pages, cell, charged.pages + roots.find(data, pfn, charged))
        if charged.damaged:
            kernel.trouble.note(
                Topic.MEMORY_MAP,
                "a large folio has an impossible size",
                charged.damaged,
            )
    if blank:
        raise KernelError(
            "the memory map (struct page) is not in the dump: charges cannot be counted"
        )
    if seen < total:
        kernel.trouble.note(
            Topic.MEMORY_MAP, f"{total - seen} of {total} struct pages cannot be read"
        )
    result = FolioCounts(folios.reshape(-1, KINDS), pages.reshape(-1, KINDS))
    if lost := int(result.folios[-1].sum()):
        kernel.trouble.note(
            Topic.MEMCGS, "a folio is charged to a memcg that is not in the tree", lost
        )
    return result


@reading(None)  # whoever needs to know counts what comes
def blocks(
    memory: Memory, ranges: list[PageRange], page_size: int
) -> Iterator[tuple[int, bytes]]:
    """First frame and struct pages of blocks; what cannot be read is left out.

    Blocks have an even number of pages, as ``charged_folios`` wants them.
    """
    for first, pages, start in ranges:
        for address, data in memory.chunks(
            start, pages * page_size, BLOCK_PAGES * page_size, unit=2 * page_size
        ):
            if data is not None:
                yield first + (address - start) // page_size, data


class Owners:
    """Finds the memcg, as a row of the tree, that a charge belongs to.

    A pointer that is no memcg's is an obj_cgroup's: of kernel pages since Linux kernel
    commit b4e0b68fbd9d ("mm: memcontrol: use obj_cgroup APIs to charge kmem pages") (in
    v5.13), of all folios since 7.1, where ``mem_cgroup_per_node`` has the obj_cgroups.
    Its ``memcg`` is the nearest online ancestor once its own memcg is offline.
    """

    def __init__(self, kernel: OpenedKernel, memcgs: NDArray[np.uint64]) -> None:
        self._memory = kernel.memory
        self._dtype = dtype_of(kernel.prog, "struct obj_cgroup", {"memcg": "memcg"})
        self._rows = {memcg: row for row, memcg in enumerate(memcgs.tolist())}
        self._unknown = len(memcgs)
        # A cache in front of the dict; each pointer has its slot by a hash of it.
        # Eight slots for each memcg: few share one.
        bits = (8 * len(memcgs)).bit_length()
        bits = min(max(bits, MIN_CACHE_BITS), MAX_CACHE_BITS)
        self._shift = np.uint64(64 - bits)
        self._cached_pointer = np.zeros(1 << bits, np.uint64)
        self._cached_row = np.full(1 << bits, self._unknown)

    def rows(self, pointers: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Rows for pointers; the one after the last for an unknown memcg."""
        slot = ((pointers * CACHE_FACTOR) >> self._shift).view(np.int64)
        rows: NDArray[np.int64] = self._cached_row[slot]
        (missing,) = (self._cached_pointer[slot] != pointers).nonzero()
        if len(missing):
            unique, inverse = np.unique(pointers[missing], return_inverse=True)
            found = np.array(self._look_up(unique.tolist()))
            rows[missing] = found[inverse]
            self._cached_pointer[slot[missing]] = pointers[missing]
            self._cached_row[slot[missing]] = rows[missing]
        return rows

    def _look_up(self, pointers: list[int]) -> list[int]:
        """Rows for pointers, which are read as obj_cgroups if they are not known."""
        new = [pointer for pointer in pointers if pointer not in self._rows]
        if len(self._rows) + len(new) <= MAX_POINTERS:
            with self._memory.trouble.reading(None):  # it may be no obj_cgroup's
                objcgs, _ = gather_records(self._memory, new, self._dtype)
            for pointer, memcg in zip(new, objcgs["memcg"].tolist(), strict=True):
                self._rows[pointer] = self._rows.get(memcg, self._unknown)
        return [self._rows.get(pointer, self._unknown) for pointer in pointers]
