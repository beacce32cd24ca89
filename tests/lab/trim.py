"""Makes a core small: contents that no census looks at become zeros.

Zeroed are the pages on an LRU list (page cache, anonymous memory, shmem), free pages
and the kernel's text with the tables that describe it. All else stays as it was: memory
map, slab, page tables, per-CPU memory, swap maps, other read-only data, the notes.
Types and symbols come from memcgctl's opener; the walk over the memory map is its own.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import drgn
import numpy as np
import zstandard
from drgn.helpers.linux.mm import follow_phys
from numpy.typing import NDArray

from memcgctl.kernel.layout import has_member, offset_of
from memcgctl.kernel.program import OpenedKernel, Sources, open_kernel

HOLE = 4096
Array = NDArray[Any]
# include/linux/page-flags.h up to 6.11: page_type counts down, PG_buddy cleared.
OLD_BUDDY, OLD_BUDDY_MASK = 0xF0000000, 0xF0000080
# Of the kernel's image: text, what describes it, and what modules are linked against.
UNREAD = [
    ("_stext", "_etext"),
    ("__start_orc_unwind", "__stop_orc_unwind"),
    ("__start_orc_unwind_ip", "__stop_orc_unwind_ip"),
    ("__start___ex_table", "__stop___ex_table"),
    ("__start___bug_table", "__stop___bug_table"),
    ("__start___ksymtab", "__stop___ksymtab"),
    ("__start___ksymtab_gpl", "__stop___ksymtab_gpl"),
    ("__start___kcrctab", "__stop___kcrctab"),
    ("__start___kcrctab_gpl", "__stop___kcrctab_gpl"),
]


class Segment(NamedTuple):
    """A PT_LOAD of the core."""

    offset: int
    physical: int
    size: int


def segments(core: Path) -> list[Segment]:
    with core.open("rb") as file:
        head = file.read(64)
        offset, count = struct.unpack_from("<32xQ16xH", head)
        file.seek(offset)
        table = file.read(56 * count)
    result = []
    for kind, _, start, _, physical, size, _, _ in struct.iter_unpack(
        "<IIQQQQQQ", table
    ):
        if kind == 1:
            result.append(Segment(start, physical, size))
    return result


def enumerator(prog: drgn.Program, enum: str, name: str) -> int | None:
    try:
        type_ = prog.type(enum)
    except LookupError:
        return None
    values = {e.name: e.value for e in type_.enumerators or ()}
    return values.get(name)


def column(prog: drgn.Program, data: Array, path: str, kind: str) -> Array:
    at = offset_of(prog, "struct page", path)
    values: Array = data[:, at : at + np.dtype(kind).itemsize].copy()
    return values.view(kind)[:, 0]


def dead_pages(kernel: OpenedKernel, first: int, count: int) -> Array:
    """Which of ``count`` page frames from ``first`` on hold nothing of interest."""
    prog = kernel.prog
    size = prog.type("struct page").size
    assert size is not None
    vmemmap = int(prog["vmemmap"])
    try:
        raw = prog.read(vmemmap + first * size, count * size)
    except drgn.FaultError:  # a hole
        return np.zeros(count, bool)
    data = np.frombuffer(raw, np.uint8).reshape(count, size)
    # "struct memdesc_flags_t flags" since 6.18
    nested = has_member(prog, "struct page", "flags.f")
    flags = column(prog, data, "flags.f" if nested else "flags", "<u8")
    lru = enumerator(prog, "enum pageflags", "PG_lru")
    assert lru is not None
    # Bit 0 of the second word marks a tail page, whose head lies before it.
    tail = data[:, 8] & 1 != 0
    head = np.maximum.accumulate(np.where(tail, 0, np.arange(count)))
    dead: Array = (flags >> np.uint64(lru) & np.uint64(1) != 0)[head]

    types = column(prog, data, "page_type", "<u4")
    buddy = enumerator(prog, "enum pagetype", "PGTY_buddy")  # since 6.12
    if buddy is None:
        free = types & OLD_BUDDY_MASK == OLD_BUDDY
    else:
        free = types >> 24 == buddy
    orders = column(prog, data, "private", "<u8")
    for index in np.flatnonzero(free & ~tail):
        dead[index : index + (1 << int(orders[index]))] = True
    return dead


def dead_ranges(kernel: OpenedKernel, core: Path) -> Iterator[tuple[int, int]]:
    """(offset, size) in the core of everything that can be zeroed."""
    loads, page = segments(core), kernel.memory.page_size
    for load in loads:
        # In steps of a section, as a hole starts and ends with one.
        for start in range(load.physical, load.physical + load.size, 128 << 20):
            size = min(128 << 20, load.physical + load.size - start)
            dead = dead_pages(kernel, start // page, size // page)
            for index in np.flatnonzero(dead):
                yield load.offset + start - load.physical + int(index) * page, page
    for start, end in unread(kernel):
        physical = int(follow_phys(kernel.prog["init_mm"].address_of_(), start))
        for load in loads:
            if load.physical <= physical < load.physical + load.size:
                yield load.offset + physical - load.physical, end - start


def unread(kernel: OpenedKernel) -> Iterator[tuple[int, int]]:
    """(start, end) of parts of the kernel's image that nobody reads."""
    for names in UNREAD:
        with contextlib.suppress(LookupError):
            start, end = (kernel.symbol(name) for name in names)
            yield start, end
    with contextlib.suppress(LookupError):
        # Since 6.2: three bytes for each symbol, to find names by halving.
        start = kernel.symbol("kallsyms_seqs_of_names")
        count = int.from_bytes(
            kernel.memory.read(kernel.symbol("kallsyms_num_syms"), 4), "little"
        )
        yield start, start + 3 * count


def trim(core: Path, out: Path) -> None:
    """Write a sparse ``out`` without the contents that nobody reads."""
    data = bytearray(core.read_bytes())
    with open_kernel(Sources(core=core)) as kernel:
        for offset, size in dead_ranges(kernel, core):
            data[offset : offset + size] = bytes(size)
    with out.open("wb") as file:
        for at in range(0, len(data), HOLE):
            part = data[at : at + HOLE]
            if any(part):
                file.seek(at)
                file.write(part)
        file.truncate(len(data))


def compress(core: Path, out: Path) -> None:
    """zstd, with a window that every decoder takes by default (2^27 at most)."""
    parameters = zstandard.ZstdCompressionParameters.from_level(19, window_log=26)
    compressor = zstandard.ZstdCompressor(compression_params=parameters)
    with core.open("rb") as source, out.open("wb") as target:
        compressor.copy_stream(source, target, size=core.stat().st_size)
