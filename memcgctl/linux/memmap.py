"""Which page frames does this kernel have, and where are their struct pages?

Reads the sparse memory model's ``mem_section`` (include/linux/mmzone.h, mm/sparse.c):
roots of ``struct mem_section``, whose ``section_mem_map`` encodes flags and the
address that the ``struct page`` of frame 0 would have.
"""

from __future__ import annotations

from typing import NamedTuple

import drgn
import numpy as np
from numpy.typing import NDArray

from memcgctl.kernel.errors import KernelError
from memcgctl.kernel.layout import (
    dtype_of,
    has_member,
    offset_of,
    size_of,
    value_of,
)
from memcgctl.kernel.program import OpenedKernel
from memcgctl.kernel.trouble import Topic, reading
from memcgctl.linux.records import Records, gather_records, read_variable
from memcgctl.linux.structs import addresses, read_pointers, xarray_entries

# Flags in section_mem_map, the same since Linux kernel commit 326e1b8f83a4
# ("mm/sparsemem: introduce a SECTION_IS_EARLY flag") (in v5.3). Struct pages of
# ZONE_DEVICE memory have SECTION_HAS_MEM_MAP and not SECTION_IS_ONLINE; they can be
# charged as well (device-private memory). All others without the latter are of memory
# that was plugged in and is offline: nobody has initialised them.
SECTION_HAS_MEM_MAP = 1 << 1
SECTION_IS_ONLINE = 1 << 2
SECTION_IS_EARLY = 1 << 3
# The encoded address is aligned to more than this: a section's memory map is whole
# pages, and so is its distance from that of frame 0.
SECTION_FLAGS = 0xFFF

SUBSECTION_SHIFT = 21  # include/linux/mmzone.h
# 2^25 sections of 128 MiB are the 52 bits of physical addresses that x86-64 can have.
MAX_SECTIONS = 1 << 25
# Sections with a memory map: 64 TiB of memory.
MAX_PRESENT = 1 << 19
# The struct pages are 1/64 of the memory that they describe, but a dump can leave out
# the pages, and hugetlb pages share theirs (HVO). More than so many times what the dump
# takes on the disk is damage; with less, there is little to be read anyway.
MOST_OF_DUMP = 64
ALWAYS_BYTES = 256 << 20


class PageRange(NamedTuple):
    """Contiguous page frames whose struct pages are contiguous, too."""

    pfn: int
    pages: int
    address: int


@reading(Topic.MEMORY_MAP)
def page_ranges(kernel: OpenedKernel) -> list[PageRange]:
    """All page frames whose struct page says something, in ascending order.

    These are the online ones (``pfn_to_online_page()``) and those of devices. Raises
    KernelError if the kernel's list of them cannot be read.
    """
    prog = kernel.prog
    try:
        sections = _sections(kernel)
    except (LookupError, drgn.FaultError) as error:
        raise KernelError(f"the memory map cannot be found: {error}") from error
    page_shift = value_of(prog["PAGE_SHIFT"])
    section_bits = value_of(prog["SECTION_SIZE_BITS"])
    size = size_of(prog, "struct page")
    _check_size(kernel, (len(sections) << section_bits - page_shift) * size)
    subsections = 1 << (section_bits - SUBSECTION_SHIFT)
    valid = np.ones((len(sections), subsections), np.bool_)
    # Sections found at boot are valid as a whole; those plugged in later, by 2 MiB.
    # Without CONFIG_SPARSEMEM_VMEMMAP there is no subsection_map (f1eca35a0dc7,
    # "mm/sparsemem: introduce struct mem_section_usage", in v5.3).
    late = np.flatnonzero((sections["map"] & SECTION_IS_EARLY) == 0)
    if len(late) and has_member(prog, "struct mem_section_usage", "subsection_map"):
        usage, _ = gather_records(
            kernel.memory,
            sections["usage"][late].tolist(),
            dtype_of(
                prog, "struct mem_section_usage", {"subsection_map": "subsection_map"}
            ),
        )
        words = usage["subsection_map"].reshape(len(late), -1).view(np.uint8)
        bits = np.unpackbits(words, axis=1, bitorder="little")
        valid[late] = bits[:, :subsections]
    offline = np.flatnonzero((sections["map"] & SECTION_IS_ONLINE) == 0)
    if len(offline):
        numbers = sections["number"][offline, None] * subsections
        valid[offline] &= _of_devices(
            kernel, numbers + np.arange(subsections), 1 << SUBSECTION_SHIFT - page_shift
        )
    section, subsection = np.nonzero(valid)
    number = sections["number"][section] * subsections + subsection
    base = sections["map"][section] & ~np.uint64(SECTION_FLAGS)
    breaks = 1 + np.flatnonzero((np.diff(number) != 1) | (base[1:] != base[:-1]))
    pages = 1 << (SUBSECTION_SHIFT - page_shift)
    ranges = []
    for run in np.split(np.arange(len(number)), breaks):
        if len(run):
            pfn = int(number[run[0]]) * pages
            address = (int(base[run[0]]) + pfn * size) % 2**64
            ranges.append(PageRange(pfn, len(run) * pages, address))
    return ranges


