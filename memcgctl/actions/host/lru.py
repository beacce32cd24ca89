"""Put pages on their LRU list, without which the kernel cannot take them.

A page that was just touched waits in a batch of its CPU (``struct cpu_fbatches``).
``madvise`` drains those of the CPU that it runs on (``lru_add_drain``), so a thread of
our own visits each one.
"""

from __future__ import annotations

import mmap
import os
from contextlib import suppress

from memcgctl.actions.host.libc import MADV_COLD
from memcgctl.actions.host.machine import Machine


def drain(machine: Machine) -> None:
    """Have each CPU that we may run on put its batches on the lists.

    None but these: one that is kept free for a real-time thread would never run us.
    """
    before = os.sched_getaffinity(0)
    with mmap.mmap(-1, machine.page_size) as page:
        try:
            for cpu in sorted(before & machine.cpus):
                with suppress(OSError):  # offline by now
                    os.sched_setaffinity(0, {cpu})
                    page.madvise(MADV_COLD)
        finally:
            os.sched_setaffinity(0, before)
