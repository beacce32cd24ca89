"""Bulk reads and xarrays made by hand, whole and damaged."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memcgctl.kernel.trouble import Topic
from memcgctl.linux.structs import addresses, find, read_structs, unique, xarray_entries
from tests.unit.fake_kernel import FakeKernel, faults

STRUCTS = {
    "thing": {"gap": "u64", "small": "u16", "pad": "u16", "big": "u64", "end": "u64"},
    "xa_node": {"shift": "u8", "pad": "u8[15]", "slots": "u64[64]", "marks": "u64[3]"},
}
NODE = 0b10


def value(number: int) -> int:
    return number << 1 | 1


class XArray:
    """One xarray; nodes are made as they are needed (lib/xarray.c)."""

    def __init__(self, fake: FakeKernel, shift: int = 12) -> None:
        self.fake, self.shift = fake, shift
        self.root = fake.make("xa_node", {"shift": shift})

    @property
    def head(self) -> int:
        return self.root | NODE

    def slot(self, node: int, slot: int, entry: int | None = None) -> int:
        at = 16 + 8 * slot
        if entry is not None:
            self.fake.memory[node][at : at + 8] = entry.to_bytes(8, "little")
        return int.from_bytes(self.fake.memory[node][at : at + 8], "little")

    def store(self, index: int, entry: int, order: int = 0) -> None:
        node, shift = self.root, self.shift
        while shift > order:
            slot = index >> shift & 63
            if not self.slot(node, slot):
                below = self.fake.make("xa_node", {"shift": shift - 6})
                self.slot(node, slot, below | NODE)
            node, shift = self.slot(node, slot) - NODE, shift - 6
        first = index >> shift & 63
        self.slot(node, first, entry)
        for sibling in range(1, 1 << (order - shift)):
            self.slot(node, first + sibling, first << 2 | NODE)


def entries(
    fake: FakeKernel, *heads: int, values_only: bool = False
) -> list[tuple[int, ...]]:
    found = xarray_entries(
        fake.kernel, addresses(heads), Topic.SHMEM_SWAP, values_only=values_only
    )
    columns = (found.owner, found.index, found.count, found.entry)
    return sorted(zip(*(column.tolist() for column in columns), strict=True))


def test_entries_of_all_trees_are_found() -> None:
    """Lost: processes beyond the 64th, swapped pages beyond the first 256 KiB."""
    fake = FakeKernel(STRUCTS)
    large = XArray(fake)
    large.store(0, 0xFFFF888000001000)
    large.store(70, value(3))
    large.store(200_000, 0xFFFF888000002000)
    small = XArray(fake, shift=0)
    small.store(63, value(9))
    # An xarray with nothing but index 0 has the entry as its head, without a node.
    assert entries(fake, large.head, small.head, value(5), 0) == [
        (0, 0, 1, 0xFFFF888000001000),
        (0, 70, 1, value(3)),
        (0, 200_000, 1, 0xFFFF888000002000),
        (1, 63, 1, value(9)),
        (2, 0, 1, value(5)),
    ]
    assert entries(fake, large.head, values_only=True) == [(0, 70, 1, value(3))]


@pytest.mark.parametrize("order", [1, 4, 5, 6, 9])
def test_a_large_entry_comes_once_with_its_size(order: int) -> None:
    """Lost: all but one of the entries of a huge page that was swapped out."""
    fake = FakeKernel(STRUCTS)
    tree = XArray(fake)
    tree.store(1 << 11, value(77), order)
    assert entries(fake, tree.head) == [(0, 1 << 11, 1 << order, value(77))]


def test_special_entries_are_no_entries() -> None:
    """Lost: trust, by processes and pages that are not there."""
    fake = FakeKernel(STRUCTS)
    tree = XArray(fake)
    # XA_RETRY_ENTRY and XA_ZERO_ENTRY (include/linux/xarray.h).
    tree.store(1, 256 << 2 | NODE)
    tree.store(2, 257 << 2 | NODE)
    assert entries(fake, tree.head) == []


def test_a_cycle_ends() -> None:
    """Lost: the program, in a tree whose nodes contain each other."""
    fake = FakeKernel(STRUCTS)
    tree = XArray(fake)
    for slot in range(64):
        tree.slot(tree.root, slot, tree.head)
    assert entries(fake, tree.head, 0x6000 | NODE) == []


@settings(deadline=None, max_examples=50)
@given(st.binary(min_size=600, max_size=600))
def test_garbage_is_walked_to_an_end(garbage: bytes) -> None:
    """Lost: the program, by an exception or without end."""
    fake = FakeKernel(STRUCTS)
    tree = XArray(fake)
    fake.memory[tree.root][:] = garbage[: len(fake.memory[tree.root])].ljust(
        len(fake.memory[tree.root]), b"\0"
    )
    entries(fake, tree.head)


def test_structures_come_in_the_order_asked_for() -> None:
    """Lost: which value belongs to which structure, where one cannot be read."""
    fake = FakeKernel(STRUCTS)
    things = [fake.make("thing", {"small": n, "big": n << 40}) for n in range(3)]
    at = addresses([things[2], 0, things[0], 0x1000, things[2]])
    rows = read_structs(fake.kernel, "struct thing", at, {"b": "big", "s": "small"})
    assert rows["s"].tolist() == [2, 0, 0, 0, 2]
    assert rows["b"].tolist() == [2 << 40, 0, 0, 0, 2 << 40]
    # Address 0 stands for nothing and is no fault.
    assert faults(fake.kernel.memory.trouble) == 1


def test_places_among_the_known_ones() -> None:
    """Lost: owners, by a look-up that finds the neighbour of what is not there."""
    known = unique(addresses([9, 5, 0, 5]))
    place, there = find(known, addresses([5, 9, 7, 0, 99]))
    assert known.tolist() == [5, 9]
    assert there.tolist() == [True, True, False, False, False]
    assert place[there].tolist() == [0, 1]
    assert not find(addresses([]), addresses([5]))[1].any()
