"""What is a kernel able to do, and what shows it? One table.

The census looks at the kernel for each row (``census.traits``), the planner asks for
names, doctor and the README say what is lacking. No row stands for another: each is
shown by what it is about itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Commit:
    """A commit of the Linux kernel, by its hash, and the first version that has it."""

    hash: str
    subject: str
    version: str

    def __str__(self) -> str:
        return f'{self.hash} ("{self.subject}") (in v{self.version})'


@dataclass(frozen=True)
class Trait:
    """Something that kernels of some versions and configurations can do.

    It is there if the kernel has one of ``symbols`` (functions) and all of ``members``
    (pairs of a type and a member), if there are any, and none of the ``without``.
    ``cgroup_version`` says whose memcgs it is for, None: those of both. ``until`` is
    the first version that lacks it again. ``lacking`` is what a person reads where it
    is missed.
    """

    name: str
    what: str
    symbols: tuple[str, ...] = ()
    members: tuple[tuple[str, str], ...] = ()
    without: tuple[tuple[str, str], ...] = ()
    since: Commit | None = None
    until: str | None = None
    cgroup_version: Literal[1, 2] | None = None
    lacking: str = ""


def _system_call(name: str) -> tuple[str, ...]:
    """System calls are __x64_sys_…, __arm64_sys_… and so on."""
    architectures = ("__x64_", "__arm64_", "__s390x_", "__riscv_", "")
    return tuple(f"{architecture}sys_{name}" for architecture in architectures)


TRAITS = (
    Trait(
        "fadvise",
        "drops a file's page cache (POSIX_FADV_DONTNEED)",
        symbols=_system_call("fadvise64"),
    ),
    Trait(
        "process_madvise",
        "takes advice on another process's memory",
        symbols=_system_call("process_madvise"),
        since=Commit(
            "ecb8ac8b1f14",
            "mm/madvise: introduce process_madvise() syscall: an external memory "
            "hinting API",
            "5.10",
        ),
    ),
    Trait(
        "pageout",
        "pages out on advice (MADV_PAGEOUT)",
        symbols=("madvise_cold_or_pageout_pte_range",),
        since=Commit("1a4e58cce84e", "mm: introduce MADV_PAGEOUT", "5.4"),
    ),
    Trait(
        "collapse",
        "makes huge pages on advice (MADV_COLLAPSE)",
        symbols=("madvise_collapse",),
        since=Commit(
            "7d8faaf15545",
            "mm/madvise: introduce MADV_COLLAPSE sync hugepage collapse",
            "6.1",
        ),
        lacking="this kernel lacks it, 6.1 brought it",
    ),
    Trait("pagemap", "shows page frames by address", symbols=("pagemap_read",)),
    Trait("kpagecgroup", "shows memcgs by page frame", symbols=("kpagecgroup_read",)),
    Trait(
        "drop_caches",
        "drops all page cache",
        symbols=("drop_caches_sysctl_handler",),
    ),
    Trait(
        "writeback cleanup",
        "hands inodes' writeback to living memcgs when another memcg is removed",
        symbols=("cleanup_offline_cgwbs_workfn",),
        since=Commit(
            "c22d70a162d3",
            "writeback, cgroup: release dying cgwbs by switching attached inodes",
            "5.14",
        ),
        lacking="this kernel lacks it, 5.14 brought it",
    ),
    Trait(
        "readers pay for readahead",
        "charges what is read ahead of swap to whoever reads, not to the root",
        # 04f94e3fbe1a ("mm: charge active memcg when no mm is set") (in v5.14) did it
        # within functions; this came next, so that 5.14 counts as one that does not.
        symbols=("__mem_cgroup_charge",),
        since=Commit(
            "2c8d8f97ae22",
            "mm, memcg: inline mem_cgroup_{charge/uncharge} to improve disabled memcg "
            "config",
            "5.15",
        ),
    ),
    Trait(
        "memory.reclaim",
        "reclaims from one memcg and those below",
        symbols=("memory_reclaim",),
        since=Commit(
            "94968384dde1", "memcg: introduce per-memcg reclaim interface", "5.19"
        ),
        cgroup_version=2,
        lacking="only cgroup v2 has it, from 5.19 on",
    ),
    Trait(
        "memory.reclaim swappiness",
        "reclaims what is swap-backed first, if asked to",
        members=(("struct scan_control", "proactive_swappiness"),),
        since=Commit(
            "68cd9050d871", "mm: add swappiness= arg to memory.reclaim", "6.11"
        ),
    ),
    Trait(
        "memory.force_empty",
        "reclaims all that it can from one memcg and those below",
        symbols=("mem_cgroup_force_empty_write",),
        cgroup_version=1,
        lacking="only cgroup v1 has it",
    ),
    Trait(
        "lru_gen by private id",
        "evicts by generations, even of removed memcgs, if MGLRU is on",
        # Since 7.0 ("mm/vmscan: use cgroup ID instead of private memcg ID in lru_gen
        # interface") it takes the cgroup id, by which no offline memcg is found.
        symbols=("mem_cgroup_from_id",),
        since=Commit("d6c3af7d8a2b", "mm: multi-gen LRU: debugfs interface", "6.1"),
        until="7.0",
        lacking="only 6.1 to 6.19 name offline memcgs, with MGLRU on",
    ),
    Trait(
        "swap entries stay",
        "keeps an entry on a disk when its page is read",
        # A write fault forgets that it was one before it asks whether to free the
        # entry (do_swap_page, mm/memory.c). Came with "mm, swap: cleanup swap entry
        # management workflow"; 7.3, where devices have ops, asks otherwise.
        symbols=("folio_dup_swap",),
        without=(("struct swap_info_struct", "ops"),),
        until="7.3",
    ),
    Trait(
        "folios go to the parent",
        "hands the folios of a memcg that is removed to its parent",
        members=(("struct mem_cgroup_per_node", "objcg_list"),),
        since=Commit(
            "01b9da291c49",
            "mm: memcontrol: convert objcg to be per-memcg per-node type",
            "7.1",
        ),
    ),
)
NAMES = frozenset(trait.name for trait in TRAITS)


def lacking(name: str) -> str:
    """What a person reads where a trait is missed."""
    found = next((trait.lacking for trait in TRAITS if trait.name == name), "")
    return found or f"this kernel has no {name}"
