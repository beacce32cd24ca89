"""Page tables of arm64: pages of 4, 16 or 64 KiB, addresses of 36 to 52 bits.

See arch/arm64/include/asm/pgtable-hwdef.h, pgtable-prot.h and pgtable.h. Entries of a
contiguous range each have an address of their own, so the contiguous bit is ignored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import drgn
import numpy as np
from numpy.typing import NDArray

from memcgctl.kernel.errors import KernelError
from memcgctl.kernel.trouble import Topic
from memcgctl.linux.mmu.base import Flags, Format
from memcgctl.linux.structs import U64, enumerators

if TYPE_CHECKING:
    from memcgctl.kernel.program import OpenedKernel

# Bit 0: valid. Bit 1: leads to a table or, on the lowest level, maps a page.
_VALID, _TABLE = np.uint64(1 << 0), np.uint64(1 << 1)
_WIDTHS = range(36, 53)
_NG, _PROT_NONE, _PMD_INVALID = 1 << 11, 1 << 58, 1 << 59


@dataclass(frozen=True)
class Arm64(Format):
    """``mask`` has the bits of an entry that are the lower ones of an address.

    Those of ``high`` are shifted left by ``high_shift`` for the highest; ``swap_bits``
    are where the type of a swap entry begins, its bits, and where its offset begins.
    """

    mask: np.uint64
    high: np.uint64
    high_shift: np.uint64
    largest: int
    swap_bits: tuple[int, int, int]

    def is_huge(self, entry: U64, shift: int) -> Flags:
        if shift > self.largest:
            return np.zeros(len(entry), np.bool_)
        block: Flags = entry & _TABLE == 0
        return block & self.maps(entry)

    def is_table(self, entry: U64, shift: int) -> Flags:
        table: Flags = entry & (_VALID | _TABLE) == _VALID | _TABLE
        return table

    def physical(self, entry: U64) -> U64:
        physical: U64 = entry & self.mask
        if self.high:
            physical |= (entry & self.high) << self.high_shift
        return physical

    def swap(self, entry: U64) -> tuple[NDArray[np.int64], U64]:
        type_shift, type_bits, offset_shift = self.swap_bits
        type_ = entry >> np.uint64(type_shift) & np.uint64((1 << type_bits) - 1)
        offset = entry >> np.uint64(offset_shift) & np.uint64((1 << 50) - 1)
        return type_.astype(np.int64), offset


def format_of(kernel: OpenedKernel) -> Arm64:
    """The page size and address bits that this kernel runs with."""
    page_shift = kernel.memory.page_size.bit_length() - 1
    bits = page_shift - 3
    va_bits = _address_bits(kernel, page_shift)
    levels = -(-(va_bits - page_shift) // bits)
    top = 1 << va_bits - page_shift - bits * (levels - 1)
    # With pages of 4 and 16 KiB, 52 bits of physical address need FEAT_LPA2, which
    # comes with as many virtual ones.
    lpa2 = page_shift != 16 and va_bits == 52
    high, high_shift = 0, 0
    if lpa2:
        high, high_shift = 0x3 << 8, 50 - 8
    elif page_shift == 16:
        high, high_shift = 0xF << 12, 48 - 12
    absent, swap_bits = _absent(kernel)
    return Arm64(
        page_shift=page_shift,
        shifts=tuple(range(page_shift + bits * (levels - 1), page_shift - 1, -bits)),
        entries=1 << bits,
        # Processes have tables of their own (ttbr0): nothing there is the kernel's.
        top=top,
        user=top,
        mapping=np.uint64(int(_VALID) | absent),
        to_virtual=np.uint64(direct_map(kernel)),
        mask=np.uint64((1 << (50 if lpa2 else 48)) - (1 << page_shift)),
        high=np.uint64(high),
        high_shift=np.uint64(high_shift),
        largest=30 if page_shift == 12 else page_shift + bits,
        swap_bits=swap_bits,
    )


def _address_bits(kernel: OpenedKernel, page_shift: int) -> int:
    """How many bits of a process's addresses the tables translate.

    Built for 52, a kernel has 48 (with 16 KiB pages 47) where the processor has no
    more, which T1SZ tells. With 64 KiB pages the levels are the same, and the lower
    entries of the top table are used.
    """
    va_bits = _built_for(kernel)
    t1sz = kernel.numbers.get("TCR_EL1_T1SZ", 0)
    if page_shift != 16 and t1sz:
        va_bits = 64 - t1sz
    if va_bits not in _WIDTHS:
        raise KernelError("VMCOREINFO is damaged: TCR_EL1_T1SZ")
    return va_bits


def _built_for(kernel: OpenedKernel) -> int:
    va_bits = _number(kernel, "VA_BITS")
    if va_bits not in _WIDTHS:
        raise KernelError("VMCOREINFO is damaged: VA_BITS")
    return va_bits


def _absent(kernel: OpenedKernel) -> tuple[int, tuple[int, int, int]]:
    """Bits of entries that map though they are not valid, and of swap entries.

    No type tells these. What the kernel itself puts into an entry for memory without
    any access (the first of ``protection_map``) has bit 58 up to Linux kernel commit
    f0f5863a0fb0 ("arm64/mm: Remove PTE_PROT_NONE bit") (in v6.10); the same series
    moved the other bit to that of PTE_NG, and the type to make room for uffd-wp in swap
    entries (5b32510af77b, "arm64/mm: Add uffd write-protect support").
    """
    try:
        none = int.from_bytes(
            kernel.memory.read(kernel.symbol("protection_map"), 8), "little"
        )
    except (LookupError, drgn.FaultError):
        kernel.trouble.note(
            Topic.PAGE_TABLES, "the format of swap entries is not known (it is guessed)"
        )
        none = 0
    if not none & _PROT_NONE:
        return _NG, (6, 5, 12)
    # The type moved by a bit for what came together with this flag: 570ef363509b
    # ("arm64/pgtable: support __HAVE_ARCH_PTE_SWP_EXCLUSIVE") (in v5.19).
    if "PG_anon_exclusive" in enumerators(kernel.prog, "enum pageflags"):
        return _PROT_NONE | _PMD_INVALID, (3, 5, 8)
    return _PROT_NONE | _PMD_INVALID, (2, 6, 8)


def direct_map(kernel: OpenedKernel) -> int:
    """Virtual address of physical address 0: PAGE_OFFSET - PHYS_OFFSET, which wraps."""
    offset = -(1 << _built_for(kernel)) - _number(kernel, "PHYS_OFFSET")
    return offset % 2**64


def _number(kernel: OpenedKernel, name: str) -> int:
    if name not in kernel.numbers:
        raise KernelError(f"VMCOREINFO has no {name}")
    return kernel.numbers[name]
