"""What is known of each folio that is charged to some memcgs?

A second pass over the memory map (see ``folios``) that keeps, for the folios of the
memcgs asked for, what ``struct page`` and ``struct folio`` say about them: flags,
owner, mappings, references and pins; as NumPy arrays, never one object a page, and
once for neighbours that are alike, as most are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from drgn.helpers.linux.percpu import per_cpu
from numpy.typing import NDArray

from memcgctl.census import folios
from memcgctl.census.pages import page_layout
from memcgctl.kernel.layout import (
    dtype_of,
    has_member,
    members_of_type,
    offset_of,
    size_of,
)
from memcgctl.kernel.trouble import (
    Topic,
    reading,
)
from memcgctl.linux.memmap import PageRange, page_ranges
from memcgctl.linux.records import first_member
from memcgctl.linux.structs import (
    U64,
    addresses,
    enumerators,
    possible_cpus,
    read_structs,
)

if TYPE_CHECKING:
    from memcgctl.kernel.program import OpenedKernel

# include/linux/mm.h: what one pin_user_pages() adds to the references of a folio that
# has no counter of its own for pins.
GUP_PIN_COUNTING_BIAS = 1024

# The per-CPU batches that hold a reference to each folio on its way to, from or within
# an LRU list (mm/swap.c, mm/mlock.c), by kernel: lru_rotate up to 6.11, lru_pvecs up
# to 5.15, cpu_fbatches from 5.16 on, mlock_pvec in 5.18 to 6.2, mlock_fbatch after.
_BATCHES = {
    "lru_pvecs": "struct lru_pvecs",
    "lru_rotate": "struct lru_rotate",
    "cpu_fbatches": "struct cpu_fbatches",
    "mlock_pvec": "struct mlock_pvec",
    "mlock_fbatch": "struct mlock_fbatch",
}
_BATCH_TYPES = ("struct folio_batch", "struct pagevec")


class Folios(NamedTuple):
    """Charged folios: parallel arrays, in the order of page frames.

    A row is ``folios`` neighbours, of ``pages`` each from ``pfn`` on, that agree in all
    the rest. ``memcg`` is the position of the memcg among those asked for, ``kind``
    one of ``folios.FILE`` and so on, ``mapping`` the raw word, ``mapcount`` the number
    of page-table entries that map any part of it, ``pins`` what ``pin_user_pages``
    holds. ``batched`` is the number of references that per-CPU LRU batches hold.
    """

    memcg: NDArray[np.int64]
    kind: NDArray[np.int64]
    pfn: NDArray[np.int64]
    pages: NDArray[np.int64]
    folios: NDArray[np.int64]
    flags: U64
    mapping: U64
    private: U64
    mapcount: NDArray[np.int64]
    refcount: NDArray[np.int64]
    pins: NDArray[np.int64]
    batched: NDArray[np.int64]

    @property
    def all_pages(self) -> NDArray[np.int64]:
        """The pages of all folios of each row."""
        return self.pages * self.folios

    def each(self, limit: int) -> Folios:
        """The first ``limit`` folios, each in a row of its own."""
        count = np.minimum(self.folios[:limit], limit)
        row = np.repeat(np.arange(len(count)), count)[:limit]
        index = np.arange(len(row)) - (np.cumsum(count) - count)[row]
        found = {name: column[row] for name, column in self._asdict().items()}
        found["pfn"] += index * found["pages"]
        return self._replace(**found | {"folios": np.ones_like(index)})


@reading(Topic.MEMORY_MAP)
def collect_folios(
    kernel: OpenedKernel,
    memcgs: U64,
    wanted: U64,
    progress: Callable[[str, int, int], None] | None = None,
) -> Folios:
    """The folios charged to the ``struct mem_cgroup *`` in ``wanted``.

    ``memcgs`` are all memcgs of the kernel. Raises KernelError if there is no memory
    map, as in a dump that excludes it.
    """
    layout = page_layout(kernel.prog)
    counters = _counters(kernel)
    owners = folios.Owners(kernel, memcgs)
    # The position among those wanted of each row of memcgs, the unknown one's last.
    position = np.full(len(memcgs) + 1, -1, np.int64)
    for index, memcg in enumerate(wanted.tolist()):
        position[:-1][memcgs == memcg] = index
    ranges = page_ranges(kernel)
    batched, roots = _batched(kernel, ranges), folios.Roots(kernel)
    total, seen, end = sum(r.pages for r in ranges), 0, 0
    parts = [_none()]
    for pfn, data in folios.blocks(kernel.memory, ranges, layout.page.itemsize):
        seen += len(data) // layout.page.itemsize
        if progress:
            progress("looking at charged folios", seen, total)
        charged = folios.charged_folios(data, layout, pfn, end)
        if charged is None:
            continue
        end = charged.end
        memcg = position[owners.rows(charged.pointer)]
        (hits,) = (memcg >= 0).nonzero()
        if len(hits):
            of_two = pfn + charged.at[roots.find(data, pfn, charged)]
            found = counters.decode(
                data,
                pfn,
                charged.at[hits],
                memcg[hits],
                charged.kind[hits],
                charged.pages[hits],
                batched,
                of_two,
            )
            parts.append(found._replace(pages=found.pages + np.isin(found.pfn, of_two)))
    return Folios(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _none() -> Folios:
    nothing, words = np.zeros(0, np.int64), np.zeros(0, np.uint64)
    return Folios(
        *(nothing, nothing, nothing, nothing, nothing),
        *(words, words, words),
        *(nothing, nothing, nothing, nothing),
    )


@dataclass(frozen=True)
class _Counters:
    """Where the counters of a folio are: in its first, second or every struct page.

    Offsets are from the head page; None where this kernel has no such counter.
    """

    page: np.dtype[np.void]
    large: int | None
    entire: int
    pincount: int
    second_flags: int
    double_map: int | None

    def decode(
        self,
        data: bytes,
        pfn: int,
        at: NDArray[np.int64],
        memcg: NDArray[np.int64],
        kind: NDArray[np.int64],
        pages: NDArray[np.int64],
        batched: NDArray[np.int64],
        apart: NDArray[np.int64],
    ) -> Folios:
        """The folios whose head pages are at indexes ``at`` of a block.

        ``batched`` are the frames that per-CPU batches hold a reference to, sorted;
        those ``apart`` get a row of their own.
        """
        heads = np.frombuffer(data, self.page)
        # Mostly all of the block: no copy then.
        whole = len(at) == at[-1] - at[0] + 1
        heads = heads[at[0] : at[-1] + 1] if whole else heads[at]
        alone = np.concatenate((batched, apart)) - pfn
        first = _rows(heads, at, memcg, kind, pages, alone)
        count = np.diff(first, append=len(at))
        heads, at, memcg = heads[first], at[first], memcg[first]
        kind, pages = kind[first], pages[first]
        # A page type (page tables, offline pages) shares the word: it is negative.
        mapcount = _not_negative(heads["mapcount"].astype(np.int64) + 1)
        refcount = heads["refcount"].astype(np.int64)
        pins = np.where(pages > 1, 0, refcount) // GUP_PIN_COUNTING_BIAS
        large = (pages > 1).nonzero()[0]
        if len(large):
            mapcount[large] = self._large(data, at[large], kind[large], pages[large])
            pins[large] = self._word(data, at[large], self.pincount)
        return Folios(
            memcg,
            kind,
            pfn + at,
            pages,
            count,
            heads["flags"],
            heads["mapping"],
            heads["private"],
            mapcount,
            refcount,
            _not_negative(pins),
            np.searchsorted(batched, pfn + at, "right")
            - np.searchsorted(batched, pfn + at),
        )

    def _large(
        self,
        data: bytes,
        at: NDArray[np.int64],
        kind: NDArray[np.int64],
        pages: NDArray[np.int64],
    ) -> NDArray[np.int64]:
        """Mappings of large folios (``folio_mapcount``)."""
        if self.large is not None:
            return _not_negative(self._word(data, at, self.large) + 1)
        entire = _not_negative(self._word(data, at, self.entire) + 1)
        every: NDArray[np.int64] = np.frombuffer(data, self.page)[
            "mapcount"
        ] + np.int64(1)
        before = np.append(np.int64(0), np.cumsum(_not_negative(every)))
        after = before[np.minimum(at + pages, len(every))]
        single: NDArray[np.int64] = after - before[at]
        if self.double_map is None:
            return entire + single
        # Up to 6.1 each page of a file's THP counts the mappings of the whole as well,
        # and so does each page of an anonymous one that is mapped in both ways.
        second = self._word(data, at, self.second_flags)
        double = (second >> self.double_map) & 1
        twice = np.where(kind == folios.ANON, double, entire)
        return _not_negative((entire + single - twice * pages).astype(np.int64))

    def _word(
        self, data: bytes, at: NDArray[np.int64], offset: int
    ) -> NDArray[np.int64]:
        """The 32-bit counter at ``offset`` from the head pages at indexes ``at``."""
        words = np.frombuffer(data, "<i4", len(data) // 4)
        index = (at * self.page.itemsize + offset) // 4
        return np.asarray(words[np.minimum(index, len(words) - 1)], np.int64)


def _counters(kernel: OpenedKernel) -> _Counters:
    prog = kernel.prog
    size = size_of(prog, "struct page")
    # memdesc_flags_t since Linux kernel commit 53fbef56e07d ("mm: introduce
    # memdesc_flags_t") (in v6.18).
    flags = first_member(prog, "struct page", "flags.f", "flags")

    def second(*paths: str) -> int | None:
        """Offset of a member of struct folio, or of the second struct page."""
        for path in paths:
            if has_member(prog, "struct folio", path):
                return offset_of(prog, "struct folio", path)
            if has_member(prog, "struct page", path):
                return size + offset_of(prog, "struct page", path)
        return None

    # 6.2 moved it into struct folio; the second page's compound_mapcount before.
    entire = second("_entire_mapcount", "compound_mapcount")
    # In struct folio since 5.18, in the third page until 5.16.
    pincount = second("_pincount", "compound_pincount")
    if pincount is None:
        third = offset_of(prog, "struct page", "hpage_pinned_refcount")
        pincount = 2 * size + third
    return _Counters(
        page=dtype_of(
            prog,
            "struct page",
            {
                "flags": flags,
                "mapping": "mapping",
                "private": "private",
                "mapcount": "_mapcount.counter",
                "refcount": "_refcount.counter",
            },
        ),
        # One counter for all mappings of any part of a large folio since Linux kernel
        # commit 05c5323b2a34 ("mm: track mapcount of large folios in single value")
        # (in v6.10).
        large=second("_large_mapcount"),
        entire=entire or 0,
        pincount=pincount,
        second_flags=size + offset_of(prog, "struct page", flags),
        # Up to 6.1, a THP that is mapped by PMD and by PTE has this in its second page.
        double_map=enumerators(prog, "enum pageflags").get("PG_double_map"),
    )


def _not_negative(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.asarray(np.maximum(counts, 0), np.int64)


def _rows(
    heads: NDArray[np.void],
    at: NDArray[np.int64],
    memcg: NDArray[np.int64],
    kind: NDArray[np.int64],
    pages: NDArray[np.int64],
    alone: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Where neighbours of one page each begin that are alike; some stay ``alone``."""
    alike = (pages[1:] == 1) & (pages[:-1] == 1) & (at[1:] == at[:-1] + 1)
    for column in (memcg, kind, *(heads[name] for name in heads.dtype.names or ())):
        alike &= column[1:] == column[:-1]
    first = np.ones(len(at), np.bool_)
    first[1:] = ~alike
    edges = np.searchsorted(at, np.concatenate((alone, alone + 1)))
    first[edges[edges < len(at)]] = True
    return first.nonzero()[0]


