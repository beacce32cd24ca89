"""What the guest itself says of its memcgs, and the truth file made of that.

Charged pages come from /proc/kpagecgroup and /proc/kpageflags while the cgroups are
online, which is exact on every kernel; the rest from the files of the hierarchy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tests.lab.guest import Guest

CLASSES = ["file", "shmem", "anon", "kernel", "hugetlb"]
# What is kept of memory.stat; "percpu" is what memcgs below this one cost.
KEYS = frozenset(
    """
    percpu file shmem anon cache rss swap file_mapped mapped_file file_dirty dirty
    unevictable anon_thp file_thp shmem_thp rss_huge kernel_stack pagetables slab sock
    kernel vmalloc hugetlb zswap zswapped
    """.split()  # noqa: SIM905
)
STAT = ["memory.stat", "memory.current", "memory.usage_in_bytes"]
SWAP = ["memory.swap.current", "memory.memsw.usage_in_bytes"]
TCP = ["memory.kmem.tcp.usage_in_bytes"]


@dataclass(frozen=True)
class Count:
    """Charged pages and folios by class, in the order of CLASSES."""

    pages: tuple[int, ...] = (0,) * len(CLASSES)
    folios: tuple[int, ...] = (0,) * len(CLASSES)

    def __add__(self, other: Count) -> Count:
        pages = tuple(a + b for a, b in zip(self.pages, other.pages, strict=True))
        folios = tuple(a + b for a, b in zip(self.folios, other.folios, strict=True))
        return Count(pages, folios)

    def __sub__(self, other: Count) -> Count:
        pages = tuple(a - b for a, b in zip(self.pages, other.pages, strict=True))
        folios = tuple(a - b for a, b in zip(self.folios, other.folios, strict=True))
        return Count(pages, folios)

    def user(self) -> Count:
        """Without the kernel's pages, which come and go with every process."""
        return Count(
            (*self.pages[:3], 0, *self.pages[4:]),
            (*self.folios[:3], 0, *self.folios[4:]),
        )


@dataclass(frozen=True)
class Files:
    """What the files of one online cgroup say; None: this kernel has no such."""

    id: int
    stat: dict[str, int]
    usage: int | None
    swap: int | None  # with all below it, as usage
    tcp: int | None = None  # of cgroup v1, likewise


def count(guest: Guest) -> dict[int, Count]:
    """Pages charged to each online cgroup, by inode number.

    Those of an offline memcg are shown for its nearest online ancestor.
    """
    counts = {}
    for line in guest.run("lab", "count").decode().splitlines():
        inode, *numbers = map(int, line.split())
        half = len(CLASSES)
        counts[inode] = Count(tuple(numbers[:half]), tuple(numbers[half:]))
    return counts


def parse_stat(text: str) -> dict[str, int]:
    return {key: int(value) for key, value in map(str.split, text.splitlines())}


def select(stat: dict[str, int]) -> dict[str, int]:
    return {key: value for key, value in stat.items() if key in KEYS}


def number(*texts: str) -> int | None:
    """The first of several files of which a kernel has at most one."""
    return next((int(text) for text in texts if text.strip()), None)


def read_files(guest: Guest, directories: Sequence[str]) -> list[Files]:
    names = [".", *STAT, *SWAP, *TCP]
    paths = [f"{directory}/{name}" for directory in directories for name in names]
    answers = guest.files(paths)
    result = []
    for at in range(0, len(answers), len(names)):
        row = [text for _, text in answers[at : at + len(names)]]
        usage = number(row[2], row[3])
        swap = number(row[4])
        if row[5] and usage is not None:
            swap = int(row[5]) - usage  # cgroup v1 counts memory and swap together
        stat, tcp = parse_stat(row[1]), number(row[6])
        result.append(Files(answers[at][0], stat, usage, swap, tcp))
    return result


def describe(said: Files, charged: Count, swap_below: int, page: int) -> dict[str, Any]:
    """The numbers of one memcg, without those below it, but for ``stat`` and usage."""
    pages = zip(CLASSES, charged.pages, strict=True)
    swap = None if said.swap is None else said.swap - swap_below
    return {
        "charged": {name: number * page for name, number in pages},
        "folios": dict(zip(CLASSES, charged.folios, strict=True)),
        "swap": None if swap is None else {"entries": swap // page, "bytes": swap},
        "stat": select(said.stat),
        "usage_bytes": said.usage,
        **({} if said.tcp is None else {"tcp": said.tcp}),
    }


def offline(guest: Guest, root: str) -> int:
    """The kernel's own count of memcgs that were removed and are still there."""
    text = guest.read(f"{root}/cgroup.stat")
    if text:
        return parse_stat(text)["nr_dying_descendants"]
    for line in guest.read("/proc/cgroups").splitlines():
        name, _, total, *_ = line.split()
        if name == "memory":  # cgroup v1: living and dying together
            return int(total) - len(guest.sh(f"find {root} -type d").splitlines())
    return 0
