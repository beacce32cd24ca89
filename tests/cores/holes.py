"""Cores in which page frames are missing, as in an incomplete dump.

Which frames to take away is found by watching a census of the whole core: what it
reads, and about which topic.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from unittest.mock import patch

import drgn
import zstandard
from drgn.helpers.linux.mm import follow_phys

from memcgctl.census import take_census
from memcgctl.kernel.memory import Memory
from memcgctl.kernel.program import OpenedKernel, Sources, open_kernel
from memcgctl.model import Topic
from tests.cores.variants import PAGE, Load, read_elf, write_elf


@cache
def frames_of(core: Path) -> dict[Topic, list[int]]:
    """The page frames, sorted, that a census reads about each topic and no other."""
    read: defaultdict[Topic | None, set[int]] = defaultdict(set)
    real = Memory.read

    def watched(memory: Memory, address: int, size: int) -> bytes:
        data = real(memory, address, size)
        read[memory.trouble.topic].update(
            range(address // PAGE, -(-(address + size) // PAGE))
        )
        return data

    with open_kernel(Sources(core=core)) as kernel:
        with patch.object(Memory, "read", watched):
            take_census(kernel, details="offline")
        init_mm = kernel.declare("init_mm", "struct mm_struct").address_of_()
        found = {}
        for topic, pages in read.items():
            others = set[int]().union(*(read[one] for one in read if one != topic))
            if topic:
                found[topic] = sorted(_physical(init_mm, pages - others))
    return found


def frames_at(kernel: OpenedKernel, address: int, size: int) -> list[int]:
    """The page frames behind ``size`` bytes from a kernel address on."""
    init_mm = kernel.declare("init_mm", "struct mm_struct").address_of_()
    pages = range(address // PAGE, (address + size) // PAGE)
    return sorted(_physical(init_mm, pages))


def _physical(init_mm: drgn.Object, pages: Collection[int]) -> Iterator[int]:
    for page in pages:
        yield int(follow_phys(init_mm, page * PAGE)) // PAGE


def without(core: Path, frames: Collection[int], to: Path) -> Path:
    """A copy of a core at ``to``, each byte but those of ``frames`` as it was."""
    whole = to.with_suffix(".whole")
    with core.open("rb") as packed, whole.open("wb") as unpacked:
        zstandard.ZstdDecompressor().copy_stream(packed, unpacked)
    found = read_elf(whole)
    loads = [part for load in found.loads for part in _parts(load, frames)]
    write_elf(replace(found, loads=tuple(loads)), to)
    whole.unlink()
    return to


def _parts(load: Load, frames: Collection[int]) -> Iterator[Load]:
    size = len(load.data)
    holes = sorted(
        at for frame in frames if 0 <= (at := frame * PAGE - load.physical) < size
    )
    for hole, end in pairwise([-PAGE, *holes, size]):
        if (start := hole + PAGE) < end:
            virtual = load.virtual + start if load.virtual else 0
            yield Load(load.physical + start, load.data[start:end], virtual)
