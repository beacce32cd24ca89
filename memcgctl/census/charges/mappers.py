"""Who maps the folios that are charged to memcgs?

The reverse map says where to look, page tables how much is there. A folio whose
``_mapcount`` tells of more mappings than were found is looked for in the page tables
of all processes; what is not found there either is counted, since "mapped by somebody
who was not found" is not "mapped by nobody".
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from memcgctl.kernel.trouble import Topic
from memcgctl.linux.pagetables import Ranges
from memcgctl.linux.rmap import Frames, Mapped, Seen, Vmas, anon_vmas, mapped_pages
from memcgctl.linux.structs import addresses, unique

if TYPE_CHECKING:
    from memcgctl.census.charges.collect import Folios
    from memcgctl.kernel.program import OpenedKernel
    from memcgctl.linux.tasks import Tasks

# include/linux/page-flags.h: the low bits of folio->mapping. 2 is a movable page that
# is on no LRU list (up to 6.16); 3 is KSM.
FLAGS, _ANON, _KSM = np.uint64(3), np.uint64(1), np.uint64(3)

# All of a process's addresses, whether there are four or five levels of page tables.
_USER_END = 1 << 56

# How many pages each process has, by its position in ``tasks``.
Sharers = Counter[int]


class Mappers(NamedTuple):
    """Who maps each group, and each folio that was to be looked at apart.

    ``huge`` is what of each group fills page tables of an anonymous area, ``pages`` how
    many of its pages somebody maps who was found, ``missing`` by somebody who was not,
    ``repeated`` by one more than once.
    """

    by_group: dict[int, Sharers]
    by_folio: dict[int, Sharers]
    huge: dict[int, Sharers]
    pages: Counter[int]
    missing: Counter[int]
    repeated: Counter[int]

    def of(self, group: int) -> Sharers:
        return self.by_group.get(group, Counter())


def find_mappers(
    kernel: OpenedKernel,
    found: Folios,
    of_files: Vmas,
    apart: NDArray[np.bool_],
    of: NDArray[np.int64],
    tasks: Tasks,
) -> Mappers:
    """Who maps what; ``of`` is the group of each folio.

    ``of_files`` are the areas that map the folios of files. KSM pages have a reverse
    map of their own; for these all address spaces are looked at.
    """
    (mapped,) = (found.mapcount > 0).nonzero()
    mapping = found.mapping[mapped]
    anon = mapping[(mapping & FLAGS) == _ANON] & ~FLAGS
    areas = [of_files, anon_vmas(kernel, unique(anon))]
    if ((mapping & FLAGS) == _KSM).any():
        areas.append(_everything(tasks))
    mms = unique(np.concatenate([area.mm for area in areas]))
    no_file = areas[1].file == 0
    anonymous = Ranges(
        np.searchsorted(mms, areas[1].mm[no_file]),
        areas[1].start[no_file],
        areas[1].end[no_file],
    )
    # What is looked at apart has a number of its own, beyond those of the groups.
    groups = int(of.max(initial=-1)) + 1
    number = np.where(apart, groups + np.arange(len(of)), of)
    frames = Frames(
        found.pfn[mapped].astype(np.uint64),
        found.all_pages[mapped].astype(np.uint64),
        number[mapped],
    )
    seen = Seen(frames)
    mappers = Mappers({}, {}, {}, Counter(), Counter(), Counter())
    cells = mapped_pages(kernel, mms, frames, _ranges(mms, areas), anonymous, seen)
    _add(kernel, mappers, cells, mms, of, tasks)
    _find_missing(kernel, found, mapped, frames, seen, mappers, of, tasks)
    return mappers


def _add(
    kernel: OpenedKernel,
    mappers: Mappers,
    cells: tuple[list[Mapped], dict[int, int], dict[int, int]],
    mms: NDArray[np.uint64],
    of: NDArray[np.int64],
    tasks: Tasks,
) -> None:
    """Add what the page tables of ``mms`` map to the processes that have these."""
    positions: dict[int, list[int]] = {}
    for position, address in enumerate(tasks.mm.tolist()):
        positions.setdefault(address, []).append(position)
    groups = int(of.max(initial=-1)) + 1
    by_mm, together, again = cells
    for index, group, pages, full in by_mm:
        sharers = positions.get(int(mms[index]), ())
        each = dict.fromkeys(sharers, pages)
        whole = int(of[group - groups]) if group >= groups else group
        if not sharers:
            kernel.trouble.note(
                Topic.PROCESSES,
                "memory is mapped by an address space without a process",
            )
            mappers.missing[whole] += pages
        if group >= groups:
            mappers.by_folio.setdefault(group - groups, Counter()).update(each)
        elif full:
            filled = dict.fromkeys(sharers, full)
            mappers.huge.setdefault(group, Counter()).update(filled)
        mappers.by_group.setdefault(whole, Counter()).update(each)
    for group, pages in together.items():
        mappers.pages[group if group < groups else int(of[group - groups])] += pages
    for group, pages in again.items():
        mappers.repeated[group if group < groups else int(of[group - groups])] += pages


def _find_missing(
    kernel: OpenedKernel,
    found: Folios,
    mapped: NDArray[np.intp],
    frames: Frames,
    seen: Seen,
    mappers: Mappers,
    of: NDArray[np.int64],
    tasks: Tasks,
) -> None:
    """Look everywhere for who maps what was not found, and count what stays so."""
    count, large = found.mapcount[mapped], found.pages[mapped] > 1
    lacking = seen.rows(count, large)
    if not len(lacking):
        return
    row, times, frame = seen.pages(lacking)
    (unmet,) = (times == 0).nonzero()
    wanted = Frames(
        frame[unmet], np.ones(len(unmet), np.uint64), frames.group[row[unmet]]
    )
    again, everywhere = Seen(wanted), _everything(tasks)
    ranges = _ranges(everywhere.mm, [everywhere])
    cells = mapped_pages(kernel, everywhere.mm, wanted, ranges, None, again)
    _add(kernel, mappers, cells, everywhere.mm, of, tasks)
    times[unmet] = again.pages(np.arange(len(unmet)))[1]
    # A large folio need not be mapped as a whole.
    somewhere = np.bincount(row, times, len(mapped)) > 0
    missing = np.where(large[row], ~somewhere[row], times < count[row])
    pages = np.bincount(of[mapped[row[missing]]])
    for group in pages.nonzero()[0].tolist():
        mappers.missing[group] += int(pages[group])
    if total := int(pages.sum()):
        kernel.trouble.note(
            None, "a page is mapped, but not in any page tables that were read", total
        )


def _ranges(mms: NDArray[np.uint64], areas: list[Vmas]) -> Ranges:
    """The areas as ranges of the sorted ``mms``, by their positions."""
    return Ranges(
        np.searchsorted(mms, np.concatenate([area.mm for area in areas])),
        np.concatenate([area.start for area in areas]),
        np.concatenate([area.end for area in areas]),
    )


def _everything(tasks: Tasks) -> Vmas:
    """The whole of each address space, as one area."""
    mms = unique(tasks.mm)
    nothing = addresses(np.zeros(len(mms)))
    end = np.full(len(mms), _USER_END, np.uint64)
    return Vmas(nothing.astype(np.int64), mms, nothing, end, nothing, nothing)
