"""arm64 page tables made by hand: every page size, address width and swap layout.

There are cores of kernels with 4 and 16 KiB pages in fixtures/; 64 KiB pages, 52 bits
of address and the layouts of swap entries of older kernels are here alone.
"""

from __future__ import annotations

import drgn
import numpy as np
import pytest

from memcgctl.kernel.errors import KernelError
from memcgctl.linux.mmu import direct_map, format_of
from memcgctl.linux.pagetables import frames, swap_entries, walk
from memcgctl.linux.structs import addresses
from tests.unit.fake_kernel import FakeKernel

STRUCTS = {"mm_struct": {"gap": "u64[3]", "pgd": "void *"}}
VALID, TABLE, NG, CONTIGUOUS = 1, 2, 1 << 11, 1 << 52
PROT_NONE = 1 << 58
PHYSICAL = 0x40000000
# Attributes that every entry has some of: they are no part of an address.
FLAGS = 0x00E8000000000F44


class Spaces:
    """Address spaces of one page size and width, written entry by entry."""

    def __init__(
        self,
        page: int = 4096,
        bits: int = 48,
        t1sz: int | None = None,
        *,
        old: bool = False,
        exclusive: bool = True,
    ) -> None:
        flag = ["PG_anon_exclusive"] if exclusive else ["PG_lru"]
        self.fake = FakeKernel(
            STRUCTS,
            {"pageflags": flag},
            platform=drgn.Platform(drgn.Architecture.AARCH64),
        )
        self.page = page
        self.fake.variables["PAGE_SIZE"] = page
        used = 64 - t1sz if t1sz and page != 1 << 16 else bits
        self.fake.kernel.numbers = {
            "VA_BITS": bits,
            "PHYS_OFFSET": PHYSICAL,
            **({} if t1sz is None else {"TCR_EL1_T1SZ": t1sz}),
        }
        self.to_virtual = 2**64 - (1 << bits) - PHYSICAL
        none = NG | (PROT_NONE if old else 0)
        self.fake.global_variable("protection_map", none)
        self.fake._next = self.to_virtual + PHYSICAL + (1 << 30)
        shift = page.bit_length() - 1
        self.shifts = list(range(shift, used, shift - 3))[::-1]
        self.top = 1 << used - self.shifts[0]

    def table(self, entries: int | None = None) -> int:
        """A new table, as its physical address."""
        at = (self.fake._next + self.page - 1) & -self.page
        size = self.page if entries is None else 8 * entries
        return self.fake.allocate(size, at) - self.to_virtual

    def mm(self) -> int:
        # The top table is as small as it can be: nothing is to be read behind it.
        return self.fake.make(
            "mm_struct", {"pgd": self.table(self.top) + self.to_virtual}
        )

    def map(self, mm: int, address: int, entry: int, shift: int | None = None) -> None:
        """Put ``entry`` at ``address``, on the level of ``shift`` (the lowest)."""
        table = int.from_bytes(self.fake.memory[mm][24:32], "little")
        for level in self.shifts:
            entries = self.top if level == self.shifts[0] else self.page // 8
            at = (address >> level) % entries * 8
            data = self.fake.memory[table]
            if level == (shift or self.shifts[-1]):
                data[at : at + 8] = entry.to_bytes(8, "little")
                return
            below = int.from_bytes(data[at : at + 8], "little")
            if not below:
                below = self.table() | VALID | TABLE
                data[at : at + 8] = below.to_bytes(8, "little")
            table = (below & ~(VALID | TABLE)) + self.to_virtual

    def found(self, *mms: int) -> list[tuple[int, int, int]]:
        """(position of mm, frame, pages) of everything that is mapped."""
        return sorted(
            (mm, pfn, leaves.pages)
            for leaves in walk(self.fake.kernel, addresses(list(mms)))
            for mm, pfn in np.stack(frames(self.fake.kernel, leaves)).T.tolist()
        )


@pytest.mark.parametrize(
    ("page", "bits", "t1sz", "levels"),
    [
        (4096, 39, 25, 3),
        (4096, 48, 16, 4),
        (4096, 48, None, 4),  # up to 5.10 T1SZ is not told
        (4096, 52, 16, 4),  # built for more than the processor has
        (4096, 52, 12, 5),
        (16384, 47, 17, 3),
        (16384, 52, 17, 3),
        (16384, 52, 12, 4),
        (65536, 48, 16, 3),
        (65536, 52, 16, 3),
        (65536, 42, 22, 2),
    ],
)
def test_every_page_size_and_width(
    page: int, bits: int, t1sz: int | None, levels: int
) -> None:
    """Lost: who maps a zombie's memory, without a word, on other kernels than ours."""
    spaces = Spaces(page, bits, t1sz)
    assert len(spaces.shifts) == levels
    shift, huge = spaces.shifts[-1], spaces.shifts[-2]
    flags = FLAGS & ~(0x300 if t1sz == 12 else 0)  # of the address then
    first, second = spaces.mm(), spaces.mm()
    last = (1 << min(bits, 64 - (t1sz or 16))) - page
    last = min(last, (spaces.top << spaces.shifts[0]) - page)
    spaces.map(first, page * 4, 0x1234 << shift | flags | VALID | TABLE)
    spaces.map(first, last, 0x99 << shift | CONTIGUOUS | VALID | TABLE)
    spaces.map(second, 3 << huge, 5 << huge | flags | VALID, huge)
    tables = page // 8
    found = [(0, 0x99, 1), (0, 0x1234, 1), (1, 5 * tables, tables)]
    assert spaces.found(first, second) == found


