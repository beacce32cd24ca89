"""What are files called? Paths of ``struct dentry`` in ``struct mount``, in bulk.

One pass of reads for each level of directories, one for the mounts of a super block.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from memcgctl.kernel.layout import has_member, offset_of, value_of
from memcgctl.kernel.trouble import Topic, reading
from memcgctl.linux.structs import U64, addresses, read_pointers, read_structs, unique

if TYPE_CHECKING:
    from memcgctl.kernel.program import OpenedKernel

# No path has more components (PATH_MAX / 2).
_DEPTH_LIMIT = 2048
_MOUNTS_LIMIT = 1 << 16
_NAME_LIMIT = 255

# A struct mount * and a struct dentry * in it.
Place = tuple[int, int]


@dataclass(frozen=True)
class Dentry:
    """A ``struct dentry``: its parent (itself for a root), its name."""

    parent: int
    name: str
    unhashed: bool


@dataclass(frozen=True)
class Mount:
    """A ``struct mount``: what of which super block is mounted, and where."""

    super_block: int
    root: int
    parent: int
    mountpoint: int
    namespace: int
    id: int


@dataclass
class Names:
    """The directory entries and mounts that paths are made of, by address."""

    dentries: dict[int, Dentry] = field(default_factory=dict)
    mounts: dict[int, Mount] = field(default_factory=dict)
    # The mounts of a super block by namespace, the oldest first.
    mounted: dict[int, dict[int, list[int]]] = field(default_factory=dict)

    def path(self, mount: int, dentry: int, root: Place | None) -> str | None:
        """The path of ``dentry`` in ``mount``, down from ``root``.

        None if the dentry is not in this mount, or the climb does not meet ``root``;
        without one the path begins at the root of the namespace.
        """
        names: list[str] = []
        for _ in range(_DEPTH_LIMIT):
            here = self.mounts.get(mount)
            if here is None:
                return None
            top = dentry == here.root and here.parent in (0, mount)
            if (mount, dentry) == root or (top and root is None):
                return "/" + "/".join(reversed(names))
            if top:
                return None
            if dentry == here.root:
                mount, dentry = here.parent, here.mountpoint
                continue
            entry = self.dentries.get(dentry)
            if entry is None or entry.parent == dentry:
                return None
            names.append(entry.name)
            dentry = entry.parent
        return None

    def path_in(
        self, namespace: int, super_block: int, dentry: int, root: Place | None
    ) -> str | None:
        """The path of ``dentry`` by the namespace's oldest mount that has it."""
        for mount in self.mounted.get(super_block, {}).get(namespace, ()):
            path = self.path(mount, dentry, root)
            if path is not None:
                return path
        return None


@reading(Topic.FILES)
def file_paths(kernel: OpenedKernel, files: U64) -> list[str | None]:
    """The path of each ``struct file *`` as the host sees it."""
    rows = read_structs(
        kernel, "struct file", files, {"mnt": "f_path.mnt", "dentry": "f_path.dentry"}
    )
    inside = offset_of(kernel.prog, "struct mount", "mnt")
    mounts = np.where(rows["mnt"], rows["mnt"] - np.uint64(inside), np.uint64(0))
    names = Names()
    read_mounts(kernel, names, mounts.tolist())
    mountpoints = [mount.mountpoint for mount in names.mounts.values()]
    read_dentries(kernel, names, [*rows["dentry"].tolist(), *mountpoints])
    return [
        names.path(mount, dentry, None)
        for mount, dentry in zip(mounts.tolist(), rows["dentry"].tolist(), strict=True)
    ]


@reading(Topic.FILES)
def mount_point(kernel: OpenedKernel, super_block: int, root: int) -> str | None:
    """Where the host has mounted the ``struct dentry *`` of a ``super_block``."""
    names = Names()
    read_mounts(kernel, names, mounts_of(kernel, super_block))
    mountpoints = [mount.mountpoint for mount in names.mounts.values()]
    read_dentries(kernel, names, mountpoints)
    init_task = kernel.declare("init_task", "struct task_struct")
    nsproxy = addresses([value_of(init_task, "nsproxy")])
    host = read_structs(kernel, "struct nsproxy", nsproxy, {"mnt_ns": "mnt_ns"})
    return names.path_in(int(host["mnt_ns"][0]), super_block, root, None)


