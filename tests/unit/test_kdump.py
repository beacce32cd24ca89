"""kdump-compressed files: what they hold, and whether all of it is there."""

from __future__ import annotations

import contextlib
import struct
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memcgctl.kernel.corefile import inspect
from memcgctl.kernel.errors import KernelError
from memcgctl.kernel.kdump import KdumpFile
from tests.cores.variants import (
    PAGE,
    Core,
    Load,
    compress_nothing,
    compress_zlib,
    flattened,
    write_kdump,
)

# Two stretches of memory, with a page of zeros and a hole between them.
LOW = bytes(range(256)) * 16 * 5 + bytes(PAGE) + b"x" * PAGE
# Of struct disk_dump_header.
STATUS = 424
HIGH = b"y" * PAGE * 9
CORE = Core(
    b"\x05\0\0\0\0\0\0\0\0\0\0\0NOTE\0\0\0\0",
    (
        Load(0x1000, memoryview(LOW)),
        Load(0x20000, memoryview(HIGH)),
    ),
)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("kdump") / "plain"
    write_kdump(CORE, path, compress_zlib)
    return path.read_bytes()


def damaged(directory: Path, data: bytes) -> str:
    """What is said of the file; empty if nothing."""
    path = directory / "kdump"
    path.write_bytes(data)
    try:
        assert inspect(path).format == "kdump"
    except KernelError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("record", [0, 100, 4096, 1 << 20])
def test_the_pages_in_the_dump(tmp_path: Path, plain: bytes, record: int) -> None:
    """Lost: the search for a missing VMCOREINFO looks where nothing is, or not all."""
    path = tmp_path / "kdump"
    path.write_bytes(b"".join(flattened(plain, record)) if record else plain)
    with path.open("rb") as file:
        dump = KdumpFile(file)
        dump.check()
        assert dump.machine == "x86_64"
        assert list(dump.page_runs(4 * PAGE)) == [
            (0x1000, 4 * PAGE),
            (0x5000, 3 * PAGE),
            (0x20000, 4 * PAGE),
            (0x24000, 4 * PAGE),
            (0x28000, PAGE),
        ]
        assert dump.read(0, len(plain)) == plain


def test_a_later_record_replaces_an_earlier_one(tmp_path: Path, plain: bytes) -> None:
    """Lost: flattened files, whose header makedumpfile writes again at the end."""
    path = tmp_path / "kdump"
    *records, end = flattened(plain, 4096)
    first = bytearray(records[1])
    first[16:20] = b"XXXX"
    records[1:2] = [bytes(first), records[1]]
    path.write_bytes(b"".join([*records, end]))
    with path.open("rb") as file:
        assert KdumpFile(file).read(0, len(plain)) == plain


@pytest.mark.parametrize("flat", [False, True])
def test_what_is_cut_off_is_noticed(tmp_path: Path, plain: bytes, flat: bool) -> None:
    """Lost: the program, to the bus error of a library that maps the file."""
    data = b"".join(flattened(plain, 1000)) if flat else plain
    assert damaged(tmp_path, data) == ""
    for size in [*range(0, len(data) - 1, 997), len(data) - 16 - flat, len(data) - 1]:
        # The end mark of a flattened file may lack its size.
        assert damaged(tmp_path, data[:size]) or (flat and len(data) - size < 16), size


def test_a_descriptor_that_points_beyond_the_end(tmp_path: Path, plain: bytes) -> None:
    """Lost: as above, when one page's descriptor is damaged."""
    descriptors = 5 * PAGE
    # Bytes of the place (0 to 7) and of the size (8 to 11).
    for number, byte in [(3, 4), (5, 7), (7, 10), (11, 11)]:
        data = bytearray(plain)
        data[descriptors + 24 * number + byte] ^= 0x80
        assert "is truncated or damaged" in damaged(tmp_path, bytes(data))


def test_blocks_that_are_no_pages(tmp_path: Path) -> None:
    """Lost: what to do with a dump of arm64 that QEMU wrote in kdump's format."""
    path = tmp_path / "dump"
    core = replace(CORE, notes=b"OSRELEASE=1\nPAGESIZE=4096\nA=1\n")
    write_kdump(core, path, machine=b"aarch64", size=1 << 16)
    with pytest.raises(KernelError, match="dump the guest as ELF"):
        inspect(path)
    write_kdump(core, path, machine=b"aarch64")
    assert inspect(path).machine == "aarch64"


@pytest.mark.parametrize(
    ("machine", "message"),
    [
        (
            b"riscv64",
            "is of another machine, riscv64; memcgctl reads x86-64 and arm64 kernels",
        ),
        (b"\x1b[31m", "is damaged in the header"),
        (b"", ""),  # QEMU's
    ],
)
def test_other_machines(tmp_path: Path, machine: bytes, message: str) -> None:
    """Lost: a dump of another machine is read with this one's page tables."""
    path = tmp_path / "plain"
    write_kdump(CORE, path, compress_nothing, machine)
    assert damaged(tmp_path, path.read_bytes()) == message


def test_a_part_of_a_split_dump_is_named(tmp_path: Path, plain: bytes) -> None:
    """Lost: a person is told that their dump is damaged, when it is one of several."""
    data = bytearray(plain)
    struct.pack_into("<i", data, PAGE + 12, 1)
    assert "is one part of a split dump" in damaged(tmp_path, bytes(data))


def test_an_incomplete_dump_is_named(tmp_path: Path, plain: bytes) -> None:
    """Lost: a person looks for damage, when the crash kernel's disk was full."""
    data = bytearray(plain)
    data[STATUS] |= 0x8
    assert damaged(tmp_path, bytes(data)) == ""
    assert inspect(tmp_path / "kdump").incomplete
    assert "the dump is incomplete" in damaged(tmp_path, bytes(data[:-1]))
    assert damaged(tmp_path, plain) == ""
    assert not inspect(tmp_path / "kdump").incomplete


@settings(deadline=None)
@given(
    changes=st.lists(
        st.tuples(st.integers(0, 6 * PAGE), st.binary(min_size=1, max_size=8)),
        max_size=6,
    ),
    flat=st.booleans(),
)
def test_damage_is_noticed_or_harmless(
    tmp_path_factory: pytest.TempPathFactory,
    plain: bytes,
    changes: list[tuple[int, bytes]],
    flat: bool,
) -> None:
    """Lost: a traceback, or all of the machine's memory, to a damaged dump."""
    data = bytearray(b"".join(flattened(plain, 1000)) if flat else plain)
    for at, new in changes:
        data[at : at + len(new)] = new
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(data)
    with contextlib.suppress(KernelError), path.open("rb") as file:
        dump = KdumpFile(file)
        dump.check()
        assert all(0 < size <= 1 << 20 for _, size in dump.page_runs(1 << 20))
