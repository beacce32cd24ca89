"""Page tables made by hand: what they map and what they have swapped is found."""

from __future__ import annotations

import numpy as np
import pytest

from memcgctl.linux.pagetables import Ranges, frames, swap_entries, walk
from memcgctl.linux.rmap import Frames, mapped_pages
from memcgctl.linux.structs import addresses
from tests.unit.fake_kernel import BASE, PAGE, FakeKernel, faults

STRUCTS = {"mm_struct": {"gap": "u64[3]", "pgd": "void *"}}
PRESENT, HUGE, PROTNONE = 1, 1 << 7, 1 << 8
LEVELS = (39, 30, 21, 12)
OFFSET_MASK = (1 << 50) - 1


class Spaces:
    """Address spaces whose page tables are written entry by entry."""

    def __init__(self, *, five: bool = False) -> None:
        self.fake = FakeKernel(STRUCTS)
        self.fake.variables["page_offset_base"] = BASE
        self.fake.variables["__pgtable_l5_enabled"] = int(five)
        self.levels = (48, *LEVELS) if five else LEVELS

    def table(self) -> int:
        """A page of physical memory, as its physical address."""
        return self.fake.allocate(PAGE, (self.fake._next + PAGE - 1) & -PAGE) - BASE

    def mm(self) -> int:
        return self.fake.make("mm_struct", {"pgd": self.table() + BASE})

    def entry(self, table: int, slot: int) -> int:
        at = slot * 8
        return int.from_bytes(self.fake.memory[table + BASE][at : at + 8], "little")

    def put(self, table: int, slot: int, entry: int) -> None:
        data = (entry % (1 << 64)).to_bytes(8, "little")
        self.fake.memory[table + BASE][slot * 8 : slot * 8 + 8] = data

    def map(self, mm: int, address: int, entry: int, shift: int = 12) -> None:
        """Put ``entry`` at ``address``, on the level of ``shift``."""
        table = int.from_bytes(self.fake.memory[mm][24:32], "little") - BASE
        for level in self.levels:
            slot = address >> level & 511
            if level == shift:
                self.put(table, slot, entry)
                return
            if not self.entry(table, slot):
                self.put(table, slot, self.table() | PRESENT)
            table = self.entry(table, slot) & ~0xFFF

    def found(
        self, mms: list[int], ranges: Ranges | None = None
    ) -> list[tuple[int, int, int]]:
        """(position of mm, frame, pages) of everything that is mapped."""
        return sorted(
            (mm, pfn, leaves.pages)
            for leaves in walk(self.fake.kernel, addresses(mms), ranges)
            for mm, pfn in np.stack(frames(self.fake.kernel, leaves)).T.tolist()
        )


@pytest.mark.parametrize("five", [False, True])
def test_pages_of_every_size_are_found(five: bool) -> None:
    """Lost: huge pages, or processes on a machine with five levels of page tables."""
    spaces = Spaces(five=five)
    first, second = spaces.mm(), spaces.mm()
    top = 0x7FFFFFFFF000 if not five else 0xFFFFFFFFFFF000
    spaces.map(first, 0x400000, 0x1234 << 12 | PRESENT | 1 << 63)
    spaces.map(first, top, 0x99 << 12 | PRESENT)
    spaces.map(second, 0x600000, 0x200 << 12 | PRESENT | HUGE | 1 << 12, 21)
    spaces.map(second, 0x40000000, 0x40000 << 12 | PRESENT | HUGE, 30)
    assert spaces.found([first, second]) == [
        (0, 0x99, 1),
        (0, 0x1234, 1),
        (1, 0x200, 512),
        (1, 0x40000, 512 * 512),
    ]


def test_the_kernels_half_is_left_out() -> None:
    """Lost: minutes, on the kernel's own mappings, once for each process."""
    spaces = Spaces()
    mm = spaces.mm()
    spaces.map(mm, 0xFFFF888000000000, 0x55 << 12 | PRESENT | HUGE, 30)
    assert spaces.found([mm]) == []


def test_pages_waiting_for_a_numa_fault_are_mapped() -> None:
    """Lost: memory that NUMA balancing looks at; its frame is stored inverted."""
    spaces = Spaces()
    mm = spaces.mm()
    spaces.map(mm, 0x1000, (~(0x77 << 12) & ((1 << 52) - 1) & ~0xFFF) | PROTNONE)
    huge = (~(0x400 << 12) & ((1 << 52) - 1) & ~0x1FFFFF) | PROTNONE | HUGE
    spaces.map(mm, 0x200000, huge, 21)
    assert spaces.found([mm]) == [(0, 0x77, 1), (0, 0x400, 512)]


def test_encryption_bits_are_no_part_of_a_frame() -> None:
    """Lost: everything mapped on a machine with encrypted memory."""
    spaces = Spaces()
    spaces.fake.variables["physical_mask"] = (1 << 52) - 1 & ~(1 << 47)
    mm = spaces.mm()
    spaces.map(mm, 0x1000, 1 << 47 | 0x88 << 12 | PRESENT)
    assert spaces.found([mm]) == [(0, 0x88, 1)]


def test_swap_entries_are_taken_apart() -> None:
    """Lost: the owners of swapped memory."""
    spaces = Spaces()
    mm = spaces.mm()
    # arch/x86/include/asm/pgtable_64.h: type in the top five bits, ~offset from bit 9.
    for slot, (device, offset) in enumerate([(0, 1), (3, 0x123456789), (31, 7)]):
        entry = device << 59 | (~offset & OFFSET_MASK) << 9 | 0b1100
        spaces.map(mm, 0x1000 * slot, entry)
    spaces.map(mm, 0x9000, 0x42 << 12 | PRESENT)
    (leaves,) = walk(spaces.fake.kernel, addresses([mm]))
    _, devices, offsets = swap_entries(leaves)
    assert list(zip(devices.tolist(), offsets.tolist(), strict=True)) == [
        (0, 1),
        (3, 0x123456789),
        (31, 7),
    ]


