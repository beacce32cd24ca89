"""Copy a process's small pages to huge ones (MADV_COLLAPSE), which charges its memcg.

``khugepaged`` code does it: ``alloc_charge_hpage`` charges the memcg of the mm, the old
pages are freed.
"""

from __future__ import annotations

import numpy as np

from memcgctl.actions.host import lru
from memcgctl.actions.host.libc import MADV_COLLAPSE, process_madvise
from memcgctl.actions.host.machine import (
    ENDED,
    Guard,
    Machine,
    Outcome,
    aim,
    read_text,
)
from memcgctl.actions.host.pages import U64
from memcgctl.actions.host.target import hold
from memcgctl.actions.pageout import Found, find, gone
from memcgctl.model import ProcessTarget, Step

# Other than MADV_PAGEOUT it takes what is locked, and leaves what wants no huge pages.
_REFUSED = frozenset({"ht", "pf", "io", "nh"})

NAME = "collapse"


def probe(machine: Machine) -> str | None:
    if not _huge_size(machine):
        return "the kernel has no transparent huge pages"
    return machine.lacks("sys_admin", "sys_nice", "sys_ptrace")


def _huge_size(machine: Machine) -> int:
    path = machine.sys / "kernel/mm/transparent_hugepage/hpage_pmd_size"
    return int(read_text(path) or 0)


def apply(step: Step, machine: Machine, guard: Guard) -> Outcome:
    """Collapse the huge pages' worth of addresses that only have pages that are meant.

    Holes would be filled with zeros, and what others are charged for moved as well.
    """
    target = aim(step, ProcessTarget)
    process = target.process
    size = _huge_size(machine)
    why = ""
    with hold(process, machine) as pidfd:
        meant = _full(find(target, machine, _REFUSED), size, machine)
        for start in np.unique(_start(meant.addresses, size)).tolist():
            if not guard.allows(size):
                why = ENDED
                break
            _, error = process_madvise(pidfd, [(start, size)], MADV_COLLAPSE)
            if error is not None:
                why = error.strerror or str(error)
        lru.drain(machine)  # of what was locked, the last are in a batch
        moved = gone(meant, target, machine)
    short = min(step.bytes, len(meant.frames) * machine.page_size) - moved
    if short > 0:
        why = f"{short} bytes stay{f': {why}' if why else ''}"
    elif moved < step.bytes:
        why = f"{step.bytes - moved} bytes do not fill huge pages any more"
    else:
        why = ""
    return Outcome(moved, why)


def _start(addresses: U64, size: int) -> U64:
    starts: U64 = addresses // np.uint64(size) * np.uint64(size)
    return starts


def _full(found: Found, size: int, machine: Machine) -> Found:
    """Those that fill as many addresses as a huge page has."""
    _, which, counts = np.unique(
        _start(found.addresses, size), return_inverse=True, return_counts=True
    )
    full = (counts * machine.page_size == size)[which]
    return Found(found.addresses[full], found.frames[full], found.shared[full])
