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
from numpy.typing import NDArray

from memcgctl.kernel.layout import has_member, length_of, offset_of
from memcgctl.kernel.trouble import Topic
from memcgctl.linux.structs import addresses, enumerators, possible_cpus, read_words

if TYPE_CHECKING:
    from memcgctl.census.tree import Tree
    from memcgctl.kernel.program import OpenedKernel

MEMCG, PERCPU = "struct mem_cgroup", "struct memcg_vmstats_percpu"
USAGE, ABOVE = "tcpmem.usage.counter", "tcpmem.parent"
MEMBERS = ("vmstats_percpu", "vmstats_local", USAGE, ABOVE)

# 4 PiB of 4 KiB pages: more is damage.
MAX_PAGES = 1 << 40
UNREAD = "socket memory cannot be read: it is in no sum"
ELSEWHERE = (
    "socket memory of an online memcg is not known: a removed one below it has given "
    "back what it was counted for"
)


def socket_pages(kernel: OpenedKernel, tree: Tree) -> NDArray[np.int64]:
    """Pages of socket memory charged to each memcg of the tree, -1 where not known."""
    try:
        pages = (_counted if tree.cgroup_version == 2 else _tcp_counters)(kernel, tree)
    except (LookupError, ValueError, drgn.FaultError) as error:
        kernel.trouble.note(Topic.SOCKETS, f"{UNREAD}: {error}")
        return np.full(len(tree.address), -1, np.int64)
    if has_member(kernel.prog, "struct mem_cgroup_per_node", "objcg_list"):
        # Since Linux kernel commit 01b9da291c49 ("mm: memcontrol: convert objcg to be
        # per-memcg per-node type") (in v7.1) and its series the sockets of a memcg that
        # is removed are counted where they were then: what they charge and give back
        # later is its ancestor's (get_non_dying_memcg_start), and can be below zero.
        moved = tree.online & (pages > -MAX_PAGES) & (pages < 0)
        if elsewhere := int(np.count_nonzero(moved)):
            kernel.trouble.note(None, ELSEWHERE, elsewhere)
    else:
        moved = np.zeros(len(pages), np.bool_)
    wrong = ((pages < 0) | (pages > MAX_PAGES)) & ~moved
    if lost := int(np.count_nonzero(wrong)):
        kernel.trouble.note(Topic.SOCKETS, UNREAD, lost)
    return np.where(pages > MAX_PAGES, -1, np.maximum(pages, -1))


def _counted(kernel: OpenedKernel, tree: Tree) -> NDArray[np.int64]:
    """``MEMCG_SOCK`` of each memcg, without those below it."""
    item = enumerators(kernel.prog, "enum memcg_stat_item")["MEMCG_SOCK"]
    if has_member(kernel.prog, PERCPU, "state"):
        # Since Linux kernel commit 2d146aa3aa84 ("mm: memcontrol: switch to rstat") (in
        # v5.13) a CPU's part is never taken from it.
        return _sums(kernel, tree, "state", _index(kernel, item))
    # Before, a CPU's part moves on in batches, to the memcg's own sums among others.
    moved_on = _sums(kernel, tree, "stat", item, "vmstats_local")
    return _sums(kernel, tree, "stat", item) + moved_on


def _index(kernel: OpenedKernel, item: int) -> int:
    """The index of a statistic in ``state``.

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
    member: str,
    index: int,
    pointer: str = "vmstats_percpu",
) -> NDArray[np.int64]:
    """The sum over all CPUs of one ``long`` in an array of per-CPU structures."""
    if not 0 <= index < length_of(kernel.prog, PERCPU, member):
        raise ValueError(f"no {PERCPU}.{member}[{index}]")
    at = tree.memcg[pointer] + np.uint64(offset_of(kernel.prog, PERCPU, member))
    at += np.uint64(8 * index)
    cpus = possible_cpus(kernel)
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
    total[~whole] = -MAX_PAGES
    return total


def _tcp_counters(kernel: OpenedKernel, tree: Tree) -> NDArray[np.int64]:
    """``memcg->tcpmem`` of each memcg, less that of those below it.

    Without CONFIG_MEMCG_V1 (6.11) no socket is charged on cgroup v1. A counter without
    one above (use_hierarchy=0, up to 5.10) is in no other memcg's.
    """
    if USAGE not in (tree.memcg.dtype.names or ()):
        return np.zeros(len(tree.address), np.int64)
    counter = np.uint64(offset_of(kernel.prog, MEMCG, "tcpmem"))
    row_of = {address: row for row, address in enumerate(tree.address.tolist())}
    usage: NDArray[np.int64] = tree.memcg[USAGE].astype(np.int64)
    own: NDArray[np.int64] = usage.copy()
    for row, above in enumerate((tree.memcg[ABOVE] - counter).tolist()):
        if above in row_of:
            own[row_of[above]] -= usage[row]
    return own
