"""Which interfaces has this kernel by which user space can move charged memory?

Looks for the functions behind them among the symbols, and at members of types, so that
a core tells as well as the running kernel. Whether one is mounted, allowed or switched
on where it is needed, only a try can tell. And where is the cgroup hierarchy mounted?
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import drgn

from memcgctl.kernel.layout import has_member, offset_of
from memcgctl.kernel.trouble import Topic, reading
from memcgctl.linux.backing import mount_point
from memcgctl.linux.lists import list_structs
from memcgctl.linux.structs import addresses, read_structs

if TYPE_CHECKING:
    from memcgctl.census.tree import Tree
    from memcgctl.kernel.program import OpenedKernel

# System calls are __x64_sys_…, __arm64_sys_… and so on.
_ARCHITECTURES = ("__x64_", "__arm64_", "__s390x_", "__riscv_", "")

_SYMBOLS: dict[str, tuple[str, ...]] = {
    "fadvise": tuple(f"{arch}sys_fadvise64" for arch in _ARCHITECTURES),
    # 5.10+, "mm/madvise: introduce process_madvise() syscall".
    "process_madvise": tuple(f"{arch}sys_process_madvise" for arch in _ARCHITECTURES),
    # MADV_PAGEOUT, 5.4+, "mm: introduce MADV_PAGEOUT".
    "pageout": ("madvise_cold_or_pageout_pte_range",),
    # MADV_COLLAPSE, 6.1+, "mm/madvise: introduce MADV_COLLAPSE sync hugepage collapse".
    "collapse": ("madvise_collapse",),
    "pagemap": ("pagemap_read",),
    "kpagecgroup": ("kpagecgroup_read",),
    "drop_caches": ("drop_caches_sysctl_handler",),
    # 5.14+, "writeback, cgroup: release dying cgwbs by switching attached inodes".
    "writeback cleanup": ("cleanup_offline_cgwbs_workfn",),
}
_SYMBOLS_OF_VERSION: dict[int, dict[str, tuple[str, ...]]] = {
    # 5.19+, "memcg: introduce per-memcg reclaim interface".
    2: {"memory.reclaim": ("memory_reclaim",), "memory.high": ("memory_high_write",)},
    1: {"memory.force_empty": ("mem_cgroup_force_empty_write",)},
}


def interfaces(kernel: OpenedKernel, cgroup_version: int) -> tuple[str, ...]:
    """The names of those that there are, for memcgs of this cgroup version."""
    wanted = _SYMBOLS | _SYMBOLS_OF_VERSION[cgroup_version]
    found = [name for name, symbols in wanted.items() if _any_symbol(kernel, symbols)]
    return (*found, *(name for name, test in _SHAPES.items() if test(kernel)))


def _any_symbol(kernel: OpenedKernel, names: tuple[str, ...]) -> bool:
    for name in names:
        try:
            kernel.symbol(name)
        except LookupError:
            continue
        return True
    return False


def _swappiness_key(kernel: OpenedKernel) -> bool:
    """6.11+, "mm: add swappiness= arg to memory.reclaim"."""
    try:
        return has_member(kernel.prog, "struct scan_control", "proactive_swappiness")
    except LookupError:
        return False


def _lru_gen_by_private_id(kernel: OpenedKernel) -> bool:
    """6.1 to 6.19: lru_gen in debugfs names memcgs by ``memcg->id.id``, if it is on.

    From 7.0 on it takes the cgroup id, by which no offline memcg is found
    (``mem_cgroup_get_from_id``), and ``mem_cgroup_from_id`` has another name.
    """
    names = ("lru_gen_seq_write", "mem_cgroup_from_id")
    return all(_any_symbol(kernel, (name,)) for name in names) and _lru_gen_on(kernel)


def _lru_gen_on(kernel: OpenedKernel) -> bool:
    """Whether the multi-generational LRU is: the first key of ``lru_gen_caps``."""
    try:
        at = kernel.symbol("lru_gen_caps")
        at += offset_of(kernel.prog, "struct static_key", "enabled")
        return int.from_bytes(kernel.memory.read(at, 4), "little", signed=True) > 0
    except (LookupError, drgn.FaultError):
        return False


def _entries_stay(kernel: OpenedKernel) -> bool:
    """7.0 to 7.2: an entry on a disk outlives the return of its page.

    A write fault forgets that it was one before it asks whether to free the entry
    (``do_swap_page``, mm/memory.c); 7.3, where devices have ``ops``, asks otherwise.
    """
    return _any_symbol(kernel, ("folio_dup_swap",)) and not has_member(
        kernel.prog, "struct swap_info_struct", "ops"
    )


def _reparents(kernel: OpenedKernel) -> bool:
    """7.1+: a memcg that goes offline hands its folios' obj_cgroups to its parent."""
    return has_member(kernel.prog, "struct mem_cgroup_per_node", "objcg_list")


_SHAPES: dict[str, Callable[[OpenedKernel], bool]] = {
    "memory.reclaim swappiness": _swappiness_key,
    "lru_gen by private id": _lru_gen_by_private_id,
    "swap entries stay": _entries_stay,
    "folios go to the parent": _reparents,
}


@reading(Topic.FILES)
def cgroup_mount(kernel: OpenedKernel, tree: Tree) -> str | None:
    """Where the host has mounted the hierarchy of the tree; None: not known."""
    try:
        return _mount_of(kernel, int(tree.cgroup["kn"][0]))
    except (LookupError, drgn.FaultError):
        return None


def _mount_of(kernel: OpenedKernel, node: int) -> str | None:
    """The mount of the cgroup file system with this ``struct kernfs_node *`` as root.

    A cgroup namespace's mount has another root, but the same super block.
    """
    supers, rows = list_structs(
        kernel,
        kernel.symbol("super_blocks"),
        "struct super_block",
        "s_list",
        {"root": "s_root"},
        Topic.FILES,
    )
    inodes = read_structs(
        kernel, "struct dentry", addresses(rows["root"]), {"inode": "d_inode"}
    )
    # kernfs keeps the node of an inode there; others keep other things.
    private = read_structs(
        kernel, "struct inode", addresses(inodes["inode"]), {"node": "i_private"}
    )
    for place in (private["node"] == node).nonzero()[0].tolist():
        return mount_point(kernel, int(supers[place]), int(rows["root"][place]))
    return None
