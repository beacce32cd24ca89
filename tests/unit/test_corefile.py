"""What a file is, before any memory is read: files made by hand."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memcgctl.kernel.corefile import CoreFile, inspect, read_file
from memcgctl.kernel.elf import PT_LOAD, PT_NOTE, read
from memcgctl.kernel.errors import KernelError
from tests.cores.variants import _PHDR, elf_header

NT_PRSTATUS, NT_AUXV = 1, 6


def note(owner: bytes, kind: int, content: bytes) -> bytes:
    name = owner + b"\0"
    return (
        struct.pack("<III", len(name), len(content), kind)
        + name.ljust(-(-len(name) // 4) * 4, b"\0")
        + content.ljust(-(-len(content) // 4) * 4, b"\0")
    )


CPU = note(b"CORE", NT_PRSTATUS, bytes(336))
INFO = note(b"VMCOREINFO", 0, b"OSRELEASE=6.1\n")
PROCESS = note(b"CORE", NT_AUXV, bytes(320))


def elf(notes: bytes = CPU + INFO, size: int = 8192, **header: int) -> bytes:
    at = 64 + 2 * 56
    data = elf_header(2, **header)
    data += _PHDR.pack(PT_NOTE, 0, at, 0, 0, len(notes), 0, 4)
    data += _PHDR.pack(PT_LOAD, 7, at + len(notes), 0, 4096, size, size, 0)
    return data + notes + b"m" * size


def look(path: Path, data: bytes) -> CoreFile:
    path.write_bytes(data)
    return inspect(path)


def test_a_core_of_a_kernel(tmp_path: Path) -> None:
    """Lost: all ELF cores."""
    core = look(tmp_path / "core", elf())
    assert core.format == "elf"
    assert core.note == b"OSRELEASE=6.1\n"
    assert core.missing == 0
    assert look(tmp_path / "core", elf(CPU)).note is None


def test_what_was_cut_off_is_counted(tmp_path: Path) -> None:
    """Lost: a truncated core is reported as one with odd holes in it."""
    assert look(tmp_path / "core", elf()[:-5000]).missing == 5000


def test_memory_is_given_once_and_without_holes(tmp_path: Path) -> None:
    """Lost: a search in a sparse core of a large machine takes minutes."""
    path = tmp_path / "core"
    size = 64 << 20
    at = 64 + 3 * 56
    # The second segment is in the first one, as in a core with paging.
    data = elf_header(3) + _PHDR.pack(PT_LOAD, 7, at, 0, 0, size, size, 0)
    data += _PHDR.pack(PT_LOAD, 7, at + 100, 1 << 47, 100, size // 2, size // 2, 0)
    data += _PHDR.pack(PT_NOTE, 0, 0, 0, 0, 0, 0, 4)
    path.write_bytes(data)
    with path.open("r+b") as file:
        file.truncate(at + size)
        file.seek(at + (20 << 20))
        file.write(b"here")
    pieces = list(inspect(path).data(1 << 20))
    assert any(offset <= at + (20 << 20) < offset + n for offset, n in pieces)
    assert len({offset for offset, _ in pieces}) == len(pieces)
    assert sum(n for _, n in pieces) < 8 << 20


SHORT = "memcgctl reads x86-64 and arm64 kernels"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (elf(machine=243), f"is of another machine, riscv; {SHORT}"),
        (elf(machine=999), "is of another machine, unknown (ELF machine 999)"),
        (b"\x7fELF\x01" + elf()[5:], f"is of a 32-bit machine; {SHORT}"),
        (b"\x7fELF\x02\x02" + elf()[6:], f"is of a big-endian machine; {SHORT}"),
        (elf(kind=2), "is a program or an object file, not a core"),
        (elf(CPU + PROCESS), "is the core of a process, not of a kernel"),
        (elf()[:10], "is truncated in the ELF header"),
        (elf()[:100], "is truncated in the ELF program headers"),
        (elf_header(0), "is a core without any memory"),
        (b"hello\n", "is not a core: neither ELF nor in kdump's format"),
        (b"\x7fELF", "is truncated in the ELF header"),
        (b"BZh91AY", "is compressed with bzip2, which is not supported"),
        (b"LibvirtQemudSave\2", "virsh dump --memory-only"),
    ],
)
def test_what_is_no_kernels_core_is_named(
    tmp_path: Path, data: bytes, message: str
) -> None:
    """Lost: the one line that tells a person which file they took by mistake."""
    with pytest.raises(KernelError, match=re.escape(message)):
        look(tmp_path / "core", data)


def test_no_file_is_waited_for(tmp_path: Path) -> None:
    """Lost: the program hangs on a pipe that nobody writes to."""
    fifo, listening = tmp_path / "fifo", tmp_path / "socket"
    os.mkfifo(fifo)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(listening))
        for path in (fifo, listening, Path("/dev/zero")):
            with pytest.raises(KernelError, match="is a device, pipe or socket"):
                read_file(path, 16)
    empty = tmp_path / "empty"
    empty.touch()
    for path, message in [
        (empty, "is empty"),
        (tmp_path, "is a directory"),
        (tmp_path / "missing", "No such file"),
        (empty / "below", "Not a directory"),
        (tmp_path / ("x" * 300), "name too long"),
        (Path("nul\0byte"), "null"),
    ]:
        with pytest.raises(KernelError, match=message):
            read_file(path, 16)


@settings(deadline=None)
@given(
    changes=st.lists(
        st.tuples(st.integers(0, 700), st.binary(min_size=1, max_size=8)), max_size=6
    ),
    cut=st.integers(0, 9000),
)
def test_damaged_headers_are_refused_or_read(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, bytes]], cut: int
) -> None:
    """Lost: a traceback, or all of the machine's memory, to a damaged core."""
    data = bytearray(elf(CPU + INFO + PROCESS))
    for at, new in changes:
        data[at : at + len(new)] = new
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(data[: len(data) - cut])
    with contextlib.suppress(KernelError):
        core = inspect(path)
        assert all(0 < size <= 4096 for _, size in core.data(4096))
        assert core.missing >= 0


def test_sections(tmp_path: Path) -> None:
    """Lost: BTF out of a vmlinux or a kernel's debug file."""
    names = b"\0.shstrtab\0.BTF\0.BTF_ids\0"
    content = b"\x9f\xeb types"
    at = 64
    table = at + len(names) + len(content)
    sections = [
        (0, 0, 0, 0),
        (1, 3, at, len(names)),
        (names.index(b".BTF_ids"), 1, 0, 8),
        (names.index(b".BTF\0"), 1, at + len(names), len(content)),
    ]
    data = bytearray(elf_header(0, kind=2)) + names + content
    for name, kind, offset, size in sections:
        data += struct.pack("<IIQQQQIIQQ", name, kind, 0, 0, offset, size, 0, 0, 1, 0)
    struct.pack_into("<Q", data, 40, table)
    struct.pack_into("<HHH", data, 58, 64, len(sections), 1)
    path = tmp_path / "vmlinux"
    path.write_bytes(data)
    with path.open("rb") as file:
        assert read(file).section(b".BTF") == content
        assert read(file).section(b".debug_info") is None
    path.write_bytes(data[:-100])
    with path.open("rb") as file:
        assert read(file).section(b".BTF") is None
