"""Which interface of user space carries out an option, on whom, and at what price?

One table, the least harmful first. What nobody has seen to work is not in it.
"""

from __future__ import annotations

from memcgctl.policy.interfaces import (
    charge_on_cpu,
    collapse,
    drop_caches,
    fadvise,
    flush_device,
    force_empty,
    lru_gen,
    memory_reclaim,
    pageout,
    pageout_file,
    swapin,
    swapin_file,
    temp_swap,
    writeback_cleanup,
)
from memcgctl.policy.interfaces.base import AnyInterface

INTERFACES: tuple[AnyInterface, ...] = (
    fadvise.INTERFACE,
    collapse.INTERFACE,
    temp_swap.INTERFACE,
    temp_swap.MAPPED,
    temp_swap.AGAIN,  # after swapin
    pageout.INTERFACE,
    pageout_file.INTERFACE,
    pageout.AGAIN,  # after swapin
    swapin.INTERFACE,
    swapin_file.INTERFACE,
    writeback_cleanup.INTERFACE,
    charge_on_cpu.INTERFACE,
    flush_device.INTERFACE,
    lru_gen.INTERFACE,
    memory_reclaim.INTERFACE,
    force_empty.INTERFACE,
    drop_caches.INTERFACE,
)
