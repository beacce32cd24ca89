"""Who uses the memory of which memcg: the guest's page maps against its page frames.

``lab frames`` says, while all memcgs are online, whom each frame is charged to
(/proc/kpagecgroup) and in the end what it is like (/proc/kpageflags), ``lab pagemap``
which frames and swap entries each process has (/proc/PID/pagemap).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from tests.lab.guest import Guest

PAGE = 4096
# Documentation/admin-guide/mm/pagemap.rst
BITS = {
    "referenced": 2,
    "dirty": 4,
    "writeback": 8,
    "mapped": 11,
    "unevictable": 18,
}
ANON, SWAPBACKED, TAIL = 12, 14, 16
# REFERENCED, UPTODATE, DIRTY, LRU, WRITEBACK, UNEVICTABLE: of user pages only.
USER = 1 << 2 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 18
PRESENT, SWAPPED = 1 << 63, 1 << 62
FRAME = (1 << 55) - 1


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
    """What processes map and have swapped, and how the memory is marked, by memcg.

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
    marks: Counter[tuple[int, str, str]] = Counter()
    for number, frame in now.items():
        for mark, bit in BITS.items():
            if frame.flags >> bit & 1:
                marks[owner[number], class_of(frame.flags), mark] += PAGE
    mapped: Counter[tuple[int, int]] = Counter()
    swapped: Counter[int] = Counter()
    for pid, entry in page_maps(guest):
        if entry & PRESENT and entry & FRAME in owner:
            mapped[owner[entry & FRAME], pid] += PAGE
        elif not entry & PRESENT:
            swapped[pid] += 1
    return {
        "mapped": [
            {"memcg": memcg, "pid": pid, "bytes": size}
            for (memcg, pid), size in sorted(mapped.items())
        ],
        "swapped": [
            {"pid": pid, "entries": entries} for pid, entries in sorted(swapped.items())
        ],
        "marked": [
            {"memcg": memcg, "class": name, "mark": mark, "bytes": size}
            for (memcg, name, mark), size in sorted(marks.items())
            if name != "kernel"
        ],
    }


def page_maps(guest: Guest) -> list[tuple[int, int]]:
    """(pid, entry of its pagemap) of all that processes map or have swapped."""
    pids = guest.sh("cd /proc; grep -l . [0-9]*/maps 2> /dev/null || true").split()
    alive = [pid.removesuffix("/maps") for pid in pids]
    lines = guest.run("lab", "pagemap", *alive).decode().splitlines()
    return [
        (int(pid), int(entry, 16)) for pid, _, entry in (line.split() for line in lines)
    ]
