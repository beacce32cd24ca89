"""Write a block device's buffers and drop them (``BLKFLSBUF``)."""

from __future__ import annotations

import fcntl
import os
import stat

from memcgctl.actions.host.machine import ActionError, Guard, Machine, Outcome, aim
from memcgctl.model import DeviceTarget, Step

_BLKFLSBUF = 0x1261
# include/uapi/linux/major.h. Old kernels' RAM disks lose their contents by it.
_RAMDISK = 1

NAME = "flush-device"


def probe(machine: Machine) -> str | None:
    return machine.lacks("sys_admin")


def apply(step: Step, machine: Machine, guard: Guard) -> Outcome:
    """Open the device for reading, only if it has the number that the plan means."""
    name = aim(step, DeviceTarget).device
    path = machine.dev / name
    number = _number(name, machine)
    which = f"{os.major(number)}:{os.minor(number)}"
    guard.note(f"writing {path}", which)
    try:
        at = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            found = os.fstat(at)
            if not stat.S_ISBLK(found.st_mode) or found.st_rdev != number:
                raise ActionError(f"{path} is not that device")
            if os.major(number) == _RAMDISK:
                raise ActionError(f"{path} is a RAM disk")
            link = machine.proc / f"self/fd/{at}"
            fd = os.open(link, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        finally:
            os.close(at)
        try:
            os.fsync(fd)
            fcntl.ioctl(fd, _BLKFLSBUF, 0)
        finally:
            os.close(fd)
    except OSError as error:
        raise ActionError(f"{path}: {error.strerror}") from error
    return Outcome(None)


def _number(name: str, machine: Machine) -> int:
    """The number of the device that has this name now (/sys/class/block)."""
    path = machine.sys / "class/block" / name.replace("/", "!") / "dev"
    try:
        major, minor = path.read_text().split(":")
    except (OSError, ValueError) as error:
        raise ActionError(f"there is no block device {name}") from error
    return os.makedev(int(major), int(minor))
