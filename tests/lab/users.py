"""Who uses the memory of which memcg: the guest's page maps against its page frames.

``lab frames`` says, while all memcgs are online, whom each frame is charged to
(/proc/kpagecgroup) and in the end what it is like (/proc/kpageflags), ``lab pagemap``
which frames and swap entries each process has (/proc/PID/pagemap). What they map is in
/proc/PID/smaps, what they have open in /proc/PID/fd.
"""

from __future__ import annotations

import re
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.lab.guest import Guest

# Documentation/admin-guide/mm/pagemap.rst, and include/linux/kernel-page-flags.h
BITS = {
    "dirty": 4,
    "writeback": 8,
    "mapped": 11,
    "swapcache": 13,
    "unevictable": 18,
    "mlocked": 33,
}
ANON, SWAPBACKED, TAIL = 12, 14, 16
# REFERENCED, UPTODATE, DIRTY, LRU, WRITEBACK, UNEVICTABLE: of user pages only.
USER = 1 << 2 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 18
PRESENT, SWAPPED = 1 << 63, 1 << 62
FRAME = (1 << 55) - 1
# fs/proc/task_mmu.c: the lines of an area in smaps, and the first one.
AREA = re.compile(r"^[\da-f]+-[\da-f]+ \S+ [\da-f]+ (\S+) (\d+) *(.*)$")
SIZES = ("Rss", "Anonymous", "Swap")


@dataclass(frozen=True)
class Frame:
    """A charged page frame: the cgroup's inode and the flags of its folio's head."""

    cgroup: int
    flags: int


def frames(guest: Guest) -> dict[int, Frame]:
    """Every charged frame, by number."""
    found: dict[int, Frame] = {}
    head = 0
    for line in guest.run("lab", "frames").decode().splitlines():
        number, cgroup, text, _ = line.split()
        flags = int(text, 16)
        if not flags >> TAIL & 1:
            head = flags
        found[int(number)] = Frame(int(cgroup), head)
    return found


def class_of(flags: int) -> str:
    if flags >> ANON & 1:
        return "anon"
    if flags >> SWAPBACKED & 1:
        return "shmem"
    return "file" if flags & USER else "kernel"


def describe(
    guest: Guest, before: dict[int, Frame], above: dict[int, int]
) -> dict[str, Any]:
    """What processes map, have open and swapped, and every charged page frame.

    ``before`` is from when all was online; ``above`` has, by id, the memcg for which
    the kernel shows the frames of an offline one.
    """
    now = frames(guest)
    owner = {
        number: before[number].cgroup
        if number in before
        and frame.cgroup in (before[number].cgroup, above.get(before[number].cgroup))
        else frame.cgroup
        for number, frame in now.items()
    }
    mapped: Counter[tuple[int, int]] = Counter()
    swapped: Counter[tuple[int, int]] = Counter()
    for pid, entry in page_maps(guest):
        if entry & PRESENT and entry & FRAME in owner:
            mapped[owner[entry & FRAME], pid] += guest.page_size
            cached = now[entry & FRAME].flags >> BITS["swapcache"] & 1
            swapped[pid, -1] += cached
        elif not entry & PRESENT:
            swapped[pid, entry & 31] += 1
    pids = sorted({pid for _, pid in mapped})
    return {
        "mapped": [
            {"memcg": memcg, "pid": pid, "bytes": size}
            for (memcg, pid), size in sorted(mapped.items())
        ],
        # By the number of the device; what is mapped, but still in the swap cache, is
        # on none that can be told (-1).
        "swapped": [
            {"pid": pid, "device": device, "entries": entries}
            for (pid, device), entries in sorted(swapped.items())
            if entries
        ],
        "areas": [area for pid in pids for area in areas(guest, pid)],
        "open": list(opened(guest, pids)),
        "cgroups": {str(pid): cgroup_of(guest, pid) for pid in pids},
        "frames": list(runs(now, owner)),
    }


def runs(now: dict[int, Frame], owner: dict[int, int]) -> Iterator[str]:
    """Frames that are alike: "first+number memcg shown-for class mark,mark"."""
    last, first, count = "", 0, 0
    for number, frame in sorted(now.items()):
        marks = ",".join(mark for mark, bit in BITS.items() if frame.flags >> bit & 1)
        what = f"{owner[number]} {frame.cgroup} {class_of(frame.flags)} {marks}"
        if what == last and number == first + count:
            count += 1
            continue
        if count:
            yield f"{first}+{count} {last}"
        last, first, count = what, number, 1
    if count:
        yield f"{first}+{count} {last}"


def page_maps(guest: Guest) -> list[tuple[int, int]]:
    """(pid, entry of its pagemap) of all that processes map or have swapped."""
    pids = guest.sh("cd /proc; grep -l . [0-9]*/maps 2> /dev/null || true").split()
    alive = [pid.removesuffix("/maps") for pid in pids]
    lines = guest.run("lab", "pagemap", *alive).decode().splitlines()
    return [
        (int(pid), int(entry, 16)) for pid, _, entry in (line.split() for line in lines)
    ]


def areas(guest: Guest, pid: int) -> list[dict[str, Any]]:
    """The areas of a process that map anything, by its smaps."""
    found: list[dict[str, Any]] = []
    for line in guest.read(f"/proc/{pid}/smaps").splitlines():
        if first := AREA.match(line):
            device, inode, path = first.groups()
            found.append(
                {"pid": pid, "path": path, "device": device, "inode": int(inode)}
            )
            continue
        key, _, value = line.partition(":")
        if key in SIZES:
            found[-1][key.lower()] = int(value.split()[0]) * 1024
    return [area for area in found if area["rss"] or area["swap"]]


def cgroup_of(guest: Guest, pid: int) -> str:
    """The path of a process's memory cgroup."""
    lines = guest.read(f"/proc/{pid}/cgroup").splitlines()
    entries = [line.split(":", 2) for line in lines]
    return next((path for _, of, path in entries if of in ("", "memory")), "")


def opened(guest: Guest, pids: list[int]) -> Iterator[dict[str, int]]:
    """The regular files that processes have open."""
    names = " ".join(f"/proc/{pid}/fd/*" for pid in pids)
    lines = guest.sh(f"stat -L -c '%f %n %D %i' {names} 2> /dev/null || true")
    for mode, name, device, inode in map(str.split, lines.splitlines()):
        if stat.S_ISREG(int(mode, 16)):
            pid = int(name.split("/")[2])
            yield {"pid": pid, "device": int(device, 16), "inode": int(inode)}
