"""Page out what a process maps of certain memcgs (``process_madvise``, MADV_PAGEOUT).

Only pages that /proc/kpagecgroup shows under the plan's ids are meant. What went to
swap on a device that writes asynchronously stays in the swap cache, charged as before:
once written, anonymous memory is read back into the page tables and paged out again,
which drops it without a write.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator, Set
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from memcgctl.actions.host import lru, pages, swapcache
from memcgctl.actions.host.libc import MADV_PAGEOUT, process_madvise
from memcgctl.actions.host.machine import (
    ENDED,
    ActionError,
    Guard,
    Machine,
    Outcome,
    aim,
    no_room,
    read_mounts,
)
from memcgctl.actions.host.pages import U64, Bools
from memcgctl.actions.host.target import hold, words
from memcgctl.model import Backing, ProcessTarget, Step

_WINDOW = 16 << 20
_VECTOR = 512
_ROUNDS = 4
# mm/madvise.c, can_madv_lru_vma: locked, huge, without struct pages.
_REFUSED = {"lo", "ht", "pf", "io"}
# The process has exited, or is not for us: no other range fares better.
_HOPELESS = {errno.ESRCH, errno.EPERM, errno.ENOSYS}

NAME = "pageout"


def probe(machine: Machine) -> str | None:
    return machine.lacks("sys_admin", "sys_nice", "sys_ptrace")


@dataclass(frozen=True)
class Found:
    """Pages' addresses, the frames that they are in, whether of a file or shmem.

    ``refused`` counts pages of mappings that the kernel leaves alone.
    """

    addresses: U64
    frames: U64
    shared: Bools
    refused: int = 0


def apply(step: Step, machine: Machine, guard: Guard) -> Outcome:
    """Page out, then drop what is left in the swap cache; shmem waits there.

    memory.reclaim alone finds that, and it would swap out other zombies' memory, which
    their own steps would miss then.
    """
    target = aim(step, ProcessTarget)
    process = target.process
    with hold(process, machine) as pidfd:
        meant = left = find(target, machine)
        guard.afford(len(meant.frames) * machine.page_size, step.target)
        # What is in the swap cache has an entry already.
        new = ~meant.shared & ~pages.flagged(meant.frames, pages.SWAPCACHE, machine)
        size = int(new.sum()) * machine.page_size
        if not guard.make_room and size and (why := no_room(size, machine, swap=True)):
            raise ActionError(f"{step.target}: {size} bytes, {why}")
        for number in range(_ROUNDS):
            if number:
                lru.drain(machine)
                _touch_swap_cache(process.pid, left, machine)
            if not _advise(pidfd, left.addresses, machine, guard):
                return Outcome(gone(meant, target, machine), ENDED)
            left = _still(meant, target, machine)
            cached = left.shared & pages.flagged(left.frames, pages.SWAPCACHE, machine)
            if cached.all():
                break
    rest = (int((~cached).sum()) + meant.refused) * machine.page_size
    return Outcome(
        gone(meant, target, machine),
        f"{rest} bytes stay in memory" if rest else "",
        tuple(left.frames[cached].tolist()),
    )


def find(
    target: ProcessTarget, machine: Machine, refused_flags: Set[str] = _REFUSED
) -> Found:
    """What of the memcgs' the process maps, that of some mappings only counted.

    ActionError if it does not even map the file.
    """
    pid, file = target.process.pid, target.file
    found = _areas(pid, file, machine)
    if file and not found:
        raise ActionError(f"pid {pid} does not map {words(file)}")
    addresses: list[U64] = [pages.NONE]
    frames: list[U64] = [pages.NONE]
    shared: list[Bools] = [pages.NONE != 0]
    refused = 0
    for area in found:
        if not area.resident_bytes:
            continue
        for at, values in pages.entries(pid, area, machine):
            pfns = pages.frames(values)
            here = pages.of_memcgs(pfns, target.shown_ids, machine)
            if area.flags & refused_flags:
                refused += int(here.sum())
                continue
            addresses.append(at[here])
            frames.append(pfns[here])
            shared.append(pages.shared(values[here]))
    return Found(
        np.concatenate(addresses),
        np.concatenate(frames),
        np.concatenate(shared),
        refused,
    )


def _areas(pid: int, file: Backing | None, machine: Machine) -> list[pages.Area]:
    """Mappings of the file, or all.

    What is mapped through an overlayfs is told with that one's device
    (``file_user_inode``; 6.1 still tells the file's own), and with the file's inode
    number if all layers are of one device.
    """
    mounts = read_mounts(machine.proc, pid) if file else ()
    overlays = {mount.device for mount in mounts if mount.fs == "overlay"}
    return [a for a in pages.areas(pid, machine) if a.maps(file, overlays)]


def _still(meant: Found, target: ProcessTarget, machine: Machine) -> Found:
    """What is charged as before, in memory or in the swap cache.

    A frame can have got a new user of the same memcg meanwhile: then it counts as
    still there, which only costs another round.
    """
    here = pages.of_memcgs(meant.frames, target.shown_ids, machine)
    return Found(meant.addresses[here], meant.frames[here], meant.shared[here])


def gone(meant: Found, target: ProcessTarget, machine: Machine) -> int:
    left = _still(meant, target, machine)
    return (len(meant.frames) - len(left.frames)) * machine.page_size


def _advise(pidfd: int, at: U64, machine: Machine, guard: Guard) -> bool:
    """Page out in windows; False: the guard ended it."""
    for batch in _batches(pages.runs(at, machine.page_size, _WINDOW)):
        if not guard.allows(sum(size for _, size in batch)):
            return False
        while batch:
            done, error = process_madvise(pidfd, batch, MADV_PAGEOUT)
            if error is None:
                break
            if error.errno in _HOPELESS:
                raise error
            while batch and done >= batch[0][1]:
                done -= batch.pop(0)[1]
            batch = batch[1:]  # this one was refused: unmapped or locked by now
    return True


def _batches(ranges: Iterable[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    batch: list[tuple[int, int]] = []
    room = _WINDOW
    for one in ranges:
        batch.append(one)
        room -= one[1]
        if room <= 0 or len(batch) == _VECTOR:
            yield batch
            batch, room = [], _WINDOW
    if batch:
        yield batch


def _touch_swap_cache(pid: int, left: Found, machine: Machine) -> None:
    """Map again what is in the swap cache, as soon as it is written."""
    swapcache.wait_written(left.frames, machine)
    cached = pages.flagged(left.frames, pages.SWAPCACHE, machine) & ~left.shared
    with suppress(OSError):
        memory = os.open(machine.proc / str(pid) / "mem", os.O_RDONLY | os.O_CLOEXEC)
        try:
            for address in left.addresses[cached].tolist():
                with suppress(OSError):
                    os.pread(memory, 1, address)
        finally:
            os.close(memory)
