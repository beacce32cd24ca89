"""Is this still what the plan meant? Files, processes and cgroups by what they are.

A file is looked for under its path, among what its processes have open or map, and by
its handle (``name_to_handle_at(2)``); device, inode and generation then decide, before
it is opened for real. A process is held by a pidfd and told by its start time, a cgroup
by the inode number of its directory, which is its id.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from memcgctl.actions.host.libc import file_handle, open_by_handle, status
from memcgctl.actions.host.machine import (
    ActionError,
    Machine,
    Mount,
    read_mounts,
    read_text,
)
from memcgctl.actions.host.mounts import asks_others, leads_to, leads_to_mount
from memcgctl.model import Backing, Process

# include/linux/exportfs.h
_INO32_GEN = 0x01
_INO64_GEN = 0x81
_BTRFS_WITHOUT_PARENT = 0x4D
_KERNFS = 0xFE
# Errors that keep us from a file that may well be there.
_BARS = {
    *(errno.EACCES, errno.EPERM, errno.EIO),
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM),
}
_DEAD = "ZXx"  # exited; a parent may not yet have asked how
_LOOK = os.O_PATH | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_OPEN = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


@contextmanager
def open_file(
    file: Backing, processes: Iterable[Process], machine: Machine
) -> Iterator[int]:
    """A descriptor of the file for reading, whatever its name is now.

    Raises ActionError if nothing leads to it any more, or it cannot be opened.
    """
    barred: list[str] = []
    for candidate in _candidates(file, processes, machine, barred):
        try:
            if not _is(candidate, file, machine):
                continue
            fd = _reopen(candidate, machine)
        except OSError as error:
            raise ActionError(f"{words(file)}: {error.strerror}") from error
        finally:
            os.close(candidate)
        try:
            yield fd
        finally:
            os.close(fd)
        return
    why = "it is gone, or nothing leads to it any more"
    raise ActionError(f"{words(file)}: {barred[0] if barred else why}")


@contextmanager
def _tried(barred: list[str]) -> Iterator[None]:
    """Go on after an error; noted if it does not just say that there is nothing."""
    try:
        yield
    except ValueError:  # a null character in the name
        pass
    except OSError as error:
        if error.errno in _BARS:
            barred.append(f"it cannot be opened: {error.strerror}")


def words(file: Backing) -> str:
    if file.path and not file.deleted:
        return file.path
    return f"inode {file.inode} of {file.fs} {file.device}"


def _candidates(
    file: Backing, processes: Iterable[Process], machine: Machine, barred: list[str]
) -> Iterator[int]:
    """``O_PATH`` descriptors of what might be the file; each is the caller's."""
    for pid, path in ((0, file.path), (file.container_pid or 0, file.container_path)):
        if not path or not path.startswith("/"):
            continue
        mounts = read_mounts(machine.proc, pid or "self")
        if leads_to(path, file.device, mounts):
            with _tried(barred):
                above = f"{machine.proc}/{pid}/root" if pid else ""
                yield os.open(f"{above}{path}", _LOOK | os.O_NOFOLLOW)
    for process in processes:
        with suppress(ActionError), hold(process, machine):
            for name in _used(alive(process), file, machine):
                with _tried(barred):
                    yield os.open(name, _LOOK)
    yield from _by_handle(file, machine, barred)
    if file.container_pid:
        yield from _by_handle(file, machine, barred, file.container_pid)


def _used(pid: int, file: Backing, machine: Machine) -> Iterator[Path]:
    """What a process has open or maps that may be the file, as links to follow.

    Nothing is asked of any other file: its file system may never answer.
    """
    directory = machine.proc / str(pid)
    mounts = {mount.id: mount for mount in read_mounts(machine.proc, pid)}
    with suppress(OSError):
        for name in os.listdir(directory / "fd"):
            if _may_be(directory, name, file, mounts):
                yield directory / "fd" / name
    maps = read_text(directory / "maps")
    for start, end in re.findall(
        rf"^(\w+)-(\w+) \S+ \S+ \S+ {file.inode}(?:\s|$)", maps, re.M
    ):
        yield directory / "map_files" / f"{start}-{end}"


