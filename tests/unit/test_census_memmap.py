"""Which page frames there are, from memory sections that were made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from memcgctl.census.folios import count_folios
from memcgctl.kernel.errors import KernelError
from memcgctl.linux.memmap import MAX_SECTIONS, PageRange, page_ranges
from tests.unit.fake_kernel import BASE, PAGE, FakeKernel

STRUCTS = {
    "mem_section": {"section_mem_map": "u64", "usage": "void *"},
    "mem_section_usage": {"gap": "u64", "subsection_map": "u64[1]"},
    "page": {
        "flags": "u64",
        "compound_head": "u64",
        "gap": "u64",
        "mapping": "void *",
        "memcg_data": "u64",
        "rest": "u64[3]",
    },
    "folio": {"page": "page", "_flags_1": "u64"},
    "obj_cgroup": {"memcg": "void *"},
    "xarray": {"gap": "u64", "xa_head": "void *"},
    "xa_node": {"shift": "u8", "gap": "u8[7]", "slots": "void *[64]"},
}
ENUMS = {"pageflags": ["PG_locked", "PG_head", "PG_swapbacked"]}
PER_ROOT = PAGE // 16
SECTION = 1 << 15  # pages of 128 MiB
SUBSECTION = 1 << 9  # pages of 2 MiB
VMEMMAP = 0xFFFFEA0000000000
# Flags: present, has a memory map, online, found at boot.
EARLY, PLUGGED, OFFLINE, EMPTY = 0b1111, 0b0111, 0b0011, 0b0001


class Sections:
    """The kernel's list of memory sections, empty at first."""

    def __init__(self, roots: int = 3) -> None:
        self.fake = FakeKernel(STRUCTS, ENUMS)
        self.roots = [0] * roots
        self.highest(roots * PER_ROOT - 1)

    def highest(self, number: int) -> None:
        self.fake.global_variable("__highest_present_section_nr", number)

    def add(self, number: int, flags: int, base: int = VMEMMAP, usage: int = 0) -> None:
        root, place = divmod(number, PER_ROOT)
        if not self.roots[root]:
            self.roots[root] = self.fake.allocate(PAGE)
        data = self.fake.memory[self.roots[root]]
        data[16 * place : 16 * place + 8] = (base | flags).to_bytes(8, "little")
        data[16 * place + 8 : 16 * place + 16] = usage.to_bytes(8, "little")

    def plug(self, number: int, bits: int, flags: int = PLUGGED) -> None:
        """A section that came later, with these of its 64 parts of 2 MiB."""
        usage = self.fake.make("mem_section_usage", {})
        place = usage + 8
        self.fake.memory[usage][place - usage :] = bits.to_bytes(8, "little")
        self.add(number, flags, usage=usage)

    def ranges(self) -> tuple[list[PageRange], tuple[str, ...]]:
        table = b"".join(root.to_bytes(8, "little") for root in self.roots)
        self.fake.global_variable("mem_section", self.fake.allocate(table))
        ranges = page_ranges(self.fake.kernel)
        return ranges, self.fake.kernel.trouble.sentences()


def pages(first: int, count: int, base: int = VMEMMAP) -> PageRange:
    return PageRange(first, count, base + 64 * first)


def test_holes() -> None:
    """Frames in holes between sections are not looked at, all others are."""
    sections = Sections()
    for number in (0, 1, 2, 8, 9, PER_ROOT - 1, PER_ROOT, 2 * PER_ROOT):
        sections.add(number, EARLY)
    sections.plug(12, 1, EMPTY)
    assert sections.ranges() == (
        [
            pages(0, 3 * SECTION),
            pages(8 * SECTION, 2 * SECTION),
            pages((PER_ROOT - 1) * SECTION, 2 * SECTION),
            pages(2 * PER_ROOT * SECTION, SECTION),
        ],
        (),
    )


def test_plugged_memory() -> None:
    """Of memory that was plugged in, what is there is known to the 2 MiB."""
    sections = Sections()
    sections.add(3, EARLY)
    sections.plug(4, 0b111)
    sections.plug(5, 1 << 63 | 0b10)
    sections.plug(6, 2**64 - 1)
    sections.plug(7, 0)
    assert sections.ranges() == (
        [
            pages(3 * SECTION, SECTION + 3 * SUBSECTION),
            pages(5 * SECTION + SUBSECTION, SUBSECTION),
            pages(6 * SECTION - SUBSECTION, SUBSECTION + SECTION),
        ],
        (),
    )


