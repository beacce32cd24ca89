"""Struct pages made by hand are decoded, and counted for whom they are charged to."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from memcgctl.census.folios import (
    ANON,
    FILE,
    KERNEL,
    MAX_FOLIO_ORDER,
    SHMEM,
    Charged,
    Owners,
    charged_folios,
)
from memcgctl.census.pages import PageLayout
from tests.unit.fake_kernel import BASE, FakeKernel

HEAD, SWAPBACKED = 6, 17
TAIL = 1
KMEM, OBJEXTS = 2, 1
MEMCGS = [BASE + 0x1000 * n for n in range(1, 6)]


def layout(size: int, *, page_type: bool = False) -> PageLayout:
    """A struct page of ``size`` bytes; with ``page_type`` as 5.10 has it."""
    fields = {"flags": 0, "compound": 8, "mapping": 24, "charge": size - 8}
    formats = dict.fromkeys(fields, "<u8")
    if page_type:
        fields["page_type"], formats["page_type"] = 32, "<u4"
    page = np.dtype(
        {
            "names": list(fields),
            "formats": list(formats.values()),
            "offsets": list(fields.values()),
            "itemsize": size,
        }
    )
    return PageLayout(page, order=size + 16, head=HEAD, swapbacked=SWAPBACKED)


LAYOUTS = [layout(64), layout(56), layout(80)]
OLD = layout(64, page_type=True)


@dataclass(frozen=True)
class Folio:
    """What is to be found; ``memcg`` None: not charged."""

    memcg: int | None
    kind: int
    order: int

    @property
    def pages(self) -> int:
        return 1 << self.order


class Map:
    """A memory map that folios are put into."""

    def __init__(self, pages: int, layout: PageLayout, first: int = 0) -> None:
        self.layout = layout
        self.first = first
        self.data = np.zeros(pages, layout.page)
        if "page_type" in (layout.page.names or ()):
            self.data["page_type"] = 0xFFFFFFFF

    def put(self, pfn: int, folio: Folio) -> None:
        at = pfn - self.first
        head, tails = self.data[at : at + 1], self.data[at + 1 : at + folio.pages]
        flags = 0x40000000000000 | (folio.kind == SHMEM) << SWAPBACKED
        mapping = BASE + 0x900 if folio.kind in (FILE, SHMEM) else 0
        if folio.kind == ANON:
            # Anonymous folios are swap-backed, unless MADV_FREE made them clean.
            flags |= (pfn // 2 % 2) << SWAPBACKED
            mapping = BASE + 0x701
        if folio.order:
            flags |= 1 << HEAD
            tails["compound"] = BASE | TAIL
            # The first tail page's memcg_data is _nr_pages since 6.16.
            tails["charge"][0] = folio.pages
            self.order(pfn, folio.order)
        head["flags"], head["mapping"] = flags, mapping
        head["compound"] = BASE + 0x100  # lru.next
        if folio.memcg is not None:
            head["charge"] = MEMCGS[folio.memcg]
            if folio.kind == KERNEL and "page_type" in (self.data.dtype.names or ()):
                head["page_type"] = 0xFFFFFDFF
            elif folio.kind == KERNEL:
                head["charge"] |= KMEM

    def order(self, pfn: int, order: int) -> None:
        """Write the byte that holds the order of the folio at ``pfn``."""
        at = (pfn - self.first) * self.data.itemsize + self.layout.order
        self.data.view(np.uint8)[at] = order

    def decode(self, end: int = 0) -> Charged | None:
        return charged_folios(self.data.tobytes(), self.layout, self.first, end)


def found(charged: Charged | None) -> Counter[tuple[int, int, int]]:
    """How often each (memcg, kind, pages) was found."""
    if charged is None:
        return Counter()
    columns = (charged.pointer.tolist(), charged.kind.tolist(), charged.pages.tolist())
    return Counter(
        (MEMCGS.index(memcg), kind, pages)
        for memcg, kind, pages in zip(*columns, strict=True)
    )


@pytest.mark.parametrize("layout", [*LAYOUTS, OLD])
@pytest.mark.parametrize("kind", [FILE, SHMEM, ANON, KERNEL])
@pytest.mark.parametrize("order", [0, 1, 4])
def test_kinds(layout: PageLayout, kind: int, order: int) -> None:
    """A folio of each kind and size is counted once, as what it is."""
    pages = Map(64, layout, first=512)
    pages.put(544, Folio(3, kind, order))
    charged = pages.decode()
    assert found(charged) == {(3, kind, 1 << order): 1}
    assert charged is not None
    assert charged.at.tolist() == [32]


folios = st.builds(
    Folio,
    memcg=st.none() | st.integers(0, len(MEMCGS) - 1),
    kind=st.sampled_from([FILE, SHMEM, ANON, KERNEL]),
    order=st.integers(0, 5),
)


@settings(deadline=None)
@given(
    layout=st.sampled_from([*LAYOUTS, OLD]),
    content=st.lists(folios, max_size=60),
    first=st.integers(0, 1 << 30).map(lambda n: 32 * n),
    blocks=st.lists(st.integers(1, 60).map(lambda n: 2 * n), max_size=20),
)
def test_any_memory_map(
    layout: PageLayout, content: list[Folio], first: int, blocks: list[int]
) -> None:
    """Whatever lies where, and wherever blocks begin: each folio counts once."""
    pages = Map(32 * 62, layout, first)
    pfn = first
    for folio in content:
        pfn = -(-pfn // folio.pages) * folio.pages
        pages.put(pfn, folio)
        pfn += folio.pages
    total: Counter[tuple[int, int, int]] = Counter()
    at = end = 0
    for size in [*blocks, len(pages.data)]:
        block = pages.data[at : at + size].tobytes()
        charged = charged_folios(block, layout, first + at, end)
        total += found(charged)
        if charged:
            assert not charged.damaged
            end = charged.end
        at += size
    expected = Counter((f.memcg, f.kind, f.pages) for f in content)
    assert total == {key: n for key, n in expected.items() if key[0] is not None}


def test_optimised_hugetlb() -> None:
    """A hugetlb page whose tail struct pages show its head's is counted once.

    With HVO (5.18 to 7.0) all pages of struct pages but the first are the first.
    """
    pages = Map(1024, layout(64), first=512)
    pages.put(512, Folio(1, FILE, 9))
    for page in range(1, 8):
        pages.data[64 * page : 64 * (page + 1)] = pages.data[:64]
    pages.put(1024, Folio(2, ANON, 0))
    assert found(pages.decode()) == {(1, FILE, 512): 1, (2, ANON, 1): 1}
    charged = pages.decode()
    assert charged is not None
    assert not charged.damaged


@pytest.mark.parametrize("cut", [64, 128, 256])
def test_optimised_hugetlb_across_blocks(cut: int) -> None:
    """Nor is it counted again in the block in which its second half lies."""
    pages = Map(512, layout(64), first=512)
    pages.put(512, Folio(1, FILE, 9))
    for page in range(1, 8):
        pages.data[64 * page : 64 * (page + 1)] = pages.data[:64]
    begin, rest = pages.data[:cut].tobytes(), pages.data[cut:].tobytes()
    first = charged_folios(begin, pages.layout, 512)
    assert first is not None
    second = charged_folios(rest, pages.layout, 512 + cut, first.end)
    assert found(first) == {(1, FILE, 512): 1}
    assert not found(second)


def test_pages_that_are_not_charged() -> None:
    """Slab pages and struct pages never initialised are no one's."""
    pages = Map(8, layout(64))
    assert pages.decode() is None
    pages.data["charge"][2] = MEMCGS[0] | OBJEXTS
    pages.data[4] = (2**64 - 1, 2**64 - 1, 2**64 - 1, 2**64 - 1)  # PAGE_POISON_PATTERN
    assert not found(pages.decode())


