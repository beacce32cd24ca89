"""How are many kernel structures of one kind read at once?

Addresses go in as NumPy arrays, members come out as NumPy arrays: one pass of reads
for each kind of structure, and for trees (``struct xarray``) one for each level of all
of them together. What cannot be read is zero, and counted by ``Memory``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import drgn
import numpy as np
from numpy.typing import NDArray

from memcgctl.kernel.layout import LayoutError, dtype_of, size_of
from memcgctl.kernel.trouble import Topic

if TYPE_CHECKING:
    from memcgctl.kernel.program import OpenedKernel

U64 = NDArray[np.uint64]
Rows = NDArray[np.void]

# Entries of one walk over trees; what is beyond it is damage, not a kernel.
_ENTRIES_LIMIT = 1 << 24
# 8192 CPUs (CONFIG_MAXSMP) are 1 KiB.
_CPUMASK_LIMIT = 1 << 13
# Words closer than this are read together, up to so many bytes.
_WORDS_GAP, _WORDS_GROUP = 4096, 1 << 20
# Names of file systems and devices are shorter.
_STRING = 64


def addresses(values: Sequence[int] | NDArray[Any]) -> U64:
    """``values`` as an array of kernel addresses; they wrap around as the kernel's."""
    if isinstance(values, np.ndarray):
        return np.asarray(values, np.uint64)
    return np.array([value % 2**64 for value in values], np.uint64)


def read_rows(kernel: OpenedKernel, at: U64, dtype: np.dtype[Any]) -> NDArray[Any]:
    """One element of ``dtype`` at each address; zero at address 0 and at faults."""
    rows = np.zeros(len(at), dtype)
    (there,) = at.nonzero()
    blank = bytes(dtype.itemsize)
    data = kernel.memory.gather(at[there].tolist(), dtype.itemsize)
    rows[there] = np.frombuffer(b"".join(row or blank for row in data), dtype)
    return rows


def read_structs(
    kernel: OpenedKernel, type_name: str, at: U64, members: Mapping[str, str]
) -> Rows:
    """The ``members`` (field: C member path) of the structure at each address.

    Only the span from the first to the last of them is read. Raises LookupError where
    the kernel has no such type or member.
    """
    whole = dtype_of(kernel.prog, type_name, members)
    fields = {name: whole.fields[name][:2] for name in members} if whole.fields else {}
    start = min(offset for _, offset in fields.values())
    end = max(offset + field.itemsize for field, offset in fields.values())
    span = np.dtype(
        {
            "names": list(fields),
            "formats": [field for field, _ in fields.values()],
            "offsets": [offset - start for _, offset in fields.values()],
            "itemsize": end - start,
        }
    )
    return read_rows(kernel, np.where(at, at + np.uint64(start), np.uint64(0)), span)


def read_pointers(kernel: OpenedKernel, at: U64) -> U64:
    """The pointer stored at each address."""
    return read_rows(kernel, at, np.dtype("<u8"))


