"""Who is in a namespace, and what keeps one that nobody is in?

A namespace lives as long as a process is in it, its file is mounted (``ip netns add``)
or that file is open. Finds the mounts of nsfs and its open files, and what namespace
each is of (``inode->i_private``, fs/nsfs.c).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from memcgctl.kernel.layout import offset_of
from memcgctl.kernel.trouble import Topic
from memcgctl.linux.files import Opened
from memcgctl.linux.lists import list_structs
from memcgctl.linux.paths import Names, mounts_of, read_dentries, read_mounts
from memcgctl.linux.structs import U64, addresses, read_strings, read_structs

if TYPE_CHECKING:
    from memcgctl.kernel.program import OpenedKernel

# So many processes or mounts are named; the rest are counted.
NAMED = 2


@dataclass
class Namespaces:
    """Namespaces and what keeps them, read when it is first asked for."""

    kernel: OpenedKernel
    opened: Opened

    def cgroup_roots(self) -> tuple[U64, U64]:
        """Cgroup namespaces with a file that is kept: ``ns_common``, ``root_cset``."""
        try:
            ops = self.kernel.symbol("cgroupns_operations")
        except LookupError:  # CONFIG_CGROUPS is off
            return addresses([]), addresses([])
        known = addresses(sorted({*self._mounts, *self._files}))
        rows = read_structs(self.kernel, "struct ns_common", known, {"ops": "ops"})
        known = known[rows["ops"] == ops]
        inside = offset_of(self.kernel.prog, "struct cgroup_namespace", "ns")
        roots = read_structs(
            self.kernel,
            "struct cgroup_namespace",
            known - np.uint64(inside),
            {"root": "root_cset"},
        )
        return known, addresses(roots["root"])

    def network(self, net: int) -> tuple[int, str]:
        """The number of a ``struct net *`` (its file's inode) and who has it."""
        inside = offset_of(self.kernel.prog, "struct net", "ns")
        common = net + inside
        rows = read_structs(
            self.kernel, "struct ns_common", addresses([common]), {"inum": "inum"}
        )
        return int(rows["inum"][0]), self.kept_by(common, self._in_network.get(net, ()))

    def kept_by(self, common: int, tasks: tuple[int, ...] | list[int] = ()) -> str:
        """Who is in a ``struct ns_common *`` (positions of tasks), or what keeps it."""
        parts = []
        if tasks:
            known = self.opened.tasks
            named = [f"{known.comm[t]} (pid {known.pid[t]})" for t in tasks[:NAMED]]
            parts.append(_and_more("used by " + ", ".join(named), len(tasks)))
        if paths := self._mounts.get(common):
            named = sorted(set(paths))
            words = "mounted at " + ", ".join(named[:NAMED])
            parts.append(_and_more(words, len(named)))
        for file in self._files.get(common, ())[:NAMED]:
            user, fd = self.opened.user(file)
            where = f"open in {user}" if fd is not None else user
            parts.append(where + (f" as fd {fd}" if fd is not None else ""))
        return ", ".join(parts) or "no process, mount or open file of it was found"

    @cached_property
    def _in_network(self) -> dict[int, list[int]]:
        """The indexes of the tasks in each ``struct net *``."""
        rows = read_structs(
            self.kernel, "struct nsproxy", self.opened.tasks.nsproxy, {"net": "net_ns"}
        )
        found: defaultdict[int, list[int]] = defaultdict(list)
        for index, net in enumerate(rows["net"].tolist()):
            found[net].append(index)
        return dict(found)

    @cached_property
    def _files(self) -> dict[int, list[int]]:
        """The open ``struct file *`` of each ``struct ns_common *``."""
        files, _ = self.opened.of_kind("ns_file_operations")
        rows = read_structs(self.kernel, "struct file", files, {"inode": "f_inode"})
        spaces = self._of_inodes(addresses(rows["inode"]))
        found: defaultdict[int, list[int]] = defaultdict(list)
        for file, space in zip(files.tolist(), spaces.tolist(), strict=True):
            found[space].append(file)
        return dict(found)

    @cached_property
    def _mounts(self) -> dict[int, list[str]]:
        """Where the file of each ``struct ns_common *`` is mounted."""
        kernel, names = self.kernel, Names()
        its = [mount for sb in self._super_blocks() for mount in mounts_of(kernel, sb)]
        read_mounts(kernel, names, its)
        read_dentries(kernel, names, [m.mountpoint for m in names.mounts.values()])
        roots = [names.mounts[mount].root for mount in its]
        rows = read_structs(
            kernel, "struct dentry", addresses(roots), {"inode": "d_inode"}
        )
        spaces = self._of_inodes(addresses(rows["inode"]))
        found: defaultdict[int, list[str]] = defaultdict(list)
        for mount, root, space in zip(its, roots, spaces.tolist(), strict=True):
            here = names.mounts[mount]
            # The kernel's own mount of nsfs is no file's.
            if here.parent != mount:
                found[space].append(names.path(mount, root, None) or "?")
        return dict(found)

    def _of_inodes(self, inodes: U64) -> U64:
        rows = read_structs(self.kernel, "struct inode", inodes, {"ns": "i_private"})
        return addresses(rows["ns"])

    def _super_blocks(self) -> list[int]:
        """Those of nsfs: one."""
        kernel = self.kernel
        supers, rows = list_structs(
            kernel,
            kernel.symbol("super_blocks"),
            "struct super_block",
            "s_list",
            {"type": "s_type"},
            Topic.FILES,
        )
        types = read_structs(
            kernel,
            "struct file_system_type",
            addresses(rows["type"]),
            {"name": "name"},
        )
        names = read_strings(kernel, addresses(types["name"]))
        return [
            int(at) for at, name in zip(supers, names, strict=True) if name == "nsfs"
        ]


def _and_more(words: str, number: int) -> str:
    return words + (f" and {number - NAMED} more" if number > NAMED else "")
