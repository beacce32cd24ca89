"""Write what is dirty on this machine's disks, and wait for nobody else.

``sync(2)`` also waits for each network file system, for ever if its server is gone:
each mounted file system of a disk gets a ``syncfs(2)`` of its own instead.
"""

from __future__ import annotations

import os
from collections.abc import Collection

from memcgctl.actions.host.libc import syncfs
from memcgctl.actions.host.machine import Guard, Machine, Mount
from memcgctl.actions.host.mounts import leads_to_mount

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def sync_disks(
    machine: Machine, guard: Guard, devices: Collection[str] | None = None
) -> list[str]:
    """Write all disks, or these (major:minor); what was left out, and why.

    What a disk does not take is for the steps of its files to tell.
    """
    left: list[str] = []
    done: set[str] = set()
    for mount in machine.mounts:
        if devices is not None and mount.device not in devices:
            continue
        if mount.device in done or mount.read_only or not _on_disk(mount):
            continue
        if not leads_to_mount(mount, machine.mounts):
            continue
        if mount.device in guard.avoid:
            left.append(f"{mount.point} hangs: {guard.avoid[mount.device]}")
            done.add(mount.device)
            continue
        guard.note(f"syncing {mount.point}", mount.device)
        try:
            fd = os.open(mount.point, _DIRECTORY)
            done.add(mount.device)
            try:
                syncfs(fd)
            finally:
                os.close(fd)
        except OSError as error:
            left.append(f"{mount.point}: {error.strerror}")
    guard.note("", "")
    return left


def _on_disk(mount: Mount) -> bool:
    """By the device's number: that of no disk is 0:n, and that of btrfs.

    FUSE's with a disk (``fuseblk``) wait for a process.
    """
    if mount.fs.startswith("fuse"):
        return False
    return mount.fs == "btrfs" or not mount.device.startswith("0:")
