"""Folios that are alike are kept as one row, and none is lost by it."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from memcgctl.census.charges.collect import Folios, _rows

FEW = st.sampled_from([0, 0, 0, 1])
# Distance from the one before, pages, memcg, kind, flags, references.
FOLIO = st.tuples(FEW, st.sampled_from([1, 1, 1, 2]), FEW, FEW, FEW, FEW)


@settings(max_examples=500, deadline=None)
@given(st.lists(FOLIO, min_size=1, max_size=40), st.sets(st.integers(0, 60)))
def test_rows_are_the_folios(folios: list[tuple[int, ...]], held: set[int]) -> None:
    """A person would be told of other flags or users than a folio has."""
    gap, pages, memcg, kind, flags, refcount = np.array(folios, np.int64).T
    pfn = np.cumsum(gap + np.append(1, pages[:-1]))
    heads = np.zeros(len(pfn), [("flags", "<u8"), ("refcount", "<i4")])
    heads["flags"], heads["refcount"] = flags, refcount
    alone = np.array(sorted(held), np.int64)
    first = _rows(heads, pfn, memcg, kind, pages, alone)
    count = np.diff(first, append=len(pfn))
    nothing = np.zeros(len(first), np.int64)
    found = Folios(
        memcg=memcg[first],
        kind=kind[first],
        pfn=pfn[first],
        pages=pages[first],
        folios=count,
        flags=heads["flags"][first],
        mapping=nothing.astype(np.uint64),
        private=nothing.astype(np.uint64),
        mapcount=nothing,
        refcount=heads["refcount"][first].astype(np.int64),
        pins=nothing,
        batched=nothing,
    )
    for limit in (0, 1, len(pfn) // 2, len(pfn) + 1):
        each = found.each(limit)
        for got, true in (
            (each.pfn, pfn),
            (each.pages, pages),
            (each.memcg, memcg),
            (each.kind, kind),
            (each.flags, heads["flags"]),
            (each.refcount, heads["refcount"]),
            (each.folios, np.ones_like(pfn)),
        ):
            assert got.tolist() == true[:limit].tolist()
    assert found.all_pages.sum() == pages.sum()
    # A reference of a per-CPU batch is to one folio.
    own = np.isin(found.pfn, alone)
    assert (found.folios[own] == 1).all()
    assert set(alone.tolist()) & set(pfn.tolist()) <= set(found.pfn[own].tolist())


def test_neighbours_are_one_row() -> None:
    """Explaining a large memcg would take as long as if each folio were looked at."""
    pfn, same = np.arange(100, dtype=np.int64), np.ones(100, np.int64)
    heads = np.zeros(100, [("flags", "<u8")])
    assert _rows(heads, pfn, same, same, same, np.array([7])).tolist() == [0, 7, 8]