def read_words(kernel: OpenedKernel, at: U64) -> tuple[U64, NDArray[np.bool_]]:
    """The 64-bit word at each address, and which of them could be read; many at once.

    Neighbours come with one read, as in ``Memory.gather``, but no word becomes a Python
    object. What could not be read is 0, and counted by ``Memory``.
    """
    words, read = np.zeros(len(at), np.uint64), np.zeros(len(at), np.bool_)
    order = np.argsort(at)
    ordered = at[order]
    apart = np.diff(ordered) > _WORDS_GAP
    apart |= np.diff(ordered // np.uint64(_WORDS_GROUP)) != 0
    edges = [0, *(apart.nonzero()[0] + 1).tolist(), len(at)]
    for first, last in pairwise(edges):
        rows = order[first:last]
        if not len(rows):
            continue
        start, end = int(ordered[first]), int(ordered[last - 1]) + 8
        try:
            block = kernel.memory.read(start, end - start)
        except drgn.FaultError:
            found = kernel.memory.gather(at[rows].tolist(), 8)
            read[rows] = [word is not None for word in found]
            words[rows] = np.frombuffer(b"".join(w or bytes(8) for w in found), "<u8")
        else:
            offsets = (at[rows] - np.uint64(start)).astype(np.int64)
            bytes_ = np.frombuffer(block, np.uint8)
            words[rows] = np.lib.stride_tricks.sliding_window_view(bytes_, 8)[
                offsets
            ].view("<u8")[:, 0]
            read[rows] = True
    return words, read


def read_strings(kernel: OpenedKernel, at: U64) -> list[str]:
    """The short C string at each address; empty where there is none.

    Bytes that are not UTF-8 become surrogates.
    """
    texts: list[str] = []
    for address in at.tolist():
        try:
            raw = (
                kernel.prog.read_c_string(address, max_size=_STRING) if address else b""
            )
        except (drgn.FaultError, ValueError, OverflowError):
            kernel.trouble.fault()
            raw = b""
        texts.append(raw.decode(errors="surrogateescape"))
    return texts


def possible_cpus(kernel: OpenedKernel) -> list[int]:
    """The numbers of the CPUs that can ever be; LookupError if there is no mask."""
    size = size_of(kernel.prog, "struct cpumask")
    if size > _CPUMASK_LIMIT:
        raise LayoutError(f"struct cpumask has {size} bytes")
    mask = kernel.memory.read(kernel.symbol("__cpu_possible_mask"), size)
    bits = np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little")
    cpus: list[int] = bits.nonzero()[0].tolist()
    return cpus


def enumerators(prog: drgn.Program, type_name: str) -> dict[str, int]:
    """The values of an enum, by name; they depend on version and configuration.

    Asking for one that is not there raises LookupError, as drgn does.
    """
    found = _Enumerators(type_name)
    for one in prog.type(type_name).enumerators or ():
        found[one.name] = one.value
    return found


class _Enumerators(dict[str, int]):
    def __init__(self, type_name: str) -> None:
        self._type_name = type_name

    def __missing__(self, name: str) -> int:
        raise LookupError(f"{self._type_name} has no {name}")


def unique(values: U64) -> U64:
    """The different values but 0, sorted."""
    found = np.unique(values)
    nonzero: U64 = found[found != 0]
    return nonzero


def find(known: U64, values: U64) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Each value's position among the sorted ``known``, and whether it is there.

    0 never is: it stands for no address.
    """
    if not len(known):
        return np.zeros(len(values), np.int64), np.zeros(len(values), np.bool_)
    index = np.searchsorted(known, values).clip(max=len(known) - 1)
    return index.astype(np.int64), (known[index] == values) & (values != 0)


@dataclass(frozen=True)
class Entries:
    """Entries of many xarrays: ``entry`` stands at ``count`` indices from ``index`` on.

    ``owner`` is the position of the xarray's head among those that were asked for.
    """

    owner: NDArray[np.int64]
    index: U64
    count: U64
    entry: U64


def xarray_entries(
    kernel: OpenedKernel, heads: U64, topic: Topic, *, values_only: bool = False
) -> Entries:
    """All entries (pointers and values) of xarrays, given each one's ``xa_head``.

    All trees are read together, level by level. An entry of a higher order (shmem's
    large swap entries) comes once, with the number of indices it stands at: its
    sibling slots (lib/xarray.c, ``xa_is_sibling``) are counted, not returned.
    ``values_only`` leaves out the pointers; ``topic`` is what the trees tell of.
    ``struct xa_node`` is that of 4.20+.
    """
    node_dtype = dtype_of(
        kernel.prog, "struct xa_node", {"shift": "shift", "slots": "slots"}
    )
    slots = node_dtype["slots"].shape[0]
    bits = slots.bit_length() - 1
    owner: NDArray[np.int64] = np.arange(len(heads), dtype=np.int64)
    base: U64 = np.zeros(len(heads), np.uint64)
    entry, size = heads, np.ones(len(heads), np.uint64)
    above: NDArray[np.int64] = np.full(len(heads), 64, np.int64)
    found: list[tuple[NDArray[Any], ...]] = []
    total = 0
    while len(entry):
        node = _is_node(entry)
        leaf = (entry & np.uint64(1) != 0) if values_only else ~node
        leaf &= entry != 0
        found.append((owner[leaf], base[leaf], size[leaf], entry[leaf]))
        total += len(owner)
        if total > _ENTRIES_LIMIT:
            kernel.trouble.note(
                topic, "an xarray was larger than any can be: cut short"
            )
            break
        owner, base, above = owner[node], base[node], above[node]
        rows = read_rows(kernel, entry[node] - np.uint64(2), node_dtype)
        # A child's shift is below its parent's: damage makes no cycle.
        shift = rows["shift"].astype(np.int64)
        sane = (shift < above) & (shift % bits == 0)
        if not sane.all():
            lost = int(np.count_nonzero(~sane))
            kernel.trouble.note(topic, "a node of an xarray is damaged", lost)
        owner, base, rows, shift = owner[sane], base[sane], rows[sane], shift[sane]
        step = np.uint64(1) << shift.astype(np.uint64)
        entry, runs = _merge_siblings(rows["slots"])
        base = (base[:, None] + np.arange(slots, dtype=np.uint64) * step[:, None])[
            entry != 0
        ]
        owner = np.repeat(owner, slots).reshape(-1, slots)[entry != 0]
        above = np.repeat(shift, slots).reshape(-1, slots)[entry != 0]
        size = (runs * step[:, None])[entry != 0]
        entry = entry[entry != 0]
    columns = [np.concatenate(column) for column in zip(*found, strict=True)] or [
        np.zeros(0, np.uint64)
    ] * 4
    return Entries(columns[0].astype(np.int64), *columns[1:])


def _is_node(entry: U64) -> NDArray[np.bool_]:
    """``xa_is_node``: an internal entry (low bits 10), not a reserved small one."""
    node: NDArray[np.bool_] = ((entry & np.uint64(3)) == 2) & (entry > 4096)
    return node


def _merge_siblings(slots: U64) -> tuple[U64, U64]:
    """Clear sibling and other special slots; each slot's number of slots covered."""
    width = slots.shape[1]
    special = ((slots & np.uint64(3)) == 2) & (slots <= 4096)
    sibling = special & (slots < np.uint64(width << 2))
    runs = np.ones(slots.shape, np.uint64)
    rows, columns = sibling.nonzero()
    heads = (slots[rows, columns] >> np.uint64(2)).astype(np.int64)
    np.add.at(runs, (rows, heads), np.uint64(1))
    return np.where(special, np.uint64(0), slots), runs