def _may_be(
    directory: Path, name: str, file: Backing, mounts: Mapping[int, Mount]
) -> bool:
    """Whether a descriptor may be the file's, by what the kernel itself tells of it.

    5.14+, "procfs/dmabuf: add inode number to /proc/*/fdinfo" (3845f256a8b5). Before,
    what is on a mount that nobody else has to be asked for may be, and what is on none:
    the kernel's own (memfd, SysV), and what was unmounted meanwhile.
    """
    info = dict(re.findall(r"^(\w+):\s+(\d+)$", _info(directory, name), re.M))
    if "ino" in info:
        return int(info["ino"]) == file.inode
    mount = mounts.get(int(info.get("mnt_id", -1)))
    return mount is None or mount.device == file.device or not asks_others(mount)


def _info(directory: Path, name: str) -> str:
    return read_text(directory / "fdinfo" / name)


def _by_handle(
    file: Backing, machine: Machine, barred: list[str], pid: int | str = "self"
) -> Iterator[int]:
    """The file by inode and generation; tmpfs knows only those asked for before.

    On a mount of its file system in the mount namespace of ``pid``.
    """
    root = "" if pid == "self" else f"{machine.proc}/{pid}/root"
    mounts = read_mounts(machine.proc, pid)
    for mount in mounts:
        if mount.device != file.device or not leads_to_mount(mount, mounts):
            continue
        with _tried(barred):
            at = os.open(f"{root}{mount.point}", _DIRECTORY)
            try:
                kind, handle = _handle_of(file, at)
                found = open_by_handle(at, kind, handle, _LOOK)
            finally:
                os.close(at)
            yield found


def _handle_of(file: Backing, mount: int) -> tuple[int, bytes]:
    """What ``name_to_handle_at`` would say of it: fs/*/export.c, shmem_encode_fh."""
    inode, generation = file.inode, file.generation
    low, high = inode & 0xFFFFFFFF, inode >> 32
    if file.fs == "btrfs":
        _, there = file_handle(mount)
        root = struct.unpack_from("=Q", there, 8)[0]
        return _BTRFS_WITHOUT_PARENT, struct.pack("=QQI", inode, root, generation)
    if file.fs == "tmpfs":
        return _INO32_GEN, struct.pack("=III", generation, low, high)
    if file.fs == "xfs":
        return _INO64_GEN, struct.pack("=QI", inode, generation)
    return _INO32_GEN, struct.pack("=II", low, generation)


def _is(fd: int, file: Backing, machine: Machine) -> bool:
    """Whether an ``O_PATH`` descriptor is of the regular file that the plan means."""
    found = status(fd)
    if not stat.S_ISREG(found.mode) or found.inode != file.inode:
        return False
    if found.device != file.device and _mount_device(fd, machine) != file.device:
        return False
    return generation(fd) in (None, file.generation & 0xFFFFFFFF)


def _mount_device(fd: int, machine: Machine) -> str | None:
    """The super block's device: btrfs has ``stat`` tell another for each subvolume."""
    info = read_text(machine.proc / f"self/fdinfo/{fd}")
    number = re.search(r"^mnt_id:\s+(\d+)$", info, re.M)
    mounts: dict[int, Mount] = {mount.id: mount for mount in read_mounts(machine.proc)}
    mount = mounts.get(int(number[1])) if number else None
    return mount.device if mount else None


def generation(fd: int) -> int | None:
    """``i_generation`` out of the file's handle, None where the handle has none.

    Such a file system (FAT, NFS) has no interface that tells user space.
    """
    try:
        kind, handle = file_handle(fd)
    except OSError:
        return None
    start = {
        (_INO32_GEN, 8): 4,
        (_INO32_GEN, 12): 0,  # shmem_encode_fh has the generation first
        (_INO64_GEN, 12): 8,
        (_BTRFS_WITHOUT_PARENT, 20): 16,
    }.get((kind, len(handle)))
    return None if start is None else int(struct.unpack_from("=I", handle, start)[0])


