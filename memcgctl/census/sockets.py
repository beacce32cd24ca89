"""How much socket memory is each memcg charged for?

The kernel charges the buffers of TCP, UDP and their like by the page, without a page
that would name the memcg (``mem_cgroup_charge_skmem``, ``mem_cgroup_sk_charge``): what
it has charged is only in counters. On cgroup v2 that is ``MEMCG_SOCK`` of
``memcg->vmstats_percpu``, whose parts, added up over all CPUs, are exact whether they
have been flushed or not; on cgroup v1 ``memcg->tcpmem``, with all memcgs below.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import drgn
import numpy as np
from drgn.helpers.linux.cpumask import for_each_possible_cpu
from numpy.typing import NDArray

from memcgctl.kernel.layout import has_member, offset_of
from memcgctl.kernel.trouble import Topic
from memcgctl.linux.structs import addresses, enumerators, read_words

if TYPE_CHECKING:
    from memcgctl.census.tree import Tree
    from memcgctl.kernel.program import OpenedKernel

MEMCG, PERCPU = "struct mem_cgroup", "struct memcg_vmstats_percpu"
USAGE, ABOVE = "tcpmem.usage.counter", "tcpmem.parent"
MEMBERS = ("vmstats_percpu", "vmstats_local", USAGE, ABOVE)

# 4 PiB of 4 KiB pages: more is damage.
MAX_PAGES = 1 << 40
UNREAD = "socket memory cannot be read: it is in no sum"


def socket_pages(kernel: OpenedKernel, tree: Tree) -> NDArray[np.int64]:
    """Pages of socket memory charged to each memcg of the tree, -1 where not known."""
    try:
        pages = (_counted if tree.cgroup_version == 2 else _tcp_counters)(kernel, tree)
    except (LookupError, ValueError, drgn.FaultError) as error:
        kernel.trouble.note(Topic.SOCKETS, f"{UNREAD}: {error}")
        return np.full(len(tree.address), -1, np.int64)
    if lost := int(np.count_nonzero((pages < 0) | (pages > MAX_PAGES))):
        kernel.trouble.note(Topic.SOCKETS, UNREAD, lost)
    return np.where(pages > MAX_PAGES, -1, np.maximum(pages, -1))


def _counted(kernel: OpenedKernel, tree: Tree) -> NDArray[np.int64]:
    """``MEMCG_SOCK`` of each memcg, without those below it."""
    item = enumerators(kernel, "enum memcg_stat_item")["MEMCG_SOCK"]
    if has_member(kernel.prog, PERCPU, "state"):
        # Since Linux kernel commit 2d146aa3aa84 ("mm: memcontrol: switch to rstat") (in
        # v5.13) a CPU's part is never taken from it.
        return _sums(kernel, tree, PERCPU, "state", _index(kernel, item))
    # Before, a CPU's part moves on in batches, to the memcg's own sums among others.
    own = drgn.Object(kernel.prog, MEMCG, address=0).vmstats_local.type_.type
    return _sums(kernel, tree, PERCPU, "stat", item) + _sums(
        kernel, tree, own.type_name(), "stat", item, "vmstats_local"
    )


def _index(kernel: OpenedKernel, item: int) -> int:
    """The place of a statistic in ``state``.

    Since Linux kernel commit ff48c71c26aa ("memcg: reduce memory for the lruvec and
    memcg stats") (in v6.10) a table of bytes has it.
    """
    try:
        table = kernel.symbol("mem_cgroup_stats_index")
    except LookupError:
        return item
    return kernel.memory.read(table + item, 1)[0]


def _sums(
    kernel: OpenedKernel,
    tree: Tree,
    type_name: str,
    member: str,
    index: int,
    pointer: str = "vmstats_percpu",
) -> NDArray[np.int64]:
    """The sum over all CPUs of one ``long`` in an array of per-CPU structures."""
    counters = kernel.prog.type(type_name).member(member).type
    if not 0 <= index < (counters.length or 0):
        raise ValueError(f"no {type_name}.{member}[{index}]")
    at = tree.memcg[pointer] + np.uint64(offset_of(kernel.prog, type_name, member))
    at += np.uint64(8 * index)
    cpus: list[int] = list(for_each_possible_cpu(kernel.prog))
    table = kernel.symbol("__per_cpu_offset")
    offsets, known = read_words(kernel, addresses([table + 8 * cpu for cpu in cpus]))
    if not known.all():
        raise LookupError("__per_cpu_offset cannot be read")
    total: NDArray[np.int64] = np.zeros(len(at), np.int64)
    whole = np.ones(len(at), np.bool_)
    for offset in offsets:
        values, read = read_words(kernel, at + offset)
        total += values.view(np.int64)
        whole &= read
    total[~whole] = -1
    return total


def _tcp_counters(kernel: OpenedKernel, tree: Tree) -> NDArray[np.int64]:
    """``memcg->tcpmem`` of each memcg, less that of those below it.

    Without CONFIG_MEMCG_V1 (6.11) no socket is charged on cgroup v1. A counter without
    one above (use_hierarchy=0, up to 5.10) is in no other memcg's.
    """
    if USAGE not in (tree.memcg.dtype.names or ()):
        return np.zeros(len(tree.address), np.int64)
    counter = np.uint64(offset_of(kernel.prog, MEMCG, "tcpmem"))
    place = {address: row for row, address in enumerate(tree.address.tolist())}
    usage: NDArray[np.int64] = tree.memcg[USAGE].astype(np.int64)
    own: NDArray[np.int64] = usage.copy()
    for row, above in enumerate((tree.memcg[ABOVE] - counter).tolist()):
        if above in place:
            own[place[above]] -= usage[row]
    return own
