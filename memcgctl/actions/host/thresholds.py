"""Are there zombies enough to be worth a scan? Asks the kernel's own counters alone.

cgroup v2 counts cgroups that are dying in ``cgroup.stat``; of v1, /proc/cgroups has how
many there are in all (``root->nr_cgrps``), of which those with a directory live. What a
memcg costs is not told anywhere without reading the kernel: here it is estimated.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from memcgctl.actions.host.machine import Machine, Mount, read_text

# What memcgctl list shows of the smallest memcgs that were seen: for each possible CPU
# on 6.1 with one node (7.3: 4,484), and structures on 5.10 (7.3: 9,925).
PERCPU_BYTES = 1948
STRUCTS_BYTES = 6494
DYING = "nr_dying_descendants"


@dataclass(frozen=True)
class Zombies:
    """How many memcgs are offline now; None if the kernel does not tell.

    ``source`` says by what, or why not. ``each_bytes`` is an estimate of what the
    kernel allocates for one: at least that much, on kernels from 5.10 to 7.3; None
    where it does not tell how many CPUs it may have. One that is not ``exact`` counts
    cgroups, of which a living one can have offline memcgs: from when the controller was
    taken from it and given back.
    """

    count: int | None
    source: str
    each_bytes: int | None
    exact: bool = True

    @property
    def overhead_bytes(self) -> int | None:
        if self.count is None or self.each_bytes is None:
            return None
        return self.count * self.each_bytes


def count_zombies(machine: Machine) -> Zombies:
    """Read the counters of the hierarchy with memory; no scan, nothing is written."""
    cpus = possible_cpus(machine)
    each = cpus and cpus * PERCPU_BYTES + STRUCTS_BYTES
    if machine.cgroup1:
        count, source = _on_v1(machine)
    elif machine.cgroup2:
        count, source = _on_v2(machine)
    else:
        count, source = None, "no cgroup file system with memory is mounted"
    return Zombies(count, source, each, exact=not source.startswith(DYING))


def recount(zombies: Zombies, offline: int) -> Zombies:
    """The same with how many memcgs really are offline, once that is known.

    Up to 6.11 cgroup v2 also counts dying cgroups that no memcg belongs to.
    """
    return replace(zombies, count=offline, source="the kernel's memory", exact=True)


def below(zombies: Zombies, min_zombies: int, min_overhead_bytes: int) -> str | None:
    """Why this is too little to act on, None if it is enough or nobody knows."""
    if not zombies.exact:
        return None
    count, overhead = zombies.count, zombies.overhead_bytes
    if count is not None and count < min_zombies:
        return f"{count:,} zombies are fewer than {min_zombies:,}"
    if count is not None and overhead is not None and overhead < min_overhead_bytes:
        return (
            f"{count:,} zombies take an estimated {overhead:,} bytes, less than "
            f"{min_overhead_bytes:,}"
        )
    return None


def possible_cpus(machine: Machine) -> int | None:
    """CPUs that the kernel has per-CPU memory for, as in ``0-3,8``; None: not told."""
    text = read_text(machine.sys / "devices/system/cpu/possible")
    ranges = re.findall(r"(\d+)(?:-(\d+))?", text)
    return sum(int(last or first) - int(first) + 1 for first, last in ranges) or None


def count_dying(machine: Machine) -> int | None:
    """Dying cgroups, with memory or without, as ``Kernel.dying_cgroups``.

    Of cgroup v1, which tells nobody, those of the hierarchy with memory.
    """
    if machine.cgroup1 or not machine.cgroup2:
        return count_zombies(machine).count
    found = _cgroup_stat(machine.cgroup2)
    return int(found[DYING]) if DYING in found else None


def _cgroup_stat(mount: Mount) -> dict[str, str]:
    text = read_text(Path(mount.point, "cgroup.stat"))
    return dict(re.findall(r"^(\S+) (\d+)$", text, re.M))


def _on_v2(machine: Machine) -> tuple[int | None, str]:
    mount = machine.cgroup2
    assert mount
    found = _cgroup_stat(mount)
    # 6.12+, "cgroup: Show # of subsystem CSSes in cgroup.stat"; before, it counts
    # dying cgroups of whatever controllers.
    for name in ("nr_dying_subsys_memory", DYING):
        if name in found:
            return int(found[name]), f"{name} in {mount.point}/cgroup.stat"
    return None, f"{mount.point}/cgroup.stat does not tell"


def _on_v1(machine: Machine) -> tuple[int | None, str]:
    mount = machine.cgroup1
    assert mount
    text = read_text(machine.proc / "cgroups")
    found = re.search(r"^memory\s+\d+\s+(\d+)\s", text, re.M)
    if not found:
        return None, "/proc/cgroups does not tell"
    if mount.root != "/":
        return None, f"not all of the hierarchy is mounted at {mount.point}"
    live = sum(1 for _ in os.walk(mount.point))
    source = f"/proc/cgroups less the directories below {mount.point}"
    return max(0, int(found[1]) - live), source
