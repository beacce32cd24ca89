"""A swap device of our own in compressed memory (zram): made, switched on, removed.

``/sys/class/zram-control`` makes and removes devices, ``/sys/block/zramN`` has their
size, swapon(2) takes what has a swap header. Ours is known by the UUID in its header
and its size, both written down before: no other device is ever touched.
"""

from __future__ import annotations

import errno
import mmap
import os
import re
import shutil
import struct
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from memcgctl.actions.host.libc import swapoff, swapon
from memcgctl.actions.host.machine import (
    ActionError,
    Machine,
    SwapDevice,
    meminfo,
    read_text,
)

LABEL = b"memcgctl"
# include/linux/swap.h, union swap_header: version, last_page, nr_badpages, uuid, label.
_INFO = struct.Struct("=III16s16s")
_INFO_AT, _MAGIC = 1024, b"SWAPSPACE2"
_TRIES, _PAUSE = 50, 0.1
_MODPROBE = "/usr/sbin:/sbin:/usr/bin:/bin"


def probe(machine: Machine) -> str | None:
    """None if a device can be made here, or else why not; nothing is loaded yet."""
    if why := machine.lacks("sys_admin"):
        return why
    if _control(machine).is_dir():
        if not os.access(_control(machine) / "hot_add", os.R_OK):
            return f"{_control(machine)}/hot_add may not be read"
        return None
    if not _module_there(machine):
        return "this kernel has no zram, neither built in nor as a module"
    if not (machine.euid == 0 and shutil.which("modprobe", path=_MODPROBE)):
        return "the module zram is not loaded, and there is no modprobe to load it"
    return None


def _control(machine: Machine) -> Path:
    return machine.sys / "class/zram-control"


def _module_there(machine: Machine) -> bool:
    place = Path("/lib/modules", machine.release)
    return "/zram.ko" in read_text(place / "modules.dep")


def load(machine: Machine) -> None:
    """Load the module if it is not there."""
    if _control(machine).is_dir():
        return
    program = shutil.which("modprobe", path=_MODPROBE) or "modprobe"
    ran = subprocess.run([program, "zram"], capture_output=True, check=False)
    if not _control(machine).is_dir():
        last = ran.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise ActionError(f"the module zram cannot be loaded: {last or 'no reason'}")


def add(machine: Machine) -> int:
    """The number of a new device, which nobody else has a name for yet."""
    try:
        return int((_control(machine) / "hot_add").read_text())
    except (OSError, ValueError) as error:
        raise ActionError(f"no zram device can be made: {error}") from error


def switch_on(device: SwapDevice, machine: Machine) -> None:
    """Give it its size and header, and swap to it before all others."""
    try:
        (_block(device, machine) / "disksize").write_text(f"{device.size}\n")
        _write_header(device, machine)
        swapon(str(_node(device, machine)), priority=None)
    except OSError as error:
        words = error.strerror or str(error)
        raise ActionError(f"{device.name} cannot be swapped to: {words}") from error


def used(device: SwapDevice, machine: Machine) -> int | None:
    """What is in it, in bytes; None where it is not switched on.

    Raises ActionError where that cannot be read.
    """
    for line in _swaps(machine):
        words = line.split()
        if len(words) == 5 and words[0].endswith(f"/zram{device.number}"):
            return int(words[3]) << 10
    return None


def take_back(device: SwapDevice, machine: Machine) -> None:
    """Bring back all that is in it (swapoff), for as long as that takes."""
    try:
        swapoff(str(_node(device, machine)))
    except OSError as error:
        if error.errno == errno.EINVAL and used(device, machine) is None:
            return
        words = error.strerror or str(error)
        raise ActionError(f"swapoff {device.name}: {words}") from error


def again(device: SwapDevice, machine: Machine) -> None:
    """Empty it by bringing back what is in it, and swap to it as before."""
    take_back(device, machine)
    try:
        swapon(str(_node(device, machine)), priority=None)
    except OSError as error:
        raise ActionError(f"swapon {device.name}: {error.strerror}") from error


