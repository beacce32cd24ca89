"""How does this kernel's ``struct page`` tell of a charge?"""

from __future__ import annotations

from dataclasses import dataclass

import drgn
import numpy as np

from memcgctl.kernel.layout import dtype_of, has_member, offset_of, size_of
from memcgctl.linux.records import first_member
from memcgctl.linux.structs import enumerators

# include/linux/page-flags.h: page_type of a page that has none.
PAGE_TYPE_BASE = 0xF0000000
PG_HUGETLB = 0x800  # include/linux/page-flags.h of v6.10, not in any enum


@dataclass(frozen=True)
class PageLayout:
    """Where ``struct page`` keeps what tells about a charge.

    ``page`` has the fields flags, compound, mapping, charge and (5.10) page_type;
    ``order`` is the distance from a head page to the byte with its order; ``head`` and
    ``swapbacked`` are numbers of bits in flags. ``hugetlb`` is None where hugetlb
    folios are charged to nobody, else the distance from a head page to a 32-bit word, a
    mask and what is there of a hugetlb folio.
    """

    page: np.dtype[np.void]
    order: int
    head: int
    swapbacked: int
    hugetlb: tuple[int, int, int] | None = None


def page_layout(prog: drgn.Program) -> PageLayout:
    """The layout of this kernel's struct page; LookupError if it is none we know."""
    page = "struct page"
    members = {
        # memdesc_flags_t since Linux kernel commit 53fbef56e07d ("mm: introduce
        # memdesc_flags_t") (in v6.18).
        "flags": first_member(prog, page, "flags.f", "flags"),
        # Renamed by Linux kernel commit d50569612c29 ("mm: rename the 'compound_head'
        # field in the 'struct page' to 'compound_info'") (in v7.1).
        "compound": first_member(prog, page, "compound_info", "compound_head"),
        "mapping": "mapping",
        # Since Linux kernel commit bcfe06bf2622 ("mm: memcontrol: Use helpers to read
        # page's memcg data") (in v5.11).
        "charge": first_member(prog, page, "memcg_data", "mem_cgroup"),
    }
    if members["charge"] == "mem_cgroup":
        members["page_type"] = "page_type"
    flags = enumerators(prog, "enum pageflags")
    return PageLayout(
        page=dtype_of(prog, page, members),
        order=_order_offset(prog),
        head=flags["PG_head"],
        swapbacked=flags["PG_swapbacked"],
        hugetlb=_hugetlb(prog, flags),
    )


def _hugetlb(prog: drgn.Program, flags: dict[str, int]) -> tuple[int, int, int] | None:
    """What tells a hugetlb folio: distance of a word, mask and value."""
    try:
        # Since Linux kernel commit 8cba9576df60 ("hugetlb: memcg: account
        # hugetlb-backed memory in memory controller") (in v6.7), a mount option.
        prog["CGRP_ROOT_MEMORY_HUGETLB_ACCOUNTING"]
    except LookupError:
        return None
    second = size_of(prog, "struct page")
    if "PG_hugetlb" in flags:
        # Until Linux kernel commit d99e3140a4d3 ("mm: turn folio_test_hugetlb into a
        # PageType") (in v6.10 and stable releases) a flag of the second page.
        return second, 1 << flags["PG_hugetlb"], 1 << flags["PG_hugetlb"]
    slot = offset_of(prog, "struct page", "page_type")
    try:
        types_by_name = enumerators(prog, "enum pagetype")
    except LookupError:
        types_by_name = {}
    if "PGTY_hugetlb" in types_by_name:
        # Since Linux kernel commit 4ffca5a96678 ("mm: support only one page_type per
        # page") (in v6.12) the type is a number.
        return slot, 0xFF << 24, types_by_name["PGTY_hugetlb"] << 24
    # Before, a bit that is off; in an enum since v6.11.
    base = types_by_name.get("PAGE_TYPE_BASE", PAGE_TYPE_BASE)
    return slot, base | types_by_name.get("PG_hugetlb", PG_HUGETLB), base


def _order_offset(prog: drgn.Program) -> int:
    """Distance from a head page to its order, which is in the first tail page."""
    # Since Linux kernel commit ebc1baf5c9b4 ("mm: free up a word in the first tail
    # page") (in v6.6) it is the low byte of _flags_1; between that and Linux kernel
    # commit 379708ffde1b ("mm: add the first tail page to struct folio") (in v6.1) it
    # is _folio_order.
    for path in ("_folio_order", "_flags_1"):
        if has_member(prog, "struct folio", path):
            return offset_of(prog, "struct folio", path)
    second = size_of(prog, "struct page")
    return int(second + offset_of(prog, "struct page", "compound_order"))
