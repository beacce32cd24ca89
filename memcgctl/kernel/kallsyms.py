"""Which symbols does a core's own kallsyms hold? Reads the tables of kernel/kallsyms.c.

VMCOREINFO carries the tables' addresses from 6.0 on (f09bddbd8661, "vmcoreinfo: add
kallsyms_num_syms symbol"). For older kernels they are found in the kernel image by
their own structure, which scripts/kallsyms.c gives them: 256 ascending offsets after
the 256 strings they point to, and before these the markers, every 256th name's offset.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

import drgn
import numpy as np
import numpy.typing as npt

from memcgctl.kernel.errors import KernelError
from memcgctl.kernel.memory import Memory
from memcgctl.kernel.symbols import Addresses, Symbols

# Debian's 7.3 has 200,000 symbols in 2.5 MB, an allyesconfig kernel ten times that.
_MAX_SYMBOLS = 1 << 22
_MAX_NAMES = 1 << 26
_MAX_TEXT = 1 << 27
_MAX_IMAGE = 1 << 30  # KERNEL_IMAGE_SIZE
_MAX_HOLE = 64 << 20
_MAX_FOUND = 64
_MAX_BEFORE = 8 << 20  # markers and sequence numbers before the tokens
_MAX_RUNS = 4
_TOKENS = 256
_INDEX_SIZE = 2 * _TOKENS
_MAX_TOKEN = 512
_EXPANDED_AT_ONCE = 1 << 18


class NoSymbols(KernelError):
    """The kernel's kallsyms are damaged, or not in the dump."""


@dataclass(frozen=True)
class Tables:
    """Where the tables are; ``relative_base`` is None from 7.0 on, where
    a081b5789255 ("kallsyms: Get rid of kallsyms relative base") removed it."""

    num_syms: int
    names: int
    token_table: int
    token_index: int
    offsets: int
    relative_base: int | None


def tables_of_vmcoreinfo(symbols: Mapping[str, int]) -> Tables | None:
    """The tables that VMCOREINFO's SYMBOL() lines name; None before 6.0."""
    try:
        return Tables(
            symbols["kallsyms_num_syms"],
            symbols["kallsyms_names"],
            symbols["kallsyms_token_table"],
            symbols["kallsyms_token_index"],
            symbols["kallsyms_offsets"],
            symbols.get("kallsyms_relative_base"),
        )
    except KeyError:
        return None


def read_symbols(memory: Memory, tables: Tables, stext: int) -> Symbols:
    """Decode the tables. ``stext`` is the address of ``_stext``, as a check.

    Raises NoSymbols if a table is damaged or not in the dump.
    """
    try:
        return _decode(memory, tables, stext)
    except drgn.FaultError as error:
        raise NoSymbols(f"the kernel's kallsyms are not in the dump: {error}") from None


def _decode(memory: Memory, tables: Tables, stext: int) -> Symbols:
    count = int.from_bytes(memory.read(tables.num_syms, 4), "little")
    size = tables.token_table - tables.names
    if not 0 < count <= _MAX_SYMBOLS or not 0 < size <= _MAX_NAMES:
        raise NoSymbols("the kernel's kallsyms are damaged")
    tokens = _read_tokens(memory, tables)
    names = _expand(memory.read(tables.names, size), count, tokens)
    stored = np.frombuffer(memory.read(tables.offsets, 4 * count), "<i4")
    base = None
    if tables.relative_base is not None:
        base = int.from_bytes(memory.read(tables.relative_base, 8), "little")
    for addresses in _interpretations(stored, tables.offsets, base):
        symbols = Symbols(names, addresses)
        if symbols.find("_stext") == stext:
            return symbols
    raise NoSymbols("the kernel's kallsyms are damaged")


def _read_tokens(memory: Memory, tables: Tables) -> list[bytes]:
    index = np.frombuffer(memory.read(tables.token_index, _INDEX_SIZE), "<u2").tolist()
    # The index comes right after the table; beyond the last token is only padding.
    size = min(max(index) + _MAX_TOKEN, tables.token_index - tables.token_table)
    table = memory.read(tables.token_table, max(size, 0))
    ends = [table.find(b"\0", start) for start in index]
    if min(ends) < 0:
        raise NoSymbols("the kernel's kallsyms are damaged")
    return [table[start:end] for start, end in zip(index, ends, strict=True)]


