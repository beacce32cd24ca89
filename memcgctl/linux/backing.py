"""Which file, device or memory object do folios of the page cache belong to?

From ``struct address_space`` to its inode, super block and dentry; the path is built
from ``dentry.d_parent`` and the ``struct mount``s of that super block, as the host's
mount namespace has it and as the container's does. One pass of reads for each kind of
structure, one for each level of directories.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from memcgctl.kernel.layout import (
    has_member,
    offset_of,
)
from memcgctl.kernel.trouble import (
    Topic,
    reading,
)
from memcgctl.linux.paths import Names, Place, mounts_of, read_dentries, read_mounts
from memcgctl.linux.structs import (
    U64,
    Rows,
    addresses,
    read_strings,
    read_structs,
    unique,
)
from memcgctl.model import Backing

if TYPE_CHECKING:
    from memcgctl.kernel.program import OpenedKernel
    from memcgctl.linux.openers import Sighting
    from memcgctl.linux.tasks import Tasks

# A file with more names than this is shown without one.
_ALIASES_LIMIT = 64

# include/linux/kdev_t.h
_MINOR_BITS = 20

# mm/memfd.c, ipc/shm.c and mm/shmem.c name the files of their internal mounts so.
_OBJECTS = {"memfd:": "memfd", "SYSV": "sysv", "dev/zero": "shared-anon"}


@reading(Topic.FILES)
def read_backings(
    kernel: OpenedKernel,
    mappings: U64,
    tasks: Tasks,
    users: Sequence[Collection[int]],
    seen: Mapping[int, Sighting],
) -> list[Backing | None]:
    """The backing object of each ``struct address_space *``; None: it has no inode.

    ``users`` has, for each of them, the positions in ``tasks`` of the processes that
    map or open it: its path as a container sees it is that in their mount namespace,
    or where one of them has ``seen`` it on an overlayfs.
    """
    spaces = read_structs(
        kernel,
        "struct address_space",
        mappings,
        {"host": "host", "ops": "a_ops", "pages": "nrpages"},
    )
    hosts, shmem = spaces["host"], spaces["ops"] == _shmem_operations(kernel)
    inodes = _read_inodes(kernel, addresses(hosts))
    supers = _read_super_blocks(kernel, unique(inodes["sb"]))
    aliases = _aliases(kernel, addresses(inodes["alias"]))
    names = Names()
    mounts = [mount for sb in supers for mount in mounts_of(kernel, sb)]
    read_mounts(kernel, names, [*mounts, *(s.mount for s in seen.values())])
    mountpoints = [mount.mountpoint for mount in names.mounts.values()]
    dentries = [sighting.dentry for sighting in seen.values()]
    read_dentries(kernel, names, [*aliases, *mountpoints, *dentries])
    namespaces = _namespaces(kernel, tasks)
    sizes = spaces["pages"].astype(np.uint64) * np.uint64(kernel.memory.page_size)
    backings: list[Backing | None] = []
    for index, (host, inode, alias, cached) in enumerate(
        zip(hosts.tolist(), inodes, aliases, sizes.tolist(), strict=True)
    ):
        known = supers.get(int(inode["sb"]))
        if known is None:
            backings.append(None)
        elif known.fs == "bdev":
            device = _bdev_name(kernel, host) or _device(int(inode["rdev"]))
            # Its number is that of the device (up to 5.10 it has none).
            backings.append(
                _backing("bdev", known, inode, cached, "rdev", device=device)
            )
        else:
            kind = "hugetlb" if known.fs == "hugetlbfs" else "file"
            kind = "tmpfs" if shmem[index] else kind
            file = _File(known, inode, cached, alias, kind)
            inside = None
            if sighting := seen.get(index):
                path = names.path(
                    sighting.mount,
                    sighting.dentry,
                    namespaces.of_task[sighting.task][1],
                )
                inside = (path, int(tasks.pid[sighting.task])) if path else None
            backings.append(_file(file, names, namespaces, users[index], inside))
    return backings


@dataclass(frozen=True)
class _SuperBlock:
    address: int
    fs: str
    device: str


@dataclass(frozen=True)
class _Namespaces:
    """The mount namespace and the root directory (mount, dentry) of each process."""

    host: int
    of_task: list[tuple[int, Place]]
    pids: list[int]
    # The position of the first process in each namespace.
    first: dict[int, int]

    def containers(self, users: Iterable[int], mounted: Iterable[int]) -> Iterator[int]:
        """Processes in others than the host's: the users, then of those ``mounted``."""
        for index in users:
            if self.of_task[index][0] != self.host:
                yield index
        for namespace in mounted:
            if namespace != self.host and namespace in self.first:
                yield self.first[namespace]


