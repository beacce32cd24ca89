"""Write what is dirty on this machine's disks, and wait for nobody else.

``sync(2)`` also waits for each network file system, for ever if its server is gone:
each mounted file system of a disk gets a ``syncfs(2)`` of its own instead.
"""

from __future__ import annotations

import os
from contextlib import suppress

from memcgctl.actions.host.libc import syncfs
from memcgctl.actions.host.machine import Machine, Mount

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def sync_disks(machine: Machine) -> None:
    """What a disk does not take is for the steps of its files to tell."""
    on_top = {mount.point: mount for mount in machine.mounts}
    done: set[str] = set()
    for mount in on_top.values():
        if mount.device in done or mount.read_only or not _on_disk(mount):
            continue
        with suppress(OSError):
            fd = os.open(mount.point, _DIRECTORY)
            done.add(mount.device)
            try:
                syncfs(fd)
            finally:
                os.close(fd)


def _on_disk(mount: Mount) -> bool:
    """By the device's number: that of no disk is 0:n, and that of btrfs.

    FUSE's with a disk (``fuseblk``) wait for a process.
    """
    if mount.fs.startswith("fuse"):
        return False
    return mount.fs == "btrfs" or not mount.device.startswith("0:")