def state(device: SwapDevice, machine: Machine) -> str:
    """``gone``, ``empty`` (no size), ``unused``, ``off``, ``on``; or ``not ours``.

    ``unused``: of our size, without a header, and nothing was ever written to it.
    Raises ActionError where that cannot be told.
    """
    block = _block(device, machine)
    if not block.is_dir():
        return "gone"
    size = read_text(block / "disksize").strip()
    if not size:
        raise ActionError(f"the size of {device.name} cannot be read")
    if size == "0":
        return "empty"
    if size != str(device.size):
        return "not ours"
    header = _read_header(device, machine)
    if header is None:
        written = read_text(block / "mm_stat").split()
        return "unused" if written[:1] == ["0"] else "not ours"
    if header != (device.uuid, LABEL):
        return "not ours"
    return "off" if used(device, machine) is None else "on"


def remove(device: SwapDevice, machine: Machine) -> None:
    """Have it no more; what is in it must be back, or else the kernel refuses."""
    block = _block(device, machine)
    why = ""
    for _ in range(_TRIES):  # somebody may just be looking at it (udev)
        try:
            (block / "reset").write_text("1")
            (_control(machine) / "hot_remove").write_text(str(device.number))
            return
        except FileNotFoundError:
            return
        except OSError as error:
            why = error.strerror or str(error)
            if error.errno != errno.EBUSY:
                break
        time.sleep(_PAUSE)
    raise ActionError(f"{device.name} cannot be removed: {why}")


def room_for(machine: Machine) -> int | None:
    """How many bytes may be in a device at once: what does not compress takes as much.

    The kernel's own watermarks stay far, and others may want some meanwhile. None where
    it cannot be read how much memory is free.
    """
    free = meminfo(machine.proc).get("MemAvailable")
    return None if free is None else free // 3


def swap_priorities(machine: Machine) -> list[int]:
    """Those of what is swapped to now; raises ActionError where that is not told."""
    lines = "\n".join(_swaps(machine))
    return [int(one) for one in re.findall(r"(-?\d+)$", lines, re.M)]


def _swaps(machine: Machine) -> list[str]:
    """The lines of /proc/swaps below its title."""
    title, *lines = read_text(machine.proc / "swaps").splitlines() or [""]
    if not title:
        raise ActionError(f"{machine.proc}/swaps cannot be read")
    return lines


def _block(device: SwapDevice, machine: Machine) -> Path:
    return machine.sys / f"block/zram{device.number}"


def _node(device: SwapDevice, machine: Machine) -> Path:
    """Its device file, if that is of the device that /sys has."""
    path = machine.dev / f"zram{device.number}"
    known = read_text(_block(device, machine) / "dev").strip()
    for _ in range(_TRIES):
        with suppress(OSError):
            at = os.stat(path).st_rdev
            if f"{os.major(at)}:{os.minor(at)}" == known:
                return path
        time.sleep(_PAUSE)
    raise ActionError(f"{path} is not there, or not of zram{device.number}")


def _write_header(device: SwapDevice, machine: Machine) -> None:
    page = bytearray(machine.page_size)
    last = device.size // machine.page_size - 1
    uuid = bytes.fromhex(device.uuid)
    page[_INFO_AT : _INFO_AT + _INFO.size] = _INFO.pack(1, last, 0, uuid, LABEL)
    page[-len(_MAGIC) :] = _MAGIC
    fd = os.open(_node(device, machine), os.O_WRONLY | os.O_EXCL | os.O_CLOEXEC)
    try:
        os.write(fd, page)
        os.fsync(fd)
    finally:
        os.close(fd)


def _read_header(device: SwapDevice, machine: Machine) -> tuple[str, bytes] | None:
    """UUID and label; None where there is no swap header. Not from a cache."""
    size = machine.page_size
    try:
        flags = os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC
        fd = os.open(_node(device, machine), flags)
        try:
            with mmap.mmap(-1, size) as page:
                os.preadv(fd, [page], 0)
                data = bytes(page)
        finally:
            os.close(fd)
    except OSError as error:
        raise ActionError(f"{device.name} cannot be read: {error.strerror}") from error
    if data[-len(_MAGIC) :] != _MAGIC:
        return None
    *_, uuid, label = _INFO.unpack_from(data, _INFO_AT)
    return uuid.hex(), label.rstrip(b"\0")
