"""Which mounts does a path lead through, and do these ask somebody else?

A look-up in a file system whose server or process is gone never returns: FUSE, network
file systems, autofs. So a path is opened only where none of them is on the way, the one
that is meant aside. Reads /proc/PID/mountinfo, which the kernel answers by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from memcgctl.actions.host.machine import Mount

# fuseblk has a disk and waits for a process all the same.
_ASK = {
    *("9p", "afs", "autofs", "beegfs", "ceph", "cifs", "coda", "gfs2", "glusterfs"),
    *("lustre", "ncpfs", "nfs", "nfs4", "ocfs2", "orangefs", "smb3", "smbfs"),
    "virtiofs",
}


def asks_others(mount: Mount) -> bool:
    """Whether the file system waits for a server or a process."""
    return mount.fs in _ASK or mount.fs.startswith("fuse")


def on_the_way(path: str, mounts: Sequence[Mount]) -> Iterator[Mount]:
    """The mounts that a look-up of ``path`` enters, the one that it ends in last."""
    ids = {mount.id for mount in mounts}
    below: dict[int, list[Mount]] = {}
    for mount in mounts:
        if path == mount.point or path.startswith(f"{mount.point.rstrip('/')}/"):
            above = mount.parent if mount.parent in ids else -1
            below.setdefault(above, []).append(mount)
    here = -1
    while found := below.pop(here, []):
        # The first one that is met; what is mounted over it is below it.
        entered = min(found, key=lambda mount: len(mount.point))
        yield entered
        here = entered.id


def leads_to(path: str, device: str, mounts: Sequence[Mount]) -> bool:
    """Whether nobody has to be asked on the way to a file of this device."""
    way = [*on_the_way(path, mounts)]
    if way and way[-1].device == device:
        way.pop()
    return not any(map(asks_others, way))


def leads_to_mount(mount: Mount, mounts: Sequence[Mount]) -> bool:
    """Whether its point leads to it: nothing is mounted over it, or asks on the way."""
    *way, last = [None, *on_the_way(mount.point, mounts)]
    return last == mount and not any(map(asks_others, filter(None, way)))
