"""What may memcgs use, and how much swap is there?

Reads the page counters of all ``struct mem_cgroup`` (``memory``, and ``swap`` of cgroup
v2 or ``memsw`` of v1) and how many cgroups may be below each, which come with the tree,
and the kernel's own swap counters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import drgn
import numpy as np

from memcgctl.kernel.layout import value_of
from memcgctl.kernel.trouble import Topic
from memcgctl.model import Limits

if TYPE_CHECKING:
    from memcgctl.census.tree import Tree
    from memcgctl.kernel.program import OpenedKernel

_MEMORY = {
    "max_bytes": "memory.max",
    "high_bytes": "memory.high",
    "min_bytes": "memory.min",
    "low_bytes": "memory.low",
}
# A union of the two: which one is meant depends on the hierarchy.
_SWAP = {
    2: {"swap_max_bytes": "swap.max", "swap_usage_bytes": "swap.usage.counter"},
    1: {"memsw_max_bytes": "memsw.max", "memsw_usage_bytes": "memsw.usage.counter"},
}
MEMBERS = (*_MEMORY.values(), *_SWAP[1].values(), *_SWAP[2].values())
# Of struct cgroup, since 4.14; INT_MAX: no limit.
_CGROUP = {
    "max_descendants": "max_descendants",
    "descendants": "nr_descendants",
    "max_depth": "max_depth",
}
CGROUP_MEMBERS = tuple(_CGROUP.values())
_INT_MAX = 2**31 - 1


def limits(tree: Tree, page_size: int) -> list[Limits]:
    """The limits of each memcg of the tree, read with these modules' members."""
    # PAGE_COUNTER_MAX (include/linux/page_counter.h) stands for no limit.
    most = (2**63 - 1) // page_size
    columns: dict[str, list[int | None]] = {}
    for name, member in (_MEMORY | _SWAP[tree.cgroup_version]).items():
        if member not in (tree.memcg.dtype.names or ()):  # CONFIG_SWAP is off
            continue
        pages = tree.memcg[member].astype(np.int64).clip(0).tolist()
        without = (
            0 if name.endswith(("usage_bytes", "min_bytes", "low_bytes")) else None
        )
        columns[name] = [
            without if without is None and number >= most else number * page_size
            for number in pages
        ]
    for name, member in _CGROUP.items():
        if member in (tree.cgroup.dtype.names or ()):
            counts = tree.cgroup[member].tolist()
            columns[name] = [
                None if number == _INT_MAX else number for number in counts
            ]
    return [
        Limits(**dict(zip(columns, row, strict=True)))
        for row in zip(*columns.values(), strict=True)
    ]


def swap_bytes(kernel: OpenedKernel) -> tuple[int | None, int | None]:
    """All swap space of the kernel and the free part of it; None if unreadable."""
    size = kernel.memory.page_size
    try:
        total = value_of(kernel.declare("total_swap_pages", "long"))
        free = value_of(kernel.declare("nr_swap_pages", "atomic_long_t"), "counter")
    except LookupError:  # CONFIG_SWAP is off
        return 0, 0
    except drgn.FaultError:
        kernel.trouble.note(Topic.SWAP_SPACE, "how much swap there is cannot be read")
        return None, None
    # While a device goes away the free pages can be fewer than none.
    return max(total, 0) * size, max(free, 0) * size
