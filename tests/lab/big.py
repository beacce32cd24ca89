"""A core of a large machine on a small one, for the benchmarks.

The guest's memory is a sparse file, and what the guest never touched stays a hole in
the core. A note with VMCOREINFO and two program headers before it make the core: QEMU's
own dump would write every byte.
"""

from __future__ import annotations

import contextlib
import os
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.lab import packages
from tests.lab.guest import Guest, Machine, boot
from tests.lab.scenarios import CGROUPS

GIB = 1 << 30
# Where QEMU's pc machine puts memory from 3.5 GiB on: 3 GiB low, the rest above 4 GiB.
LOW, HIGH = 3 * GIB, 4 * GIB
HEADERS = 1 << 20
BLOCK = 1 << 22
BATCH = 250


def big(
    series: str, gib: int, zombies: int, files: int = 1, out: Path | None = None
) -> Path:
    """Make (or find in the lab's cache) the core of a guest with so much memory.

    A quarter of the memory is in use by a living cgroup; each zombie is held by so many
    files of tmpfs, of a page each.
    """
    kernel = packages.get(series)
    held = f"{zombies}x{files}" if files > 1 else f"{zombies}"
    name = f"{kernel.release}-{gib}G-{held}.elf"
    core = out or packages.cache() / name
    if core.exists():
        return core
    with tempfile.TemporaryDirectory(dir=core.parent) as directory:
        memory = Path(directory) / "memory"
        machine = Machine(
            memory=f"{gib}G",
            qemu=(
                "-object",
                f"memory-backend-file,id=m,size={gib}G,mem-path={memory},share=on",
                "-machine",
                "memory-backend=m",
            ),
        )
        with boot(kernel, machine) as guest:
            fill(guest, gib * GIB // 4, zombies, files)
            address, size = guest.read("/sys/kernel/vmcoreinfo").split()
            guest.qmp("stop")
            note = int(address, 16), int(size, 16)
            write_core(memory, gib * GIB, note, Path(directory) / name)
        (Path(directory) / name).rename(core)
    return core


def fill(guest: Guest, used: int, zombies: int, files: int) -> None:
    guest.sh(f"""
        mount -t cgroup2 cgroup2 {CGROUPS}
        mkdir /mnt/t; mount -t tmpfs tmpfs /mnt/t
        echo never > /sys/kernel/mm/transparent_hugepage/enabled
        echo 1G > /sys/block/zram0/disksize; mkswap /dev/zram0; swapon /dev/zram0
        cd {CGROUPS}; echo +memory > cgroup.subtree_control
        mkdir app holder; echo +memory > app/cgroup.subtree_control
    """)
    guest.run(
        "lab", "do", f"join={CGROUPS}/holder", f"anon={used >> 20}M", "touch", "hold"
    )
    for first in range(0, zombies, BATCH):
        count = min(BATCH, zombies - first)
        where = f"{CGROUPS}/app", str(first), str(count), "/mnt/t", str(files)
        guest.run("lab", "many", *where)


def write_core(memory: Path, size: int, note: tuple[int, int], out: Path) -> None:
    """An ELF core of a guest's memory file; ``note`` is where VMCOREINFO is."""
    address, length = note
    segments = [(0, 0, LOW), (HIGH, LOW, size - LOW)]  # physical, in the file, size
    programs = [(4, 0, 4096, 0, 0, length, length, 4)]  # PT_NOTE
    programs += [
        (1, 7, HEADERS + place, 0, physical, part, part, 4096)  # PT_LOAD
        for physical, place, part in segments
    ]
    with memory.open("rb") as source, out.open("wb") as target:
        target.write(
            struct.pack(
                "<16sHHIQQQIHHHHHH",
                b"\x7fELF\x02\x01\x01",
                *(4, 62, 1, 0, 64, 0, 0, 64, 56, len(programs), 0, 0, 0),
            )
        )
        for program in programs:
            target.write(struct.pack("<IIQQQQQQ", *program))
        place = address if address < LOW else address - HIGH + LOW
        target.seek(4096)
        target.write(os.pread(source.fileno(), length, place))
        for at, data in _data(source.fileno()):
            target.seek(HEADERS + at)
            target.write(data)
        target.truncate(HEADERS + size)


def _data(file: int) -> Iterator[tuple[int, bytes]]:
    """Offset and content of what is not a hole."""
    end = 0
    with contextlib.suppress(OSError):  # ENXIO: no more data
        while True:
            at = os.lseek(file, end, os.SEEK_DATA)
            end = os.lseek(file, at, os.SEEK_HOLE)
            while at < end:
                yield at, (data := os.pread(file, min(BLOCK, end - at), at))
                at += len(data)