def test_a_gigabyte() -> None:
    """Lost: who maps hugetlb of the second size."""
    spaces = Spaces()
    mm = spaces.mm()
    spaces.map(mm, 7 << 30, 9 << 30 | FLAGS | VALID, 30)
    assert spaces.found(mm) == [(0, 9 << 18, 1 << 18)]


@pytest.mark.parametrize(
    ("page", "t1sz", "bits"),
    [(4096, 12, 0x3 << 8), (16384, 12, 0x3 << 8), (65536, 12, 0xF << 12)],
)
def test_the_highest_bits_of_a_frame(page: int, t1sz: int, bits: int) -> None:
    """Lost: memory above 256 TiB, which is then that of others below."""
    spaces = Spaces(page, 52, t1sz)
    mm = spaces.mm()
    spaces.map(mm, page, 0x77 * page | bits | VALID | TABLE)
    high = bits << (42 if bits == 0x3 << 8 else 36)
    assert spaces.found(mm) == [(0, (0x77 * page | high) // page, 1)]


@pytest.mark.parametrize(
    ("old", "exclusive", "swap_bits"),
    [(False, True, (6, 12)), (True, True, (3, 8)), (True, False, (2, 8))],
)
def test_swap_entries_of_each_layout(
    old: bool, exclusive: bool, swap_bits: tuple[int, int]
) -> None:
    """Lost: the owners of swapped memory, or others are blamed for it."""
    spaces = Spaces(old=old, exclusive=exclusive)
    mm = spaces.mm()
    type_shift, offset_shift = swap_bits
    true = [(0, 1), (3, 0x123456), (31, 7), (1, 0x8001)]
    for slot, (device, offset) in enumerate(true):
        entry = device << type_shift | offset << offset_shift
        spaces.map(mm, 4096 * slot, entry | (1 << 2 if exclusive else 0))
    # Without any access a page is mapped, but not valid.
    none = PROT_NONE if old else NG
    spaces.map(mm, 0x9000, 0x42 << 12 | NG | none | TABLE)
    (leaves,) = walk(spaces.fake.kernel, addresses([mm]))
    assert frames(spaces.fake.kernel, leaves)[1].tolist() == [0x42]
    _, types, offsets = swap_entries(leaves)
    assert list(zip(types.tolist(), offsets.tolist(), strict=True)) == true


def test_a_huge_page_that_is_not_valid_is_mapped() -> None:
    """Lost: a huge page that is being split, or that nobody may touch."""
    for old in (False, True):
        spaces = Spaces(old=old)
        mm = spaces.mm()
        spaces.map(mm, 0x200000, 4 << 21 | (1 << 59 if old else NG), 21)
        assert spaces.found(mm) == [(0, 4 << 9, 512)]


def test_a_layout_that_nobody_knows_is_told() -> None:
    """Lost: that owners of swap are guesses."""
    spaces = Spaces()
    del spaces.fake.symbols["protection_map"]
    format_of(spaces.fake.kernel)
    assert "the format of swap entries is not known" in str(
        spaces.fake.kernel.trouble.sentences()
    )


@pytest.mark.parametrize(
    "numbers",
    [
        {},
        {"VA_BITS": 3, "PHYS_OFFSET": 0},
        {"VA_BITS": 10**14, "PHYS_OFFSET": 0},
        {"VA_BITS": 48, "TCR_EL1_T1SZ": 60, "PHYS_OFFSET": 0},
    ],
)
def test_damaged_numbers_are_one_line(numbers: dict[str, int]) -> None:
    """Lost: the clear line for a note that lacks what arm64 needs."""
    spaces = Spaces()
    spaces.fake.kernel.numbers = numbers
    with pytest.raises(KernelError, match="VMCOREINFO"):
        format_of(spaces.fake.kernel)


def test_the_direct_map_of_a_52_bit_kernel() -> None:
    """Lost: all page tables, on a kernel that moved PHYS_OFFSET below zero."""
    spaces = Spaces()
    offset = PHYSICAL - ((1 << 52) - (1 << 48))
    spaces.fake.kernel.numbers = {"VA_BITS": 52, "PHYS_OFFSET": offset}
    assert direct_map(spaces.fake.kernel) + PHYSICAL == 2**64 - (1 << 48)
