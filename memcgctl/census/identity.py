"""When was each memcg made and removed, and how did its manager mark it?

From the attributes of its directory (``cgroup->kn->iattr``), which a directory has once
somebody set one: systemd does for every unit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from memcgctl.census.tree import CSS_ONLINE
from memcgctl.kernel.trouble import Topic
from memcgctl.linux.kernfs import attributes

if TYPE_CHECKING:
    from memcgctl.census.tree import Tree
    from memcgctl.kernel.program import OpenedKernel

MEMBERS = ("self.flags",)
# What a manager writes is short; longer values are somebody else's data.
_LONGEST = 256


class Identity(NamedTuple):
    """Times in seconds since the epoch; None where the kernel does not tell.

    ``created_at`` is when the directory's first attribute was set, milliseconds after
    it was made by a manager that sets one at once. ``removed_at`` is None for a cgroup
    that is still there, though its memcg may be offline. ``xattrs`` are sorted by name.
    """

    created_at: float | None = None
    removed_at: float | None = None
    xattrs: tuple[tuple[str, str], ...] = ()


def identities(kernel: OpenedKernel, tree: Tree) -> list[Identity]:
    """What is known of each memcg of the tree, offline ones only."""
    found = [Identity()] * len(tree.address)
    (rows,) = (~tree.online).nonzero()
    removed = (tree.cgroup["self.flags"][rows] & CSS_ONLINE) == 0
    nodes = tree.cgroup["kn"][rows].astype(np.uint64)
    for row, gone, has in zip(
        rows.tolist(), removed.tolist(), attributes(kernel, nodes), strict=True
    ):
        if has is None:
            continue
        if not has.whole:
            kernel.trouble.note(
                Topic.MEMCGS, "extended attributes of a cgroup could not all be read"
            )
        found[row] = Identity(
            has.set_at,
            has.changed_at if gone else None,
            tuple(
                (name, value.decode(errors="surrogateescape"))
                for name, value in sorted(has.xattrs.items())
                if len(value) <= _LONGEST
            ),
        )
    return found
