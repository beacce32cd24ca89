"""Who has charged memory by other means than a page table or an open descriptor?

A file that is mapped and was never touched, a file that is in flight over a socket or
registered with an io_uring, and pages in a pipe, a DMA buffer or an io_uring. Only what
no mapper and no opener accounts for is looked at.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from memcgctl.census.charges.collect import Folios
from memcgctl.census.processes import Processes
from memcgctl.kernel.layout import has_member, offset_of, size_of, value_of
from memcgctl.linux.files import Opened
from memcgctl.linux.kept import kept_pages
from memcgctl.linux.rmap import file_vmas
from memcgctl.linux.structs import U64, addresses, find, read_rows, read_structs, unique
from memcgctl.model import Keeper, KeptHow

if TYPE_CHECKING:
    from memcgctl.kernel.program import OpenedKernel

# A group (its number), a process (its position), and how this has pages of that.
Kept = tuple[int, int, KeptHow]


class Keepers:
    """What was found so far, for the groups of folios of some memcgs.

    ``of`` is the group of each folio, ``mapping`` the ``struct address_space *`` of
    each group.
    """

    def __init__(
        self,
        opened: Opened,
        processes: Processes,
        found: Folios,
        of: NDArray[np.int64],
        mapping: U64,
    ) -> None:
        self._opened, self._processes = opened, processes
        self._found, self._of, self._mapping = found, of, mapping
        self._kept: Counter[Kept] = Counter()
        self._fds: defaultdict[Kept, set[int]] = defaultdict(set)

    def add_untouched(self, groups: list[int]) -> None:
        """Areas over pages of these groups, of which no page table maps any."""
        kernel = self._opened.kernel
        mappings = unique(self._mapping[groups])
        areas = file_vmas(kernel, mappings)
        mms, first = np.unique(self._processes.tasks.mm, return_index=True)
        owner_mm, alive = find(mms, areas.mm)
        owners, _ = find(mappings, self._mapping[groups])
        for group, owner in zip(groups, owners.tolist(), strict=True):
            (its,) = (alive & (areas.owner == owner)).nonzero()
            if not len(its):
                continue
            index = _indices(kernel, self._found, self._of == group)
            for area in its.tolist():
                size = int(areas.end[area]) - int(areas.start[area])
                pages = size // kernel.memory.page_size
                start = int(areas.pgoff[area])
                count = int(((index >= start) & (index < start + pages)).sum())
                if count:
                    task = int(first[owner_mm[area]])
                    self._kept[group, task, "untouched"] += count

    def add_files(self, groups: list[int]) -> None:
        """Files of these groups that a socket or an io_uring has."""
        kernel = self._opened.kernel
        files = addresses(sorted(self._opened.kept))
        rows = read_structs(kernel, "struct file", files, {"mapping": "f_mapping"})
        for group in groups:
            mapping = self._mapping[group]
            pages = int(self._found.all_pages[self._of == group].sum())
            for file in files[(rows["mapping"] == mapping) & (mapping != 0)].tolist():
                kept = self._opened.kept[file]
                self._add(group, kept.how, [kept.by], pages)

    def add_pages(self, wanted: NDArray[np.bool_]) -> None:
        """Folios among those ``wanted`` that a pipe, a buffer or a ring has."""
        (rows,) = wanted.nonzero()
        if not len(rows):
            return
        first = self._found.pfn[rows]
        end = first + self._found.all_pages[rows]
        for kept in kept_pages(self._opened.kernel, self._opened.open_of_kind):
            pfn = kept.pfn.astype(np.int64)
            at = np.searchsorted(first, pfn, side="right") - 1
            here = (at >= 0) & (pfn < end[at])
            for group, pages in self._sizes(rows[at[here]], pfn[here]).items():
                self._add(group, kept.how, kept.by, pages)

    def _sizes(self, rows: NDArray[np.intp], pfn: NDArray[np.int64]) -> Counter[int]:
        """Pages of each group; a folio of the kernel's counts whole."""
        kernels = self._found.mapping[rows] == 0
        whole = self._found.pages[rows] > 1
        sizes = np.where(kernels & whole, self._found.pages[rows], 1)
        counts: Counter[int] = Counter()
        for group, size in zip(self._of[rows].tolist(), sizes.tolist(), strict=True):
            counts[group] += size
        return counts

    def _add(self, group: int, how: KeptHow, by: list[int], pages: int) -> None:
        """The processes that have some ``struct file *`` open have these pages."""
        pids = self._processes.tasks.pid
        users: defaultdict[int, set[int]] = defaultdict(set)
        for pid, fd in (
            user for one in by for user in self._opened.descriptors_of(one)
        ):
            users[pid].add(fd)
        for pid, fds in users.items():
            task = int(np.searchsorted(pids, pid))
            if task < len(pids) and pids[task] == pid:
                self._kept[group, task, how] += pages
                self._fds[group, task, how] |= fds

    def of_group(self, group: int) -> tuple[Keeper, ...]:
        page_size = self._opened.kernel.memory.page_size
        return tuple(
            Keeper(
                key[2],
                self._processes.process(key[1], pages * page_size),
                tuple(sorted(self._fds[key])),
            )
            for key, pages in self._kept.most_common()
            if key[0] == group
        )


def _indices(
    kernel: OpenedKernel, found: Folios, wanted: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """The offset in its file of each page of some folios, in pages."""
    prog = kernel.prog
    (rows,) = wanted.nonzero()
    # Since Linux kernel commit 7b230db3b8d3 ("mm: Introduce struct folio") (in v5.16);
    # its index is where struct page has it.
    of = "struct folio" if has_member(prog, "struct folio", "index") else "struct page"
    size = size_of(prog, "struct page")
    start = value_of(prog["vmemmap"]) + offset_of(prog, of, "index")
    parts = [np.zeros(0, np.int64)]
    for pfn, pages, folios in zip(
        *(c[rows].tolist() for c in (found.pfn, found.pages, found.folios)), strict=True
    ):
        heads = np.uint64(pfn) + addresses(pages * np.arange(folios))
        at = np.uint64(start) + np.uint64(size) * heads
        first = read_rows(kernel, at, np.dtype("<u8")).astype(np.int64)
        parts.append((first[:, None] + np.arange(pages)).ravel())
    return np.concatenate(parts)
