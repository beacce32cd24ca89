"""Copy a process's small pages to huge ones (MADV_COLLAPSE), which charges its memcg.

``khugepaged`` code does it: ``alloc_charge_hpage`` charges the memcg of the mm, the old
pages are freed.
"""

from __future__ import annotations

import numpy as np

from memcgctl.actions import pages
from memcgctl.actions.libc import MADV_COLLAPSE, process_madvise
from memcgctl.actions.machine import (
    ENDED,
    Guard,
    Machine,
    Outcome,
    predict,
    read_text,
)
from memcgctl.actions.pageout import find, gone
from memcgctl.actions.target import hold
from memcgctl.model import Step

__all__ = ["apply", "predict", "probe"]


def probe(machine: Machine) -> str | None:
    if not _huge_size(machine):
        return "the kernel has no transparent huge pages"
    return machine.lacks("sys_admin", "sys_nice", "sys_ptrace")


def _huge_size(machine: Machine) -> int:
    path = machine.sys / "kernel/mm/transparent_hugepage/hpage_pmd_size"
    return int(read_text(path) or 0)


def apply(step: Step, machine: Machine, guard: Guard) -> Outcome:
    """Collapse each huge page's worth of addresses that has a page that is meant."""
    (process,) = step.aim.processes
    size = _huge_size(machine)
    why = ""
    with hold(process, machine) as pidfd:
        meant = find(process.pid, step.aim, machine)
        places = np.unique(meant.addresses // np.uint64(size)) * np.uint64(size)
        for start in places.tolist():
            if not guard.allows(size):
                why = ENDED
                break
            _, error = process_madvise(pidfd, [(start, size)], MADV_COLLAPSE)
            if error is not None:
                why = error.strerror or str(error)
        left = pages.of_memcgs(meant.frames, step.aim.shown_ids, machine)
    if left.any() and not why:
        why = f"{int(left.sum()) * machine.page_size} bytes stay"
    return Outcome(gone(meant, step, machine), why)
