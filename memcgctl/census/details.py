"""What holds some memcgs, whose memory it is, and what was inherited?

Puts together what ``references``, ``charges``, ``owners`` and ``objcgs`` find.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from memcgctl.census.bulk import addresses
from memcgctl.census.charges import charge_groups, name_processes
from memcgctl.census.objcgs import inherited
from memcgctl.census.owners import swap_devices
from memcgctl.census.references import holders
from memcgctl.census.tasks import read_tasks
from memcgctl.model import Details, Memcg

if TYPE_CHECKING:
    from memcgctl.census.memcgs import Tree
    from memcgctl.census.records import Warnings
    from memcgctl.kernel.program import OpenedKernel

Wanted = Collection[int] | Literal["offline"]


def with_details(
    kernel: OpenedKernel,
    tree: Tree,
    memcgs: Sequence[Memcg],
    wanted: Wanted,
    warnings: Warnings,
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
    processes = name_processes(read_tasks(kernel), tree)
    at = addresses([memcg.address for memcg in asked])
    groups = charge_groups(kernel, tree, at, processes, warnings, progress)
    private_ids = np.array([memcg.private_id for memcg in asked], np.int64)
    swap = swap_devices(kernel, private_ids, processes, warnings)
    held = holders(kernel, asked, warnings)
    found = {
        memcg.address: Details(*held[memcg.address], tuple(group), devices)
        for memcg, group, devices in zip(asked, groups, swap, strict=True)
    }
    legacies = inherited(kernel, memcgs, warnings, progress)
    return tuple(
        replace(
            memcg,
            details=found.get(memcg.address),
            inherited=legacies.get(memcg.address, ()),
        )
        for memcg in memcgs
    )
