"""Which inotify and fanotify groups, and which cgroup v1 events, hold a memcg?

An ``fsnotify_group`` holds the memcg that its events are charged to (``group->memcg``,
fs/notify). A v1 event registration holds its memcg until a worker has removed it, also
after the removal of the cgroup has taken it off ``memcg->event_list`` (mm/memcontrol.c,
``memcg_event_remove``): it is found where it waits, on its eventfd.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from memcgctl.kernel.layout import has_member, offset_of
from memcgctl.kernel.trouble import Topic, reading
from memcgctl.linux.files import Opened
from memcgctl.linux.lists import list_walker, occupied
from memcgctl.linux.structs import U64, read_structs
from memcgctl.model import Holder

if TYPE_CHECKING:
    from memcgctl.kernel.program import OpenedKernel

EVENT = "struct mem_cgroup_event"


@reading(Topic.EVENTS)
def fsnotify_holders(
    kernel: OpenedKernel, wanted: U64, opened: Opened
) -> Iterator[tuple[int, Holder]]:
    """(``struct mem_cgroup *``, holder) for each ``fsnotify_group`` with a file."""
    for kind, operations in (
        ("inotify", "inotify_fops"),
        ("fanotify", "fanotify_fops"),
    ):
        files, groups = opened.of_kind(operations)
        memcgs = read_structs(
            kernel, "struct fsnotify_group", groups, {"memcg": "memcg"}
        )["memcg"]
        for memcg in np.unique(memcgs[np.isin(memcgs, wanted)]).tolist():
            for detail, count in opened.described(
                kind, files[memcgs == memcg].tolist()
            ):
                yield memcg, Holder("fsnotify", count, detail)


@reading(Topic.EVENTS)
def event_holders(
    kernel: OpenedKernel, wanted: U64, opened: Opened
) -> Iterator[tuple[int, Holder]]:
    """(``struct mem_cgroup *``, holder) for each event that waits on an eventfd."""
    # Only with CONFIG_MEMCG_V1 since Linux kernel commit e93d4166b40a ("mm: memcg: put
    # cgroup v1-specific code under a config option") (in v6.11).
    if not has_member(kernel.prog, EVENT, "memcg"):
        return
    wake = kernel.symbol("memcg_event_wake")
    files, contexts = opened.of_kind("eventfd_fops")
    offset = offset_of(kernel.prog, "struct eventfd_ctx", "wqh.head")
    heads = np.where(contexts, contexts + np.uint64(offset), np.uint64(0))
    found: defaultdict[int, list[int]] = defaultdict(list)
    walk = list_walker(
        kernel, "struct wait_queue_entry", "entry", {"func": "func"}, Topic.EVENTS
    )
    for index in occupied(kernel, heads).nonzero()[0].tolist():
        entries, rows = walk(int(heads[index]))
        events = entries[rows["func"] == wake]
        memcgs = read_structs(
            kernel,
            EVENT,
            events - np.uint64(offset_of(kernel.prog, EVENT, "wait")),
            {"memcg": "memcg"},
        )["memcg"]
        for memcg in memcgs[np.isin(memcgs, wanted)].tolist():
            found[memcg].append(int(files[index]))
    for memcg, its in found.items():
        for detail, count in opened.described("eventfd", its):
            yield memcg, Holder("event", count, detail)