def _namespaces(kernel: OpenedKernel, tasks: Tasks) -> _Namespaces:
    spaces = read_structs(
        kernel, "struct nsproxy", tasks.nsproxy, {"mnt_ns": "mnt_ns"}
    )["mnt_ns"]
    roots = read_structs(
        kernel,
        "struct fs_struct",
        tasks.fs,
        {"mnt": "root.mnt", "dentry": "root.dentry"},
    )
    offset = offset_of(kernel.prog, "struct mount", "mnt")
    of_task = [
        (space, (int(root["mnt"]) - offset, int(root["dentry"])))
        for space, root in zip(spaces.tolist(), roots, strict=True)
    ]
    # The first process is pid 1, which is in the host's own namespace.
    host = of_task[0][0] if of_task else 0
    first = {of_task[index][0]: index for index in reversed(range(len(of_task)))}
    return _Namespaces(host, of_task, tasks.pid.tolist(), first)


class _File(NamedTuple):
    """An inode of a file system, as it was read."""

    super_block: _SuperBlock
    inode: Any
    cached_bytes: int
    alias: int
    kind: str


def _file(
    file: _File,
    names: Names,
    namespaces: _Namespaces,
    users: Collection[int],
    inside: tuple[str, int] | None,
) -> Backing:
    """An inode of a file system, with its paths; ``inside`` is that of an overlayfs."""
    super_block, inode, cached_bytes, alias, kind = file
    entry = names.dentries.get(alias)
    if entry is not None and entry.parent == alias and entry.unhashed:
        # On an internal mount: it never had a directory entry (alloc_file_pseudo).
        if kind == "tmpfs":
            known = [_OBJECTS[name] for name in _OBJECTS if entry.name.startswith(name)]
            kind = (*known, kind)[0]
        return _backing(kind, super_block, inode, cached_bytes, path=entry.name)
    host = None
    if entry is not None:
        host = names.path_in(namespaces.host, super_block.address, alias, None)
        mounted = names.mounted.get(super_block.address, {})
        for index in namespaces.containers(users, mounted):
            if inside:
                break
            space, root = namespaces.of_task[index]
            path = names.path_in(space, super_block.address, alias, root)
            inside = (path, namespaces.pids[index]) if path else None
    return _backing(
        kind,
        super_block,
        inode,
        cached_bytes,
        path=host,
        inside=None if inside and inside[0] == host else inside,
        deleted=int(inode["nlink"]) == 0 or (entry is not None and entry.unhashed),
    )


def _shmem_operations(kernel: OpenedKernel) -> int:
    """What ``a_ops`` of every shmem mapping is: tmpfs, devtmpfs, a tmpfs as rootfs."""
    try:
        return kernel.symbol("shmem_aops")
    except LookupError:  # CONFIG_SHMEM is off
        return 0


def _backing(
    kind: Any,
    super_block: _SuperBlock,
    inode: Any,
    cached_bytes: int,
    number: str = "ino",
    *,
    device: str | None = None,
    path: str | None = None,
    inside: tuple[str, int] | None = None,
    deleted: bool = False,
) -> Backing:
    return Backing(
        kind=kind,
        fs=super_block.fs,
        device=device or super_block.device,
        inode=int(inode[number]),
        generation=int(inode["generation"]),
        path=path,
        container_path=inside[0] if inside else None,
        deleted=deleted,
        size_bytes=int(inode["size"]),
        cached_bytes=cached_bytes,
        container_pid=inside[1] if inside else None,
    )


