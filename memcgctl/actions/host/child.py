"""What needs a process of its own, as the kernel charges the memcg of whoever acts.

Run as a program, without the rest of memcgctl:

``cgroup PREFIX [CPU]`` makes an empty cgroup and removes it; with a CPU, a process of
it uses memory there first. It has a session of its own and finishes even if its parent
is killed.

``touch PID PROCS HOME CPU PAGE`` joins the cgroup of PROCS and faults in pages of PID,
as its own writing would. It reads batches from standard input (a count, then as many
addresses, all of 8 bytes), answers each with a byte, and ends with its parent. What it
needs itself in the end, the cgroup of HOME is charged for.

``read FD DIRECTORY CPU PAGE`` reads a byte at each offset of such batches from an open
file, from within the cgroup of DIRECTORY, or, where that can have no processes, from
within one below it, which is removed afterwards.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import signal
import struct
import sys
import time
from contextlib import suppress

_MADV_PAGEOUT = 21
_PR_SET_PDEATHSIG = 1
# include/linux/swap_slots.h: entries on a CPU that are freed, but not yet uncharged.
_SWAP_SLOTS_CACHE_SIZE = 64

_libc = ctypes.CDLL(None, use_errno=True)


def cgroup(prefix: str, cpu: str = "") -> int:
    """Make and remove a cgroup named by our pid."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    directory = f"{prefix}{os.getpid()}"
    if not _make(directory):
        return 1
    status = 0
    try:
        if cpu:
            pid = os.fork()
            if not pid:
                _use_memory(directory, int(cpu))
            status = os.waitpid(pid, 0)[1]
    finally:
        removed = _remove(directory)
    return int(status != 0 or not removed)


def _make(directory: str) -> bool:
    """Make a cgroup, or say why none can be made (``cgroup_mkdir``)."""
    try:
        os.mkdir(directory)
        return True
    except OSError as error:
        words = {
            errno.ENOSPC: "memcg ids are used up (65,535)",
            errno.EAGAIN: "cgroup.max.descendants or cgroup.max.depth is reached",
        }
        why = words.get(error.errno or 0, error.strerror)
        print(f"no cgroup can be made: {why}", file=sys.stderr, flush=True)
        return False


def _remove(directory: str) -> bool:
    for _ in range(500):
        try:
            os.rmdir(directory)
            return True
        except OSError:  # its process is not quite gone
            time.sleep(0.01)
    print(f"{directory} cannot be removed", file=sys.stderr)
    return False


def _use_memory(directory: str, cpu: int) -> None:
    try:
        # First: pages that wait in another CPU's LRU batch would outlive us.
        os.sched_setaffinity(0, {cpu})
        join(f"{directory}/cgroup.procs")
        mmap.mmap(-1, 1 << 20).write(bytes(1 << 20))
        os._exit(0)
    finally:
        os._exit(1)


def join(procs: str) -> None:
    fd = os.open(procs, os.O_WRONLY)
    os.write(fd, b"0")
    os.close(fd)


def touch(pid: int, procs: str, home: str, cpu: int, page_size: int) -> int:
    """Fault pages in until standard input ends.

    Whose memory it is may have no room for anything of ours, so that there is no fork
    in there, whose pages would be copied, and nothing of what comes after.
    """
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    # If memory runs out after all, no process of the user's is to die for it.
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")
    # Freed swap entries gather on the CPU that frees them: see _flush.
    os.sched_setaffinity(0, {cpu})
    memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
    source = struct.pack("=QQ", _nowhere(page_size), 1)
    join(procs)
    while size := sys.stdin.buffer.read(8):
        count = struct.unpack("=Q", size)[0]
        for (address,) in struct.iter_unpack("=Q", sys.stdin.buffer.read(8 * count)):
            _fault(pid, memory, source, address)
        os.write(1, b".")
    join(home)
    _flush(page_size)
    return 0


def read(fd: int, directory: str, cpu: int, page_size: int) -> int:
    """Read at offsets until standard input ends; finish even if we are to end.

    cgroup v2 has no processes where its children have controllers, the root aside.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    os.sched_setaffinity(0, {cpu})
    own = directory
    if os.path.exists(f"{directory}/cgroup.type"):  # of v2, and not the root
        own = f"{directory}/memcgctl.{os.getpid()}"
        if not _make(own):
            return 1
    status, removed = 1, True
    try:
        pid = os.fork()
        if not pid:
            _read_there(fd, own)
        status = os.waitpid(pid, 0)[1]
        # Not from within: entries of its own would make the cgroup pay for all swap.
        _flush(page_size)
    finally:
        if own != directory:
            removed = _remove(own)
    return int(status != 0 or not removed)


def _read_there(fd: int, directory: str) -> None:
    try:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
        join(f"{directory}/cgroup.procs")
        while size := sys.stdin.buffer.read(8):
            count = struct.unpack("=Q", size)[0]
            for (at,) in struct.iter_unpack("=Q", sys.stdin.buffer.read(8 * count)):
                os.pread(fd, 1, at)
            os.write(1, b".")
        os._exit(0)
    except OSError as error:
        print(error, file=sys.stderr, flush=True)
    finally:
        os._exit(1)


def _fault(pid: int, memory: int, source: bytes, address: int) -> None:
    """A write fault without a write: the page is pinned, then there is no source.

    After a read fault the page would stay in the swap cache, where it holds the swap
    entry and whoever is charged for that; a write fault frees the entry of a page that
    nobody shares (mm/memory.c, ``should_try_to_free_swap``; 5.10 ``reuse_swap_page``).
    What may not be written is read.
    """
    there = struct.pack("=QQ", address, 1)
    _libc.process_vm_writev(
        pid, source, ctypes.c_ulong(1), there, ctypes.c_ulong(1), ctypes.c_ulong(0)
    )
    with suppress(OSError):  # unmapped by now
        os.pread(memory, 1, address)


def _nowhere(page_size: int) -> int:
    """An address that nothing can be read from."""
    _libc.mmap.restype = ctypes.c_void_p
    _libc.mmap.argtypes = [
        *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int),
        *(ctypes.c_int, ctypes.c_int, ctypes.c_int64),
    ]
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    return int(_libc.mmap(None, page_size, 0, flags, -1, 0))


def _flush(page_size: int) -> None:
    """Have freed swap entries uncharged: up to 6.13 a CPU gathers 64 before that.

    As many of our own are freed after them.
    """
    size = 2 * _SWAP_SLOTS_CACHE_SIZE * page_size
    with mmap.mmap(-1, size) as own:
        own.write(os.urandom(page_size) * (size // page_size))
        with suppress(OSError):
            own.madvise(_MADV_PAGEOUT)
        time.sleep(0.2)  # for the device to write them
        for offset in range(0, size, page_size):
            own[offset] = 1


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    if command == "cgroup":
        sys.exit(cgroup(*arguments))
    if command == "read":
        where = arguments[1]
        sys.exit(read(int(arguments[0]), where, *map(int, arguments[2:])))
    pid, procs, home, *numbers = arguments
    sys.exit(touch(int(pid), procs, home, *map(int, numbers)))
