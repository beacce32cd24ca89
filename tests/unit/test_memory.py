"""Bulk reads of memory with holes, on a program made by hand."""

from __future__ import annotations

import drgn
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memcgctl.kernel.memory import Memory
from tests.unit.fake_kernel import PLATFORM, faults

BASE = 0xFFFF888000000000
PAGE = 4096
PAGES = 64
CONTENT = np.random.default_rng(1).bytes(PAGES * PAGE)


def memory_with_holes(holes: set[int], calls: list[int] | None = None) -> Memory:
    """CONTENT at BASE, without the pages in ``holes``; ``calls`` gets sizes read."""
    prog = drgn.Program(PLATFORM)

    def read(address: int, count: int, offset: int, _: bool) -> bytes:
        if calls is not None:
            calls.append(count)
        for page in range(offset // PAGE, (offset + count - 1) // PAGE + 1):
            if page in holes:
                raise drgn.FaultError("hole", address)
        return CONTENT[offset : offset + count]

    prog.add_memory_segment(BASE, len(CONTENT), read)
    memory = Memory(prog)
    memory._page_size = PAGE
    return memory


@settings(deadline=None, max_examples=50)
@given(
    holes=st.sets(st.integers(0, PAGES - 1)),
    start=st.integers(0, PAGES * PAGE),
    size=st.integers(0, PAGES * PAGE),
    chunk=st.sampled_from([1000, 4096, 10000, 1 << 16, 1 << 20]),
    unit=st.sampled_from([1, 56, 64, 5000]),
)
def test_chunks_are_all_that_is_readable(
    holes: set[int], start: int, size: int, chunk: int, unit: int
) -> None:
    """Lost: folios beside a hole in the memory map, or those after it counted twice."""
    end = min(start + size, len(CONTENT))
    memory = memory_with_holes(holes)
    expected = BASE + start
    pieces = list(memory.chunks(BASE + start, end - start, chunk, unit=unit))
    for number, (address, data) in enumerate(pieces):
        assert address == expected
        assert (address - BASE - start) % unit == 0
        following = pieces[number + 1][0] if number + 1 < len(pieces) else BASE + end
        first, last = address - BASE, following - BASE
        if data is None:
            touched = range(first // PAGE, (last - 1) // PAGE + 1)
            assert holes.intersection(touched)
            # No more is given up than the page, or the elements on it.
            assert last - first <= max(PAGE, unit)
        else:
            assert data == CONTENT[first:last]
        expected = following
    assert expected == BASE + end if end > start else not pieces
    assert faults(memory.trouble) == sum(data is None for _, data in pieces)


@settings(deadline=None, max_examples=50)
@given(
    offsets=st.lists(st.integers(0, PAGES * PAGE + 100), max_size=60),
    holes=st.sets(st.integers(0, PAGES - 1)),
    size=st.sampled_from([1, 8, 64, 5000]),
)
def test_gather_gives_each_structure_in_the_order_asked_for(
    offsets: list[int], holes: set[int], size: int
) -> None:
    """Lost: a memcg gets the numbers of its neighbour."""
    memory = memory_with_holes(holes)
    found = memory.gather([BASE + offset for offset in offsets], size)
    assert len(found) == len(offsets)
    for offset, data in zip(offsets, found, strict=True):
        pages = range(offset // PAGE, (offset + size - 1) // PAGE + 1)
        if offset + size > len(CONTENT) or holes.intersection(pages):
            assert data is None
        else:
            assert data == CONTENT[offset : offset + size]
    assert bool(faults(memory.trouble)) == (None in found)


def test_neighbours_come_with_one_read() -> None:
    """Lost: a listing of thousands of memcgs reads each of them apart, for seconds."""
    calls: list[int] = []
    memory = memory_with_holes(set(), calls)
    memory.gather(range(BASE, BASE + PAGES * PAGE, 2048), 64)
    assert len(calls) <= 2


class FlakyProgram:
    """Fails ``failures`` times before each read that works."""

    def __init__(self, flags: drgn.ProgramFlags, failures: list[Exception]) -> None:
        self.flags = flags
        self.failures = failures

    def read(self, address: int, size: int) -> bytes:
        if self.failures:
            raise self.failures.pop()
        return b"x" * size


def test_a_live_kernels_fault_is_asked_again() -> None:
    """Lost: a page that was just being remapped is missing from a live listing."""
    live = drgn.ProgramFlags.IS_LIVE
    fault = drgn.FaultError("race", 0)
    assert Memory(FlakyProgram(live, [fault, fault])).try_read(0, 2) == b"xx"
    memory = Memory(FlakyProgram(live, [fault] * 10))
    assert memory.try_read(0, 2) is None
    assert faults(memory.trouble) == 1
    # A dump does not change: asking again is only slow.
    assert Memory(FlakyProgram(drgn.ProgramFlags(0), [fault])).try_read(0, 2) is None


@pytest.mark.parametrize("error", [OSError(5, "EIO"), OSError(14, "EFAULT")])
def test_kcores_holes_are_faults(error: OSError) -> None:
    """Lost: the listing, to a traceback from a hole in /proc/kcore."""
    memory = Memory(FlakyProgram(drgn.ProgramFlags.IS_LIVE, [error] * 10))
    with pytest.raises(drgn.FaultError):
        memory.read(0xFFFF888000000000, 8)


@pytest.mark.parametrize("address", [-1, 1 << 64, (1 << 64) - 1])
def test_addresses_out_of_bounds_are_faults(address: int) -> None:
    """Lost: the listing, to a traceback from a pointer that is garbage."""
    assert memory_with_holes(set()).try_read(address, 8) is None