def _name_starts(names: bytes, count: int) -> npt.NDArray[np.int64]:
    """Where each of ``count`` names starts (its length), and where the last one ends.

    From 6.1 on (73bbb94466fd, "kallsyms: support "big" kernel symbols") lengths above
    127 take two bytes; before, no name was that long. Raises NoSymbols.
    """
    starts, at = [], 0
    try:
        for _ in range(count):
            starts.append(at)
            length = names[at]
            if length & 0x80:
                length = (length & 0x7F | names[at + 1] << 7) + 1
            at += length + 1
    except IndexError:
        at = len(names) + 1
    found = np.array([*starts, at])
    if at > len(names) or np.diff(found).min() < 2:
        raise NoSymbols("the kernel's kallsyms are damaged")
    return found


def _expand(names: bytes, count: int, tokens: list[bytes]) -> bytes:
    """The text of all names: each byte of a name stands for a token."""
    starts = _name_starts(names, count)
    starts, end = starts[:-1], int(starts[-1])
    codes = np.frombuffer(names, np.uint8)[:end].astype(np.uint16)
    big = codes[starts] & 0x80 != 0
    codes[starts] = _TOKENS  # the length becomes the separator
    codes[starts[big] + 1] = _TOKENS + 1
    words = [*tokens, b"\n", b""]
    letters = np.frombuffer(b"".join(words), np.uint8)
    sizes = np.array([len(word) for word in words], np.int32)
    if int(sizes[codes].sum(dtype=np.int64)) > _MAX_TEXT:
        raise NoSymbols("the kernel's kallsyms are damaged")
    firsts = np.cumsum(sizes, dtype=np.int32) - sizes
    parts = []
    for at in range(0, len(codes), _EXPANDED_AT_ONCE):
        block = codes[at : at + _EXPANDED_AT_ONCE]
        # Letter i of the text is letter i - (where its word starts in the text) of it.
        ends = np.cumsum(sizes[block], dtype=np.int32)
        shift = firsts[block] - (ends - sizes[block])
        where = np.repeat(shift, sizes[block]) + np.arange(ends[-1], dtype=np.int32)
        parts.append(letters[where].tobytes())
    text = b"".join(parts) + b"\n"
    if text.count(b"\n") != count + 1:
        raise NoSymbols("the kernel's kallsyms are damaged")
    return text


def _interpretations(
    stored: npt.NDArray[np.int32], at: int, base: int | None
) -> Iterator[Addresses]:
    """What the stored offsets can mean; only one of these puts _stext in its place."""
    wide = stored.astype(np.int64)
    if base is None:
        # 7.0 on: relative to where each offset is stored.
        slot = np.arange(len(wide), dtype=np.int64) * 4
        yield (slot + wide).astype(np.uint64) + np.uint64(at)
        return
    # Up to 6.14, CONFIG_KALLSYMS_ABSOLUTE_PERCPU (01157ddc58dc, "kallsyms: Remove
    # KALLSYMS_ABSOLUTE_PERCPU"): positive are absolute, negative are below the base.
    below = np.uint64(base) + (-1 - wide).astype(np.uint64)
    yield np.where(wide >= 0, wide.astype(np.uint64), below)
    yield np.uint64(base) + stored.view(np.uint32).astype(np.uint64)


def search_symbols(memory: Memory, stext: int) -> Symbols:
    """Find the tables in the kernel image by their structure, and decode them.

    Raises NoSymbols if they are not there.
    """
    for tables in islice(find_tables(memory, stext, _MAX_IMAGE), _MAX_FOUND):
        with suppress(NoSymbols):
            return read_symbols(memory, tables, stext)
    raise NoSymbols("no kallsyms were found in the kernel's memory")


def find_tables(memory: Memory, start: int, size: int) -> Iterator[Tables]:
    """Look for the tables in the kernel image [start, start + size).

    Yields what looks like them; ``read_symbols`` tells whether it is.
    """
    tail_at, tail, last = start, b"", start
    for address, data in memory.chunks(start, size):
        if data is None:
            tail = b""
            if address - last > _MAX_HOLE:
                return
            continue
        last = address
        if not tail:
            tail_at = address
        block = tail + data
        for offset in _index_candidates(block):
            yield from _tables_before(memory, tail_at + offset)
        # An index may lie across two chunks.
        keep = min(len(block), _INDEX_SIZE - 4)
        tail_at, tail = tail_at + len(block) - keep, block[len(block) - keep :]


