"""Which tasks hold a memcg, by their ``css_set``, ``mm_struct`` or OOM?

A ``css_set`` holds each css of its tasks' cgroups (``find_css_set``,
kernel/cgroup/cgroup.c) for as long as a task that was in it is not reaped, or a cgroup
namespace has it as its root; it is on ``cgroup->e_csets``. An ``mm_struct`` holds the
memcg on whose ``mm_list`` it is (``lru_gen_add_mm``, mm/vmscan.c), and a task the one
that it waits for in an OOM (``mem_cgroup_oom``, mm/memcontrol.c).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

import numpy as np

from memcgctl.census.names import node_paths
from memcgctl.kernel.layout import (
    has_member,
    offset_of,
    value_of,
)
from memcgctl.kernel.trouble import (
    Topic,
    reading,
)
from memcgctl.linux import tasks
from memcgctl.linux.lists import list_walker, occupied
from memcgctl.linux.namespaces import Namespaces
from memcgctl.linux.structs import U64, Rows, addresses, read_pointers, read_structs
from memcgctl.model import Holder

if TYPE_CHECKING:
    from memcgctl.kernel.program import OpenedKernel

MEMCG, TASK = "struct mem_cgroup", "struct task_struct"

# So many processes are named in one line; the rest are counted.
NAMED = 4


@reading(Topic.CSS_SETS)
def css_set_holders(
    kernel: OpenedKernel, wanted: U64, namespaces: Namespaces
) -> Iterator[tuple[int, Holder]]:
    """(``struct mem_cgroup *``, holder) for each ``css_set`` that has its css."""
    found = list(_css_sets(kernel, wanted))
    if not found:
        return
    threads = read_structs(
        kernel,
        TASK,
        tasks._threads(kernel),
        {
            "pid": "tgid",
            "tid": "pid",
            "comm": "comm",
            "cset": "cgroups",
            "dead": "exit_state",
            "nsproxy": "nsproxy",
        },
    )
    spaces = read_structs(
        kernel, "struct nsproxy", threads["nsproxy"], {"cgroup_ns": "cgroup_ns"}
    )
    roots = read_structs(
        kernel, "struct cgroup_namespace", spaces["cgroup_ns"], {"root": "root_cset"}
    )["root"]
    dead = threads["dead"] != 0
    lives_on = dead & np.isin(threads["pid"], threads["pid"][~dead])
    for memcg, cset, refs in found:
        here = threads["cset"] == cset
        users = {
            "{}, dead but not reaped": here & dead & ~lives_on,
            "ended threads of {}": here & lives_on,
            "{}": here & ~dead,
            "the cgroup namespace of {}": roots == cset,
        }
        named = [
            what.format(_names(threads[who]))
            for what, who in users.items()
            if who.any()
        ]
        if (here & lives_on).any():
            its = threads["pid"][here & lives_on]
            named.append(_living(kernel, threads[~dead], its))
        if not (roots == cset).any():
            named += _kept_namespaces(namespaces, cset)
        detail = "; ".join(named) or f"{refs} references, none a process has"
        yield memcg, Holder("other", 1, f"css_set: {detail}")


def _kept_namespaces(namespaces: Namespaces, cset: int) -> list[str]:
    """What keeps cgroup namespaces that no process is in and have the css_set."""
    commons, roots = namespaces.cgroup_roots()
    return [
        f"a cgroup namespace, {namespaces.kept_by(common)}"
        for common in commons[roots == np.uint64(cset)].tolist()
    ]


def _living(kernel: OpenedKernel, living: Rows, pids: U64) -> str:
    """Where a thread is that lives on of each process, by its pid and tid."""
    first = [int((living["pid"] == pid).argmax()) for pid in np.unique(pids)]
    named = [
        f"{row['pid']}:{row['tid']} lives in {path}"
        for row, path in zip(
            living[first[:NAMED]],
            _memory_paths(kernel, living["cset"][first[:NAMED]]),
            strict=True,
        )
    ]
    return f"thread {', '.join(named)}"


def _memory_paths(kernel: OpenedKernel, csets: U64) -> list[str]:
    """The path of the memory cgroup of each ``struct css_set *``."""
    prog = kernel.prog
    slot = offset_of(prog, "struct css_set", "subsys") + 8 * int(prog["memory_cgrp_id"])
    at = read_pointers(kernel, csets + np.uint64(slot))
    for type_name, member in (
        ("struct cgroup_subsys_state", "cgroup"),
        ("struct cgroup", "kn"),
    ):
        at = addresses(read_structs(kernel, type_name, at, {"to": member})["to"])
    return node_paths(kernel, at.tolist())


@reading(Topic.CSS_SETS)
def mm_list_holders(kernel: OpenedKernel, wanted: U64) -> Iterator[tuple[int, Holder]]:
    """(``struct mem_cgroup *``, holder) for each memcg with ``mm_struct``s listed."""
    # Since Linux kernel commit bd74fdaea146 ("mm: multi-gen LRU: support page table
    # walks") (in v6.1).
    if not has_member(kernel.prog, MEMCG, "mm_list"):
        return
    heads = wanted + np.uint64(offset_of(kernel.prog, MEMCG, "mm_list.fifo"))
    walk = list_walker(
        kernel, "struct mm_struct", "lru_gen.list", {"owner": "owner"}, Topic.REFERENCES
    )
    for index in occupied(kernel, heads).nonzero()[0].tolist():
        _, rows = walk(int(heads[index]))
        if len(rows):
            owners = read_structs(
                kernel,
                TASK,
                addresses(rows["owner"]),
                {"pid": "tgid", "comm": "comm"},
            )
            detail = f"address space: {_names(owners[owners['pid'] != 0]) or 'nobody'}"
            yield int(wanted[index]), Holder("other", len(rows), detail)


@reading(Topic.PROCESSES)
def oom_holders(
    kernel: OpenedKernel, wanted: Collection[int]
) -> Iterator[tuple[int, Holder]]:
    """(``struct mem_cgroup *``, holder) for each task that waits for its OOM's end."""
    # With cgroup v1's memory.oom_control only; with CONFIG_MEMCG_V1 since Linux kernel
    # commit 1c3a0b3d0b11 ("mm: memcg: put struct task_struct::memcg_in_oom under
    # CONFIG_MEMCG_V1") (in v6.11).
    if not has_member(kernel.prog, TASK, "memcg_in_oom"):
        return
    threads = tasks._threads(kernel)
    members = {"memcg": "memcg_in_oom", "pid": "pid", "comm": "comm"}
    rows = read_structs(kernel, TASK, threads, members)
    for row in rows[rows["memcg"] != 0]:
        if int(row["memcg"]) in wanted:
            names = _names(np.array([row]))
            yield int(row["memcg"]), Holder("other", 1, f"OOM wait: {names}")


