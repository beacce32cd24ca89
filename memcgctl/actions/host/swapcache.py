"""Have pages freed that were written to swap but are still in the swap cache.

A device that writes asynchronously has not finished when MADV_PAGEOUT returns, so that
the page stays where it is, charged as before, until memory gets short. Of anonymous
memory it can be mapped again and paged out once more; of shmem only the kernel's own
reclaim finds it. That scans offline memcgs whole (``get_scan_count``,
``get_nr_to_scan``), but each call also passes by living ones, and none takes less than
SWAP_CLUSTER_MAX pages: so it is asked once for all, and for no more than there is.
"""

from __future__ import annotations

import errno
import mmap
import os
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

from memcgctl.actions.host import lru, pages
from memcgctl.actions.host.libc import MADV_PAGEOUT
from memcgctl.actions.host.machine import ActionError, Machine
from memcgctl.actions.host.pages import U64
from memcgctl.actions.host.target import open_cgroup, write_at

_WRITTEN_WITHIN = 5.0
_SWAP_SLOTS_CACHE_SIZE = 64  # include/linux/swap_slots.h
SWAPFILE_CLUSTER = 512  # mm/swap.h, at most
# Each can be met by files of other zombies, or by a few pages of living memcgs: what is
# asked for again is only what is left, and not for ever. Where there are only zombies
# that goes on for as long as it gets what it asks for.
_ROUNDS = 3
_ROUNDS_AMONG_ZOMBIES = 20


def can_be_asked(machine: Machine, *, untargeted: bool) -> bool:
    """Whether memcgs have a memory.reclaim (of v2, 5.19+) that ``drain`` may use.

    One that knows what it is to prefer (6.11+) is asked for nothing, to see that.
    """
    mount = machine.cgroup
    file = mount and next(Path(mount.point).glob("*/memory.reclaim"), None)
    if not file or untargeted:
        return bool(file)
    try:
        fd = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, b"0 swappiness=200")
        finally:
            os.close(fd)
    except OSError:
        return False
    return True


def use_up_slots(machine: Machine, count: int = _SWAP_SLOTS_CACHE_SIZE) -> None:
    """Have what is swapped out next go to the device that is to be swapped to next.

    Up to 6.13 each CPU keeps free entries of the one before (``swp_slots``): a disk's,
    maybe, which leave pages in the swap cache where zram's do not; later ones keep a
    cluster of it (``percpu_swap_cluster``, ``SWAPFILE_CLUSTER`` entries). As many pages
    of our own get these, for a moment.
    """
    size = count * machine.page_size
    before = os.sched_getaffinity(0)
    try:
        for cpu in sorted(before & machine.cpus):
            with suppress(OSError), mmap.mmap(-1, size) as own:
                os.sched_setaffinity(0, {cpu})
                own.write(os.urandom(machine.page_size) * count)
                own.madvise(MADV_PAGEOUT)
    finally:
        os.sched_setaffinity(0, before)


def wait_written(frames: U64, machine: Machine) -> int:
    """Until none of the pages is under writeback; how many are after a few seconds."""
    deadline = time.monotonic() + _WRITTEN_WITHIN
    while left := int(pages.flagged(frames, pages.WRITEBACK, machine).sum()):
        if time.monotonic() > deadline:
            break
        time.sleep(0.02)
    return left


def drain(
    frames: U64, machine: Machine, *, untargeted: bool, among_zombies: bool = False
) -> U64:
    """Reclaim what of the frames is in the swap cache; what still is then.

    ``untargeted``: also where memory.reclaim cannot be kept from files (5.19 to 6.10);
    ``among_zombies``: nobody living has anything in reach of it. A page that was
    written is in a batch of the CPU that heard of it, to be moved to the end of its
    list (``folio_rotate_reclaimable``): that reference keeps it.
    """
    wait_written(frames, machine)
    left = frames[pages.flagged(frames, pages.SWAPCACHE, machine)]
    for n in range(_ROUNDS_AMONG_ZOMBIES if among_zombies else _ROUNDS):
        if not len(left):
            break
        lru.drain(machine)
        asked = [
            _reclaim(memcg_id, count * machine.page_size, machine, untargeted)
            for memcg_id, count in Counter(pages.shown(left, machine).tolist()).items()
        ]
        left = left[pages.flagged(left, pages.SWAPCACHE, machine)]
        if n + 1 >= _ROUNDS and not any(asked):
            break
    return left


def _reclaim(memcg_id: int, size: int, machine: Machine, untargeted: bool) -> bool:
    """Ask for anonymous memory and shmem, or for what the kernel likes if that may be.

    Nothing but that: ``max``, 6.16+. Rather that: 200, from 6.11 on. One that cannot
    have all fails with EAGAIN: asked again without the key, it would take files.
    Whether it had all.
    """
    with suppress(ActionError), open_cgroup(memcg_id, None, machine) as directory:
        for key in (" swappiness=max", " swappiness=200", *[""] * untargeted):
            try:
                write_at(directory, "memory.reclaim", f"{size}{key}")
            except OSError as error:
                if error.errno == errno.EINVAL:
                    continue
                return False
            return True
    return False
