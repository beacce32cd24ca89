"""Have the swap entries of a shmem file that nobody maps charged to a living memcg.

A child of ours reads the file from within the nearest online ancestor of who is charged
(``shmem_swapin_folio`` always frees the entry; the folio of an offline memcg's entry is
charged to whoever reads, ``mem_cgroup_swapin_charge_folio``; before 5.14 to the root).
Where that cgroup can have no processes, a child cgroup is made for it, and removed:
up to 7.0 a zombie as long as it has the folios, so that the file is paged out again,
which is charged to the ancestor then.
"""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np

from memcgctl.actions import pageout_file
from memcgctl.actions.host import freezer, helper, measure
from memcgctl.actions.host.libc import Mapping
from memcgctl.actions.host.machine import (
    ENDED,
    ActionError,
    Guard,
    Machine,
    Outcome,
    aim,
    no_room,
)
from memcgctl.actions.host.pages import NONE, U64
from memcgctl.actions.host.reader import reader
from memcgctl.actions.host.target import open_cgroup, open_file, windows, words
from memcgctl.model import Step, SwappedFileTarget

_WINDOW = 4 << 20

NAME = "swapin-file"


def probe(machine: Machine) -> str | None:
    return helper.probe(machine) or pageout_file.probe(machine)


def apply(step: Step, machine: Machine, guard: Guard) -> Outcome:
    """Read the file from within the memcg, and page it out if it is to go again."""
    target = aim(step, SwappedFileTarget)
    freezer.must_run(target.memcg_path, machine)
    _must_fit(step, target, machine)
    guard.note(f"opening {words(target.file)}", target.file.device)
    helper.remove_stale(machine, target.memcg_path)
    with (
        open_file(target.file, target.users, machine) as fd,
        open_cgroup(target.memcg_id, target.memcg_path, machine) as directory,
    ):
        guard.afford(step.bytes, step.target)
        before = _resident(fd, machine)
        ended = not _read(fd, directory, machine, guard)
        there = len(_resident(fd, machine)) * machine.page_size
        # mincore had what was in the swap cache as well.
        moved = max(there - len(before) * machine.page_size, min(there, step.bytes))
    short = "" if moved >= step.bytes else f"{step.bytes - moved} bytes stay in swap"
    if ended or not target.page_out:
        return Outcome(moved, ENDED if ended else short)
    # What was in memory waits for its own step: as long as a zombie has entries, of
    # another file, it would be charged for these as well.
    kept = before if target.keep else NONE
    out = pageout_file.apply(step, machine, replace(guard, most=None), kept)
    waiting = len(out.waiting) * machine.page_size  # told of when they are let go of
    return Outcome(max(0, moved - waiting), short or out.left, out.waiting)


def _must_fit(step: Step, target: SwappedFileTarget, machine: Machine) -> None:
    """For a moment it is in memory, where the ancestor has to have room for it."""
    if why := no_room(step.bytes, machine, swap=False):
        raise ActionError(f"{step.target}: {step.bytes} bytes, {why}")
    room = measure.room(target.memcg_path, machine, swap=False)
    if not step.over_limit and (why := room.lacks(step.bytes) or room.unread):
        raise ActionError(f"{step.target}: {why}")


def _read(fd: int, directory: int, machine: Machine, guard: Guard) -> bool:
    """Have a child read what is no hole; False: the guard ended it."""
    cpu = min(os.sched_getaffinity(0))
    argv = str(fd), f"/proc/self/fd/{directory}", str(cpu), str(machine.page_size)
    with reader("read", *argv, pass_fds=(fd, directory)) as read:
        size = os.fstat(fd).st_size
        for offset in windows(fd, size, _WINDOW):
            indexes = np.arange(
                offset,
                min(offset + _WINDOW, size),
                machine.page_size,
                dtype=np.uint64,
            )
            if not guard.allows(len(indexes) * machine.page_size):
                return False
            read(indexes)
    return True


def _resident(fd: int, machine: Machine) -> U64:
    """The offsets of the file's pages that are in memory, or in the swap cache."""
    size, page = os.fstat(fd).st_size, machine.page_size
    found = [NONE]
    for offset in windows(fd, size, _WINDOW):
        with Mapping(fd, offset, min(_WINDOW, size - offset)) as mapping:
            (here,) = np.frombuffer(mapping.resident(page), np.bool_).nonzero()
        found.append(here.astype(np.uint64) * np.uint64(page) + np.uint64(offset))
    return np.concatenate(found)
