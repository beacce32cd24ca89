"""Which pages does a kdump-compressed file hold, and is all of it there?

libkdumpfile reads these files (makedumpfile's ``struct disk_dump_header``, see its
IMPLEMENTATION file), but it maps them into memory, where what a truncated or damaged
file promises and does not hold is a bus error: so all that it will follow is checked
first. The bitmap of pages is also where to look for a missing VMCOREINFO.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from functools import cached_property
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from memcgctl.kernel.errors import KernelError

FLAT_MAGIC = b"makedumpfile"
MAGICS = (b"KDUMP   ", b"DISKDUMP")

# struct disk_dump_header: signature, header_version, struct new_utsname, timestamp,
# status, block_size, sub_hdr_size, bitmap_blocks, max_mapnr.
_HEADER = struct.Struct("<8si390s6x16xIIIII")
_UTSNAME_FIELD = 65
# DUMP_DH_COMPRESSED_INCOMPLETE: makedumpfile had no room for all pages.
_INCOMPLETE = 0x8
# struct kdump_sub_header: phys_base, dump_level, split, start_pfn, end_pfn, offset and
# size of vmcoreinfo, notes, eraseinfo, start_pfn_64, end_pfn_64, max_mapnr_64.
_SUB_HEADER = struct.Struct("<QiiQQ6Q2QQ")
# struct page_desc
_PAGE = np.dtype([("offset", "<u8"), ("size", "<u4"), ("flags", "<u4"), ("", "<u8")])
_MOST_NOTES = 1 << 20
_PAGES_AT_ONCE = 1 << 18

# The flattened format is big-endian: 4096 bytes of header, then records of
# (offset, size) and data, the last one with an offset of -1.
_FLAT_HEADER_SIZE = 4096
_RECORD = struct.Struct(">qq")


class KdumpFile:
    """A plain or flattened file; raises KernelError if it is cut off or damaged."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        size = os.fstat(file.fileno()).st_size
        # Where each piece is: in the file as it would be if it were not flattened,
        # its size, and its offset in this one. Later ones replace earlier ones.
        self._pieces = [(0, size, 0)]
        if os.pread(file.fileno(), len(FLAT_MAGIC), 0) == FLAT_MAGIC:
            self._pieces = list(_records(file, size))

    def read(self, offset: int, size: int) -> bytes:
        """Bytes of the file that is not flattened; zeros where it holds none."""
        data = bytearray(size)
        for start, length, stored in self._pieces:
            low, high = max(start, offset), min(start + length, offset + size)
            if low < high:
                part = os.pread(self._file.fileno(), high - low, stored + low - start)
                data[low - offset : low - offset + len(part)] = part
        return bytes(data)

    def check(self) -> None:
        """Whether all that the headers and page descriptors point to is there."""
        if self.block_size not in (4096, 8192, 16384, 32768, 65536):
            raise KernelError("is damaged in the header")
        if self._sub_header[2] and self._version >= 2:
            raise KernelError(
                "is one part of a split dump: join them with makedumpfile --reassemble"
            )
        ranges = np.array(self._sub_header[5:11], np.uint64).reshape(-1, 2)
        self._check_held(ranges[:, 0], ranges[:, 1])
        at, size = self._bitmap
        self._check_held(np.array([at], np.uint64), np.array([size], np.uint64))
        first = (1 + self._sub_header_blocks + self._bitmap_blocks) * self.block_size
        count = int(np.unpackbits(self._bits).sum())
        for done in range(0, count, _PAGES_AT_ONCE):
            number = min(_PAGES_AT_ONCE, count - done)
            start, size = first + done * _PAGE.itemsize, number * _PAGE.itemsize
            self._check_held(np.array([start], np.uint64), np.array([size], np.uint64))
            pages = np.frombuffer(self.read(start, size), _PAGE)
            self._check_held(pages["offset"], pages["size"].astype(np.uint64))

    @property
    def incomplete(self) -> bool:
        """Whether makedumpfile says that it could not write all pages."""
        return bool(self._header[3] & _INCOMPLETE)

    @property
    def dump_level(self) -> int:
        """What makedumpfile was told to leave out (``-d``), as bits; 0: nothing."""
        return int(self._sub_header[1])

    @property
    def machine(self) -> str:
        """``utsname.machine``; QEMU leaves it empty, or says "Unknown"."""
        field: bytes = self._header[2][4 * _UTSNAME_FIELD :][:_UTSNAME_FIELD]
        name = field.split(b"\0")[0].decode("latin-1").lower()
        if not re.fullmatch(r"[a-z0-9_]*", name):
            raise KernelError("is damaged in the header")
        return name

    @property
    def notes(self) -> bytes:
        """VMCOREINFO and the notes, which can have it, as far as they can be read."""
        places = self._sub_header[5:7], self._sub_header[7:9]
        return b"".join(self.read(at, min(size, _MOST_NOTES)) for at, size in places)

    @property
    def block_size(self) -> int:
        """Size of a page, and the unit of offsets in the file."""
        return int(self._header[4])

    def page_runs(self, limit: int) -> Iterator[tuple[int, int]]:
        """(physical address, size) of the pages in the dump, each at most ``limit``."""
        bits = np.unpackbits(self._bits, bitorder="little")
        edges = np.flatnonzero(np.diff(bits, prepend=0, append=0))
        for first, end in edges.reshape(-1, 2).tolist():
            start, stop = first * self.block_size, end * self.block_size
            for address in range(start, stop, limit):
                yield address, min(limit, stop - address)

    @cached_property
    def _header(self) -> tuple[bytes, int, bytes, int, int, int, int, int]:
        return _HEADER.unpack(self.read(0, _HEADER.size))

    @cached_property
    def _sub_header(self) -> tuple[int, ...]:
        return _SUB_HEADER.unpack(self.read(self.block_size, _SUB_HEADER.size))

    @property
    def _version(self) -> int:
        return self._header[1]

    @property
    def _sub_header_blocks(self) -> int:
        return self._header[5]

    @property
    def _bitmap_blocks(self) -> int:
        return self._header[6]

    @property
    def _bitmap(self) -> tuple[int, int]:
        """Place and size of the bitmap of dumped pages.

        It is the second of two, or the only one if one has to be enough.
        """
        pages = self._sub_header[13] if self._version >= 6 else self._header[7]
        at = (1 + self._sub_header_blocks) * self.block_size
        size = self._bitmap_blocks * self.block_size
        if pages <= size * 8 // 2:
            half = self._bitmap_blocks // 2 * self.block_size
            return at + half, half
        return at, size

    @cached_property
    def _bits(self) -> npt.NDArray[np.uint8]:
        return np.frombuffer(self.read(*self._bitmap), np.uint8)

    @cached_property
    def _held(self) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
        """Starts and ends of the parts of the file that there are, merged."""
        merged: list[list[int]] = []
        for start, size, _ in sorted(self._pieces):
            if merged and start <= merged[-1][1]:
                merged[-1][1] = max(merged[-1][1], start + size)
            else:
                merged.append([start, start + size])
        parts = np.array(merged, np.uint64)
        return parts[:, 0], parts[:, 1]

    def _check_held(
        self, starts: npt.NDArray[np.uint64], sizes: npt.NDArray[np.uint64]
    ) -> None:
        """Raises KernelError unless the file has all of these ranges."""
        starts, sizes = starts[sizes > 0], sizes[sizes > 0]
        part_starts, part_ends = self._held
        part = np.searchsorted(part_starts, starts, "right") - 1
        room = part_ends[np.maximum(part, 0)] - starts
        inside = (part >= 0) & (starts < part_ends[np.maximum(part, 0)])
        if not (inside & (sizes <= room)).all():
            raise KernelError(
                "cannot be read: the dump is incomplete, makedumpfile had no room for "
                "all pages"
                if self.incomplete
                else "is truncated or damaged: it lacks pages that it promises"
            )


def _records(file: BinaryIO, size: int) -> Iterator[tuple[int, int, int]]:
    """(offset, size, offset in the file) of each record of a flattened file."""
    at = _FLAT_HEADER_SIZE
    while len(head := os.pread(file.fileno(), _RECORD.size, at)) == _RECORD.size:
        offset, length = _RECORD.unpack(head)
        if offset == -1:
            return
        at += _RECORD.size
        if offset < 0 or not 0 < length <= size - at:
            break
        yield offset, length, at
        at += length
    raise KernelError(
        "is truncated or damaged: a part of the flattened file is missing"
    )
