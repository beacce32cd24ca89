"""Which pages does a kdump-compressed file hold?

libkdumpfile reads these files (makedumpfile's ``struct disk_dump_header``, see its
IMPLEMENTATION file), but tells nothing of one without VMCOREINFO. Header and bitmap
are enough to know the machine and where to look for the note.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from memcgctl.kernel.errors import KernelError

FLAT_MAGIC = b"makedumpfile"
MAGICS = (b"KDUMP   ", b"DISKDUMP")

# struct disk_dump_header: signature, header_version, struct new_utsname, timestamp,
# status, block_size, sub_hdr_size, bitmap_blocks.
_HEADER = struct.Struct("<8si390s6x16xIIII")
_UTSNAME_FIELD = 65
# The flattened format is big-endian: 4096 bytes of header, then records of
# (offset, size) and data.
_FLAT_HEADER_SIZE = 4096
_RECORD = struct.Struct(">qq")


@dataclass(frozen=True)
class Kdump:
    """Header of a kdump-compressed file."""

    machine: str
    block_size: int
    bitmap_offset: int
    bitmap_size: int


def unflattened(file: BinaryIO, offset: int, size: int) -> bytes:
    """Bytes of a file in makedumpfile's flattened format, as if it were not flattened.

    Bytes that no record holds are zero.
    """
    data = bytearray(size)
    at = _FLAT_HEADER_SIZE
    while len(head := os.pread(file.fileno(), _RECORD.size, at)) == _RECORD.size:
        start, length = _RECORD.unpack(head)
        if start < 0 or length <= 0:
            break
        low, high = max(start, offset), min(start + length, offset + size)
        if low < high:
            where = at + _RECORD.size + low - start
            part = os.pread(file.fileno(), high - low, where)
            data[low - offset : low - offset + len(part)] = part
            if low == offset and high == offset + size:
                break
        at += _RECORD.size + length
    return bytes(data)


def read_at(file: BinaryIO, offset: int, size: int) -> bytes:
    """Bytes of a plain or flattened file."""
    if os.pread(file.fileno(), len(FLAT_MAGIC), 0) == FLAT_MAGIC:
        return unflattened(file, offset, size)
    return os.pread(file.fileno(), size, offset)


def read_header(file: BinaryIO) -> Kdump:
    """Raises KernelError if the header is damaged, or that of another machine."""
    data = read_at(file, 0, _HEADER.size)
    if len(data) < _HEADER.size:
        raise KernelError("is truncated in the header")
    _, _, utsname, _, block_size, sub_header_blocks, bitmap_blocks = _HEADER.unpack(
        data
    )
    machine = utsname[4 * _UTSNAME_FIELD :][:_UTSNAME_FIELD].split(b"\0")[0]
    size = os.fstat(file.fileno()).st_size
    if block_size % 4096 or not bitmap_blocks * block_size > 0:
        raise KernelError("is damaged in the header")
    if bitmap_blocks * block_size > size:
        raise KernelError("is truncated")
    return Kdump(
        machine.decode("ascii", "backslashreplace"),
        block_size,
        (1 + sub_header_blocks) * block_size,
        bitmap_blocks * block_size,
    )


def page_runs(file: BinaryIO, header: Kdump, limit: int) -> Iterator[tuple[int, int]]:
    """(physical address, size) of the pages in the dump, at most ``limit`` bytes each.

    Of the two bitmaps, the second one tells which pages were dumped.
    """
    half = header.bitmap_size // 2
    bitmap = read_at(file, header.bitmap_offset + half, half)
    bits = np.unpackbits(np.frombuffer(bitmap, np.uint8), bitorder="little")
    edges = np.flatnonzero(np.diff(bits, prepend=0, append=0))
    for first, end in edges.reshape(-1, 2).tolist():
        start, stop = first * header.block_size, end * header.block_size
        for address in range(start, stop, limit):
            yield address, min(limit, stop - address)
