"""What does this machine allow: which actions, and why not the others?

Asks each action's ``probe``; what the kernel itself lacks comes from who has read it.
Counters, mounts and privileges come from /proc and /sys. Nothing is written.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple

from memcgctl.actions.host import zram
from memcgctl.actions.host.machine import CAPABILITIES, ActionError, Machine
from memcgctl.actions.host.thresholds import count_zombies
from memcgctl.actions.run import transit
from memcgctl.actions.run.table import ACTIONS
from memcgctl.model import Ability, Checkup, Kernel
from memcgctl.model.traits import lacking


class Wanted(NamedTuple):
    """An action, the kernel interfaces it needs, and the word that asks for it."""

    action: str
    needs: tuple[str, ...]
    ask: str | None


def check(
    machine: Machine,
    wanted: Iterable[Wanted],
    kernel: Kernel | None,
    unread: str | None = None,
    offline: int | None = None,
    ids_used: int | None = None,
) -> Checkup:
    """Look at the machine; ``kernel`` is what was read of the kernel's memory."""
    zombies = count_zombies(machine)
    v1, v2 = machine.cgroup1, machine.cgroup2
    cgroups: list[tuple[Literal[1, 2], str]] = [(1, v1.point)] if v1 else []
    cgroups += [(2, v2.point)] if v2 else []
    return Checkup(
        release=machine.release,
        kernel=kernel,
        unread=unread,
        lockdown=machine.lockdown,
        cgroups=tuple(cgroups),
        memory_controller=_has_memory(machine),
        swap_total_bytes=machine.swap_total_bytes,
        swap_free_bytes=machine.swap_free_bytes,
        euid=machine.euid,
        missing=_missing(machine),
        abilities=tuple(_ability(one, machine, kernel) for one in wanted),
        zombies=zombies.count,
        zombies_source=zombies.source,
        overhead_bytes=zombies.overhead_bytes,
        offline=offline,
        ids_used=ids_used,
        transit_room_bytes=zram.room_for(machine),
        transit_left=_left(machine),
    )


def _left(machine: Machine) -> str | None:
    """The swap device that a killed run left, if any; None: not to be told."""
    try:
        found = transit.found(machine)
    except ActionError:
        return None
    return found[0].name if found else ""


def _ability(wanted: Wanted, machine: Machine, kernel: Kernel | None) -> Ability:
    action, needs, ask = wanted
    if why := _needless(action, machine):
        return Ability(action, why, "needless", ask)
    absent = [n for n in needs if kernel and n not in kernel.interfaces]
    if absent:
        return Ability(action, lacking(absent[0]), "kernel", ask)
    why = ACTIONS[action].probe(machine)
    return Ability(action, why, "machine" if why else None, ask)


def _needless(action: str, machine: Machine) -> str | None:
    """Why no zombie of this machine is held by what the action lets go of."""
    if action in ("swapin", "swapin-file") and machine.swap_total_bytes == 0:
        return "no swap, so nothing to bring back"
    if action == "writeback-cleanup" and machine.cgroup1:
        return "no writeback by cgroup on cgroup v1"
    return None


def _missing(machine: Machine) -> tuple[str, ...]:
    """CAP_SYS_ADMIN is accepted wherever CAP_CHECKPOINT_RESTORE is asked for."""
    missing = set(CAPABILITIES) - machine.capabilities - {"checkpoint_restore"}
    return tuple(sorted(f"CAP_{name.upper()}" for name in missing))


def _has_memory(machine: Machine) -> bool | None:
    """Whether memory is controlled at all (v2: not with cgroup_disable=memory)."""
    if machine.cgroup1 or not machine.cgroup2:
        return machine.cgroup1 is not None
    try:
        controllers = Path(machine.cgroup2.point, "cgroup.controllers").read_text()
    except OSError:
        return None
    return "memory" in controllers.split()
