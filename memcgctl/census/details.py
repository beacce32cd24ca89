"""What holds some memcgs, whose memory it is, and what was inherited?

Puts together what ``references``, ``charges``, ``owners`` and ``objcgs`` find.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from memcgctl.census.charges.groups import details_for
from memcgctl.census.holders.balance import holders
from memcgctl.census.holders.objcgs import inherited
from memcgctl.model import Details, Memcg

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
    found = {
        memcg.address: Details(*held[memcg.address], *charged[memcg.address], unread)
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
