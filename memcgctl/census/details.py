"""What holds some memcgs, whose memory it is, and what was inherited?

Puts together what ``references``, ``charges``, ``owners`` and ``objcgs`` find.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Container, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from memcgctl.census.charges.groups import details_for
from memcgctl.census.holders.balance import holders
from memcgctl.census.holders.objcgs import inherited
from memcgctl.census.processes import name_processes
from memcgctl.linux.tasks import read_tasks
from memcgctl.model import Details, Holder, Memcg

if TYPE_CHECKING:
    from memcgctl.census.tree import Tree
    from memcgctl.kernel.program import OpenedKernel

Wanted = Collection[int] | Literal["offline"]


def with_details(
    kernel: OpenedKernel,
    tree: Tree,
    memcgs: Sequence[Memcg],
    wanted: Wanted,
    progress: Callable[[str, int, int], None] | None = None,
) -> tuple[Memcg, ...]:
    """``memcgs``, all of the kernel, those ``wanted`` (by cgroup id) with details.

    What online memcgs inherited comes with it, wanted or not.
    """
    asked = [
        memcg
        for memcg in memcgs
        if (memcg.state == "offline" if wanted == "offline" else memcg.id in wanted)
    ]
    charged = details_for(kernel, tree, [memcg.address for memcg in asked], progress)
    held = holders(kernel, asked)
    unread = tuple(topic.value for topic in kernel.trouble.unread)
    paths = _paths(kernel, tree, (one for of, _ in held.values() for one in of))
    found = {
        memcg.address: Details(
            *held[memcg.address],
            *charged[memcg.address],
            unread,
            tuple((pid, paths[pid]) for pid in _pids(held[memcg.address][0], paths)),
        )
        for memcg in asked
    }
    legacies = inherited(kernel, memcgs, progress)
    return tuple(
        replace(
            memcg,
            details=found.get(memcg.address),
            inherited=legacies.get(memcg.address, ()),
        )
        for memcg in memcgs
    )


def _pids(held: Iterable[Holder], known: Container[int]) -> list[int]:
    """The processes that holders name and that are known, each once."""
    named = [int(pid) for one in held for pid in re.findall(r"\(pid (\d+)", one.detail)]
    return [pid for pid in dict.fromkeys(named) if pid in known]


def _paths(kernel: OpenedKernel, tree: Tree, held: Iterable[Holder]) -> dict[int, str]:
    """The paths of the memcgs that processes are in, by pid, if any is named."""
    if not any("(pid " in one.detail for one in held):
        return {}
    processes = name_processes(read_tasks(kernel), tree)
    pids = processes.tasks.pid.tolist()
    return {pid: path for pid, path in zip(pids, processes.memcg, strict=True) if path}
