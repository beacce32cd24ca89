"""What has living memcgs, and what is asked of the machine? The kernel's own counters.

From memory.stat, memory.current and cgroup.stat of the hierarchy (v1:
memory.usage_in_bytes), /proc/vmstat and /proc/pressure/memory.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from memcgctl.actions.host.machine import Machine, read_text
from memcgctl.actions.host.thresholds import count_zombies

# Page cache in memory.stat, by version, and shmem, which it includes. The names of v1
# without "total_" are of the memcg alone.
_CACHE = {1: ("total_cache", "total_shmem"), 2: ("file", "shmem")}


class Charged(NamedTuple):
    """Bytes that a memcg is charged for; None where that cannot be read."""

    memory: int | None
    swap: int | None


class Look(NamedTuple):
    """A moment's counters, None where one cannot be read: refaults in pages."""

    refaulted_file: int | None
    refaulted_anon: int | None
    dying: int | None


def look(machine: Machine) -> Look:
    vmstat = _pairs(read_text(machine.proc / "vmstat"))
    return Look(
        # One for both kinds before 5.9.
        vmstat.get("workingset_refault_file", vmstat.get("workingset_refault")),
        vmstat.get("workingset_refault_anon", 0 if vmstat else None),
        count_zombies(machine).count,
    )


def topmost(paths: Collection[str]) -> tuple[str, ...]:
    """Those that are not below another one of them."""
    found: list[str] = []
    for path in sorted(paths):
        if not found or not path.startswith(f"{found[-1].rstrip('/')}/"):
            found.append(path)
    return tuple(found)


def page_cache(paths: Collection[str], machine: Machine) -> int | None:
    """What memcgs and all below them, zombies as well, have of files, in bytes."""
    total = 0
    for path in topmost(paths):
        directory = _directory(path, machine)
        stat = _pairs(read_text(directory / "memory.stat")) if directory else {}
        file, shmem = _CACHE[1 if machine.cgroup1 else 2]
        if file not in stat or shmem not in stat:
            return None
        total += stat[file] - stat[shmem]
    return total


def charged(path: str, machine: Machine) -> Charged:
    """What a memcg and all below it are charged for."""
    directory = _directory(path, machine)
    if directory is None:
        return Charged(None, None)
    if machine.cgroup1:
        memory = _number(directory / "memory.usage_in_bytes")
        both = _number(directory / "memory.memsw.usage_in_bytes")
        swap = None if memory is None or both is None else max(0, both - memory)
        return Charged(memory, swap)
    return Charged(
        _number(directory / "memory.current"),
        _number(directory / "memory.swap.current"),
    )


class Room(NamedTuple):
    """How much more a memcg and its ancestors may be charged for.

    ``least`` is the least room and whose it is, None where nobody has a limit;
    ``unread`` says whose limits could not be read.
    """

    least: tuple[int, str] | None
    unread: str = ""

    def lacks(self, size: int) -> str:
        """Who would be pushed over a limit by that many bytes more, in words."""
        if self.least is None or self.least[0] >= size:
            return ""
        return f"{self.least[1]} would be pushed over a limit"


def room(path: str, machine: Machine, *, swap: bool) -> Room:
    """What the limits of a memcg and of its ancestors leave."""
    found: list[tuple[int, str]] = []
    unread = ""
    here = path
    while here not in ("", "/"):
        try:
            found += [(left, here) for left in _rooms(here, machine, swap=swap)]
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            unread = f"the limits of {here} cannot be read: {why}"
        here = here.rpartition("/")[0]
    return Room(min(found, default=None), unread)


def _rooms(path: str, machine: Machine, *, swap: bool) -> list[int]:
    """Of each limit what is left; OSError or ValueError if one cannot be read."""
    directory = _directory(path, machine)
    if directory is None:
        raise ValueError("no cgroup file system with memory is mounted")
    os.stat(directory)  # of a memcg that is there, a limit that is not is none
    if machine.cgroup1:
        # What is swapped out stays in memsw's count, what comes back enters memory's.
        pairs = [] if swap else [("memory.usage_in_bytes", "memory.limit_in_bytes")]
    elif swap:
        pairs = [("memory.swap.current", f"memory.swap.{w}") for w in ("max", "high")]
    else:
        pairs = [("memory.current", f"memory.{word}") for word in ("max", "high")]
    rooms = []
    for usage, limit in pairs:
        with suppress(FileNotFoundError):
            if (most := (directory / limit).read_text().strip()) != "max":
                rooms.append(int(most) - int((directory / usage).read_text()))
    return rooms


def pressure(proc: Path) -> float | None:
    """Percent of the last ten seconds in which something waited for memory.

    None where the kernel does not tell (``CONFIG_PSI``, ``psi=0``).
    """
    text = read_text(proc / "pressure/memory")
    found = re.search(r"^some avg10=(\d+\.\d+)", text, re.M)
    return float(found[1]) if found else None


def _directory(path: str, machine: Machine) -> Path | None:
    mount = machine.cgroup
    return Path(mount.point + path) if mount else None


def _number(path: Path) -> int | None:
    """None for a file that is not there and for ``max``."""
    text = read_text(path).strip()
    return int(text) if text.isdecimal() else None


def _pairs(text: str) -> dict[str, int]:
    return {name: int(n) for name, n in re.findall(r"^(\S+) (\d+)$", text, re.M)}
