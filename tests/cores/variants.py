"""The same core in the other forms that people bring: written here from its bytes.

Nothing of the program under test is used: what an ELF core, a kdump-compressed file
and makedumpfile's flattened form look like is taken from elf(5) and from
makedumpfile's IMPLEMENTATION file.
"""

from __future__ import annotations

import mmap
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import zstandard

PAGE = 4096
HOLE = 1 << 16
PT_LOAD, PT_NOTE = 1, 4
_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR = struct.Struct("<IIQQQQQQ")


@dataclass(frozen=True)
class Load:
    """A stretch of physical memory."""

    physical: int
    data: memoryview
    virtual: int = 0


@dataclass(frozen=True)
class Core:
    """What an ELF core holds, and of which machine (``e_machine``)."""

    notes: bytes
    loads: tuple[Load, ...]
    machine: int = 62


def read_elf(path: Path) -> Core:
    with path.open("rb") as file:
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    phoff = struct.unpack_from("<Q", data, 32)[0]
    phnum = struct.unpack_from("<H", data, 56)[0]
    notes, loads = b"", []
    for number in range(phnum):
        kind, _, offset, virtual, physical, size, _, _ = _PHDR.unpack_from(
            data, phoff + number * _PHDR.size
        )
        if kind == PT_NOTE:
            notes = bytes(data[offset : offset + size])
        elif kind == PT_LOAD:
            loads.append(Load(physical, data[offset : offset + size], virtual))
    return Core(notes, tuple(loads), struct.unpack_from("<H", data, 18)[0])


def elf_header(segments: int, machine: int = 62, kind: int = 4) -> bytes:
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    return _EHDR.pack(
        ident, kind, machine, 1, 0, _EHDR.size, 0, 0, 64, _PHDR.size, segments, 0, 0, 0
    )


def write_elf(core: Core, path: Path) -> None:
    """Headers, notes and memory, in this order; zeros become holes."""
    first = _EHDR.size + _PHDR.size * (1 + len(core.loads))
    at = -(-(first + len(core.notes)) // PAGE) * PAGE
    headers = [_PHDR.pack(PT_NOTE, 0, first, 0, 0, len(core.notes), 0, 4)]
    with path.open("wb") as file:
        for load in core.loads:
            size = len(load.data)
            headers.append(
                _PHDR.pack(PT_LOAD, 7, at, load.virtual, load.physical, size, size, 0)
            )
            for start in range(0, size, HOLE):
                part = bytes(load.data[start : start + HOLE])
                if part.strip(b"\0"):
                    file.seek(at + start)
                    file.write(part)
            at += -(-size // PAGE) * PAGE
        file.truncate(at)
        file.seek(0)
        file.write(
            elf_header(len(headers), core.machine) + b"".join(headers) + core.notes
        )


def as_vmcore(core: Core, page_offset: int, image: tuple[int, int, int]) -> Core:
    """As kdump's /proc/vmcore: the direct map's addresses, and the image's.

    ``image`` is its virtual address, physical address and size.
    """
    virtual, physical, size = image
    loads = [
        Load(load.physical, load.data, (page_offset + load.physical) % 2**64)
        for load in core.loads
    ]
    for load in core.loads:
        if load.physical <= physical < load.physical + len(load.data):
            start = physical - load.physical
            text = Load(physical, load.data[start : start + size], virtual)
    return replace(core, loads=(text, *loads))


def without_note(core: Core) -> Core:
    """The notes without VMCOREINFO, as QEMU writes them without its device for it."""
    at, kept = 0, b""
    while at + 12 <= len(core.notes):
        name_size, size, _ = struct.unpack_from("<III", core.notes, at)
        end = at + 12 + -(-name_size // 4) * 4 + -(-size // 4) * 4
        if core.notes[at + 12 : at + 22] != b"VMCOREINFO":
            kept += core.notes[at:end]
        at = end
    return replace(core, notes=kept)


def compress_zlib(page: bytes) -> tuple[bytes, int]:
    return zlib.compress(page, 1), 0x1


def compress_zstd(page: bytes) -> tuple[bytes, int]:
    return zstandard.ZstdCompressor(level=1).compress(page), 0x20


def compress_snappy(page: bytes) -> tuple[bytes, int]:
    """As one literal, which is valid, if not smaller."""
    assert len(page) == PAGE
    return b"\x80\x20" + b"\xf4" + struct.pack("<H", PAGE - 1) + page, 0x4


def compress_nothing(page: bytes) -> tuple[bytes, int]:
    return page, 0


def write_kdump(
    core: Core,
    path: Path,
    compress: Callable[[bytes], tuple[bytes, int]] = compress_zlib,
    machine: bytes = b"x86_64",
    dump_level: int = 0,
    size: int = PAGE,
) -> None:
    """A kdump-compressed file of version 6, all pages of zeros sharing one.

    ``size`` is that of the kernel's pages.
    """
    zeros = bytes(size)
    pages = {
        (load.physical + offset) // size: load.data[offset : offset + size]
        for load in core.loads
        for offset in range(0, len(load.data), size)
    }
    frames = max(pages) + 1
    bitmap_blocks = -(-frames // (8 * size))
    bitmap = bytearray(bitmap_blocks * size)
    for frame in pages:
        bitmap[frame // 8] |= 1 << frame % 8
    utsname = b"".join(
        field.ljust(65, b"\0") for field in (b"", b"", b"", b"", machine, b"")
    )
    header = struct.pack("<8si390s6x16x", b"KDUMP   ", 6, utsname)
    header += struct.pack("<IIIII", 0, size, 1, 2 * bitmap_blocks, 0)
    sub_header = struct.pack("<qii", 0, dump_level, 0) + struct.pack(
        "<11Q", 0, 0, 0, 0, size + 256, len(core.notes), 0, 0, 0, 0, frames
    )
    assert 256 + len(core.notes) <= 2 * size
    with path.open("wb") as file:
        file.write(header.ljust(size, b"\0"))
        file.write((sub_header.ljust(256, b"\0") + core.notes).ljust(2 * size, b"\0"))
        file.seek(428 + 4)
        file.write(struct.pack("<I", 2))  # blocks of the sub-header
        file.seek(3 * size)
        file.write(bitmap + bitmap)
        data = file.tell() + 24 * len(pages)
        descriptors, bodies, zero = [], [], b""
        for frame in sorted(pages):
            page = bytes(pages[frame])
            if page == zeros and zero:
                descriptors.append(zero)
                continue
            body, flags = compress(page)
            descriptors.append(struct.pack("<QIIQ", data, len(body), flags, 0))
            if page == zeros:
                zero = descriptors[-1]
            bodies.append(body)
            data += len(body)
        file.write(b"".join(descriptors) + b"".join(bodies))


def flattened(data: bytes, record: int = 1 << 16) -> Iterator[bytes]:
    """makedumpfile -F: records that say where they belong."""
    yield struct.pack(">16sqq", b"makedumpfile", 1, 1).ljust(4096, b"\0")
    for at in range(0, len(data), record):
        part = data[at : at + record]
        yield struct.pack(">qq", at, len(part)) + part
    yield struct.pack(">qq", -1, -1)
