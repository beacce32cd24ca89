"""Page tables of x86-64: four or five levels, pages of 4 KiB.

See arch/x86/include/asm/pgtable_types.h and pgtable_64.h.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from memcgctl.kernel.layout import value_of
from memcgctl.linux.mmu.base import Flags, Format
from memcgctl.linux.structs import U64

if TYPE_CHECKING:
    from memcgctl.kernel.program import OpenedKernel

# PROTNONE is the global bit of a PTE that is not present (NUMA hinting faults).
_PRESENT, _HUGE, _PROTNONE = np.uint64(1 << 0), np.uint64(1 << 7), np.uint64(1 << 8)
_LARGEST = 30  # a gigabyte

# Where physical memory is mapped if its place is not randomised (5-level paging moves
# it, but only together with page_offset_base).
_PAGE_OFFSET = 0xFFFF888000000000


@dataclass(frozen=True)
class X86(Format):
    """``mask`` has the bits of an entry that are a physical address."""

    mask: np.uint64

    def is_huge(self, entry: U64, shift: int) -> Flags:
        huge: Flags = (entry & _HUGE != 0) & (shift <= _LARGEST)
        return huge

    def is_table(self, entry: U64, shift: int) -> Flags:
        present: Flags = entry & _PRESENT != 0
        return present & ~self.is_huge(entry, shift)

    def physical(self, entry: U64) -> U64:
        # Frames of entries that are not present are stored inverted, against L1TF
        # (4.19).
        absent = entry & _PRESENT == 0
        if absent.any():
            entry = np.where(absent, ~entry, entry)
        physical: U64 = entry & self.mask
        return physical

    def swap(self, entry: U64) -> tuple[NDArray[np.int64], U64]:
        # The offset is stored inverted, against L1TF (4.19).
        type_ = (entry >> np.uint64(59)).astype(np.int64)
        return type_, (~entry << np.uint64(5)) >> np.uint64(14)


def format_of(kernel: OpenedKernel) -> X86:
    """The levels and encryption bits that this kernel runs with."""
    return X86(
        page_shift=12,
        shifts=tuple(range(48 if _five_levels(kernel) else 39, 11, -9)),
        entries=512,
        top=512,
        user=256,
        mapping=_PRESENT | _PROTNONE,
        to_virtual=np.uint64(direct_map(kernel)),
        mask=np.uint64(_physical_mask(kernel) & ~0xFFF),
    )


def direct_map(kernel: OpenedKernel) -> int:
    """Virtual address of physical address 0."""
    try:
        return value_of(kernel.declare("page_offset_base", "unsigned long"))
    except LookupError:  # CONFIG_DYNAMIC_MEMORY_LAYOUT is off
        return _PAGE_OFFSET


def _physical_mask(kernel: OpenedKernel) -> int:
    """The bits of an entry that are a physical address, encryption bits left out."""
    try:
        mask = value_of(kernel.declare("physical_mask", "unsigned long"))
    except LookupError:  # CONFIG_DYNAMIC_PHYSICAL_MASK is off
        mask = 0
    return (mask or (1 << 52) - 1) & ((1 << 52) - 1)


def _five_levels(kernel: OpenedKernel) -> bool:
    try:
        return bool(value_of(kernel.declare("__pgtable_l5_enabled", "unsigned int")))
    except LookupError:  # CONFIG_X86_5LEVEL is off
        return False
