"""Which CPUs keep charges of a memcg in stock, and so a reference to it?

Reads the per-CPU ``memcg_stock`` (mm/memcontrol.c): ``refill_stock`` takes one css
reference for each memcg that it caches. The stock of kernel objects (``cached_objcg``,
``obj_stock``) refers to an ``obj_cgroup`` and holds no css.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from drgn.helpers.linux.percpu import per_cpu

from memcgctl.kernel.trouble import (
    Topic,
    reading,
)
from memcgctl.linux.structs import (
    addresses,
    possible_cpus,
    read_structs,
)
from memcgctl.model import Holder

if TYPE_CHECKING:
    from memcgctl.kernel.program import OpenedKernel


@reading(Topic.STOCKS)
def stock_holders(
    kernel: OpenedKernel, wanted: frozenset[int]
) -> Iterator[tuple[int, Holder]]:
    """(``struct mem_cgroup *``, holder) for each CPU and memcg in its stock."""
    stock = kernel.percpu("memcg_stock", "struct memcg_stock_pcp")
    cpus = possible_cpus(kernel)
    at = addresses([per_cpu(stock, cpu).address_ for cpu in cpus])
    rows = read_structs(
        kernel, "struct memcg_stock_pcp", at, {"cached": "cached", "pages": "nr_pages"}
    )
    # Arrays since Linux kernel commit f735eebe55f8 ("memcg: multi-memcg percpu charge
    # cache") (in v6.16), one memcg before.
    slots = rows["cached"].reshape(len(cpus), -1).tolist()
    pages = rows["pages"].reshape(len(cpus), -1).tolist()
    for cpu, cached, charged in zip(cpus, slots, pages, strict=True):
        for memcg, number in zip(cached, charged, strict=True):
            if memcg in wanted:
                yield memcg, Holder("stock", 1, f"CPU {cpu}: {number} pages")
