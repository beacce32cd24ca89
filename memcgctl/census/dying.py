"""How many dying cgroups does the kernel count, and how many of them have no memcg?

``cgroup.stat`` counts cgroups (``cgroup->nr_dying_descendants``), whatever holds them:
perf events, BPF's arrays of cgroups and sockets (``sk->sk_cgrp_data``) hold a cgroup in
which memory was never accounted as well. A memcg whose cgroup lives, since the memory
controller was taken from it, is not among those.
"""

from __future__ import annotations

import numpy as np

from memcgctl.census.tree import CSS_ONLINE, Tree

COUNT, FLAGS = "nr_dying_descendants", "self.flags"
# Members of struct cgroup; the count is there since 4.14.
MEMBERS = (COUNT, FLAGS)


def dying_cgroups(tree: Tree) -> tuple[int | None, int | None]:
    """All that the kernel counts, and those without a memcg; None if it does not."""
    if not {*MEMBERS} <= {*(tree.cgroup.dtype.names or ())}:
        return None, None
    count = int(tree.cgroup[COUNT][0])
    dead = (tree.cgroup[FLAGS] & CSS_ONLINE) == 0
    with_memcg = len(np.unique(tree.memcg["css.cgroup"][dead]))
    # Fewer, where cgroups went while a live kernel was read.
    return count, max(0, count - with_memcg)
