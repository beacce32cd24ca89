"""What kind of file is a core, and what does it say before any memory is read?

Tells ELF cores (kdump's vmcore, QEMU's and libvirt's dumps) and kdump-compressed files
(makedumpfile's, plain or flattened) from all else that people pass by mistake, and
says what that is.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from memcgctl.kernel import elf, kdump
from memcgctl.kernel.errors import KernelError

_NT_AUXV, _NT_FILE = 6, 0x46494C45  # only processes have these

_OTHER_MAGICS = {
    b"BZh": "compressed with bzip2, which is not supported: unpack it first",
    b"\x04\x22\x4d\x18": "compressed with lz4, which is not supported: unpack it first",
    b"PK\x03\x04": "a zip archive: unpack it first",
    b"7z\xbc\xaf\x27\x1c": "a 7-Zip archive: unpack it first",
    b"LibvirtQemudSave": "a saved state of libvirt, not a core: "
    "dump the guest with 'virsh dump --memory-only'",
    b"QEVM": "a migration stream of QEMU, not a core: use dump-guest-memory",
}


@dataclass(frozen=True)
class CoreFile:
    """A file that can hold a kernel's memory.

    ``note`` is the content of its VMCOREINFO note (kdump files keep it for
    libkdumpfile to tell), ``missing`` how many bytes were cut off; ``incomplete`` says
    that its writer had no room for all pages, ``dump_level`` what it was to leave out.
    """

    path: Path
    format: Literal["elf", "kdump"]
    note: bytes | None = None
    missing: int = 0
    incomplete: bool = False
    machine: str = "x86_64"
    dump_level: int = 0
    _data: tuple[tuple[int, int], ...] = ()

    def data(self, limit: int) -> Iterator[tuple[int, int]]:
        """(file offset, size) of an ELF core's memory, at most ``limit`` bytes each.

        Holes of a sparse file are left out.
        """
        with self.path.open("rb") as file:
            for start, end in self._data:
                for low, high in _without_holes(file, start, end):
                    for at in range(low, high, limit):
                        yield at, min(limit, high - at)


def _without_holes(file: BinaryIO, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The parts of [start, end) that are not holes of a sparse file."""
    at = start
    while at < end:
        try:
            low = os.lseek(file.fileno(), at, os.SEEK_DATA)
            high = os.lseek(file.fileno(), low, os.SEEK_HOLE)
        except OSError as error:
            if error.errno != errno.ENXIO:  # a filesystem without such a seek
                yield at, end
            return
        if low < end:
            yield low, min(high, end)
        at = high


def inspect(path: Path) -> CoreFile:
    """Raises KernelError if this is not a core of such a kernel, and OSError.

    The file's name is for the caller to add.
    """
    with path.open("rb") as file:
        return _inspect(path, file)


def read_file(path: Path, size: int) -> bytes:
    """The first ``size`` bytes of a file; raises KernelError if it cannot be read.

    A FIFO or a device is refused before it is opened: that could wait for ever.
    """
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise KernelError(f"{path}: is a directory, not a file")
        if not stat.S_ISREG(status.st_mode):
            raise KernelError(f"{path}: is a device, pipe or socket, not a file")
        with path.open("rb") as file:
            data = file.read(min(size, status.st_size))
    except OSError as error:
        raise KernelError(f"{path}: {error.strerror}") from error
    except ValueError as error:  # a null character in the name
        raise KernelError(f"{str(path)!r}: {error}") from error
    if not data:
        raise KernelError(f"{path}: is empty")
    return data


def _inspect(path: Path, file: BinaryIO) -> CoreFile:
    start = os.pread(file.fileno(), 16, 0)
    if start.startswith(elf.MAGIC):
        return _inspect_elf(path, file)
    if start.startswith((*kdump.MAGICS, kdump.FLAT_MAGIC)):
        return _inspect_kdump(path, kdump.KdumpFile(file))
    for magic, meaning in _OTHER_MAGICS.items():
        if start.startswith(magic):
            raise KernelError(f"is {meaning}")
    raise KernelError("is not a core: neither ELF nor in kdump's format")


def _inspect_elf(path: Path, file: BinaryIO) -> CoreFile:
    core = elf.read(file)
    if core.kind != elf.ET_CORE:
        raise KernelError(
            "is a program or an object file, not a core (a vmlinux goes to --vmlinux)"
        )
    note, of_process = None, False
    for owner, kind, content in core.notes():
        if owner == b"VMCOREINFO":
            note = content
        of_process |= owner == b"CORE" and kind in (_NT_AUXV, _NT_FILE)
    if note is None and of_process:
        raise KernelError("is the core of a process, not of a kernel")
    if not core.segments:
        raise KernelError("is a core without any memory in it")
    return CoreFile(
        path,
        "elf",
        note,
        core.missing,
        machine=core.machine,
        _data=_union(
            (s.offset, min(s.offset + s.size, core.size)) for s in core.segments
        ),
    )


def _union(ranges: Iterator[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Ranges without overlaps: a core with paging refers to the same data twice."""
    found: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        elif end > start:
            found.append((start, end))
    return tuple(found)


def _inspect_kdump(path: Path, dump: kdump.KdumpFile) -> CoreFile:
    start = dump.read(0, 16)
    if start.startswith(elf.MAGIC):  # makedumpfile -E -F
        raise KernelError("is a flattened ELF core: unflatten it with makedumpfile -R")
    if not start.startswith(kdump.MAGICS):
        raise KernelError("is a flattened file, but not of a core")
    machine = dump.machine
    if machine in ("", "unknown"):  # QEMU's
        arm = b"NUMBER(kimage_voffset)=" in dump.notes
        machine = "aarch64" if arm else "x86_64"
    if machine not in elf.MACHINES.values():
        raise KernelError(f"is of another machine, {machine}; {elf.READABLE}")
    dump.check()
    # QEMU has one block size for all kernels of arm64, the largest.
    pages = re.search(rb"^PAGESIZE=(\d{1,9})$", dump.notes, re.MULTILINE)
    if pages and int(pages[1]) != dump.block_size:
        raise KernelError(
            f"has blocks of {dump.block_size} bytes, the kernel pages of "
            f"{int(pages[1])}, which libkdumpfile cannot read: dump the guest as ELF"
        )
    return CoreFile(
        path,
        "kdump",
        incomplete=dump.incomplete,
        dump_level=dump.dump_level,
        machine=machine,
    )
