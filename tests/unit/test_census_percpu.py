"""What a memcg costs, on kernels of which everything is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import drgn
import pytest

from memcgctl.census.overhead import (
    CGROUP_MEMBERS,
    MEMCG_MEMBERS,
    Machine,
    overheads,
    read_machine,
)
from memcgctl.census.tree import read_tree
from memcgctl.kernel.errors import KernelError
from memcgctl.model import Overhead
from tests.unit.fake_kernel import BASE, FakeKernel, Members
from tests.unit.test_census_memcgs import CSS, STRUCTS, Forest

POINTER = 0x2000
# Sizes as in Debian's 6.1, where 100 memcgs cost their parent 11,563,200 bytes with 64
# possible CPUs.
VMSTATS, LRUVEC = 1064, 688
KERNEL = {
    **STRUCTS,
    "memcg_vmstats_percpu": {"state": f"u64[{VMSTATS // 8}]"},
    "lruvec_stats_percpu": {"state": f"u64[{LRUVEC // 8}]"},
    "memcg_vmstats": {"state": "u64[100]"},
    "cgroup_rstat_cpu": {"state": "u64[18]"},
    "psi_group_cpu": {"state": "u64[16]"},
    "psi_group": {"avgs": "u64[10]", "pcpu": "psi_group_cpu *"},
    "odd": {"state": "u64", "end": "u16"},
    "obj_cgroup": {"refcnt": "percpu_ref", "memcg": "void *"},
    "cpumask": {"bits": "u64[128]"},
    "nodemask_t": {"bits": "u64[16]"},
    "mem_cgroup": {
        **STRUCTS["mem_cgroup"],
        "vmstats": "memcg_vmstats *",
        "vmstats_percpu": "memcg_vmstats_percpu *",
        "events_percpu": "odd *",
        "objcg": "obj_cgroup *",
    },
    "mem_cgroup_per_node": {
        "lruvec_stats_percpu": "lruvec_stats_percpu *",
        "lruvec_stats": "odd",
    },
    "cgroup": {
        **STRUCTS["cgroup"],
        "rstat_cpu": "cgroup_rstat_cpu *",
        "psi": "psi_group *",
    },
}
ENUMS = {"memcg_stat_item": ["MEMCG_SOCK", "MEMCG_VMALLOC"], "node_stat_item": ["A"]}


MACHINE = Machine(cpus=64, nodes=1, node_ids=1)


def cost(
    machine: Machine = MACHINE,
    structs: Mapping[str, Members] = KERNEL,
    enums: Mapping[str, Sequence[str]] = ENUMS,
    *,
    memcg: Mapping[str, int] | None = None,
    cgroup: Mapping[str, int] | None = None,
    nokmem: bool = False,
    first_chunk: int | None = None,
) -> list[Overhead]:
    """Of the root, /app and /app/zombie, which has these pointers set."""
    forest = Forest(structs, enums)
    app = forest.memcg(forest.root, b"app", online=True, refs=None)
    zombie = forest.memcg(app, b"zombie")
    values = {"vmstats_percpu": POINTER, "css.refcnt.percpu_count_ptr": 3}
    forest.fake.put(zombie, "mem_cgroup", {**values, **(memcg or {})})
    at = int.from_bytes(forest.fake.memory[zombie][CSS : CSS + 8], "little")
    forest.fake.put(at, "cgroup", cgroup or {})
    forest.fake.global_variable("cgroup_memory_nokmem", nokmem, 1)
    if first_chunk is not None:
        forest.fake.symbols["__per_cpu_start"] = first_chunk
        forest.fake.global_variable("pcpu_unit_size", 0x1000, 4)
    tree = read_tree(forest.fake.kernel, MEMCG_MEMBERS, CGROUP_MEMBERS)
    return overheads(forest.fake.kernel, tree, machine)


def test_what_the_parent_is_charged() -> None:
    """The parent's percpu line is met: 115,632 bytes a memcg, as measured on 6.1."""
    root, app, zombie = cost()
    assert zombie.percpu_accounted_bytes == 115_632
    assert zombie.percpu_bytes == 115_632
    # The root is charged for nothing.
    assert root.percpu_accounted_bytes == app.percpu_accounted_bytes == 0


@pytest.mark.parametrize(
    ("start", "inside"),
    [(POINTER, True), (POINTER - 0xFFF, True), (POINTER - 0x1000, False), (0, False)],
)
def test_the_first_chunk_is_charged_to_nobody(start: int, inside: bool) -> None:
    """The parent's percpu line would be less than what its children are said to add."""
    members = {**KERNEL["mem_cgroup"], "nodeinfo": "u64[1]"}
    structs = {**KERNEL, "mem_cgroup": members}
    zombie = cost(structs=structs, first_chunk=start)[2]
    if not inside:
        assert zombie == cost(structs=structs)[2]
        return
    assert zombie.percpu_accounted_bytes == LRUVEC * 64 + LRUVEC // 4 * 8
    assert zombie.percpu_bytes == zombie.percpu_accounted_bytes + VMSTATS * 64


