"""What does the kernel allocate for a memcg, whether it is used or not?

Adds up sizes from the types of what ``struct mem_cgroup``, its per-node parts and its
``struct cgroup`` point to. A pointer that is NULL costs nothing: reference counters,
for one, lose their per-CPU part soon after rmdir (``percpu_ref_kill``).

Per CPU: statistics, event and reference counters, rstat, pressure (PSI) and the domain
of writeback. Structures: ``mem_cgroup``, its per-node parts and statistics, ``cgroup``,
``psi_group``, ``obj_cgroup``, ``percpu_ref_data`` and the kernfs node of the directory
with its name. Not in it: what the slab allocator rounds up, shrinker maps, the files of
an online cgroup, other controllers, and ``struct bdi_writeback``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import drgn
import numpy as np
from numpy.typing import NDArray

from memcgctl.census.tree import Tree
from memcgctl.kernel.errors import KernelError
from memcgctl.kernel.layout import has_member, offset_of, size_behind, size_of
from memcgctl.kernel.program import OpenedKernel
from memcgctl.kernel.trouble import Topic
from memcgctl.linux.records import Records, read_variable
from memcgctl.linux.structs import enumerators, read_pointers, read_structs
from memcgctl.model import Overhead

# Pointers to per-CPU memory in struct mem_cgroup and struct mem_cgroup_per_node that is
# allocated with __GFP_ACCOUNT, and so charged to the parent memcg.
ACCOUNTED = (
    "vmstats_percpu",
    "vmstats_local",  # 5.10
    "events_percpu",  # of cgroup v1, apart since 6.11
)
ACCOUNTED_PER_NODE = (
    "lruvec_stats_percpu",
    "lruvec_stat_cpu",  # 5.10, as the next
    "lruvec_stat_local",
)
# The same without __GFP_ACCOUNT, in struct mem_cgroup and struct cgroup.
UNACCOUNTED = (
    "css.refcnt.percpu_count_ptr",
    "css.rstat_cpu",  # each css has its own since 6.16
    "cgwb_domain.completions.events.counters",
)
UNACCOUNTED_CGROUP = (
    "self.refcnt.percpu_count_ptr",
    "bpf.refcnt.percpu_count_ptr",
    "self.rstat_cpu",  # since 6.16, as the next
    "rstat_base_cpu",
    "rstat_cpu",  # until 6.15
    "psi.pcpu",  # in 5.10 struct psi_group is part of struct cgroup
)
# Pointers to structures that are allocated on their own.
STRUCTS = ("vmstats", "css.refcnt.data")
STRUCTS_CGROUP = ("psi", "self.refcnt.data", "bpf.refcnt.data")
STRUCTS_PER_NODE = ("lruvec_stats",)

MEMCG_MEMBERS = (*ACCOUNTED, *UNACCOUNTED, *STRUCTS, "objcg")
CGROUP_MEMBERS = (*UNACCOUNTED_CGROUP, *STRUCTS_CGROUP)

MEMCG, CGROUP = "struct mem_cgroup", "struct cgroup"
PER_NODE, PSI = "struct mem_cgroup_per_node", "struct psi_group"

POINTER = 8
MAX_NODES = 1 << 10  # include/linux/numa.h: the largest NODES_SHIFT is 10
# Reading the nodes of more memcgs takes longer than it is worth.
FEW = 1 << 13
# mm/percpu.c: PCPU_MIN_ALLOC_SIZE; the low bits of a percpu_ref's pointer are flags.
MIN_ALLOC = 4
FLAGS = 3


@dataclass(frozen=True)
class Machine:
    """How many possible CPUs and NUMA nodes there are: each costs every memcg."""

    cpus: int
    nodes: int
    node_ids: int


def read_machine(kernel: OpenedKernel) -> Machine:
    """Source: ``__cpu_possible_mask``, ``node_states[N_POSSIBLE]``, ``nr_node_ids``.

    Raises KernelError if they cannot be read or say zero.
    """

    def bits(name: str, type_name: str) -> int:
        size = size_of(kernel.prog, type_name)
        return bin(read_variable(kernel, name, size)).count("1")

    def node_ids(nodes: int) -> int:
        try:
            return read_variable(kernel, "nr_node_ids", 4)
        except LookupError:
            # A macro without CONFIG_NUMA (include/linux/nodemask.h): there is one.
            if nodes != 1:
                raise
            return 1

    try:
        nodes = bits("node_states", "nodemask_t")
        machine = Machine(
            cpus=bits("__cpu_possible_mask", "struct cpumask"),
            nodes=nodes,
            node_ids=node_ids(nodes),
        )
    except (LookupError, drgn.FaultError) as error:
        raise KernelError(f"CPUs and NUMA nodes cannot be counted: {error}") from error
    if not machine.cpus or not machine.nodes or machine.node_ids > MAX_NODES:
        raise KernelError(f"no sane number of CPUs and NUMA nodes: {machine}")
    return machine


def overheads(kernel: OpenedKernel, tree: Tree, machine: Machine) -> list[Overhead]:
    """The overhead of every memcg of the tree, in its order."""
    prog = kernel.prog
    accounted = _bytes(prog, MEMCG, tree.memcg, ACCOUNTED)
    accounted += machine.nodes * _sum(prog, PER_NODE, ACCOUNTED_PER_NODE)
    to_nobody = _in_first_chunk(kernel, tree, machine)
    accounted -= to_nobody
    charged = accounted * machine.cpus
    kmem = _kmem_is_charged(kernel)
    if kmem and _vector_is_charged(prog):
        charged += accounted // MIN_ALLOC * POINTER
    unaccounted = _bytes(prog, MEMCG, tree.memcg, UNACCOUNTED)
    unaccounted += _bytes(prog, CGROUP, tree.cgroup, UNACCOUNTED_CGROUP)
    unaccounted += POINTER * _objcgs(prog, tree, machine) + to_nobody
    if "psi" in _fields(tree.cgroup):
        unaccounted += (tree.cgroup["psi"] != 0) * _size(prog, PSI, "pcpu")
    structs = _structs(prog, tree, machine)
    # The root is charged for nothing, neither for itself nor for its children.
    counted = (tree.parent > 0) & kmem
    # Most memcgs cost the same.
    return list(
        map(
            cache(Overhead),
            (charged + unaccounted * machine.cpus).tolist(),
            (charged * counted).tolist(),
            structs.tolist(),
        )
    )


def _in_first_chunk(
    kernel: OpenedKernel, tree: Tree, machine: Machine
) -> NDArray[np.int64]:
    """Bytes for each CPU that lie in the per-CPU allocator's first chunk.

    That chunk is charged to nobody, as it has no vector of obj_cgroups: it is made
    before there are any (``pcpu_setup_first_chunk``). Up to 5.13 accounted memory has
    chunks of its own, until Linux kernel commit faf65dde844a ("percpu: rework memcg
    accounting") (in v5.14). A node's statistics, which are smaller, can find room there
    when the memcg's own do not; of very many memcgs they are looked at where the own
    ones lie there.
    """
    found: NDArray[np.int64] = np.zeros(len(tree.address), np.int64)
    try:
        start = np.uint64(kernel.symbol("__per_cpu_start"))
        end = start + np.uint64(read_variable(kernel, "pcpu_unit_size", 4))
    except LookupError:  # CONFIG_SMP is off
        return found
    except drgn.FaultError:
        kernel.trouble.note(
            Topic.OTHER,
            "what of per-CPU memory is charged to nobody cannot be read: "
            "percpu_accounted may be too high",
        )
        return found

    def inside(pointers: NDArray[np.uint64]) -> NDArray[np.bool_]:
        there: NDArray[np.bool_] = pointers >= start
        there &= (pointers < end) & (pointers != 0)
        return there

    prog = kernel.prog
    for path in ACCOUNTED:
        if path in _fields(tree.memcg):
            there = inside(tree.memcg[path])
            found += there * _size(prog, MEMCG, path)
    (rows,) = found.nonzero()
    if len(found) <= FEW:
        rows = np.arange(len(found))
    nodeinfo = np.uint64(offset_of(prog, MEMCG, "nodeinfo")) if len(rows) else 0
    for node in range(machine.node_ids if len(rows) else 0):
        at = tree.address[rows] + np.uint64(nodeinfo) + np.uint64(POINTER * node)
        per_node = read_pointers(kernel, at)
        for path in ACCOUNTED_PER_NODE:
            if has_member(prog, PER_NODE, path):
                pointers = read_structs(kernel, PER_NODE, per_node, {"stats": path})
                there = inside(pointers["stats"])
                found[rows] += there * _size(prog, PER_NODE, path)
    return found


def _structs(prog: drgn.Program, tree: Tree, machine: Machine) -> NDArray[np.int64]:
    """Bytes of the structures themselves."""
    fixed = (
        size_of(prog, MEMCG)
        + POINTER * machine.node_ids  # nodeinfo[]
        + machine.nodes * size_of(prog, PER_NODE)
        + machine.nodes * _sum(prog, PER_NODE, STRUCTS_PER_NODE)
        + size_of(prog, CGROUP)
        + size_of(prog, "struct kernfs_node")
    )
    # ancestors[] (5.10: ancestor_ids[]) has the cgroup itself, too; since Linux kernel
    # commit ef56578274d2 ("cgroup: Eliminate cgrp_ancestor_storage in cgroup_root") (in
    # v6.19) the root's place in it is part of the structure.
    own = 0 if has_member(prog, CGROUP, "_low_ancestors") else 1
    names = [
        len(path.rpartition("/")[2].encode("utf-8", "surrogateescape")) + 1
        for path in tree.path
    ]
    total: NDArray[np.int64] = (
        fixed
        + POINTER * (tree.cgroup["level"].astype(np.int64) + own)
        + np.array(names)
        + _bytes(prog, MEMCG, tree.memcg, STRUCTS)
        + _bytes(prog, CGROUP, tree.cgroup, STRUCTS_CGROUP)
        + _objcgs(prog, tree, machine) * size_of(prog, "struct obj_cgroup")
    )
    return total


def _objcgs(prog: drgn.Program, tree: Tree, machine: Machine) -> NDArray[np.int64]:
    """How many obj_cgroups are the memcg's own: once it is offline, its parent's."""
    # Since Linux kernel commit 01b9da291c49 ("mm: memcontrol: convert objcg to be
    # per-memcg per-node type") (in v7.1).
    if has_member(prog, PER_NODE, "objcg"):
        return np.where(tree.online, machine.nodes, 0)
    return np.where(tree.memcg["objcg"] != 0, 1, 0)


def _bytes(
    prog: drgn.Program, type_name: str, records: Records, paths: Iterable[str]
) -> NDArray[np.int64]:
    """Bytes behind those pointers of each record that are not NULL."""
    total = np.zeros(len(records), np.int64)
    for path in paths:
        if path in _fields(records):
            there = (records[path] & ~np.uint64(FLAGS)) != 0
            total += there * _size(prog, type_name, path)
    return total


def _fields(records: Records) -> tuple[str, ...]:
    return records.dtype.names or ()


def _sum(prog: drgn.Program, type_name: str, paths: Iterable[str]) -> int:
    """Bytes behind the pointers of a structure, as far as it has them."""
    there = [path for path in paths if has_member(prog, type_name, path)]
    return sum(_size(prog, type_name, path) for path in there)


def _size(prog: drgn.Program, type_name: str, path: str) -> int:
    """Bytes of what a pointer points to; of a member that is none, its own or 0.

    A percpu_ref's counter is an unsigned long that holds a pointer to its like; a
    structure that is a part of its owner needs nothing else.
    """
    size = size_behind(prog, type_name, path)
    return -(-size // MIN_ALLOC) * MIN_ALLOC


def _kmem_is_charged(kernel: OpenedKernel) -> bool:
    """Whether kernel memory is charged at all; not with cgroup.memory=nokmem."""
    try:
        return not read_variable(kernel, "cgroup_memory_nokmem", 1)
    except LookupError:
        return True
    except drgn.FaultError:
        kernel.trouble.fault()
        return True


def _vector_is_charged(prog: drgn.Program) -> bool:
    """Whether the per-CPU allocator charges its vector of obj_cgroups, too.

    It does since Linux kernel commit 8f425e4ed0eb ("mm: memcg/percpu: account extra
    objcg space to memory cgroups") (in v5.17), which left no trace in the types. The
    same release brought MEMCG_VMALLOC, which in 7.x became NR_VMALLOC.
    """
    enums = ("enum memcg_stat_item", "enum node_stat_item")
    items = {item for name in enums for item in enumerators(prog, name)}
    return bool(items & {"MEMCG_VMALLOC", "NR_VMALLOC"})
