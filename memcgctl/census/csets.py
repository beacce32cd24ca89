"""Which tasks hold a memcg, by their ``css_set``, ``mm_struct`` or OOM?

A ``css_set`` holds each css of its tasks' cgroups (``find_css_set``,
kernel/cgroup/cgroup.c) for as long as a task that was in it is not reaped, or a cgroup
namespace has it as its root; it is on ``cgroup->e_csets``. An ``mm_struct`` holds the
memcg on whose ``mm_list`` it is (``lru_gen_add_mm``, mm/vmscan.c), and a task the one
that it waits for in an OOM (``mem_cgroup_oom``, mm/memcontrol.c).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from memcgctl.census import tasks
from memcgctl.census.bulk import U64, Rows, addresses, read_structs
from memcgctl.census.files import Opened
from memcgctl.census.lists import list_structs, occupied
from memcgctl.kernel.layout import has_member, offset_of
from memcgctl.model import Holder

if TYPE_CHECKING:
    from memcgctl.census.records import Warnings
    from memcgctl.kernel.program import OpenedKernel

# So many processes are named in one line; the rest are counted.
NAMED = 4


def css_set_holders(
    kernel: OpenedKernel,
    wanted: U64,
    opened: Opened,
    warnings: Warnings,
) -> Iterator[tuple[int, Holder]]:
    """(``struct mem_cgroup *``, holder) for each ``css_set`` that has its css."""
    prog = kernel.prog
    memory = int(prog["memory_cgrp_id"])
    csses = wanted + np.uint64(offset_of(prog, "struct mem_cgroup", "css"))
    cgroups = read_structs(
        kernel, "struct cgroup_subsys_state", csses, {"cgroup": "cgroup"}
    )["cgroup"]
    list_offset = offset_of(prog, "struct cgroup", "e_csets") + 16 * memory
    heads = np.where(cgroups, cgroups + np.uint64(list_offset), np.uint64(0))
    members = {"subsys": "subsys", "refs": "refcount.refs.counter"}
    for place in occupied(kernel, heads).nonzero()[0].tolist():
        head = int(heads[place])
        at, rows = list_structs(
            kernel,
            head,
            "struct css_set",
            "e_cset_node",
            members,
            warnings,
            index=memory,
        )
        # A cgroup has a new css after its controller was disabled and enabled again.
        here = rows["subsys"][:, memory] == csses[place]
        for cset, refs in zip(at[here].tolist(), rows["refs"][here], strict=True):
            detail = _cset_detail(kernel, cset, int(refs), opened, warnings)
            yield int(wanted[place]), Holder("other", 1, detail)


def mm_list_holders(
    kernel: OpenedKernel, wanted: U64, warnings: Warnings
) -> Iterator[tuple[int, Holder]]:
    """(``struct mem_cgroup *``, holder) for each memcg with ``mm_struct``s listed."""
    # 6.1, "mm: multi-gen LRU: support page table walks".
    if not has_member(kernel.prog, "struct mem_cgroup", "mm_list"):
        return
    offset = offset_of(kernel.prog, "struct mem_cgroup", "mm_list.fifo")
    heads = wanted + np.uint64(offset)
    for place in occupied(kernel, heads).nonzero()[0].tolist():
        _, rows = list_structs(
            kernel,
            int(heads[place]),
            "struct mm_struct",
            "lru_gen.list",
            {"owner": "owner"},
            warnings,
        )
        if len(rows):
            names = _names(_read_tasks(kernel, addresses(rows["owner"])))
            detail = f"address space of {names}" if names else "address space"
            yield int(wanted[place]), Holder("other", len(rows), detail)


def oom_holders(
    kernel: OpenedKernel, wanted: Collection[int]
) -> Iterator[tuple[int, Holder]]:
    """(``struct mem_cgroup *``, holder) for each task that waits for its OOM's end."""
    # With cgroup v1's memory.oom_control only; since 6.11 with CONFIG_MEMCG_V1.
    if not has_member(kernel.prog, "struct task_struct", "memcg_in_oom"):
        return
    threads = tasks._threads(kernel)
    members = {"memcg": "memcg_in_oom", "pid": "pid", "comm": "comm"}
    for row in read_structs(kernel, "struct task_struct", threads, members):
        if int(row["memcg"]) in wanted:
            yield int(row["memcg"]), Holder("other", 1, f"OOM wait of {_names([row])}")


def _cset_detail(
    kernel: OpenedKernel,
    cset: int,
    refs: int,
    opened: Opened,
    warnings: Warnings,
) -> str:
    """Why the ``struct css_set`` at ``cset`` is still there."""
    reasons = []
    for state, lists in (
        ("dead but not reaped", ("dying_tasks",)),
        ("alive", ("tasks", "mg_tasks")),
    ):
        found = [
            list_structs(
                kernel,
                cset + offset_of(kernel.prog, "struct css_set", name),
                "struct task_struct",
                "cg_list",
                {"pid": "pid", "comm": "comm"},
                warnings,
            )[1]
            for name in lists
        ]
        if names := _names(np.concatenate(found)):
            reasons.append(f"{names} {state}")
    if names := _namespace_users(kernel, cset, opened.tasks):
        reasons.append(f"cgroup namespace of {names}")
    return f"css_set of {'; '.join(reasons) or f'{refs} users without a task'}"


def _namespace_users(kernel: OpenedKernel, cset: int, all_tasks: tasks.Tasks) -> str:
    """The processes whose cgroup namespace has ``cset`` as its root."""
    spaces = read_structs(
        kernel, "struct nsproxy", all_tasks.nsproxy, {"cgroup_ns": "cgroup_ns"}
    )["cgroup_ns"]
    roots = read_structs(
        kernel, "struct cgroup_namespace", spaces, {"root": "root_cset"}
    )["root"]
    return _names(_read_tasks(kernel, all_tasks.address[roots == cset]))


def _read_tasks(kernel: OpenedKernel, at: U64) -> Rows:
    return read_structs(
        kernel, "struct task_struct", at[at != 0], {"pid": "pid", "comm": "comm"}
    )


def _names(rows: Any) -> str:
    """``comm (pid)`` of the first few tasks, and how many more there are."""
    names = [f"{_text(row['comm'])} ({row['pid']})" for row in rows[:NAMED]]
    more = len(rows) - NAMED
    return ", ".join(names) + (f" and {more} more" if more > 0 else "")


def _text(comm: Any) -> str:
    raw = bytes(comm.astype(np.uint8)).partition(b"\0")[0]
    return raw.decode(errors="surrogateescape")
