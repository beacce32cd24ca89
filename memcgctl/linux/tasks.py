"""Which processes are there, what memory do they have, which files are open?

Reads ``init_pid_ns.idr`` (every ``struct pid``), from there all ``struct task_struct``
with their ``css_set``, ``mm_struct`` and ``files_struct``: one pass of reads for each
kind of structure. Threads of a process are one entry.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from memcgctl.kernel.layout import (
    offset_of,
)
from memcgctl.kernel.trouble import (
    Topic,
    reading,
)
from memcgctl.linux.structs import (
    U64,
    addresses,
    enumerators,
    read_pointers,
    read_structs,
    unique,
    xarray_entries,
)

if TYPE_CHECKING:
    from memcgctl.kernel.program import OpenedKernel

# /proc/PID/stat counts start times in USER_HZ, which is 100 on x86 whatever HZ is.
_NANOSECONDS_PER_TICK = 10_000_000

# More descriptors than fs.nr_open's default in one table are damage.
_FDS_LIMIT = 1 << 20


@dataclass(frozen=True)
class Tasks:
    """All processes: parallel arrays, one element a process, in the order of pids.

    ``address`` is the ``struct task_struct *`` of the group leader; where this has
    ended and other threads live on, of one of these, whose number ``tid`` is. ``mm`` is
    its ``struct mm_struct *`` (0 for kernel threads and exited ones), ``memcg`` its
    ``struct mem_cgroup *``; name and start are the process's, so the leader's.
    """

    address: U64
    pid: NDArray[np.int64]
    tid: NDArray[np.int64]
    comm: list[str]
    start_ticks: NDArray[np.int64]
    mm: U64
    memcg: U64
    nsproxy: U64
    fs: U64


@dataclass(frozen=True)
class OpenFiles:
    """All open descriptors: parallel arrays; ``file`` is a ``struct file *``."""

    pid: NDArray[np.int64]
    fd: NDArray[np.int64]
    file: U64


@reading(Topic.PROCESSES)
def read_tasks(kernel: OpenedKernel) -> Tasks:
    """Every process of the kernel, zombies and kernel threads included."""
    threads = _threads(kernel)
    rows = read_structs(
        kernel,
        "struct task_struct",
        threads,
        {
            "pid": "pid",
            "tgid": "tgid",
            "comm": "comm",
            "start": "start_boottime",
            "ended": "exit_state",
            "mm": "mm",
            "cgroups": "cgroups",
            "nsproxy": "nsproxy",
            "fs": "fs",
        },
    )
    # Pid 0 is on no list: that one could not be read.
    threads, rows = threads[rows["tgid"] != 0], rows[rows["tgid"] != 0]
    # A leader that ended before its other threads has no mm, and stays in the cgroup
    # that it was in although the process moves (cgroup_migrate_add_task).
    other = rows["pid"] != rows["tgid"]
    order = np.lexsort((other, rows["ended"] != 0, rows["tgid"]))
    threads, rows, other = threads[order], rows[order], other[order]
    pids, first = np.unique(rows["tgid"], return_index=True)
    leader = first.copy()
    (leaders,) = (~other).nonzero()
    leader[np.searchsorted(pids, rows["tgid"][leaders])] = leaders
    return Tasks(
        threads[first],
        pids.astype(np.int64),
        rows["pid"][first].astype(np.int64),
        [_text(comm) for comm in rows["comm"][leader]],
        rows["start"][leader].astype(np.int64) // _NANOSECONDS_PER_TICK,
        _first_set(rows["mm"], first),
        _memcgs(kernel, rows["cgroups"][first]),
        _first_set(rows["nsproxy"], first),
        _first_set(rows["fs"], first),
    )


@reading(Topic.FILE_TABLES)
def open_files(kernel: OpenedKernel) -> OpenFiles:
    """Every open descriptor of every process; a table shared by threads comes once.

    Threads that have unshared their table count as well, under their process.
    """
    rows = read_structs(
        kernel,
        "struct task_struct",
        _threads(kernel),
        {"tgid": "tgid", "files": "files"},
    )
    rows = np.unique(rows[rows["files"] != 0])
    tables = read_structs(
        kernel,
        "struct fdtable",
        read_structs(
            kernel, "struct files_struct", addresses(rows["files"]), {"fdt": "fdt"}
        )["fdt"],
        {"max_fds": "max_fds", "fd": "fd"},
    )
    pids: list[NDArray[Any]] = []
    fds: list[NDArray[Any]] = []
    files: list[NDArray[Any]] = []
    for tgid, table in zip(rows["tgid"].tolist(), tables, strict=True):
        array = _fd_array(kernel, int(table["fd"]), int(table["max_fds"]))
        (used,) = array.nonzero()
        pids.append(np.full(len(used), tgid, np.int64))
        fds.append(used)
        files.append(array[used])
    if not files:
        return OpenFiles(np.zeros(0, np.int64), np.zeros(0, np.int64), addresses([]))
    return OpenFiles(np.concatenate(pids), np.concatenate(fds), np.concatenate(files))


@reading(Topic.PROCESSES)
def _threads(kernel: OpenedKernel) -> U64:
    """``struct task_struct *`` of every thread, from the initial pid namespace."""
    tree = addresses(
        [
            kernel.symbol("init_pid_ns")
            + offset_of(kernel.prog, "struct pid_namespace", "idr.idr_rt.xa_head")
        ]
    )
    tree = read_pointers(kernel, tree)
    pids = unique(xarray_entries(kernel, tree, Topic.PROCESSES).entry)
    # PIDTYPE_PID is 0: a pid's first list holds the one thread that has it.
    tasks = offset_of(kernel.prog, "struct pid", "tasks")
    links = read_pointers(kernel, pids + np.uint64(tasks))
    offset = offset_of(kernel.prog, "struct task_struct", "pid_links")
    threads: U64 = unique(links) - np.uint64(offset)
    return threads


@reading(Topic.PROCESSES)
def _memcgs(kernel: OpenedKernel, css_sets: U64) -> U64:
    """``struct mem_cgroup *`` of each ``struct css_set *``."""
    ids = enumerators(kernel.prog, "enum cgroup_subsys_id")
    sets = unique(css_sets)
    if not len(sets):
        return np.zeros(len(css_sets), np.uint64)
    subsys = offset_of(kernel.prog, "struct css_set", "subsys")
    slot = np.uint64(subsys + 8 * ids["memory_cgrp_id"])
    css = read_pointers(kernel, sets + slot)
    offset = np.uint64(offset_of(kernel.prog, "struct mem_cgroup", "css"))
    memcgs = np.where(css, css - offset, np.uint64(0))
    index = np.searchsorted(sets, css_sets).clip(max=len(sets) - 1)
    return addresses(np.where(css_sets, memcgs[index], np.uint64(0)))


def _first_set(column: U64, first: NDArray[np.intp]) -> U64:
    """For each group of rows that begins at ``first``: a value that is not 0."""
    return addresses(np.maximum.reduceat(column, first) if len(first) else [])


def _fd_array(kernel: OpenedKernel, fd: int, max_fds: int) -> U64:
    """The ``struct file *`` array of a descriptor table, 0 where nothing is open."""
    # Tables grow by whole words of the bitmaps beside them (alloc_fdtable, fs/file.c).
    if not 0 < max_fds <= _FDS_LIMIT or max_fds % 64:
        if max_fds:  # else it could not be read, or is a kernel thread's
            kernel.trouble.fault()
        return addresses([])
    files = np.zeros(max_fds, np.uint64)
    for start, data in kernel.memory.chunks(fd, 8 * max_fds, unit=8):
        if data is not None:
            index = (start - fd) // 8
            files[index : index + len(data) // 8] = np.frombuffer(data, np.uint64)
    # Garbage is mostly no kernel pointer.
    pointer = (files >> np.uint64(63) != 0) & (files & np.uint64(7) == 0)
    return addresses(np.where(pointer, files, np.uint64(0)))


def _text(comm: NDArray[Any]) -> str:
    """``task->comm`` as text, bytes that are not UTF-8 as surrogates."""
    raw: bytes = comm.astype(np.uint8).tobytes().partition(b"\0")[0]
    return raw.decode(errors="surrogateescape")