def _reopen(candidate: int, machine: Machine) -> int:
    """For reading, without a trace in its access time where we may do so."""
    link = machine.proc / f"self/fd/{candidate}"
    try:
        return os.open(link, _OPEN | os.O_NOATIME)
    except PermissionError:
        return os.open(link, _OPEN)


def windows(fd: int, size: int, window: int) -> Iterator[int]:
    """Offsets of those windows of a file that have data.

    Anybody can make a file of exabytes that is one hole, which nobody can walk.
    """
    at = 0
    while at < size:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA) // window * window
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole from here on
                return
        yield at
        at += window


@contextmanager
def hold(process: Process, machine: Machine) -> Iterator[int]:
    """A pidfd of the process that the plan means; ActionError if it is another."""
    name = f"pid {process.pid} ({process.comm})"
    try:
        pidfd = os.pidfd_open(process.pid)
    except OSError as error:
        raise ActionError(f"{name} is gone") from error
    try:
        # Read after the pidfd is open: as long as it lives, the pid is its own.
        started = start_ticks(process.pid, machine.proc, alive(process))
        if started is None:
            raise ActionError(f"{name} is gone")
        if started != process.start_ticks:
            raise ActionError(f"{name} is gone: that pid is another process now")
        yield pidfd
    finally:
        os.close(pidfd)


def alive(process: Process) -> int:
    """By which number in /proc a process has its memory, files and cgroup.

    Its first thread has none any more once it has ended; a thread that lives is not
    listed there, but found.
    """
    return process.tid or process.pid


def start_ticks(pid: int, proc: Path, thread: int = 0) -> int | None:
    """When a process started (proc(5), field 22 of stat); None: it lives no more.

    That is, its first thread, or the one that is given, which is to be one of its.
    """
    if thread not in (0, pid) and not (proc / f"{pid}/task/{thread}").exists():
        return None
    texts = [
        read_text(proc / str(number) / "stat").rpartition(")")[2].split()
        for number in (pid, thread or pid)
    ]
    if any(len(text) <= 19 for text in texts) or texts[1][0] in _DEAD:
        return None
    return int(texts[0][19])


@contextmanager
def open_cgroup(memcg_id: int, path: str | None, machine: Machine) -> Iterator[int]:
    """The directory of a memcg by its id; ActionError if there is none any more.

    ``path`` is for messages, and for kernels that don't open cgroups by handle.
    """
    mount = machine.cgroup
    if mount is None:
        raise ActionError("no cgroup file system with memory is mounted")
    name = path or f"cgroup {memcg_id}"
    barred: list[str] = []
    fd = _cgroup_by_handle(memcg_id, mount, barred)
    if fd is None and path:
        with _tried(barred):
            fd = os.open(mount.point + path, _DIRECTORY | os.O_NOFOLLOW)
    if fd is None:
        raise ActionError(f"{name}: {barred[-1]}" if barred else f"{name} is gone")
    try:
        if os.fstat(fd).st_ino != memcg_id:
            raise ActionError(f"{name} is another cgroup now")
        yield fd
    finally:
        os.close(fd)


def _cgroup_by_handle(memcg_id: int, mount: Mount, barred: list[str]) -> int | None:
    """fs/kernfs/mount.c, ``__kernfs_fh_to_dentry``: the id is all the handle."""
    with _tried(barred):
        at = os.open(mount.point, _DIRECTORY)
        try:
            return open_by_handle(at, _KERNFS, struct.pack("=Q", memcg_id), _DIRECTORY)
        finally:
            os.close(at)
    return None


def cgroup_of(pid: int, machine: Machine) -> Path:
    """The directory of the memcg that a process is in."""
    mount = machine.cgroup
    if mount is None:
        raise ActionError("no cgroup file system with memory is mounted")
    # A name can hold what splitlines() takes for the end of a line, but no newline.
    for line in read_text(machine.proc / str(pid) / "cgroup").split("\n")[:-1]:
        number, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(",") if machine.cgroup1 else number == "0":
            return Path(mount.point + path)
    raise ActionError(f"pid {pid} is gone")


def write_at(directory: int, name: str, text: str) -> None:
    """Write to a control file of an open cgroup directory in one call."""
    fd = os.open(name, os.O_WRONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