def _read_inodes(kernel: OpenedKernel, inodes: U64) -> Rows:
    return read_structs(
        kernel,
        "struct inode",
        inodes,
        {
            "sb": "i_sb",
            "ino": "i_ino",
            "nlink": "i_nlink",
            "rdev": "i_rdev",
            "size": "i_size",
            "generation": "i_generation",
            "alias": "i_dentry.first",
        },
    )


def _read_super_blocks(kernel: OpenedKernel, at: U64) -> dict[int, _SuperBlock]:
    rows = read_structs(
        kernel, "struct super_block", at, {"type": "s_type", "dev": "s_dev"}
    )
    types = read_structs(
        kernel, "struct file_system_type", addresses(rows["type"]), {"name": "name"}
    )
    return {
        address: _SuperBlock(
            address,
            _text(kernel, int(type_["name"])) or "?",
            _device(int(row["dev"])),
        )
        for address, row, type_ in zip(at.tolist(), rows, types, strict=True)
    }


def _device(dev: int) -> str:
    return f"{dev >> _MINOR_BITS}:{dev & ((1 << _MINOR_BITS) - 1)}"


def _bdev_name(kernel: OpenedKernel, inode: int) -> str | None:
    """The name of the block device whose own page cache this inode has."""
    start = inode - offset_of(kernel.prog, "struct bdev_inode", "vfs_inode")
    bdev = addresses([start + offset_of(kernel.prog, "struct bdev_inode", "bdev")])
    device = "struct block_device"
    # Since Linux kernel commit 0d02129e76ed ("block: merge struct block_device and
    # struct hd_struct") (in v5.11) partitions are devices with a name of their own.
    if has_member(kernel.prog, device, "bd_device"):
        row = read_structs(kernel, device, bdev, {"name": "bd_device.kobj.name"})
        return _text(kernel, int(row["name"][0]))
    members = {"disk": "bd_disk", "part": "bd_partno"}
    (row,) = read_structs(kernel, device, bdev, members)
    name = offset_of(kernel.prog, "struct gendisk", "disk_name")
    disk = _text(kernel, int(row["disk"]) + name) if row["disk"] else None
    part = int(row["part"])
    if not part or not disk:
        return disk
    return f"{disk}{'p' if disk[-1].isdigit() else ''}{part}"


def _aliases(kernel: OpenedKernel, first: U64) -> list[int]:
    """For each ``inode.i_dentry.first``: the dentry to name the inode by, 0 if none.

    That is the first one that is still hashed, or else the first.
    """
    link = "d_alias"
    # In d_u until Linux kernel commit 3b7d764a37d0 ("struct dentry: make ->d_u
    # anonymous") (in v7.3).
    if not has_member(kernel.prog, "struct dentry", link):
        link = "d_u.d_alias"
    offset = np.uint64(offset_of(kernel.prog, "struct dentry", link))
    dentry = np.where(first, first - offset, np.uint64(0))
    chosen, undecided = dentry.copy(), dentry != 0
    for _ in range(_ALIASES_LIMIT):
        if not undecided.any():
            break
        rows = read_structs(
            kernel,
            "struct dentry",
            np.where(undecided, dentry, np.uint64(0)),
            {"hashed": "d_hash.pprev", "next": f"{link}.next"},
        )
        hashed = undecided & (rows["hashed"] != 0)
        chosen[hashed] = dentry[hashed]
        undecided &= (rows["hashed"] == 0) & (rows["next"] != 0)
        dentry = addresses(rows["next"]) - offset
    dentries: list[int] = chosen.tolist()
    return dentries


def _text(kernel: OpenedKernel, address: int) -> str | None:
    return read_strings(kernel, addresses([address]))[0] or None