def _index_candidates(block: bytes) -> list[int]:
    """Offsets of 256 ascending 16-bit numbers, the first one 0."""
    words = np.frombuffer(block[: len(block) & ~1], "<u2").astype(np.int32)
    # Aligned to 4 bytes at least.
    at = np.flatnonzero(words[: max(len(words) - _TOKENS + 1, 0) : 2] == 0) * 2
    for step in range(1, _TOKENS):
        if not len(at):
            break
        growth = words[at + step] - words[at + step - 1]
        at = at[(growth > 0) & (growth < _MAX_TOKEN)]
    return [int(offset) * 2 for offset in at]


def _tables_before(memory: Memory, token_index: int) -> Iterator[Tables]:
    """The tables that come before (and after) a token index, if it is one."""
    try:
        index = np.frombuffer(memory.read(token_index, _INDEX_SIZE), "<u2")
        token_table = _token_table_before(memory, token_index, index)
        if token_table is None:
            return
        found = _names_before(memory, token_table)
    except drgn.FaultError:
        return
    if found is None:
        return
    num_syms, names, count = found
    # Up to 6.3 the offsets are the first of all tables; 404bad70fcf7 ("scripts/
    # kallsyms: change the output order") in 6.4 moved them to the end.
    base = num_syms - 8
    yield Tables(
        num_syms, names, token_table, token_index, base - _align(4 * count, 8), base
    )
    offsets = token_index + _INDEX_SIZE
    base = _align(offsets + 4 * count, 8)
    yield Tables(num_syms, names, token_table, token_index, offsets, base)
    yield Tables(num_syms, names, token_table, token_index, offsets, None)


def _align(value: int, to: int) -> int:
    return -(-value // to) * to


def _token_table_before(
    memory: Memory, token_index: int, index: npt.NDArray[np.uint16]
) -> int | None:
    """Where the 256 strings start that the index points to."""
    last = int(index[-1])
    low = token_index - _align(last + _MAX_TOKEN, 8)
    before = memory.read(low, token_index - low)
    starts = index[1:].astype(np.int64) - 1
    for start in range(len(before) - last - 1 & ~3, -1, -4):
        table = np.frombuffer(before, np.uint8)[start:]
        ends = np.flatnonzero(table == 0)
        # All strings but the last end where the next one starts.
        if np.array_equal(ends[: _TOKENS - 1], starts) and len(ends) >= _TOKENS:
            return low + start
    return None


def _names_before(memory: Memory, token_table: int) -> tuple[int, int, int] | None:
    """(address of kallsyms_num_syms, of kallsyms_names, number of symbols)."""
    for markers_at, markers in _markers_before(memory, token_table):
        # The last 256 names or less lie between the last marker and the markers.
        high = markers_at - int(markers[-1])
        low = high - 256 * 256
        head = memory.read(low, high - low + 4)
        for names in range(high & ~3, low + 8, -4):
            for gap in (8, 4):  # up to 6.x all tables are aligned to 8, then to 4
                at = names - low - gap
                count = int.from_bytes(head[at : at + 4], "little")
                if -(-count // 256) == len(markers) and _markers_fit(
                    memory, names, markers_at, count, markers
                ):
                    return names - gap, names, count
    return None


def _markers_before(
    memory: Memory, token_table: int
) -> Iterator[tuple[int, npt.NDArray[np.uint32]]]:
    """Address and values of what may be kallsyms_markers, the longest one first.

    They ascend from 0. Up to 6.3, from 19bd8981dc2e ("kallsyms: Reduce the memory
    occupied by kallsyms_seqs_of_names") on, three bytes for each symbol come after.
    """
    size = _MAX_BEFORE
    while True:
        try:
            words = np.frombuffer(memory.read(token_table - size, size), "<u4")
            break
        except drgn.FaultError:
            size //= 2
            if size < 4096:
                return
    growth = np.diff(words.astype(np.int64), append=0)
    ascends = (growth >= 2 * 256) & (growth <= 256 * 256)
    ends = np.flatnonzero(~ascends)
    starts = np.flatnonzero(ascends & (words == 0))
    stops = ends[np.searchsorted(ends, starts)] + 1
    for run in np.argsort(starts - stops)[:_MAX_RUNS].tolist():
        markers = words[starts[run] : stops[run]]
        yield token_table - size + 4 * int(starts[run]), markers


def _markers_fit(
    memory: Memory,
    names: int,
    end: int,
    count: int,
    markers: npt.NDArray[np.uint32],
) -> bool:
    """Whether every 256th name starts where its marker says."""
    data = memory.read(names, end - names)
    try:
        # The first one tells most of the wrong ones.
        if _name_starts(data, 256)[256] != markers[1]:
            return False
        starts = _name_starts(data, count)[:-1]
    except NoSymbols:
        return False
    return np.array_equal(starts[::256], markers)
