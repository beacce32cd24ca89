"""Which files of a kind are open, and in which process?

Finds every ``struct file`` in its slab cache, so that none is missed: one may be in no
process's descriptor table but in flight between two, or registered with io_uring. The
descriptor tables say who has it open.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import drgn
import numpy as np
from numpy.typing import NDArray

from memcgctl.kernel.layout import has_member
from memcgctl.kernel.trouble import Topic, reading
from memcgctl.linux.kept import KeptFile, kept_files
from memcgctl.linux.lists import list_structs
from memcgctl.linux.rmap import file_vmas
from memcgctl.linux.slab import Slabs, find_slabs, slab_structs
from memcgctl.linux.structs import U64, Rows, addresses, find, read_structs, unique
from memcgctl.linux.tasks import OpenFiles, Tasks, open_files, read_tasks

if TYPE_CHECKING:
    from memcgctl.kernel.program import OpenedKernel

FILE = "struct file"
CACHE = b"filp"
# mm/slab_common.c, kmalloc_info: also of the accounted ones, and of the random copies.
KMALLOC = b"kmalloc-"

# No count of references is as large; 0x6b6b6b6b6b6b6b6b is a freed object that
# slub_debug has poisoned.
_MOST_REFERENCES = 1 << 40

# Names of caches that are looked for are shorter.
_NAME = 32
# So many descriptors are named in one line; the rest are counted.
NAMED = 6


@dataclass
class Opened:
    """Processes and what they have open, read when it is first asked for."""

    kernel: OpenedKernel

    @cached_property
    def tasks(self) -> Tasks:
        """All processes."""
        return read_tasks(self.kernel)

    @cached_property
    def descriptors(self) -> OpenFiles:
        """All descriptors of all processes."""
        return open_files(self.kernel)

    @cached_property
    def protocols(self) -> tuple[U64, Rows]:
        """``struct proto *``, and of each its ``slab`` and ``name``."""
        return list_structs(
            self.kernel,
            self.kernel.symbol("proto_list"),
            "struct proto",
            "node",
            {"slab": "slab", "name": "name"},
            Topic.SOCKETS,
        )

    @cached_property
    def caches(self) -> tuple[U64, Rows, list[bytes]]:
        """All ``struct kmem_cache *``, of each ``object_size``, and their names."""
        kernel = self.kernel
        at, rows = list_structs(
            kernel,
            kernel.symbol("slab_caches"),
            "struct kmem_cache",
            "list",
            {"name": "name", "size": "object_size"},
            Topic.SLABS,
        )
        return at, rows, [_text(kernel, int(name)) for name in rows["name"]]

    @cached_property
    def slabs(self) -> Slabs:
        """All slabs of files and of sockets."""
        caches = [self._file_caches, addresses(self.protocols[1]["slab"])]
        return find_slabs(self.kernel, np.concatenate(caches))

    @cached_property
    def _file_caches(self) -> U64:
        """Those of files: by name, since 7.2 has no pointer to it."""
        at, _, names = self.caches
        return at[[name == CACHE for name in names]]

    def kmalloc_caches(self, least: int) -> U64:
        """Those that ``kmalloc`` takes objects of ``least`` bytes or more from."""
        at, rows, names = self.caches
        named = np.array([name.startswith(KMALLOC) for name in names], np.bool_)
        return at[named & (rows["size"] >= least)]

    @cached_property
    def files(self) -> tuple[U64, U64, U64]:
        """``struct file *``, ``f_op`` and ``private_data`` of all files."""
        tables = self.descriptors.file
        return _all_files(self.kernel, self.slabs, self._file_caches, tables)

    def of_kind(self, operations: str) -> tuple[U64, U64]:
        """Files with these ``struct file_operations``, and their ``private_data``."""
        try:
            symbol = self.kernel.symbol(operations)
        except LookupError:
            return addresses([]), addresses([])
        at, op, data = self.files
        return at[op == symbol], data[op == symbol]

    def open_of_kind(self, operations: str) -> tuple[U64, U64]:
        """The same of files that are in some descriptor table: no slab is read."""
        try:
            symbol = self.kernel.symbol(operations)
        except LookupError:
            return addresses([]), addresses([])
        at, rows = self._in_tables
        hits = rows["op"] == symbol
        return at[hits], addresses(rows["data"][hits])

    @cached_property
    def _in_tables(self) -> tuple[U64, Rows]:
        at = unique(self.descriptors.file)
        members = {"op": "f_op", "data": "private_data"}
        return at, read_structs(self.kernel, FILE, at, members)

    @cached_property
    def kept(self) -> dict[int, KeptFile]:
        """The files that a socket or an io_uring has, by their ``struct file *``."""
        return {one.file: one for one in kept_files(self.kernel, self.open_of_kind)}

    def descriptors_of(self, file: int) -> list[tuple[int, int]]:
        """(pid, descriptor) of all that have the ``struct file *`` open."""
        pids, fds = self.descriptors.pid, self.descriptors.fd
        return [(int(pids[at]), int(fds[at])) for at in self._indexes.get(file, ())]

    def user(self, file: int) -> tuple[str, int | None]:
        """Who has the ``struct file *`` open, in words, and by which descriptor.

        The first process that has, and how many more; where none has, who else.
        """
        indexes = self._indexes.get(file)
        if not indexes:
            return self._keeper(file), None
        pids = {int(self.descriptors.pid[index]) for index in indexes}
        pid = int(self.descriptors.pid[indexes[0]])
        also = f" and {len(pids) - 1} more" if len(pids) > 1 else ""
        fd = int(self.descriptors.fd[indexes[0]])
        return f"{self._comms.get(pid, '?')} (pid {pid}){also}", fd

    def _keeper(self, file: int) -> str:
        """Who has a file that no process has open, in words."""
        if kept := self.kept.get(file):
            user, fd = self.user(kept.by)
            words = "in flight to" if kept.how == "in flight" else "with an io_uring of"
            return f"{words} {user}: fd {fd}" if fd is not None else f"{words} {user}"
        mapping = read_structs(
            self.kernel, FILE, addresses([file]), {"mapping": "f_mapping"}
        )["mapping"]
        areas = file_vmas(self.kernel, addresses(mapping))
        index, alive = find(self._address_spaces[0], areas.mm)
        mapped = index[alive & (areas.file == np.uint64(file))]
        if not len(mapped):
            return "open in no process"
        task = int(self._address_spaces[1][mapped[0]])
        pid = int(self.tasks.pid[task])
        return f"only mapped, by {self._comms.get(pid, '?')} (pid {pid})"

    @cached_property
    def _address_spaces(self) -> tuple[U64, NDArray[np.intp]]:
        """All ``struct mm_struct *``, sorted, and the first task that has each."""
        mms, first = np.unique(self.tasks.mm, return_index=True)
        return mms, first

    @cached_property
    def _indexes(self) -> dict[int, list[int]]:
        """Where among all descriptors each ``struct file *`` is."""
        indexes: defaultdict[int, list[int]] = defaultdict(list)
        for index, file in enumerate(self.descriptors.file.tolist()):
            indexes[file].append(index)
        return dict(indexes)

    @cached_property
    def _comms(self) -> dict[int, str]:
        return dict(zip(self.tasks.pid.tolist(), self.tasks.comm, strict=True))

    def described(self, what: str, files: Sequence[int]) -> list[tuple[str, int]]:
        """``what`` with each user of the ``struct file *`` and its descriptors, count.

        The descriptors come after a colon: ``TCP, nginx (pid 7): fd 4, 5``.
        """
        users: defaultdict[str, list[int | None]] = defaultdict(list)
        for file in files:
            user, fd = self.user(file)
            users[user].append(fd)
        found = []
        for user, fds in users.items():
            known = sorted(fd for fd in fds if fd is not None)
            more = len(known) - NAMED
            named = ", ".join(map(str, known[:NAMED]))
            also = f" and {more} more" if more > 0 else ""
            found.append(
                (f"{what}, {user}{f': fd {named}{also}' if known else ''}", len(fds))
            )
        return found


@reading(Topic.SLABS)
def _all_files(
    kernel: OpenedKernel, slabs: Slabs, caches: U64, tables: U64
) -> tuple[U64, U64, U64]:
    """Address, ``f_op`` and ``private_data`` of each ``struct file`` in use."""
    members = {"op": "f_op", "data": "private_data"}
    # A count of zero, or below it, is that of a free object. Since Linux kernel commit
    # 90ee6ed776c0 ("fs: port files to file_ref") (in v6.13) zero is one reference.
    ref = has_member(kernel.prog, FILE, "f_ref")
    count = {"count": "f_ref.refcnt.counter" if ref else "f_count.counter"}
    at, rows = slab_structs(kernel, slabs, caches, FILE, members | count)
    counts = rows["count"].astype(np.int64)
    used = (counts >= (0 if ref else 1)) & (counts < _MOST_REFERENCES)
    at, rows = at[used], rows[used]
    # What the slabs do not show: where the cache has been merged with another.
    others = np.setdiff1d(tables, at)
    more = read_structs(kernel, FILE, others, members)
    return (
        np.concatenate([at, others]),
        np.concatenate([rows["op"], more["op"]]),
        np.concatenate([rows["data"], more["data"]]),
    )


def _text(kernel: OpenedKernel, at: int) -> bytes:
    try:
        text: bytes = kernel.prog.read_c_string(at, max_size=_NAME)
    except drgn.FaultError:
        kernel.trouble.fault()
        return b""
    return text