def _css_sets(kernel: OpenedKernel, wanted: U64) -> Iterator[tuple[int, int, int]]:
    """(``struct mem_cgroup *``, ``struct css_set *``, references to this)."""
    prog = kernel.prog
    memory = value_of(prog["memory_cgrp_id"])
    csses = wanted + np.uint64(offset_of(prog, MEMCG, "css"))
    cgroups = read_structs(kernel, MEMCG, wanted, {"cgroup": "css.cgroup"})["cgroup"]
    offset = offset_of(prog, "struct cgroup", "e_csets") + 16 * memory
    heads = np.where(cgroups, cgroups + np.uint64(offset), np.uint64(0))
    members = {"subsys": "subsys", "refs": "refcount.refs.counter"}
    walk = list_walker(
        kernel, "struct css_set", "e_cset_node", members, Topic.CSS_SETS, index=memory
    )
    for index in occupied(kernel, heads).nonzero()[0].tolist():
        at, rows = walk(int(heads[index]))
        # A cgroup has a new css after its controller was disabled and enabled again.
        here = rows["subsys"][:, memory] == csses[index]
        for cset, refs in zip(at[here].tolist(), rows["refs"][here], strict=True):
            yield int(wanted[index]), cset, int(refs)


def _names(rows: Rows) -> str:
    """``comm (pid N)`` of the first few processes, and how many more there are."""
    rows = rows[np.unique(rows["pid"], return_index=True)[1]]
    named = [f"{tasks._text(row['comm'])} (pid {row['pid']})" for row in rows[:NAMED]]
    more = len(rows) - NAMED
    return ", ".join(named) + (f" and {more} more" if more > 0 else "")
