"""Which generations are young, and how old are they? By the kernel's own headers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from memcgctl.census.charges.coldness import generation_ages
from memcgctl.linux.structs import addresses
from tests.unit.fake_kernel import FakeKernel

STRUCTS = {
    "mem_cgroup": {"css": "u64[5]", "nodeinfo": "mem_cgroup_per_node *[2]"},
    "mem_cgroup_per_node": {"gap": "u64[3]", "lruvec": "lruvec"},
    "lruvec": {"lists": "u64[10]", "lrugen": "lru_gen_folio"},
    "lru_gen_folio": {"max_seq": "u64", "min_seq": "u64[2]", "timestamps": "u64[4]"},
}
HERTZ, NOW = 250, 1 << 32
BORN = NOW - 1000, NOW - 750, NOW - 500, NOW - 250


def ages(max_seq: int, node: int = 0) -> tuple[list[float | None], list[bool]]:
    """Of the four generations of a memcg on a node, the other of which has none."""
    fake = FakeKernel(STRUCTS)
    values = {"lruvec.lrugen.max_seq": max_seq}
    on_node = fake.make("mem_cgroup_per_node", values)
    memcg = fake.make("mem_cgroup")
    data = fake.memory[on_node]
    first = len(data) - 8 * len(BORN)
    data[first:] = np.array(BORN, "<u8").tobytes()
    pointers = fake.memory[memcg]
    pointers[40 + 8 * node : 48 + 8 * node] = on_node.to_bytes(8, "little")
    layout = cast(Any, SimpleNamespace(count=4, now=NOW, hertz=HERTZ))
    found, active = generation_ages(
        fake.kernel, layout, addresses([memcg]), np.array([node])
    )
    return found[0], active[0].tolist()


@pytest.mark.parametrize("node", [0, 1])
@pytest.mark.parametrize("max_seq", [4, 5, 6, 7])
def test_the_two_youngest_generations_are_active(max_seq: int, node: int) -> None:
    """A person would evict what is in use, and leave what nobody has used for long.

    ``lru_gen_is_active`` (include/linux/mm_inline.h): a generation is that of max_seq
    or of the one before, each modulo MAX_NR_GENS.
    """
    found, active = ages(max_seq, node)
    assert found == [4.0, 3.0, 2.0, 1.0]
    young = {max_seq % 4, (max_seq - 1) % 4}
    assert active == [number in young for number in range(4)]


def test_without_generations_none_is_young() -> None:
    """All memory would be called hot where the LRU never had a generation."""
    found, active = ages(0)
    assert (found, active) == ([None] * 4, [False] * 4)
