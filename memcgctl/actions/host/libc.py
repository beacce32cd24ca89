"""System calls that Python has no function for, with errors as ``OSError``.

All arguments are checked by the kernel; nothing here keeps a pointer.
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct
from collections.abc import Sequence
from typing import NamedTuple

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int),
    *(ctypes.c_int, ctypes.c_int, ctypes.c_int64),
]

# include/uapi/asm-generic/unistd.h: the same on all architectures but alpha.
_PROCESS_MADVISE = 440
MADV_COLD = 20
MADV_PAGEOUT = 21
MADV_COLLAPSE = 25

# include/uapi/linux/prctl.h
_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_AT_EMPTY_PATH = 0x1000
_AT_STATX_DONT_SYNC = 0x4000
_STATX_TYPE, _STATX_INO = 0x001, 0x100
# include/linux/swap.h
_SWAP_FLAG_PREFER, _SWAP_FLAG_PRIO_MASK = 0x8000, 0x7FFF
_MAX_HANDLE_SZ = 128
_IOV_MAX = 1024
_MAP_FAILED = ctypes.c_void_p(-1).value


def _checked(result: int) -> int:
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def die_with_parent() -> None:
    """Be killed when the thread that forked us ends."""
    _checked(_libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0))


def set_name(name: str) -> None:
    """What ``ps`` shows as our command."""
    _checked(_libc.prctl(_PR_SET_NAME, name.encode(), 0, 0, 0))


def syncfs(fd: int) -> None:
    """Write what is dirty of the file system that ``fd`` is of, and wait for it."""
    _checked(_libc.syncfs(fd))


def swapon(path: str, *, priority: int | None) -> None:
    """Swap to a device, with a priority, or before all others."""
    chosen = _SWAP_FLAG_PRIO_MASK if priority is None else priority
    _checked(_libc.swapon(os.fsencode(path), _SWAP_FLAG_PREFER | chosen))


def swapoff(path: str) -> None:
    """Bring back what is in a swap device, and swap to it no more."""
    _checked(_libc.swapoff(os.fsencode(path)))


def file_handle(fd: int) -> tuple[int, bytes]:
    """Type and bytes of the file handle of an open file, ``O_PATH`` ones included."""
    buffer = ctypes.create_string_buffer(
        struct.pack("=Ii", _MAX_HANDLE_SZ, 0), 8 + _MAX_HANDLE_SZ
    )
    mount = ctypes.c_int()
    _checked(
        _libc.name_to_handle_at(fd, b"", buffer, ctypes.byref(mount), _AT_EMPTY_PATH)
    )
    size, kind = struct.unpack_from("=Ii", buffer)
    return kind, buffer.raw[8 : 8 + size]


class Status(NamedTuple):
    """What ``statx`` says of a file; ``device`` is ``major:minor``."""

    mode: int
    inode: int
    device: str


def status(fd: int) -> Status:
    """Of an open file, ``O_PATH`` ones included, by what the kernel knows of it.

    ``fstat`` asks the server of a FUSE or network file system, which may be gone.
    """
    # struct statx, include/uapi/linux/stat.h
    buffer = ctypes.create_string_buffer(256)
    flags = _AT_EMPTY_PATH | _AT_STATX_DONT_SYNC
    _checked(_libc.statx(fd, b"", flags, _STATX_TYPE | _STATX_INO, buffer))
    (mode,) = struct.unpack_from("=H", buffer, 28)
    (inode,) = struct.unpack_from("=Q", buffer, 32)
    major, minor = struct.unpack_from("=II", buffer, 136)
    return Status(mode, inode, f"{major}:{minor}")


def open_by_handle(mount: int, kind: int, handle: bytes, flags: int) -> int:
    """A new descriptor for a file of the file system that ``mount`` is open on."""
    buffer = ctypes.create_string_buffer(
        struct.pack("=Ii", len(handle), kind) + handle, 8 + len(handle)
    )
    return _checked(_libc.open_by_handle_at(mount, buffer, flags))


def process_madvise(
    pidfd: int, ranges: Sequence[tuple[int, int]], advice: int
) -> tuple[int, OSError | None]:
    """Advise on up to 1024 (address, size) of a process: bytes done, what stopped it.

    The kernel stops at the first range that it refuses.
    """
    ranges = ranges[:_IOV_MAX]
    vector = struct.pack(f"={2 * len(ranges)}Q", *(n for pair in ranges for n in pair))
    total = sum(size for _, size in ranges)
    done = _libc.syscall(
        ctypes.c_long(_PROCESS_MADVISE),
        ctypes.c_long(pidfd),
        ctypes.c_char_p(vector),
        ctypes.c_long(len(ranges)),
        ctypes.c_long(advice),
        ctypes.c_long(0),
    )
    if done == -1:
        code = ctypes.get_errno()
        return 0, OSError(code, os.strerror(code))
    return done, None if done == total else OSError(0, "a range was refused")


class Mapping:
    """A shared, read-only mapping of part of a file, gone at the end of a ``with``."""

    def __init__(self, fd: int, offset: int, size: int):
        read, shared = 1, 1  # PROT_READ, MAP_SHARED
        address = _libc.mmap(None, size, read, shared, fd, offset)
        if address == _MAP_FAILED:
            _checked(-1)
        self.address, self.size = int(address), size

    def __enter__(self) -> Mapping:
        return self

    def __exit__(self, *_: object) -> None:
        _libc.munmap(ctypes.c_void_p(self.address), ctypes.c_size_t(self.size))

    def resident(self, page_size: int) -> bytes:
        """For each page 1 if it is in memory, else 0 (``mincore``)."""
        pages = -(-self.size // page_size)
        vector = ctypes.create_string_buffer(pages)
        _checked(
            _libc.mincore(
                ctypes.c_void_p(self.address), ctypes.c_size_t(self.size), vector
            )
        )
        return bytes(byte & 1 for byte in vector.raw)

    def advise(self, advice: int, start: int, size: int) -> None:
        """Advise on ``size`` bytes from ``start`` on, in whole pages."""
        at = ctypes.c_void_p(self.address + start)
        _checked(_libc.madvise(at, ctypes.c_size_t(size), advice))