def read_dentries(kernel: OpenedKernel, names: Names, start: Iterable[int]) -> None:
    """Read dentries and all their ancestors into ``names``, level by level."""
    level = unique(addresses(list(start)))
    for _ in range(_DEPTH_LIMIT):
        if not len(level):
            return
        rows = read_structs(
            kernel,
            "struct dentry",
            level,
            {
                "parent": "d_parent",
                "hashed": "d_hash.pprev",
                "name": "d_name.name",
                "len": "d_name.len",
            },
        )
        for address, row in zip(level.tolist(), rows, strict=True):
            names.dentries[address] = Dentry(
                int(row["parent"]),
                _name(kernel, int(row["name"]), int(row["len"])),
                not row["hashed"],
            )
        above = unique(addresses(rows["parent"])).tolist()
        level = addresses([parent for parent in above if parent not in names.dentries])


def read_mounts(kernel: OpenedKernel, names: Names, start: Iterable[int]) -> None:
    """Read mounts, and the mounts these are on, into ``names``."""
    level = unique(addresses(list(start)))
    while len(level) and len(names.mounts) < _MOUNTS_LIMIT:
        rows = read_structs(
            kernel,
            "struct mount",
            level,
            {
                "sb": "mnt.mnt_sb",
                "root": "mnt.mnt_root",
                "parent": "mnt_parent",
                "mountpoint": "mnt_mountpoint",
                "namespace": "mnt_ns",
                "id": "mnt_id",
            },
        )
        for address, row in zip(level.tolist(), rows, strict=True):
            names.mounts[address] = Mount(
                int(row["sb"]),
                int(row["root"]),
                int(row["parent"]),
                int(row["mountpoint"]),
                int(row["namespace"]),
                int(row["id"]),
            )
        above = unique(addresses(rows["parent"])).tolist()
        level = addresses([mount for mount in above if mount not in names.mounts])
    for address, mount in sorted(names.mounts.items(), key=lambda item: item[1].id):
        spaces = names.mounted.setdefault(mount.super_block, {})
        spaces.setdefault(mount.namespace, []).append(address)


def mounts_of(kernel: OpenedKernel, super_block: int) -> list[int]:
    """Every ``struct mount *`` of a ``struct super_block *``."""
    prog = kernel.prog
    head = super_block + offset_of(prog, "struct super_block", "s_mounts")
    # A chain of mounts since Linux kernel commit 09a1b33c080f ("preparations to taking
    # MNT_WRITE_HOLD out of ->mnt_flags") (in v6.18), a list before.
    if chain := has_member(prog, "struct mount", "mnt_next_for_sb"):
        offset = offset_of(prog, "struct mount", "mnt_next_for_sb")
    else:
        offset = offset_of(prog, "struct mount", "mnt_instance")
    inside = 0 if chain else offset
    mounts: dict[int, None] = {}
    node = _pointer(kernel, head)
    while node not in (0, head) and len(mounts) < _MOUNTS_LIMIT:
        mount = node - inside
        if mount in mounts:
            break
        mounts[mount] = None
        node = _pointer(kernel, mount + offset)
    return list(mounts)


def _pointer(kernel: OpenedKernel, address: int) -> int:
    return int(read_pointers(kernel, addresses([address % 2**64]))[0])


def _name(kernel: OpenedKernel, address: int, length: int) -> str:
    """The name of a ``struct qstr``, bytes that are not UTF-8 as surrogates."""
    raw = kernel.memory.try_read(address, min(length, _NAME_LIMIT)) if address else None
    return (raw or b"?").decode(errors="surrogateescape")
