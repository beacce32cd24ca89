"""The guest's first file system: busybox, the helper of guest.c and kernel modules.

A cpio archive ("newc") written here, so that no root and no cpio program is needed.
"""

from __future__ import annotations

import gzip
import lzma
import re
import shutil
import stat
import struct
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.lab import arm64
from tests.lab.arch import AMD64, Arch

# Whatever of these the kernel has built in is not in its packages as a module.
MODULES = ["virtio_pci", "virtio_blk", "qemu_fw_cfg", "lzo-rle", "zram"]

INIT = """#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
while read module; do insmod /modules/$module; done < /modules/order
mkdir /dev/disk
for disk in /sys/block/vd*; do
    ln -s /dev/${disk##*/} /dev/disk/$(cat $disk/serial)
done
exec /bin/lab agent {agent}
"""


def needs_libraries(program: Path) -> bool:
    """Whether an ELF program names a loader (PT_INTERP): the guest has none."""
    data = program.read_bytes()
    (start,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    kinds = (struct.unpack_from("<I", data, start + size * n)[0] for n in range(count))
    return 3 in kinds


def build_helper(directory: Path, compiler: str) -> Path:
    """Compile guest.c into ``directory`` and return the program."""
    program = directory / "lab"
    source = Path(__file__).with_name("guest.c")
    subprocess.run(
        [compiler, "-O2", "-Wall", "-Wextra", "-static", "-o", program, source],
        check=True,
    )
    return program


def find_modules(kernel: Path, wanted: Sequence[str]) -> list[Path]:
    """Module files under ``kernel`` in the order in which to load them.

    Dependencies come from the modules' own ``depends=`` (``.modinfo`` section), as
    Debian's packages have no ``modules.dep`` before installation.
    """
    files = {
        re.sub(r"\.ko(\.xz)?$", "", path.name).replace("-", "_"): path
        for path in kernel.rglob("*.ko*")
    }
    order: list[Path] = []

    def visit(name: str) -> None:
        path = files.get(name.replace("-", "_"))
        if path is None or path in order:
            return
        found = re.search(rb"\0depends=([^\0]*)", read_module(path))
        for needed in found[1].decode().split(",") if found else []:
            visit(needed)
        order.append(path)

    for name in wanted:
        visit(name)
    return order


def read_module(path: Path) -> bytes:
    data = path.read_bytes()
    return lzma.decompress(data) if path.suffix == ".xz" else data


def entry(name: str, mode: int, data: bytes = b"", number: int = 0) -> bytes:
    """One cpio entry: the format of Documentation/driver-api/early-userspace."""
    fields = [number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0]
    head = b"070701" + b"".join(b"%08x" % field for field in fields)
    head += name.encode() + b"\0"
    return head + b"\0" * (-len(head) % 4) + data + b"\0" * (-len(data) % 4)


def entries(
    kernel: Path, helper: Path, modules: Sequence[str], arch: Arch
) -> Iterator[bytes]:
    for name in ["bin", "dev", "proc", "sys", "mnt", "tmp", "modules"]:
        yield entry(name, stat.S_IFDIR | 0o755)
    busybox = shutil.which("busybox")
    if busybox is None:
        raise FileNotFoundError("busybox (Debian: busybox-static)")
    if needs_libraries(Path(busybox)):
        raise ValueError(f"{busybox} is not static: install Debian's busybox-static")
    theirs = Path(busybox) if arch is AMD64 else arm64.busybox()
    yield entry("bin/busybox", stat.S_IFREG | 0o755, theirs.read_bytes())
    applets = subprocess.run([busybox, "--list"], capture_output=True, check=True)
    for name in applets.stdout.decode().split():
        if name != "busybox":
            yield entry(f"bin/{name}", stat.S_IFLNK | 0o777, b"busybox")
    yield entry("bin/lab", stat.S_IFREG | 0o755, helper.read_bytes())
    init = INIT.replace("{agent}", arch.agent)
    yield entry("init", stat.S_IFREG | 0o755, init.encode())
    order = []
    for path in find_modules(kernel, [*MODULES, *arch.modules, *modules]):
        name = path.name.removesuffix(".xz")
        yield entry(f"modules/{name}", stat.S_IFREG | 0o644, read_module(path))
        order.append(name + "\n")
    yield entry("modules/order", stat.S_IFREG | 0o644, "".join(order).encode())
    yield entry("TRAILER!!!", 0)


def build(
    kernel: Path, directory: Path, modules: Sequence[str] = (), arch: Arch = AMD64
) -> Path:
    """Write ``directory/initramfs`` for the unpacked packages in ``kernel``."""
    path = directory / "initramfs"
    helper = build_helper(directory, arch.compiler)
    data = b"".join(entries(kernel, helper, modules, arch))
    path.write_bytes(gzip.compress(data, 1))
    return path
