"""Which memcg is each process in, and how is it named in a census?"""

from __future__ import annotations

from dataclasses import dataclass

from memcgctl.census.tree import Tree
from memcgctl.linux.tasks import Tasks
from memcgctl.model import Process


@dataclass(frozen=True)
class Processes:
    """The processes of the kernel, each with the path and the id of its memcg."""

    tasks: Tasks
    memcg: list[str]
    memcg_id: list[int]

    def tid(self, position: int) -> int:
        """A living thread of one whose first thread has ended, else 0."""
        pid, tid = int(self.tasks.pid[position]), int(self.tasks.tid[position])
        return 0 if pid == tid else tid

    def process(self, position: int, size_bytes: int, huge_bytes: int = 0) -> Process:
        return Process(
            pid=int(self.tasks.pid[position]),
            comm=self.tasks.comm[position],
            memcg=self.memcg[position],
            memcg_id=self.memcg_id[position],
            bytes=size_bytes,
            start_ticks=int(self.tasks.start_ticks[position]),
            huge_bytes=huge_bytes,
            tid=self.tid(position),
        )


def name_processes(tasks: Tasks, tree: Tree) -> Processes:
    """Each process with its memcg; one that is in no memcg of the tree has none."""
    row_of = {address: row for row, address in enumerate(tree.address.tolist())}
    rows = [row_of.get(memcg) for memcg in tasks.memcg.tolist()]
    ids = tree.id.tolist()
    return Processes(
        tasks,
        ["" if row is None else tree.path[row] for row in rows],
        [0 if row is None else ids[row] for row in rows],
    )
