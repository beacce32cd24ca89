"""Which pages of a process are in memory or in swap, and whose are they?

From /proc/PID/smaps (mappings that have any), /proc/PID/pagemap and
/proc/kpagecgroup (the inode number of the nearest online memcg, by page frame), all
read in large blocks.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memcgctl.actions.host.machine import ActionError, Machine
from memcgctl.model import Backing

U64 = NDArray[np.uint64]
Bools = NDArray[np.bool_]

# Documentation/admin-guide/mm/pagemap.rst
_PRESENT, _SWAPPED, _SHARED = (np.uint64(1 << bit) for bit in (63, 62, 61))
_PFN = (1 << 55) - 1
SWAPCACHE, WRITEBACK, _HEAD, _TAIL = (
    13,
    8,
    15,
    16,
)  # include/uapi/linux/kernel-page-flags.h
NONE: U64 = np.zeros(0, np.uint64)
_MAX_ORDER = 10
# A block of /proc/kpage*: 32 KiB.
_FRAMES = 4096
# Pagemap entries at a time: 8 MiB, for 4 GiB of addresses.
_ENTRIES = 1 << 20


@dataclass(frozen=True)
class Area:
    """A mapping of a process: addresses, what of it is there, the file's identity.

    ``flags`` are the two-letter ones of ``VmFlags``, ``offset`` is that in the file.
    """

    start: int
    end: int
    device: str
    inode: int
    resident_bytes: int
    swapped_bytes: int
    flags: frozenset[str]
    offset: int = 0

    @staticmethod
    def of(start: int, size: int) -> Area:
        """A mapping of our own."""
        return Area(start, start + size, "", 0, size, 0, frozenset())

    def maps(self, file: Backing | None, overlays: Collection[str] = ()) -> bool:
        """Whether it is of this file, or of this through one of these file systems.

        Of none, any will do.
        """
        return file is None or (
            self.inode == file.inode and self.device in (file.device, *overlays)
        )


def areas(pid: int, machine: Machine) -> list[Area]:
    """The mappings of a process; ActionError if it is gone or not for us to see."""
    try:
        text = (machine.proc / str(pid) / "smaps").read_text(errors="replace")
    except OSError as error:
        raise ActionError(f"pid {pid}: {error.strerror}") from error
    head = r"^([0-9a-f]+)-([0-9a-f]+) \S+ ([0-9a-f]+) ([0-9a-f]+):([0-9a-f]+) (\d+)"
    starts = [*re.finditer(head, text, re.M)]
    if not starts:  # it has exited meanwhile
        return []
    ends = [match.start() for match in starts[1:]] + [len(text)]
    return [
        _area(match, text[match.end() : end])
        for match, end in zip(starts, ends, strict=True)
    ]


def _area(head: re.Match[str], body: str) -> Area:
    sizes = dict(re.findall(r"^(Rss|Swap):\s+(\d+) kB", body, re.M))
    flags = re.search(r"^VmFlags: (.*)$", body, re.M)
    return Area(
        start=int(head[1], 16),
        end=int(head[2], 16),
        device=f"{int(head[4], 16)}:{int(head[5], 16)}",
        inode=int(head[6]),
        resident_bytes=int(sizes.get("Rss", 0)) * 1024,
        swapped_bytes=int(sizes.get("Swap", 0)) * 1024,
        flags=frozenset(flags[1].split() if flags else ()),
        offset=int(head[3], 16),
    )


def entries(pid: int, area: Area, machine: Machine) -> Iterator[tuple[U64, U64]]:
    """Addresses and pagemap entries of what an area has in memory or in swap.

    A mapping of our own ends where the file does, which can be within a page.
    """
    size = machine.page_size
    end = -(-area.end // size)
    with _opened(machine.proc / str(pid) / "pagemap") as pagemap:
        for first in range(area.start // size, end, _ENTRIES):
            count = min(_ENTRIES, end - first)
            try:
                raw = os.pread(pagemap, 8 * count, 8 * first)
            except OSError as error:
                raise ActionError(f"pid {pid}: {error.strerror}") from error
            found = np.frombuffer(raw, np.uint64)
            (used,) = (found & (_PRESENT | _SWAPPED)).nonzero()
            yield (
                (used.astype(np.uint64) + np.uint64(first)) * np.uint64(size),
                found[used],
            )


def absent(pid: int, area: Area, machine: Machine) -> U64:
    """Addresses of a shared mapping that its file has data for, but no page table.

    A page table tells nothing of shmem in swap (``try_to_unmap_one``), where to its
    file it is data as any other. Only shmem has anything in swap and is shared.
    """
    if "sh" not in area.flags:
        return NONE
    used = np.concatenate([NONE, *(at for at, _ in entries(pid, area, machine))])
    name = f"{area.start:x}-{area.end:x}"
    with _opened(machine.proc / str(pid) / "map_files" / name) as fd:
        end = area.offset + area.end - area.start
        data = with_data(fd, area.offset, end, machine)
    start, offset = np.uint64(area.start), np.uint64(area.offset)
    missing: U64 = np.setdiff1d(data - offset + start, used)
    return missing


def with_data(fd: int, start: int, end: int, machine: Machine) -> U64:
    """The offsets of those pages of a file, from ``start`` on, that have data.

    Of shmem what is in memory or in swap, but for what fallocate(2) has reserved.
    """
    size, found, at = machine.page_size, [NONE], start
    try:
        while (at := os.lseek(fd, at, os.SEEK_DATA)) < end:
            hole = min(os.lseek(fd, at, os.SEEK_HOLE), end)
            found.append(np.arange(at // size * size, hole, size, dtype=np.uint64))
            at = hole
    except OSError as error:
        if error.errno != errno.ENXIO:  # that is: only a hole from here on
            raise ActionError(f"its data: {error.strerror}") from error
    return np.concatenate(found)


def frames(values: U64) -> U64:
    """Page frame numbers of pagemap entries: 0 where not in memory."""
    pfns: U64 = np.where(values & _PRESENT, values & np.uint64(_PFN), np.uint64(0))
    return pfns


def swapped(values: U64) -> Bools:
    result: Bools = (values & _SWAPPED) != 0
    return result


def shared(values: U64) -> Bools:
    """Which pages are of a file or of shmem, not of anonymous memory."""
    result: Bools = (values & _SHARED) != 0
    return result


def of_memcgs(pfns: U64, memcg_ids: Collection[int], machine: Machine) -> Bools:
    """Which of these page frames the kernel shows as charged to one of these memcgs."""
    ids = np.array(sorted(memcg_ids), np.uint64)
    result: Bools = np.isin(shown(pfns, machine), ids) & (pfns != 0)
    return result


def shown(pfns: U64, machine: Machine) -> U64:
    """The id of the memcg that the kernel shows each page frame to be charged to.

    Up to 5.10, and on some kernels after it, only the first page of a compound one
    has it: the others take it from that, which is the next head before them.
    """
    ids = _by_frame("kpagecgroup", pfns, machine)
    without = (ids == 0) & flagged(pfns, _TAIL, machine)
    for order in range(1, _MAX_ORDER + 1):
        if not without.any():
            break
        heads = pfns >> np.uint64(order) << np.uint64(order)
        found = np.flatnonzero(without)[flagged(heads[without], _HEAD, machine)]
        ids[found] = _by_frame("kpagecgroup", heads[found], machine)
        without[found] = False
    return ids


def flagged(pfns: U64, bit: int, machine: Machine) -> Bools:
    """Which of these page frames have a flag of /proc/kpageflags."""
    flags = _by_frame("kpageflags", pfns, machine)
    result: Bools = (flags >> np.uint64(bit)) & np.uint64(1) != 0
    return result


def _by_frame(name: str, pfns: U64, machine: Machine) -> U64:
    """The word that a file of /proc has for each page frame.

    0 beyond its end, which is the last frame that the kernel tells of; ActionError
    where it cannot be read: "not charged" would be taken for "moved".
    """
    result = np.zeros(len(pfns), np.uint64)
    order = np.argsort(pfns)
    blocks, starts = np.unique(pfns[order] // np.uint64(_FRAMES), return_index=True)
    ends = [*starts.tolist(), len(pfns)][1:]
    with _opened(machine.proc / name) as file:
        for block, start, end in zip(
            blocks.tolist(), starts.tolist(), ends, strict=True
        ):
            try:
                raw = os.pread(file, 8 * _FRAMES, 8 * _FRAMES * block)
            except OSError as error:
                raise ActionError(f"/proc/{name}: {error.strerror}") from error
            words = np.zeros(_FRAMES, np.uint64)
            words[: len(raw) // 8] = np.frombuffer(raw, np.uint64)
            here = order[start:end]
            result[here] = words[(pfns[here] % np.uint64(_FRAMES)).astype(np.intp)]
    return result


class _opened:
    """A file of /proc for ``pread``; ActionError if it is not for us."""

    def __init__(self, path: os.PathLike[str]):
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise ActionError(f"{os.fspath(path)}: {error.strerror}") from error

    def __enter__(self) -> int:
        return self._fd

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def runs(addresses: U64, page_size: int, most: int) -> Iterator[tuple[int, int]]:
    """Sorted addresses of pages as (address, size) without gaps, each ``most`` long.

    One at a time: there may be millions.
    """
    breaks = np.flatnonzero(np.diff(addresses) != page_size)
    for first, last in zip(
        np.append(0, breaks + 1), np.append(breaks, len(addresses) - 1), strict=True
    ):
        if first <= last:  # there is one without any address
            start, end = int(addresses[first]), int(addresses[last]) + page_size
            yield from ((at, min(most, end - at)) for at in range(start, end, most))
