"""Have pages freed that were written to swap but are still in the swap cache.

A device that writes asynchronously has not finished when MADV_PAGEOUT returns, so that
the page stays where it is, charged as before, until memory gets short. Of anonymous
memory it can be mapped again and paged out once more; of shmem only the kernel's own
reclaim finds it. That looks at offline memcgs first (``get_scan_count``,
``get_nr_to_scan``), and is asked for no more than there is.
"""

from __future__ import annotations

import time
from collections import Counter
from contextlib import suppress

from memcgctl.actions import pages
from memcgctl.actions.machine import ActionError, Machine
from memcgctl.actions.pages import U64
from memcgctl.actions.target import open_cgroup, write_at

_WRITTEN_WITHIN = 5.0
_ROUNDS = 3


def wait_written(frames: U64, machine: Machine) -> None:
    """Until none of the pages is under writeback, a few seconds at most."""
    deadline = time.monotonic() + _WRITTEN_WITHIN
    while pages.flagged(frames, pages.WRITEBACK, machine).any():
        if time.monotonic() > deadline:
            break
        time.sleep(0.02)


def let_go(frames: U64, machine: Machine) -> U64:
    """Reclaim what of the frames is in the swap cache; what still is then."""
    wait_written(frames, machine)
    left = frames[pages.flagged(frames, pages.SWAPCACHE, machine)]
    for _ in range(_ROUNDS):
        if not len(left):
            break
        for memcg_id, count in Counter(pages.shown(left, machine).tolist()).items():
            _reclaim(memcg_id, count * machine.page_size, machine)
        left = left[pages.flagged(left, pages.SWAPCACHE, machine)]
    return left


def _reclaim(memcg_id: int, size: int, machine: Machine) -> None:
    with suppress(ActionError), open_cgroup(memcg_id, None, machine) as directory:
        # swappiness=200, which the key (6.11+) may have: no files, or the fewest.
        for text in (f"{size} swappiness=200", str(size)):
            try:
                write_at(directory, "memory.reclaim", text)
            except OSError:
                continue
            break
