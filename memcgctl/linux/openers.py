"""Who has the files open that page cache belongs to?

Looks through the descriptors of all processes for files of given mappings
(``file->f_mapping``). A file on an overlayfs has its page cache in a file of the layer
below, which it keeps in ``private_data``: containers live on these.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from memcgctl.kernel.layout import has_member, offset_of
from memcgctl.kernel.trouble import Topic, reading
from memcgctl.linux.structs import (
    U64,
    addresses,
    find,
    read_pointers,
    read_strings,
    read_structs,
)
from memcgctl.linux.tasks import Tasks, open_files

if TYPE_CHECKING:
    from memcgctl.kernel.program import OpenedKernel

# FMODE_BACKING (include/linux/fs.h) is bit 25 in 6.8 and bit 24 in 6.12; the
# other one can mean something else.
_MAYBE_BACKING = np.uint32(1 << 24 | 1 << 25)


class Sighting(NamedTuple):
    """Where a process sees a file that is really in another file system.

    ``mount`` is a ``struct mount *``, ``dentry`` a ``struct dentry *``, ``task`` the
    position of the process.
    """

    mount: int
    dentry: int
    task: int


@dataclass(frozen=True)
class Openers:
    """For positions of mappings: the positions of processes that have them open.

    ``seen`` has where one of these sees it, for files under an overlayfs.
    """

    tasks: dict[int, list[int]]
    seen: dict[int, Sighting]


@reading(Topic.FILES)
def read_openers(kernel: OpenedKernel, mappings: U64, tasks: Tasks) -> Openers:
    """Who has each of the (sorted) ``struct address_space *`` open."""
    opened = open_files(kernel)
    files, which = np.unique(opened.file, return_inverse=True)
    rows = read_structs(
        kernel,
        "struct file",
        files,
        {
            "mapping": "f_mapping",
            "inode": "f_inode",
            "private": "private_data",
            "mnt": "f_path.mnt",
            "dentry": "f_path.dentry",
        },
    )
    mapping = addresses(rows["mapping"])
    overlay = on_overlay(kernel, addresses(rows["inode"]), "struct inode", "i_sb")
    real = _real_mappings(kernel, addresses(rows["private"]), overlay, mappings)
    mapping = np.where(real, real, mapping)
    index, known = find(mappings, mapping)
    inside = offset_of(kernel.prog, "struct mount", "mnt")
    by_mapping: dict[int, set[int]] = {}
    seen: dict[int, Sighting] = {}
    task, alive = find(tasks.pid.astype(np.uint64), opened.pid.astype(np.uint64))
    for file, position in zip(
        which[known[which] & alive].tolist(),
        task[known[which] & alive].tolist(),
        strict=True,
    ):
        by_mapping.setdefault(int(index[file]), set()).add(position)
        if real[file]:
            mount = int(rows["mnt"][file]) - inside
            dentry = int(rows["dentry"][file])
            seen.setdefault(int(index[file]), Sighting(mount, dentry, position))
    return Openers({key: sorted(found) for key, found in by_mapping.items()}, seen)


@reading(Topic.FILES)
def user_paths(kernel: OpenedKernel, files: U64) -> dict[int, tuple[int, int]]:
    """The path (mount, dentry) on an overlayfs of each mapped ``struct file *``.

    Files that are not of a layer below one are left out. A file of a layer that is
    opened for an overlayfs carries the overlay's path: in ``struct backing_file`` since
    Linux kernel commit def3ae83da02 ("fs: store real path instead of fake path in
    backing file f_path") (in v6.7), as its own before.
    """
    known = np.unique(files[files != 0])
    paths = known + np.uint64(offset_of(kernel.prog, "struct file", "f_path"))
    if has_member(kernel.prog, "struct backing_file", "user_path"):
        behind = offset_of(kernel.prog, "struct backing_file", "user_path")
        modes = read_structs(kernel, "struct file", known, {"mode": "f_mode"})["mode"]
        paths = np.where(
            modes & _MAYBE_BACKING, known + np.uint64(behind), np.uint64(0)
        )
    rows = read_structs(
        kernel, "struct path", paths, {"mnt": "mnt", "dentry": "dentry"}
    )
    mounts, dentries = addresses(rows["mnt"]), addresses(rows["dentry"])
    # What lies behind a plain file is no pointer to a dentry on an overlayfs.
    plausible = np.where(dentries >> np.uint64(63), dentries, np.uint64(0))
    overlay = on_overlay(kernel, plausible, "struct dentry", "d_sb")
    inside = offset_of(kernel.prog, "struct mount", "mnt")
    return {
        file: (mount - inside, dentry)
        for file, mount, dentry in zip(
            known[overlay].tolist(),
            mounts[overlay].tolist(),
            dentries[overlay].tolist(),
            strict=True,
        )
    }


@reading(Topic.FILES)
def on_overlay(
    kernel: OpenedKernel, at: U64, type_name: str, member: str
) -> NDArray[np.bool_]:
    """Which of the objects at ``at`` have an overlayfs as their super block."""
    supers = read_structs(kernel, type_name, at, {"sb": member})["sb"]
    blocks, which = np.unique(supers, return_inverse=True)
    types = read_structs(kernel, "struct super_block", blocks, {"type": "s_type"})
    names = read_structs(
        kernel, "struct file_system_type", addresses(types["type"]), {"name": "name"}
    )
    overlay = [name == "overlay" for name in read_strings(kernel, names["name"])]
    return np.asarray(overlay, np.bool_)[which]


def _real_mappings(
    kernel: OpenedKernel, private: U64, overlay: NDArray[np.bool_], mappings: U64
) -> U64:
    """The mapping (one of ``mappings``) behind each file on an overlayfs, or 0."""
    real = np.zeros(len(private), np.uint64)
    # The file of the layer itself, or since 6.13 a struct ovl_file, of which a core has
    # no types: pointers to the files of the lower and of the upper layer.
    for offset in (None, 0, 8):
        (indexes,) = (overlay & (private != 0) & (real == 0)).nonzero()
        files = private[indexes]
        if offset is not None:
            files = read_pointers(kernel, files + np.uint64(offset))
        files = np.where(files >> np.uint64(63), files, np.uint64(0))
        rows = read_structs(kernel, "struct file", files, {"mapping": "f_mapping"})
        mapping = addresses(rows["mapping"])
        known = find(mappings, mapping)[1]
        real[indexes[known]] = mapping[known]
    return real
