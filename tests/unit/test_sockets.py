"""Socket memory by counters: what a counter cannot tell is not 0."""

from __future__ import annotations

import numpy as np
import pytest

from memcgctl.census.sockets import socket_pages
from memcgctl.census.tree import Tree
from memcgctl.kernel.layout import offset_of
from tests.unit.fake_kernel import FakeKernel

STRUCTS = {
    "mem_cgroup": {"vmstats_percpu": "void *"},
    "memcg_vmstats_percpu": {"pad": "u64", "state": "s64[4]"},
    "cpumask": {"bits": "u64"},
}
ENUMS = {"memcg_stat_item": ["MEMCG_SWAP", "MEMCG_SOCK"]}


def tree(fake: FakeKernel, pages: list[int], online: list[bool]) -> Tree:
    """Memcgs whose only CPU counts so many pages of sockets."""
    fake.symbols["__cpu_possible_mask"] = fake.allocate((1).to_bytes(8, "little"))
    fake.symbols["__per_cpu_offset"] = fake.allocate(8)
    at = offset_of(fake.prog, "struct memcg_vmstats_percpu", "state") + 8
    counters = []
    for count in pages:
        counters.append(fake.make("memcg_vmstats_percpu"))
        word = count.to_bytes(8, "little", signed=True)
        fake.memory[counters[-1]][at : at + 8] = word
    memcg = np.array([(one,) for one in counters], [("vmstats_percpu", "<u8")])
    none = np.zeros(len(pages), np.int64)
    return Tree(
        address=none.astype(np.uint64),
        parent=none,
        ancestor=none,
        children=none,
        online=np.array(online),
        refs=none,
        id=none.astype(np.uint64),
        path=tuple("/" for _ in pages),
        memcg=memcg,
        cgroup=memcg,
        cgroup_version=2,
    )


@pytest.mark.parametrize("moves", [True, False])
def test_a_counter_below_zero_is_not_none(moves: bool) -> None:
    """Lost: 12 MiB that an online memcg has, said to be 0 from 7.1 on.

    There a removed memcg keeps what it was counted for, and its ancestor is counted
    down when the sockets give it back. On other kernels a count below zero is damage.
    """
    per_node = {"mem_cgroup_per_node": {"objcg_list": "u64"}} if moves else {}
    fake = FakeKernel(STRUCTS | per_node, ENUMS)
    found = socket_pages(fake.kernel, tree(fake, [5, -3, 7], [True, True, False]))
    assert found.tolist() == [5, -1, 7]
    (told,) = fake.kernel.trouble.sentences()
    assert ("of an online memcg is not known" in told) == moves
    assert ("cannot be read" in told) != moves
