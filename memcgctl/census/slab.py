"""What lies in a slab cache?

Finds the slabs of given ``struct kmem_cache`` in the memory map (``slab_cache`` of
``struct slab``) and reads them whole. SLUB keeps no list of full slabs, and free
objects are marked in a way that takes a walk for each slab: allocated and free ones
come alike, and the caller tells them apart by what is in them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import drgn
import numpy as np
from drgn.helpers.linux.mm import pfn_to_virt
from numpy.lib.recfunctions import repack_fields

from memcgctl.census.bulk import U64, Rows, addresses, read_structs, unique
from memcgctl.census.memmap import page_ranges
from memcgctl.census.records import present
from memcgctl.kernel.layout import dtype_of, has_member, offset_of

if TYPE_CHECKING:
    from memcgctl.census.records import Warnings
    from memcgctl.kernel.program import OpenedKernel

# Slabs have up to 2^3 pages (PAGE_ALLOC_COSTLY_ORDER); what is larger is damage.
MAX_SLAB_BYTES = 1 << 20


def slab_structs(
    kernel: OpenedKernel,
    caches: U64,
    type_name: str,
    members: Mapping[str, str],
    warnings: Warnings,
) -> tuple[U64, Rows]:
    """Addresses and ``members`` of all objects of the ``struct kmem_cache *`` given.

    ``type_name`` is what the objects begin with. Objects whose members are all zero
    are left out. Raises LookupError for a member that is not there.
    """
    caches = unique(caches)
    lying = dtype_of(kernel.prog, type_name, members)
    # red_left_pad: CONFIG_SLUB_DEBUG.
    layout = present(
        kernel.prog, "struct kmem_cache", {"size": "size", "pad": "red_left_pad"}
    )
    known = read_structs(kernel, "struct kmem_cache", caches, layout)
    places, rows = [], [np.zeros(0, repack_fields(lying))]
    for at, cache, objects in _slabs(kernel, caches, warnings):
        size = int(known["size"][cache])
        pad = int(known["pad"][cache]) if "pad" in layout else 0
        if size < pad + lying.itemsize or not 0 < objects * size <= MAX_SLAB_BYTES:
            warnings["a slab of a size that cannot be"] += 1
            continue
        data = kernel.memory.try_read(at, objects * size)
        if data is not None:
            found: Rows = repack_fields(np.ndarray(objects, lying, data, pad, (size,)))
            (used,) = (found != np.zeros((), found.dtype)).nonzero()
            places.append(
                np.uint64(at + pad) + np.uint64(size) * used.astype(np.uint64)
            )
            rows.append(found[used])
    return np.concatenate([addresses([]), *places]), np.concatenate(rows)


def _slabs(
    kernel: OpenedKernel, caches: U64, warnings: Warnings
) -> Iterator[tuple[int, int, int]]:
    """(address, index of its cache, objects) of each slab of the sorted ``caches``."""
    dtype, shift, bits = _slab_layout(kernel.prog)
    page_size = kernel.memory.page_size
    direct_map = pfn_to_virt(kernel.prog, 0).value_()
    for first, pages, address in page_ranges(kernel, warnings):
        size = pages * dtype.itemsize
        for at, data in kernel.memory.chunks(address, size, unit=dtype.itemsize):
            if data is None or not len(caches):
                continue
            slabs = np.frombuffer(data, dtype)
            cache = np.searchsorted(caches, slabs["cache"]).clip(max=len(caches) - 1)
            (hits,) = (caches[cache] == slabs["cache"]).nonzero()
            start = first + (at - address) // dtype.itemsize
            objects = (slabs["counters"][hits] >> np.uint64(shift)) & np.uint64(bits)
            for page, number in zip(hits.tolist(), objects.tolist(), strict=True):
                yield direct_map + (start + page) * page_size, int(cache[page]), number


def _slab_layout(prog: drgn.Program) -> tuple[np.dtype[Any], int, int]:
    """Fields of a slab in an array of ``struct page``; shift and mask of objects."""
    # Since Linux kernel commit d122019bf061 ("mm: Split slab into its own type") (in
    # v5.17) struct slab overlays struct page.
    name = (
        "struct slab"
        if has_member(prog, "struct slab", "slab_cache")
        else "struct page"
    )
    objects = prog.type(name).member("objects")
    offset, bits = objects.bit_offset, objects.bit_field_size or 0
    word = offset // 64 * 8
    dtype = np.dtype(
        {
            "names": ["cache", "counters"],
            "formats": ["<u8", "<u8"],
            "offsets": [offset_of(prog, name, "slab_cache"), word],
            "itemsize": drgn.sizeof(prog.type("struct page")),
        }
    )
    return dtype, offset - word * 8, (1 << bits) - 1