def test_only_tables_for_the_ranges_are_read() -> None:
    """Lost: time; and nothing but time: what is in the ranges is all found."""
    spaces = Spaces()
    mms = [spaces.mm(), spaces.mm()]
    for mm in mms:
        for gib in range(4):
            spaces.map(mm, gib << 30, (0x100 + gib) << 12 | PRESENT)
    ranges = Ranges(
        np.array([1, 0, 1]),
        addresses([2 << 30, 0x0, 1 << 30]),
        addresses([(2 << 30) + 1, 0x1000, 3 << 30]),
    )
    assert spaces.found(mms, ranges) == [
        (0, 0x100, 1),
        (1, 0x101, 1),
        (1, 0x102, 1),
    ]


def test_tables_that_point_to_themselves_end() -> None:
    """Lost: the program, in 512^4 tables that are all the same."""
    spaces = Spaces()
    mm = spaces.mm()
    table = int.from_bytes(spaces.fake.memory[mm][24:32], "little") - BASE
    for slot in range(512):
        spaces.put(table, slot, table | PRESENT)
    assert len(spaces.found([mm])) == 512


def test_tables_that_cannot_be_read_are_passed_by() -> None:
    """Lost: what the rest of a process maps."""
    spaces = Spaces()
    mm, other = spaces.mm(), spaces.fake.make("mm_struct", {"pgd": 0x123000})
    spaces.map(mm, 0x1000, 0x31 << 12 | PRESENT)
    spaces.map(mm, 1 << 30, 0xABCDE000 | PRESENT, 21)
    assert spaces.found([mm, other, 0]) == [(0, 0x31, 1)]
    assert faults(spaces.fake.kernel.memory.trouble) == 2


def test_what_is_mapped_is_counted_by_group() -> None:
    """Lost: who uses a memcg's memory, and how much of it."""
    spaces = Spaces()
    first, second = spaces.mm(), spaces.mm()
    for page in range(3):
        spaces.map(first, page << 12, (0x100 + page) << 12 | PRESENT)
    spaces.map(second, 0x5000, 0x102 << 12 | PRESENT)
    spaces.map(second, 0x6000, 0x102 << 12 | PRESENT)
    spaces.map(second, 0x200000, 0x200 << 12 | PRESENT | HUGE, 21)
    wanted = Frames(
        # Two small folios, one of four pages of which one is mapped, and within the
        # huge mapping a small one and one that ends it.
        addresses([0x100, 0x102, 0x201, 0x3F0]),
        addresses([1, 4, 1, 64]),
        np.array([5, 2, 0, 0]),
    )
    mms = addresses([first, second])
    by_mm, by_anybody, again = mapped_pages(spaces.fake.kernel, mms, wanted)
    assert by_mm == [
        (0, 2, 1, 0),
        (0, 5, 1, 0),
        (1, 0, 1 + 16, 0),
        (1, 2, 1, 0),  # twice
    ]
    assert by_anybody == {0: 17, 2: 1, 5: 1}
    assert again == {2: 1}


def test_parts_that_overlap_are_counted_once() -> None:
    """Lost: whether all of a huge page is mapped, or what several map is all of it."""
    spaces = Spaces()
    mms = [spaces.mm() for _ in range(3)]
    for mm, first, pages in zip(mms, (0, 64, 256), (128, 128, 16), strict=True):
        for page in range(first, first + pages):
            spaces.map(mm, page << 12, (0x200 + page) << 12 | PRESENT)
    wanted = Frames(addresses([0x200]), addresses([512]), np.array([0]))
    by_mm, by_anybody, again = mapped_pages(spaces.fake.kernel, addresses(mms), wanted)
    assert [one.pages for one in by_mm] == [128, 128, 16]
    assert by_anybody == {0: 192 + 16}
    assert not again


def test_what_fills_a_page_table() -> None:
    """Lost: what MADV_COLLAPSE copies, and no more than that, to a huge page."""
    spaces = Spaces()
    mm = spaces.mm()
    spaces.map(mm, 0x1FF000, 0x123 << 9)  # a swap entry before them
    for table, of_group in ((0x200000, 512), (0x400000, 512), (0x600000, 511)):
        for page in range(512):
            frame = 0x1000 + (table >> 12) + page if page < of_group else 0x9000
            spaces.map(mm, table + page * 4096, frame << 12 | PRESENT)
    frames_ = addresses([0x1200, 0x1400, 0x9000])
    sizes = addresses([0x200, 0x400, 1])
    wanted = Frames(frames_, sizes, np.array([0, 1, 2]))
    mms = addresses([mm])

    def full(*areas: tuple[int, int]) -> list[int]:
        starts, ends = zip(*areas, strict=True)
        places = np.zeros(len(areas), np.int64)
        ranges = Ranges(places, addresses(starts), addresses(ends))
        found, _, _ = mapped_pages(spaces.fake.kernel, mms, wanted, None, ranges)
        return [one.full_pages for one in found]

    assert full((0x200000, 0x800000)) == [512, 512, 0]
    assert full((0x200000, 0x400000), (0x400000, 0x800000)) == [512, 512, 0]
    assert full((0x1FF000, 0x5FF000), (0x5FF000, 0x800000)) == [512, 0, 0]
    assert full((0x201000, 0x400000)) == [0, 0, 0]