def test_nodes() -> None:
    """What is allocated for each NUMA node counts for each."""
    machine = Machine(cpus=4, nodes=2, node_ids=8)
    size = VMSTATS + 2 * LRUVEC
    assert cost(machine)[2].percpu_accounted_bytes == size * 4 + size // 4 * 8


def test_before_the_vector_was_charged() -> None:
    """Until 5.16 the allocator's own bookkeeping was not charged."""
    zombie = cost(enums={"memcg_stat_item": ["A"], "node_stat_item": ["B"]})[2]
    assert zombie.percpu_accounted_bytes == (VMSTATS + LRUVEC) * 64


def test_without_kernel_memory_accounting() -> None:
    """With cgroup.memory=nokmem no line shows it, but it is allocated."""
    zombie = cost(nokmem=True)[2]
    assert zombie.percpu_accounted_bytes == 0
    assert zombie.percpu_bytes == (VMSTATS + LRUVEC) * 64


def test_allocations_are_rounded() -> None:
    """The per-CPU allocator hands out multiples of four bytes."""
    plain = cost()[2]
    zombie = cost(memcg={"events_percpu": POINTER})[2]
    more = zombie.percpu_accounted_bytes - plain.percpu_accounted_bytes
    assert more == 12 * 64 + 12 // 4 * 8


@pytest.mark.parametrize(
    ("memcg", "cgroup", "size"),
    [
        # While a reference counter is not killed, it has a long on each CPU.
        ({"css.refcnt.percpu_count_ptr": POINTER}, {}, 8),
        ({"css.refcnt.percpu_count_ptr": POINTER | 1}, {}, 8),
        ({}, {"self.refcnt.percpu_count_ptr": POINTER | 3}, 8),
        ({"objcg": BASE}, {}, 8),
        ({}, {"rstat_cpu": POINTER}, 144),
        ({}, {"psi": BASE}, 128),
    ],
)
def test_what_nobody_is_charged(
    memcg: dict[str, int], cgroup: dict[str, int], size: int
) -> None:
    """Per-CPU memory that no line shows is part of the cost, if it is there."""
    plain, zombie = cost()[2], cost(memcg=memcg, cgroup=cgroup)[2]
    assert zombie.percpu_accounted_bytes == plain.percpu_accounted_bytes
    assert zombie.percpu_bytes - plain.percpu_bytes == size * 64


def test_structures() -> None:
    """The structures add up: each by its own size, the flexible parts included."""
    sizes = {
        name: drgn.sizeof(FakeKernel(KERNEL).prog.type(f"struct {name}"))
        for name in ("mem_cgroup", "mem_cgroup_per_node", "cgroup", "kernfs_node")
    }
    machine = Machine(cpus=1, nodes=2, node_ids=3)
    expected = sizes["mem_cgroup"] + 3 * 8 + 2 * sizes["mem_cgroup_per_node"]
    expected += sizes["cgroup"] + (2 + 1) * 8 + sizes["kernfs_node"]
    expected += len("zombie") + 1 + 16  # its percpu_ref_data
    plain = cost(machine, cgroup={"level": 2})[2]
    assert plain.structs_bytes == expected
    rich = cost(
        machine,
        memcg={"vmstats": BASE, "objcg": BASE},
        cgroup={"level": 2, "psi": BASE, "self.refcnt.data": BASE},
    )[2]
    assert rich.structs_bytes == expected + 800 + 24 + 88 + 16


def machine(cpus: bytes, nodes: bytes, node_ids: int) -> Machine:
    fake = FakeKernel(KERNEL)
    fake.symbols["__cpu_possible_mask"] = fake.allocate(cpus.ljust(1024, b"\0"))
    # N_POSSIBLE is the first of several masks.
    fake.symbols["node_states"] = fake.allocate(nodes.ljust(128, b"\0") + b"\xff" * 128)
    fake.global_variable("nr_node_ids", node_ids, 4)
    return read_machine(fake.kernel)


def test_machine() -> None:
    """CPUs and nodes that are possible count, with gaps between them or without."""
    assert machine(b"\xff\x0f" + b"\0" * 900 + b"\x01", b"\x05", 3) == Machine(13, 2, 3)


@pytest.mark.parametrize(
    ("cpus", "nodes", "node_ids"),
    [(b"\0", b"\1", 1), (b"\1", b"\0", 1), (b"\1", b"\1", 2**31)],
)
def test_impossible_machine(cpus: bytes, nodes: bytes, node_ids: int) -> None:
    """A machine that cannot be is refused, not multiplied with."""
    with pytest.raises(KernelError, match="no sane number"):
        machine(cpus, nodes, node_ids)


def test_machine_that_is_not_there() -> None:
    """A dump without the masks gets one clear line."""
    with pytest.raises(KernelError, match="cannot be counted"):
        read_machine(FakeKernel(KERNEL).kernel)
