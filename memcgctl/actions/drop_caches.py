"""Drop the clean, unmapped page cache of the whole machine."""

from __future__ import annotations

from memcgctl.actions.host.machine import (
    ActionError,
    Guard,
    Machine,
    Outcome,
    meminfo,
)
from memcgctl.actions.host.sync import sync_disks
from memcgctl.model import Step

NAME = "drop_caches"


def probe(machine: Machine) -> str | None:
    if not (machine.proc / "sys/vm/drop_caches").exists():
        return "the kernel has no drop_caches"
    return None if machine.euid == 0 else "needs root"


def apply(step: Step, machine: Machine, guard: Guard) -> Outcome:
    """Write what is dirty, then drop."""
    before = meminfo(machine.proc).get("Cached")
    left = sync_disks(machine, guard)
    guard.note("dropping caches", "")
    try:
        (machine.proc / "sys/vm/drop_caches").write_text("1")
    except OSError as error:
        raise ActionError(f"drop_caches: {error.strerror}") from error
    after = meminfo(machine.proc).get("Cached")
    moved = None if before is None or after is None else max(0, before - after)
    return Outcome(moved, "; ".join(left))
