"""What is on a kernel linked list?

Walks ``struct list_head`` lists, one read an element: the link and the wanted members
of the structure that it lies in together. Memory may be damaged or change underneath:
a walk ends at a fault, at an element seen before and at a bound, and says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from memcgctl.kernel.layout import dtype_of, offset_of
from memcgctl.kernel.trouble import Topic
from memcgctl.linux.structs import U64, Rows, addresses, read_pointers

if TYPE_CHECKING:
    from memcgctl.kernel.program import OpenedKernel

# More elements than any list has that is walked here: 2^20 inodes of a super block.
LIMIT = 1 << 20


Walk = Callable[[int], tuple[U64, Rows]]


def list_structs(
    kernel: OpenedKernel,
    head: int,
    type_name: str,
    link: str,
    members: Mapping[str, str],
    topic: Topic,
) -> tuple[U64, Rows]:
    """The structures on one list, as ``list_walker`` finds them."""
    return list_walker(kernel, type_name, link, members, topic)(head)


def list_walker(
    kernel: OpenedKernel,
    type_name: str,
    link: str,
    members: Mapping[str, str],
    topic: Topic,
    *,
    index: int = 0,
    limit: int = LIMIT,
) -> Walk:
    """What finds the structures on the list at a head: addresses and ``members``.

    ``link`` is the path of the ``struct list_head`` in ``type_name`` (of an array of
    them, the ``index``-th), ``members`` maps field names to member paths, ``topic`` is
    what the list tells of. Raises LookupError for a member that is not there.
    """
    dtype = dtype_of(kernel.prog, type_name, members)
    fields = {name: dtype.fields[name] for name in members} if dtype.fields else {}
    offset = offset_of(kernel.prog, type_name, link) + 16 * index
    start = min([offset, *(field[1] for field in fields.values())])
    end = max([offset + 8, *(p[1] + p[0].itemsize for p in fields.values())])
    span = np.dtype(
        {
            "names": list(fields),
            "formats": [field[0] for field in fields.values()],
            "offsets": [field[1] - start for field in fields.values()],
            "itemsize": end - start,
        }
    )
    link_at = slice(offset - start, offset - start + 8)

    def walk(head: int) -> tuple[U64, Rows]:
        found: dict[int, bytes] = {}
        # One that is NULL was never set up: b_attached of a device's own wb.
        node = int(read_pointers(kernel, addresses([head]))[0]) or head
        while node != head and node not in found and len(found) < limit:
            with kernel.trouble.reading(None):  # noted below
                data = kernel.memory.try_read(node - offset + start, span.itemsize)
            if data is None:
                break
            found[node] = data
            node = int.from_bytes(data[link_at], "little")
        if node != head:
            kernel.trouble.note(
                topic, f"a list of {type_name} could not be followed to its end"
            )
        at = addresses([(node - offset) % 2**64 for node in found])
        return at, np.frombuffer(b"".join(found.values()), span)

    return walk


def occupied(kernel: OpenedKernel, heads: U64) -> NDArray[np.bool_]:
    """Which of the ``struct list_head`` at ``heads`` have something on them."""
    first = read_pointers(kernel, heads)
    found: NDArray[np.bool_] = (first != 0) & (first != heads)
    return found