def _of_devices(
    kernel: OpenedKernel, subsections: NDArray[np.int64], pages: int
) -> NDArray[np.bool_]:
    """Which subsections, by number and each of so many pages, are ZONE_DEVICE's."""
    try:
        devices = kernel.symbol("pgmap_array")  # by page frame (mm/memremap.c)
    except LookupError:  # CONFIG_ZONE_DEVICE is off
        return np.zeros(subsections.shape, np.bool_)
    root = devices + offset_of(kernel.prog, "struct xarray", "xa_head")
    found = xarray_entries(
        kernel, read_pointers(kernel, addresses([root])), Topic.MEMORY_MAP
    )
    first = found.index // np.uint64(pages)
    last = (found.index + found.count - np.uint64(1)) // np.uint64(pages)
    order = np.argsort(first)
    index = np.searchsorted(first[order], subsections, "right") - 1
    known = np.append(last[order], np.uint64(0))  # the last for those before the first
    of_device: NDArray[np.bool_] = (index >= 0) & (subsections <= known[index])
    return of_device


def _check_size(kernel: OpenedKernel, size_bytes: int) -> None:
    """Raises KernelError if a dump cannot hold a memory map of that size."""
    held = kernel.memory.dump_bytes
    if held is not None and size_bytes > max(held * MOST_OF_DUMP, ALWAYS_BYTES):
        raise KernelError(
            f"the memory map has {size_bytes >> 20:,} MiB, far more than this dump "
            "can hold: memory is damaged"
        )


_SECTION = np.dtype([("number", "<i8"), ("map", "<u8"), ("usage", "<u8")])


def _sections(kernel: OpenedKernel) -> Records:
    """Number, ``section_mem_map`` and ``usage`` of sections that have a memory map."""
    prog, memory = kernel.prog, kernel.memory
    members = {"map": "section_mem_map", "usage": "usage"}
    dtype = dtype_of(prog, "struct mem_section", members)
    # CONFIG_SPARSEMEM_EXTREME, which x86-64 always has: roots of a page each.
    per_root = memory.page_size // dtype.itemsize
    last = read_variable(kernel, "__highest_present_section_nr", 8)
    if last >= MAX_SECTIONS:
        raise KernelError(f"the memory map has {last} sections: memory is damaged")
    table = read_variable(kernel, "mem_section", 8)
    roots = np.frombuffer(memory.read(table, 8 * (last // per_root + 1)), "<u8")
    numbers = np.flatnonzero(roots)
    found: list[Records] = []
    present = 0
    for number, root in zip(numbers.tolist(), roots[numbers].tolist(), strict=True):
        data = memory.try_read(root, per_root * dtype.itemsize)
        if data is None:
            continue
        sections = np.frombuffer(data, dtype)
        (valid,) = np.nonzero(sections["map"] & SECTION_HAS_MEM_MAP)
        rows = np.zeros(len(valid), _SECTION)
        rows["number"] = valid + number * per_root
        rows["map"] = sections["map"][valid]
        rows["usage"] = sections["usage"][valid]
        found.append(rows)
        present += len(rows)
        if present > MAX_PRESENT:
            raise KernelError("the memory map has no end: memory is damaged")
    return np.concatenate([np.zeros(0, _SECTION), *found])
