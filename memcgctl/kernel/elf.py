"""What do an ELF file's headers say? Segments, notes, sections, every offset checked.

Just enough of ELF (elf(5)) to tell a core of a kernel from all else that starts with
the same four bytes, and to find BTF in a file; the reading of memory is drgn's.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from memcgctl.kernel.errors import KernelError

MAGIC = b"\x7fELF"
ET_CORE, PT_LOAD, PT_NOTE = 4, 1, 4
EM_X86_64, EM_AARCH64 = 62, 183
MACHINES = {EM_X86_64: "x86_64", EM_AARCH64: "aarch64"}
_MACHINES = {
    3: "i386",
    21: "ppc64",
    22: "s390x",
    40: "arm",
    243: "riscv",
    258: "loongarch",
}
READABLE = "memcgctl reads x86-64 and arm64 kernels"
_PN_XNUM = 0xFFFF
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_NOTE = struct.Struct("<III")

# Bounds on what headers can claim. Notes hold the registers of each CPU, a page or so;
# a program header stands for a range of memory; debug BTF has 30 MB.
_MAX_NOTES_BYTES = 32 << 20
_MAX_NOTES = 1 << 16
_MAX_SEGMENTS = 1 << 17
_MAX_READ = 64 << 20


@dataclass(frozen=True)
class Segment:
    """A program header of type PT_LOAD."""

    offset: int
    virtual: int
    physical: int
    size: int


@dataclass(frozen=True)
class Elf:
    """An open ELF file; ``kind`` is ``e_type``, ``machine`` as uname(1) has it."""

    file: BinaryIO
    size: int
    kind: int
    machine: str
    segments: tuple[Segment, ...]
    _notes: tuple[tuple[int, int], ...]
    _sections: tuple[int, int, int]

    def notes(self) -> Iterator[tuple[bytes, int, bytes]]:
        """(owner, type, content) of each note."""
        left_bytes, left = _MAX_NOTES_BYTES, _MAX_NOTES
        for offset, size in self._notes:
            data, at = _at(self.file, offset, min(size, left_bytes)), 0
            left_bytes -= len(data)
            while at + _NOTE.size <= len(data) and left:
                left -= 1
                name_size, content_size, kind = _NOTE.unpack_from(data, at)
                name_at = at + _NOTE.size
                content_at = name_at + (name_size + 3 & ~3)
                end = content_at + content_size
                if end > len(data):
                    break
                name = data[name_at : name_at + name_size].rstrip(b"\0")
                yield name, kind, data[content_at:end]
                at = end + 3 & ~3

    def section(self, name: bytes) -> bytes | None:
        """Contents of a section that is not compressed, None if there is none."""
        table, count, names_index = self._sections
        data = _at(self.file, table, count * _SECTION.size)
        headers = list(
            _SECTION.iter_unpack(data[: len(data) - len(data) % _SECTION.size])
        )
        if names_index >= len(headers):
            return None
        _, _, _, _, names_at, names_size, *_ = headers[names_index]
        names = _at(self.file, names_at, min(names_size, _MAX_READ))
        for name_at, kind, _, _, offset, size, *_ in headers:
            found = names[name_at : name_at + len(name) + 1]
            if found == name + b"\0" and kind != 8:  # SHT_NOBITS
                return _at(self.file, offset, min(size, _MAX_READ))
        return None

    @property
    def missing(self) -> int:
        """Bytes of segments that lie beyond the end of the file."""
        beyond = (min(s.offset + s.size - self.size, s.size) for s in self.segments)
        return sum(size for size in beyond if size > 0)


def _at(file: BinaryIO, offset: int, size: int) -> bytes:
    """At most ``size`` bytes; less, or none, at the end of the file."""
    if offset >= 1 << 63:
        return b""
    size = min(size, max(os.fstat(file.fileno()).st_size - offset, 0))
    return os.pread(file.fileno(), size, offset)


def read(file: BinaryIO) -> Elf:
    """Read the headers.

    Raises KernelError (the file's name is for the caller to add) if the file is cut
    off in its headers, or of another machine.
    """
    header = os.pread(file.fileno(), _HEADER.size, 0)
    if len(header) > 5 and header[4] != 2:
        raise KernelError(f"is of a 32-bit machine; {READABLE}")
    if len(header) > 5 and header[5] != 1:
        raise KernelError(f"is of a big-endian machine; {READABLE}")
    if len(header) < _HEADER.size:
        raise KernelError("is truncated in the ELF header")
    _, kind, machine, _, _, phoff, shoff, _, _, _, phnum, _, shnum, shstrndx = (
        _HEADER.unpack(header)
    )
    if machine not in MACHINES:
        name = _MACHINES.get(machine, f"unknown (ELF machine {machine})")
        raise KernelError(f"is of another machine, {name}; {READABLE}")
    if phnum == _PN_XNUM:  # the true number is in the first section's sh_info
        section = _at(file, shoff, _SECTION.size)
        if len(section) == _SECTION.size:
            phnum = _SECTION.unpack(section)[7]
    if phnum > _MAX_SEGMENTS:
        raise KernelError(f"has {phnum:,} program headers, more than any core has")
    table = _at(file, phoff, phnum * _SEGMENT.size)
    if len(table) < phnum * _SEGMENT.size:
        raise KernelError("is truncated in the ELF program headers")
    segments, notes = [], []
    for type_, _, offset, virtual, physical, size, *_ in _SEGMENT.iter_unpack(table):
        if type_ == PT_LOAD:
            segments.append(Segment(offset, virtual, physical, size))
        elif type_ == PT_NOTE:
            notes.append((offset, size))
    sections = (shoff, shnum, shstrndx)
    end = os.fstat(file.fileno()).st_size
    return Elf(
        file, end, kind, MACHINES[machine], tuple(segments), tuple(notes), sections
    )
