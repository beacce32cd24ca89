"""What has living memcgs, and what is asked of the machine? The kernel's own counters.

From memory.stat, memory.current and cgroup.stat of the hierarchy (v1:
memory.usage_in_bytes), /proc/vmstat and /proc/pressure/memory.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from memcgctl.actions.host.machine import Machine, read_text
from memcgctl.actions.host.thresholds import count_zombies

# Beyond so many, statistics of living memcgs cost more than they tell.
_MEMCGS_LIMIT = 20_000


class Charged(NamedTuple):
    """Bytes that a memcg is charged for; 0 for the root."""

    memory: int
    swap: int


class Look(NamedTuple):
    """A moment's counters: refaults in pages, page cache of leaf memcgs in bytes."""

    refaulted_file: int
    refaulted_anon: int
    file_bytes: int
    dying: int | None


def look(machine: Machine) -> Look:
    vmstat = _pairs(read_text(machine.proc / "vmstat"))
    return Look(
        # One for both kinds before 5.9.
        vmstat.get("workingset_refault_file", vmstat.get("workingset_refault", 0)),
        vmstat.get("workingset_refault_anon", 0),
        _living_files(machine),
        count_zombies(machine).count,
    )


def _living_files(machine: Machine) -> int:
    """Page cache of memcgs that have none below them: a parent's has zombies' too."""
    if machine.cgroup is None:
        return 0
    total = 0
    name = "cache" if machine.cgroup1 else "file"
    for count, (place, below, _) in enumerate(os.walk(machine.cgroup.point)):
        if count > _MEMCGS_LIMIT:
            break
        if not below:
            total += _pairs(read_text(Path(place, "memory.stat"))).get(name, 0)
    return total


def charged(path: str, machine: Machine) -> Charged:
    """What a memcg and all below it are charged for."""
    place = _directory(path, machine)
    if place is None:
        return Charged(0, 0)
    if machine.cgroup1:
        memory = _number(place / "memory.usage_in_bytes") or 0
        both = _number(place / "memory.memsw.usage_in_bytes")
        return Charged(memory, max(0, both - memory) if both else 0)
    return Charged(
        _number(place / "memory.current") or 0,
        _number(place / "memory.swap.current") or 0,
    )


def room(path: str, machine: Machine, *, swap: bool) -> tuple[int, str] | None:
    """The least room at a memcg and its ancestors, and whose; None: no limit."""
    found: list[tuple[int, str]] = []
    here = path
    while here not in ("", "/"):
        for left in _rooms(here, machine, swap=swap):
            found.append((left, here))
        here = here.rpartition("/")[0]
    return min(found, default=None)


def _rooms(path: str, machine: Machine, *, swap: bool) -> list[int]:
    place = _directory(path, machine)
    if place is None:
        return []
    if machine.cgroup1:
        # What is swapped out stays in memsw's count, what comes back enters memory's.
        pairs = [] if swap else [("memory.usage_in_bytes", "memory.limit_in_bytes")]
    elif swap:
        pairs = [("memory.swap.current", f"memory.swap.{w}") for w in ("max", "high")]
    else:
        pairs = [("memory.current", f"memory.{word}") for word in ("max", "high")]
    rooms = []
    for usage, limit in pairs:
        used, most = _number(place / usage), _number(place / limit)
        if used is not None and most is not None:
            rooms.append(most - used)
    return rooms


def pressure(proc: Path) -> float:
    """Percent of the last ten seconds in which something waited for memory.

    0 where the kernel does not tell (``CONFIG_PSI``, ``psi=0``).
    """
    text = read_text(proc / "pressure/memory")
    found = re.search(r"^some avg10=(\d+\.\d+)", text, re.M)
    return float(found[1]) if found else 0.0


def _directory(path: str, machine: Machine) -> Path | None:
    mount = machine.cgroup
    return Path(mount.point + path) if mount and path != "/" else None


def _number(path: Path) -> int | None:
    """None for a file that is not there and for ``max``."""
    text = read_text(path).strip()
    return int(text) if text.isdecimal() else None


def _pairs(text: str) -> dict[str, int]:
    return {name: int(n) for name, n in re.findall(r"^(\S+) (\d+)$", text, re.M)}
