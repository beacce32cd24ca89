"""Which page frames are charged to one memcg?

Each folio by its first page frame, as ``struct page`` (``collect``) and the inode that
its ``mapping`` belongs to show it: for a person who goes on with drgn or crash.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from memcgctl.census.charges.collect import collect_folios
from memcgctl.census.charges.groups import KINDS, group_folios
from memcgctl.linux.structs import addresses, enumerators, read_structs
from memcgctl.model import Frame, Frames

if TYPE_CHECKING:
    from memcgctl.kernel.program import OpenedKernel
    from memcgctl.model import Census, Memcg


def read_frames(
    kernel: OpenedKernel,
    census: Census,
    memcg: Memcg,
    limit: int,
    progress: Callable[[str, int, int], None] | None = None,
) -> Frames:
    """The first ``limit`` folios of ``memcg`` by page frame number."""
    at = addresses([other.address for other in census.memcgs])
    # what there is to warn of, the census has said
    found = collect_folios(kernel, at, addresses([memcg.address]), progress)
    total = int(found.folios.sum())
    found = found.each(limit)
    groups = group_folios(found)
    hosts = read_structs(
        kernel, "struct address_space", groups.mapping, {"host": "host"}
    )["host"]
    inodes = read_structs(kernel, "struct inode", hosts, {"ino": "i_ino"})["ino"]
    names = _flag_names(kernel)
    return Frames(
        total,
        tuple(
            Frame(
                pfn=pfn,
                pages=pages,
                kind=KINDS[kind],
                inode=inode or None,
                mapcount=mapcount,
                refcount=refcount,
                pins=pins,
                flags=tuple(name for bit, name in names if flags >> bit & 1),
            )
            for pfn, pages, kind, inode, mapcount, refcount, pins, flags in zip(
                found.pfn.tolist(),
                found.pages.tolist(),
                found.kind.tolist(),
                inodes[groups.of].tolist(),
                found.mapcount.tolist(),
                found.refcount.tolist(),
                found.pins.tolist(),
                found.flags.tolist(),
                strict=True,
            )
        ),
    )


def _flag_names(kernel: OpenedKernel) -> list[tuple[int, str]]:
    """Each page flag's bit with its own name; aliases come after __NR_PAGEFLAGS."""
    flags = enumerators(kernel.prog, "enum pageflags")
    end = flags["__NR_PAGEFLAGS"]
    names: dict[int, str] = {}
    for name, bit in flags.items():
        if bit < end:
            names.setdefault(bit, name.removeprefix("PG_"))
    return sorted(names.items())