@pytest.mark.parametrize(
    ("pfn", "order", "tail"),
    [
        (16, 0, True),
        (0, MAX_FOLIO_ORDER + 1, True),
        (0, 255, True),
        (16, 5, True),  # not aligned to 32 pages
        (16, 2, False),
    ],
)
def test_impossible_order(pfn: int, order: int, tail: bool) -> None:
    """A size that cannot be counts as one page, with a warning, and hides nothing."""
    pages = Map(64, layout(64))
    pages.put(pfn, Folio(0, FILE, 1))
    pages.order(pfn, order)
    if not tail:
        pages.data["compound"][pfn + 1] = BASE
    pages.data["charge"][pfn + 1] = 0
    pages.put(40, Folio(4, ANON, 0))
    charged = pages.decode()
    assert found(charged) == {(0, FILE, 1): 1, (4, ANON, 1): 1}
    assert charged is not None
    assert charged.damaged == 1


@given(data=st.binary(min_size=128, max_size=2048), pfn=st.integers(0, 1 << 40))
def test_garbage(data: bytes, pfn: int) -> None:
    """Whatever the memory holds, sizes stay possible and nothing raises."""
    used = data[: len(data) // 128 * 128]
    charged = charged_folios(used, layout(64), 2 * pfn)
    if charged is not None:
        assert set(charged.kind.tolist()) <= {FILE, SHMEM, ANON, KERNEL}
        assert all(1 <= size <= 1 << MAX_FOLIO_ORDER for size in charged.pages)
        assert len(charged.at) == len(charged.pointer) == len(charged.kind)


STRUCTS = {"obj_cgroup": {"gap": "u64[2]", "memcg": "void *"}}


def pointers(*values: int) -> NDArray[np.uint64]:
    return np.array(values, np.uint64)


def test_owners() -> None:
    """Charges through obj_cgroups go to the memcg that these name, now and again."""
    fake = FakeKernel(STRUCTS)
    memcgs = pointers(*MEMCGS[::-1])
    owners = Owners(fake.kernel, memcgs)
    objcg = fake.make("obj_cgroup", {"memcg": MEMCGS[2]})
    stray = fake.make("obj_cgroup", {"memcg": BASE + 0x77000})
    unreadable = BASE + (1 << 40)
    for _ in range(2):
        asked = pointers(MEMCGS[0], objcg, stray, unreadable, objcg, MEMCGS[4])
        assert owners.rows(asked).tolist() == [4, 2, 5, 5, 2, 0]
    assert owners.rows(pointers()).tolist() == []


@settings(deadline=None)
@given(
    count=st.integers(1, 400),
    spacing=st.sampled_from([64, 2048, 4096, 1 << 20]),
    asked=st.lists(st.integers(0, 10**6), max_size=300),
)
def test_owners_of_many(count: int, spacing: int, asked: list[int]) -> None:
    """Memcgs that share a place in the cache are not taken for each other."""
    fake = FakeKernel(STRUCTS)
    at = BASE + np.arange(count, dtype=np.uint64) * np.uint64(spacing)
    rows = np.array(asked, np.int64) % count
    with patch("memcgctl.census.folios.MAX_CACHE_BITS", 4):
        owners = Owners(fake.kernel, at)
        for part in np.array_split(rows, 3):
            assert owners.rows(at[part]).tolist() == part.tolist()
