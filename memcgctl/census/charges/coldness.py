"""How long has a folio not been used, by the kernel's own marks?

Decodes ``folio->flags``: the node, and with MGLRU (6.1+) the generation; reads the
generations' ages from ``lruvec->lrugen.timestamps`` of the memcg that the folio is
charged to (from 7.1 on, the online ancestor's).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import drgn
import numpy as np
from numpy.typing import NDArray

from memcgctl.kernel.layout import (
    has_member,
    length_of,
    offset_of,
    value_of,
)
from memcgctl.kernel.trouble import (
    Topic,
    reading,
)
from memcgctl.linux.structs import (
    U64,
    enumerators,
    read_pointers,
    read_structs,
)

if TYPE_CHECKING:
    from memcgctl.kernel.program import OpenedKernel

_BITS = 64


class Generations:
    """Where in ``folio->flags`` the node and the MGLRU generation are.

    Follows include/linux/page-flags-layout.h for SPARSEMEM_VMEMMAP, which has no
    section in the flags: from the top, node, zone, last CPU and pid, generation.
    """

    def __init__(self, kernel: OpenedKernel) -> None:
        prog = kernel.prog
        zones = enumerators(prog, "enum zone_type")["__MAX_NR_ZONES"]
        # MAX_ZONES_PER_ZONELIST + 1, on a kernel with NUMA a list for all nodes.
        refs = length_of(prog, "struct zonelist", "_zonerefs")
        self._node_bits = _order((refs - 1) // max(zones, 1))
        self._node_shift = _BITS - self._node_bits
        used = self._node_bits + _order(zones)
        flags = enumerators(prog, "enum pageflags")["__NR_PAGEFLAGS"]
        # 6.1, commit ec1c86b25f4b ("mm: multi-gen LRU: groundwork").
        self.known = has_member(prog, "struct lruvec", "lrugen")
        self.count = 0
        if self.known:
            self.count = length_of(prog, "struct lruvec", "lrugen.timestamps")
        self._bits = _order(self.count + 1) if self.known else 0
        # CONFIG_NUMA_BALANCING: 8 bits of pid and a CPU, if they fit.
        if has_member(prog, "struct task_struct", "numa_scan_seq"):
            words = length_of(prog, "struct cpumask", "bits")
            cpupid = 8 + _order(words * _BITS)
            if used + self._bits + cpupid <= _BITS - flags:
                used += cpupid
        self._shift = _BITS - used - self._bits
        self.now = value_of(prog["jiffies_64"])
        self.hertz = _hertz(kernel)

    def node(self, flags: U64) -> NDArray[np.int64]:
        """The NUMA node of each folio."""
        if not self._node_bits:
            return np.zeros(len(flags), np.int64)
        return np.asarray(flags >> np.uint64(self._node_shift), np.int64)

    def generation(self, flags: U64) -> NDArray[np.int64]:
        """The number of each folio's generation; -1: in none (off, or not on MGLRU)."""
        if not self.known:
            return np.full(len(flags), -1, np.int64)
        field = (flags >> np.uint64(self._shift)) & np.uint64((1 << self._bits) - 1)
        generation: NDArray[np.int64] = np.asarray(field, np.int64) - 1
        # A number that cannot be: the flags are laid out in a way we do not know.
        if (generation >= self.count).any():
            return np.full(len(flags), -1, np.int64)
        return generation


def _order(count: int) -> int:
    """Bits that number ``count`` things."""
    return max(count - 1, 0).bit_length()


@reading(Topic.MEMORY_MAP)
def generation_ages(
    kernel: OpenedKernel,
    generations: Generations,
    memcgs: U64,
    nodes: NDArray[np.int64],
) -> tuple[list[list[float | None]], NDArray[np.bool_]]:
    """Age in seconds of each generation in each lruvec, and whether it is active.

    A lruvec is that of a ``struct mem_cgroup *`` and a node, parallel arrays; a row of
    the result for each. The two youngest count as active (``lru_gen_is_active``).
    """
    first = np.uint64(offset_of(kernel.prog, "struct mem_cgroup", "nodeinfo"))
    slots = memcgs + first + np.uint64(8) * nodes.astype(np.uint64)
    rows = read_structs(
        kernel,
        "struct mem_cgroup_per_node",
        read_pointers(kernel, slots),
        {"born": "lruvec.lrugen.timestamps", "max_seq": "lruvec.lrugen.max_seq"},
    )
    youngest = rows["max_seq"][:, None]
    number = np.arange(generations.count, dtype=np.uint64)
    count = np.uint64(generations.count)
    active = (number == youngest % count) | (number == (youngest - 1) % count)
    ticks = np.uint64(generations.now) - rows["born"]
    hertz = generations.hertz
    ages = [
        [t / hertz if hertz and seq and t < 2**63 else None for t in row]
        for seq, row in zip(rows["max_seq"].tolist(), ticks.tolist(), strict=True)
    ]
    return ages, active & (youngest != 0)


def _hertz(kernel: OpenedKernel) -> int | None:
    """Ticks a second: the clock source "jiffies" knows a tick's length."""
    try:
        clock = kernel.declare("clocksource_jiffies", "struct clocksource")
        tick = value_of(clock, "mult") >> min(value_of(clock, "shift"), 64)
    except LookupError:
        return None
    except drgn.FaultError:
        kernel.trouble.fault()
        return None
    return round(1e9 / tick) if tick else None