def _batched(kernel: OpenedKernel, ranges: list[PageRange]) -> NDArray[np.int64]:
    """Page frames that per-CPU batches hold references to, sorted, once for each."""
    found = []
    size = size_of(kernel.prog, "struct page")
    pages = addresses(list(_batch_pages(kernel)))
    for first, count, address in ranges:
        page = (pages - np.uint64(address % 2**64)) // np.uint64(size)
        found += (page[page < count].astype(np.int64) + first).tolist()
    return np.array(sorted(found), np.int64)


def _batch_pages(kernel: OpenedKernel) -> Iterator[int]:
    """The ``struct page *`` of every folio in a per-CPU batch."""
    for name, type_name in _BATCHES.items():
        try:
            variable = kernel.percpu(name, type_name)
        except LookupError:
            continue
        batches = [
            (offset, one)
            for one in _BATCH_TYPES
            for offset in members_of_type(kernel.prog, type_name, one)
        ]
        for cpu in possible_cpus(kernel):
            address = per_cpu(variable, cpu).address_
            for offset, batch_type in batches:
                yield from _batch(kernel, batch_type, address + offset)


def _batch(kernel: OpenedKernel, type_name: str, at: int) -> Iterator[int]:
    """The pages of a ``struct folio_batch`` or ``struct pagevec``."""
    # Linux kernel commit 10331795fb79 ("pagevec: Add folio_batch") (in v5.17) added the
    # first, which per-CPU batches came to be one after the other.
    array = first_member(kernel.prog, type_name, "folios", "pages")
    members = {"nr": "nr", "pages": array}
    (row,) = read_structs(kernel, type_name, addresses([at]), members)
    # Low bits are flags in mlock batches (mm/mlock.c).
    yield from (page & ~3 for page in row["pages"][: row["nr"]].tolist())