def test_memory_that_is_not_online() -> None:
    """Lost: what happened to be in memory that nobody has initialised counts as folios.

    Of what is not online, struct pages of devices alone are set up.
    """
    sections = Sections()
    sections.add(3, EARLY)
    sections.add(4, EARLY & ~0b100)  # put offline
    sections.plug(5, 2**64 - 1, OFFLINE)
    sections.plug(6, 0b1100, OFFLINE)
    online = pages(3 * SECTION, SECTION)
    assert sections.ranges() == ([online], ())
    # struct dev_pagemap by page frame: from the third 2 MiB of section 5 to the third
    # of section 6. Slots of the middle level are of 16 MiB, of the lowest 256 KiB.
    fake = sections.fake
    device = fake.allocate(8)
    top, middle, first, last = (
        fake.make("xa_node", {"shift": shift}) for shift in (18, 12, 6, 6)
    )
    siblings = dict.fromkeys(range(42, 48), 2 | 41 << 2)
    for node, slots in (
        (top, {0: middle | 2}),
        (middle, {40: first | 2, 41: device, **siblings, 48: last | 2}),
        (first, dict.fromkeys(range(2 * 8, 64), device)),
        (last, dict.fromkeys(range(3 * 8), device)),
    ):
        for slot, entry in slots.items():
            at = 8 + 8 * slot
            fake.memory[node][at : at + 8] = entry.to_bytes(8, "little")
    fake.symbols["pgmap_array"] = fake.make("xarray", {"xa_head": top | 2})
    assert sections.ranges() == (
        [
            online,
            pages(5 * SECTION + 2 * SUBSECTION, SECTION - 2 * SUBSECTION),
            pages(6 * SECTION + 2 * SUBSECTION, SUBSECTION),
        ],
        (),
    )


def test_memory_maps_apart() -> None:
    """Neighbouring sections with their struct pages elsewhere are ranges apart."""
    sections = Sections()
    sections.add(0, EARLY)
    sections.add(1, EARLY, base=VMEMMAP + (1 << 30))
    assert sections.ranges()[0] == [
        pages(0, SECTION),
        pages(SECTION, SECTION, VMEMMAP + (1 << 30)),
    ]


def test_damaged_sections() -> None:
    """A part of the list that is unreadable is missed with a warning."""
    sections = Sections()
    sections.add(0, EARLY)
    sections.roots[1] = BASE + (1 << 40)
    sections.add(2 * PER_ROOT, EARLY)
    ranges, warnings = sections.ranges()
    assert [r.pfn for r in ranges] == [0, 2 * PER_ROOT * SECTION]
    assert len(warnings) == 1


def test_no_sections() -> None:
    """A list that is missing or absurd is refused in one line."""
    with pytest.raises(KernelError, match="cannot be found"):
        page_ranges(FakeKernel(STRUCTS).kernel)
    sections = Sections()
    sections.highest(MAX_SECTIONS)
    with pytest.raises(KernelError, match="damaged"):
        sections.ranges()


MEMCG = BASE + (1 << 20)


def one_section() -> FakeKernel:
    """A kernel of 128 MiB whose struct pages are yet to be put into memory."""
    sections = Sections(1)
    sections.add(0, EARLY)
    sections.ranges()
    return sections.fake


def struct_pages(first: int, charged: list[int], end: int) -> bytes:
    """Struct pages of frames ``first`` to ``end``; some are a memcg's file pages."""
    data = bytearray(64 * (end - first))
    data[7] = 1  # flags of the first frame: its node or zone
    for pfn in charged:
        at = 64 * (pfn - first)
        data[at + 32 : at + 40] = MEMCG.to_bytes(8, "little")
    return bytes(data)


def test_hole_in_the_memory_map() -> None:
    """All charges that can be read are counted, and how much cannot is said."""
    fake = one_section()
    charged = [0, 1, 63, 8191, 8192, 8193, 8255]
    fake.allocate(struct_pages(0, charged, 8256), at=VMEMMAP)
    charged = [8321, 16384, SECTION - 1]
    fake.allocate(struct_pages(8320, charged, SECTION), at=VMEMMAP + 64 * 8320)
    progress: list[tuple[str, int, int]] = []
    found = count_folios(
        fake.kernel,
        np.array([MEMCG], np.uint64),
        lambda *step: progress.append(step),
    )
    assert found.pages.tolist() == found.folios.tolist() == [[10, 0, 0, 0, 0], [0] * 5]
    assert fake.kernel.trouble.sentences() == (
        f"64 of {SECTION} struct pages cannot be read",
    )
    assert progress[-1] == ("scanning the memory map", SECTION - 64, SECTION)


def test_unknown_memcg() -> None:
    """Charges of a memcg that is not in the tree are not lost without a word."""
    fake = one_section()
    fake.allocate(struct_pages(0, [5, 6], SECTION), at=VMEMMAP)
    found = count_folios(fake.kernel, np.zeros(0, np.uint64))
    assert found.folios.tolist() == [[2, 0, 0, 0, 0]]
    assert fake.kernel.trouble.sentences() == (
        "a folio is charged to a memcg that is not in the tree (2 times)",
    )


@pytest.mark.parametrize("zeros", [False, True])
def test_no_memory_map(zeros: bool) -> None:
    """A dump without struct pages is refused, not reported as free of charges."""
    fake = one_section()
    if zeros:
        fake.allocate(64 * SECTION, at=VMEMMAP)
    with pytest.raises(KernelError, match="not in the dump"):
        count_folios(fake.kernel, np.zeros(0, np.uint64))
