"""What lies in a slab cache?

Finds the slabs of given ``struct kmem_cache`` in the memory map (``slab_cache`` of
``struct slab``) and reads them whole. SLUB keeps no list of full slabs, and free
objects are marked in a way that takes a walk for each slab: allocated and free ones
come alike, and the caller tells them apart by what is in them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import drgn
import numpy as np
from drgn.helpers.linux.mm import pfn_to_virt

from memcgctl.kernel.layout import (
    bit_field,
    dtype_of,
    has_member,
    offset_of,
    size_of,
    value_of,
)
from memcgctl.kernel.trouble import (
    Topic,
    reading,
)
from memcgctl.linux.memmap import page_ranges
from memcgctl.linux.records import packed, present
from memcgctl.linux.structs import U64, Rows, addresses, read_structs, unique

if TYPE_CHECKING:
    from memcgctl.kernel.program import OpenedKernel

# Slabs have up to 2^3 pages (PAGE_ALLOC_COSTLY_ORDER); what is larger is damage.
MAX_SLAB_BYTES = 1 << 20


class Slabs(NamedTuple):
    """Slabs: parallel arrays of their addresses, caches and numbers of objects."""

    address: U64
    cache: U64
    objects: U64


@reading(Topic.SLABS)
def find_slabs(kernel: OpenedKernel, caches: U64) -> Slabs:
    """All slabs of the ``struct kmem_cache *`` given: one pass over the memory map."""
    known = unique(caches)
    dtype, shift, bits = _slab_layout(kernel.prog)
    page_size = np.uint64(kernel.memory.page_size)
    direct_map = np.uint64(value_of(pfn_to_virt(kernel.prog, 0)))
    found = [Slabs(addresses([]), addresses([]), addresses([]))]
    for first, pages, address in page_ranges(kernel) if len(known) else ():
        size = pages * dtype.itemsize
        for at, data in kernel.memory.chunks(address, size, unit=dtype.itemsize):
            if data is None:
                continue
            slabs = np.frombuffer(data, dtype)
            (hits,) = np.isin(slabs["cache"], known).nonzero()
            if len(hits):
                pfn = addresses(first + (at - address) // dtype.itemsize + hits)
                counters = slabs["counters"][hits] >> np.uint64(shift)
                found.append(
                    Slabs(
                        direct_map + pfn * page_size,
                        slabs["cache"][hits],
                        counters & np.uint64(bits),
                    )
                )
    return Slabs(*(np.concatenate(column) for column in zip(*found, strict=True)))


@reading(Topic.SLABS)
def slab_structs(
    kernel: OpenedKernel,
    slabs: Slabs,
    caches: U64,
    type_name: str,
    members: Mapping[str, str],
) -> tuple[U64, Rows]:
    """Addresses and ``members`` of all objects in the ``slabs`` of some caches.

    ``type_name`` is what the objects begin with. Objects whose members are all zero
    are left out. Raises LookupError for a member that is not there.
    """
    lying = dtype_of(kernel.prog, type_name, members)
    # red_left_pad: CONFIG_SLUB_DEBUG.
    layout = present(kernel.prog, "struct kmem_cache", ("size", "red_left_pad"))
    wanted = unique(caches)
    known = read_structs(kernel, "struct kmem_cache", wanted, layout)
    found_at, rows = [], [np.zeros(0, packed(lying))]
    for cache, its in zip(wanted, known, strict=True):
        size, pad = int(its["size"]), _pad(its)
        (mine,) = (slabs.cache == cache).nonzero()
        for at, objects in zip(
            slabs.address[mine].tolist(), slabs.objects[mine].tolist(), strict=True
        ):
            if size < pad + lying.itemsize or not 0 < objects * size <= MAX_SLAB_BYTES:
                kernel.trouble.note(Topic.SLABS, "a slab of a size that cannot be")
                continue
            data = kernel.memory.try_read(at, objects * size)
            if data is not None:
                strided: Rows = np.ndarray(objects, lying, data, pad, (size,))
                found: Rows = strided.astype(packed(lying))
                (used,) = (found != np.zeros((), found.dtype)).nonzero()
                found_at.append(np.uint64(at + pad) + addresses(size * used))
                rows.append(found[used])
    return np.concatenate([addresses([]), *found_at]), np.concatenate(rows)


def _pad(cache: np.void) -> int:
    """What lies before each object where there are red zones (slub_debug=Z)."""
    known = cache.dtype.names or ()
    return int(cache["red_left_pad"]) if "red_left_pad" in known else 0


def _slab_layout(prog: drgn.Program) -> tuple[np.dtype[Any], int, int]:
    """Fields of a slab in an array of ``struct page``; shift and mask of objects."""
    # Since Linux kernel commit d122019bf061 ("mm: Split slab into its own type") (in
    # v5.17) struct slab overlays struct page.
    name = (
        "struct slab"
        if has_member(prog, "struct slab", "slab_cache")
        else "struct page"
    )
    offset, bits = bit_field(prog, name, "objects")
    word = offset // 64 * 8
    dtype = np.dtype(
        {
            "names": ["cache", "counters"],
            "formats": ["<u8", "<u8"],
            "offsets": [offset_of(prog, name, "slab_cache"), word],
            "itemsize": size_of(prog, "struct page"),
        }
    )
    return dtype, offset - word * 8, (1 << bits) - 1
