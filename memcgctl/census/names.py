"""What were cgroups called? Paths of ``struct kernfs_node``s, in bulk."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import drgn
import numpy as np
from numpy.typing import NDArray

from memcgctl.kernel.layout import dtype_of
from memcgctl.kernel.memory import Memory
from memcgctl.kernel.program import OpenedKernel
from memcgctl.kernel.trouble import Topic, reading
from memcgctl.linux.records import first_member, gather_records

MAX_DEPTH = 1024  # what damaged memory can make of a path
NAME_MAX = 255  # include/uapi/linux/limits.h
SHORT_NAME = 64
UNKNOWN_NAME = b"?"


class _Node(NamedTuple):
    """A kernfs node: id, the parent's address (0 at the root), the name's address."""

    id: int
    parent: int
    name: int


def node_paths(kernel: OpenedKernel, nodes: Sequence[int]) -> list[str]:
    """The path of each ``struct kernfs_node *`` of a cgroup."""
    return names_of(kernel, nodes)[1]


def names_of(
    kernel: OpenedKernel, nodes: Sequence[int]
) -> tuple[NDArray[np.uint64], list[str]]:
    """Cgroup ids (0: unreadable) and paths from the hierarchy's root of kernfs nodes.

    A removed node keeps its parent and its name for as long as it is referenced.
    """
    prog, memory = kernel.prog, kernel.memory
    known = _kernfs_nodes(prog, memory, nodes)
    names = _read_names(memory, [node.name for node in known.values()])
    paths: dict[int, bytes] = {0: b""}
    for node in nodes:
        chain: list[int] = []
        while node in known and node not in paths and len(chain) < MAX_DEPTH:
            chain.append(node)
            paths[node] = b"/" + UNKNOWN_NAME  # for a cycle
            node = known[node].parent
        path = paths.get(node, b"/" + UNKNOWN_NAME)
        for node in reversed(chain):
            # The root of a hierarchy has an empty name.
            if known[node].parent:
                path += b"/" + (names[known[node].name] or UNKNOWN_NAME)
            paths[node] = path
    if lost := sum(not names[node.name] for node in known.values() if node.parent):
        kernel.trouble.note(Topic.MEMCGS, "the name of a cgroup cannot be read", lost)
    ids = [known[node].id if node in known else 0 for node in nodes]
    texts = [paths.get(n, b"") or b"/" for n in nodes]
    return np.array(ids, np.uint64), [
        path.decode("utf-8", "surrogateescape") for path in texts
    ]


def _kernfs_nodes(
    prog: drgn.Program, memory: Memory, nodes: Iterable[int]
) -> dict[int, _Node]:
    """Kernfs nodes and all above them, by address; unreadable ones are missing."""
    # Renamed by Linux kernel commit 633488947ef6 ("kernfs: Use RCU to access
    # kernfs_node::parent.") (in v6.15).
    parent = first_member(prog, "struct kernfs_node", "__parent", "parent")
    members = {"id": "id", "parent": parent, "name": "name"}
    dtype = dtype_of(prog, "struct kernfs_node", members)
    known: dict[int, _Node] = {}
    wanted = {node for node in nodes if node}
    for _ in range(MAX_DEPTH):
        if not wanted:
            break
        addresses = list(wanted)
        records, read = gather_records(memory, addresses, dtype)
        rows = zip(addresses, records.tolist(), read.tolist(), strict=True)
        found = {address: _Node._make(row) for address, row, ok in rows if ok}
        known |= found
        wanted = {node.parent for node in found.values()} - known.keys() - {0}
    return known


@reading(None)  # what comes behind a name may not be there; who asks counts the rest
def _read_names(memory: Memory, addresses: Sequence[int]) -> dict[int, bytes]:
    """Kernfs names by address, empty where there is none."""
    # Most names are short, and neighbours in one slab.
    starts = memory.gather(addresses, SHORT_NAME)
    return {
        address: start.partition(b"\0")[0]
        if start and b"\0" in start
        else _read_name(memory, address)
        for address, start in zip(addresses, starts, strict=True)
    }


def _read_name(memory: Memory, address: int) -> bytes:
    """A kernfs name; reads up to page ends, since the next page may not be there."""
    name = b""
    while b"\0" not in name and len(name) <= NAME_MAX:
        at = address + len(name)
        left = memory.page_size - at % memory.page_size
        part = memory.try_read(at, min(left, NAME_MAX + 1 - len(name)))
        if part is None:
            break
        name += part
    name, end, _ = name.partition(b"\0")
    return name if end else b""
