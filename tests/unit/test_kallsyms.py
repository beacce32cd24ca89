"""The kernel's symbol tables, written here as scripts/kallsyms.c writes them."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cache

import drgn
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memcgctl.kernel import kallsyms
from memcgctl.kernel.kallsyms import NoSymbols
from memcgctl.kernel.memory import Memory
from memcgctl.kernel.symbols import Symbols
from tests.unit.fake_kernel import PLATFORM

STEXT = 0xFFFFFFFF81000000
RODATA = STEXT + (3 << 20)
SIZE = 4 << 20

# Type and name, address: per-CPU offsets first, as up to 6.14.
Listed = list[tuple[str, int]]
SYMBOLS: Listed = [("A__per_cpu_start", 0), ("druns", 0x33440), ("T_stext", STEXT)]
SYMBOLS += [(f"tfunction_{n}", STEXT + 16 * n) for n in range(1, 700)]
SYMBOLS += [("Tvery" + "_long" * 60, STEXT + 0x10000)]
SYMBOLS += [("Binit_uts_ns", STEXT + 0x900000), ("bhelper", STEXT + 0x900010)]


def tokens(names: list[str]) -> list[str]:
    """256 tokens: each character that is used stands for itself, the rest for pairs."""
    used = {ord(letter) for name in names for letter in name}
    pairs = iter(["fu", "nc", "ti", "on", "_lo", "ng", "init_", "uts", "function_"])
    return [chr(code) if code in used else next(pairs, "") for code in range(256)]


def encode(name: str, table: list[str], big: bool) -> bytes:
    codes, at = bytearray(), 0
    while at < len(name):
        # The longest token that fits.
        code = max(
            (
                c
                for c, token in enumerate(table)
                if token and name.startswith(token, at)
            ),
            key=lambda c: len(table[c]),
        )
        codes.append(code)
        at += len(table[code])
    if len(codes) < 128:
        return bytes([len(codes)]) + codes
    assert big
    return bytes([len(codes) & 0x7F | 0x80, len(codes) >> 7]) + codes


@dataclass
class Image:
    """Kernel memory from STEXT on, and where the tables are in it."""

    data: bytearray
    tables: kallsyms.Tables

    def memory(self) -> Memory:
        prog = drgn.Program(PLATFORM)
        data = bytes(self.data)
        prog.add_memory_segment(
            STEXT, len(data), lambda _, count, offset, __: data[offset : offset + count]
        )
        memory = Memory(prog)
        memory._page_size = 4096
        return memory


def build(symbols: Listed, shape: str) -> Image:
    """``shape``: "5.10" (absolute per-CPU), "6.2" (the same, with sequence numbers),
    "6.12" (the same, tables in the order of 404bad70fcf7), "6.15" (relative), "7.0"
    (place-relative, aligned to 4)."""
    align = 4 if shape == "7.0" else 8
    names = [name for name, _ in symbols]
    table = tokens(names)
    if shape == "5.10":  # no such long names yet
        symbols = [(name[:100], address) for name, address in symbols]
    if shape in ("6.15", "7.0"):  # per-CPU variables are in the image
        symbols = [(n, max(a, STEXT - 4096)) for n, a in symbols]
    encoded = [encode(name, table, shape != "5.10") for name, _ in symbols]
    starts, at = [], 0
    for code in encoded:
        starts.append(at)
        at += len(code)
    index, strings = [], b""
    for token in table:
        index.append(len(strings))
        strings += token.encode() + b"\0"
    base = min(a for _, a in symbols if a >= STEXT - 4096)
    offsets_size = 4 * len(symbols)
    # (name, size or contents)
    offsets, relative = (
        ("offsets", bytes(offsets_size)),
        ("base", struct.pack("<Q", base)),
    )
    names_and_tokens = [
        ("num_syms", struct.pack("<I", len(symbols))),
        ("names", b"".join(encoded)),
        ("markers", struct.pack(f"<{len(starts[::256])}I", *starts[::256])),
        ("token_table", strings),
        ("token_index", struct.pack("<256H", *index)),
    ]
    seqs = ("seqs", b"".join(n.to_bytes(3, "big") for n in range(len(symbols))))
    order = {
        "5.10": [offsets, relative, *names_and_tokens],
        "6.2": [offsets, relative, *names_and_tokens[:3], seqs, *names_and_tokens[3:]],
        "6.12": [*names_and_tokens, offsets, relative],
        "6.15": [*names_and_tokens, offsets, relative],
        "7.0": [*names_and_tokens, offsets],
    }[shape]
    data = bytearray(SIZE)
    data[: 1 << 20] = bytes(range(1, 256)) * 4112 + bytes((1 << 20) - 4112 * 255)
    where, at = {}, RODATA
    for name, content in order:
        at = -(-at // align) * align
        where[name] = at
        data[at - STEXT : at - STEXT + len(content)] = content
        at += len(content)
    for number, (_, address) in enumerate(symbols):
        place = where["offsets"] + 4 * number
        if shape == "7.0":
            value = address - place
        elif shape == "6.15":
            value = address - base
        else:
            value = address if address < STEXT - 4096 else base - 1 - address
        stored = struct.pack("<I", value & 0xFFFFFFFF)
        data[place - STEXT : place - STEXT + 4] = stored
    return Image(
        data,
        kallsyms.Tables(
            where["num_syms"],
            where["names"],
            where["token_table"],
            where["token_index"],
            where["offsets"],
            where.get("base"),
        ),
    )


SHAPES = ["5.10", "6.2", "6.12", "6.15", "7.0"]


def check(found: Symbols, shape: str) -> None:
    assert len(found.addresses) == len(SYMBOLS)
    for name, address in SYMBOLS:
        if shape in ("6.15", "7.0"):
            address = max(address, STEXT - 4096)
        name = name[:100] if shape == "5.10" else name
        assert found.all(name[1:]) == [(name[0], address)]


@pytest.mark.parametrize("shape", SHAPES)
def test_tables_named_by_vmcoreinfo(shape: str) -> None:
    """Lost: all symbols of kernels of that age."""
    image = build(SYMBOLS, shape)
    check(kallsyms.read_symbols(image.memory(), image.tables, STEXT), shape)


@pytest.mark.parametrize("shape", SHAPES)
def test_tables_found_by_their_structure(shape: str) -> None:
    """Lost: cores of 5.10 to 5.19, which do not say where their tables are."""
    image = build(SYMBOLS, shape)
    assert image.tables in kallsyms.find_tables(image.memory(), STEXT, SIZE)
    check(kallsyms.search_symbols(image.memory(), STEXT), shape)


def test_an_index_across_two_blocks_is_found() -> None:
    """Lost: some cores of 5.10, by bad luck of where the linker put the tables."""
    image = build(SYMBOLS, "5.10")
    at = image.tables.token_index - STEXT
    for distance in (4, 256, 508):
        # Move everything so that the index lies across a MiB.
        shift = -(at + distance) % (1 << 20)
        moved = Image(bytearray(shift) + image.data, image.tables)
        found = list(kallsyms.find_tables(moved.memory(), STEXT, SIZE + (1 << 20)))
        assert image.tables.token_index + shift in {t.token_index for t in found}


def test_without_tables_there_are_no_symbols() -> None:
    """Lost: a clear message about a dump without the kernel's read-only data."""
    empty = Image(bytearray(SIZE), build(SYMBOLS[:5], "5.10").tables)
    with pytest.raises(NoSymbols):
        kallsyms.search_symbols(empty.memory(), STEXT)
    beyond = kallsyms.Tables(*[STEXT + SIZE + 4096 * n for n in range(6)])
    with pytest.raises(NoSymbols, match="not in the dump"):
        kallsyms.read_symbols(empty.memory(), beyond, STEXT)


def test_tables_of_another_kernel_are_refused() -> None:
    """Lost: garbage is read at the addresses of a kernel that ran before."""
    image = build(SYMBOLS, "6.12")
    with pytest.raises(NoSymbols):
        kallsyms.read_symbols(image.memory(), image.tables, STEXT + 0x1000)


@cache
def few_symbols(shape: str) -> Image:
    return build(SYMBOLS[:100], shape)


@settings(deadline=None)
@given(
    shape=st.sampled_from(SHAPES),
    damage=st.lists(
        st.tuples(st.integers(0, 6000), st.binary(min_size=1, max_size=8)), max_size=8
    ),
)
def test_damage_is_noticed_or_harmless(
    shape: str, damage: list[tuple[int, bytes]]
) -> None:
    """Lost: a traceback, or a hang, on a damaged core."""
    image = few_symbols(shape)
    data = bytearray(image.data)
    for at, new in damage:
        start = RODATA - STEXT + at
        data[start : start + len(new)] = new
    memory = Image(data, image.tables).memory()
    try:
        found = kallsyms.read_symbols(memory, image.tables, STEXT)
    except NoSymbols:
        return
    assert found.find("_stext") == STEXT
