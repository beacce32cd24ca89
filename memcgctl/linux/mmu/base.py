"""What is to be known of a machine in order to walk its page tables?"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memcgctl.linux.structs import U64

Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Format(ABC):
    """Page tables of processes: numbers, and what an entry means.

    ``shifts`` has the address bits below each level's index, the top level's first;
    tables have ``entries`` each, but for the top one, which has ``top``: those below
    ``user`` are of processes. An entry that has a bit of ``mapping`` maps memory, valid
    for the processor or not. ``to_virtual`` is where physical address 0 is mapped.
    """

    page_shift: int
    shifts: tuple[int, ...]
    entries: int
    top: int
    user: int
    mapping: np.uint64
    to_virtual: np.uint64

    def maps(self, entry: U64) -> Flags:
        """Which entries of the lowest level map memory: all others are swapped."""
        found: Flags = entry & self.mapping != 0
        return found

    @abstractmethod
    def is_huge(self, entry: U64, shift: int) -> Flags:
        """Which entries of the level of ``shift``, above the lowest, map memory."""

    @abstractmethod
    def is_table(self, entry: U64, shift: int) -> Flags:
        """Which of these lead to a table of the level below."""

    @abstractmethod
    def physical(self, entry: U64) -> U64:
        """Where what such entries map, or the table that they lead to, begins."""

    @abstractmethod
    def swap(self, entry: U64) -> tuple[NDArray[np.int64], U64]:
        """Type and offset of entries that do not map memory."""
