"""Limits, swap space and interfaces, on kernels made by hand."""

from __future__ import annotations

import pytest

from memcgctl.census.limits import MEMBERS, limits, swap_bytes
from memcgctl.census.traits import cgroup_mount, interfaces
from memcgctl.census.tree import read_tree
from memcgctl.model import Limits
from tests.unit.fake_kernel import PAGE, FakeKernel, Members
from tests.unit.test_census_memcgs import STRUCTS, Forest

COUNTER = {
    "min": "u64",
    "low": "u64",
    "usage": "atomic_long",
    "high": "u64",
    "max": "u64",
}
KERNEL: dict[str, Members] = {
    **STRUCTS,
    "page_counter": COUNTER,
    "mem_cgroup": {
        **STRUCTS["mem_cgroup"],
        "swap": "page_counter",
        "memsw": "page_counter",
    },
    "atomic_long_t": {"counter": "s64"},
}
PAYS = "readers pay for readahead"
NONE = (2**63 - 1) // PAGE


def only(forest: Forest, memcg: int, **values: int) -> Limits:
    forest.fake.put(
        memcg,
        "mem_cgroup",
        {
            "memory.max": NONE,
            "memory.high": NONE,
            "swap.max": NONE,
            "memsw.max": NONE,
            **{name.replace("_", "."): value for name, value in values.items()},
        },
    )
    return limits(read_tree(forest.fake.kernel, MEMBERS), PAGE)[0]


def test_limits_are_bytes_and_no_limit_is_none() -> None:
    """A plan would take a huge number for a limit, or pages for bytes."""
    forest = Forest(KERNEL)
    assert only(forest, forest.root) == Limits()
    found = only(
        forest, forest.root, memory_max=9, memory_high=8, memory_min=1, memory_low=2
    )
    assert found == Limits(9 * PAGE, 8 * PAGE, PAGE, 2 * PAGE)
    # memory.min of max protects everything: that is no number to leave out
    assert only(forest, forest.root, memory_min=NONE).min_bytes == NONE * PAGE


def test_swap_is_counted_alone_or_with_memory() -> None:
    """Swap of v2 would be held against a limit on memory and swap of v1."""
    forest = Forest(KERNEL)
    found = only(forest, forest.root, swap_max=4, swap_usage_counter=3)
    assert (found.swap_max_bytes, found.swap_usage_bytes) == (4 * PAGE, 3 * PAGE)
    assert found.memsw_max_bytes is None
    forest = Forest(KERNEL, version=1)
    found = only(forest, forest.root, memsw_max=4, memsw_usage_counter=3)
    assert (found.memsw_max_bytes, found.memsw_usage_bytes) == (4 * PAGE, 3 * PAGE)
    assert found.swap_max_bytes is None


def test_a_kernel_without_swap_has_none() -> None:
    """A census of a kernel without CONFIG_SWAP would fail."""
    fake = FakeKernel(KERNEL)
    assert swap_bytes(fake.kernel) == (0, 0)


@pytest.mark.parametrize(
    ("symbols", "version", "expected"),
    [
        ([], 2, set()),
        (["__arm64_sys_process_madvise"], 2, {"process_madvise"}),
        (["memory_reclaim", "__mem_cgroup_charge"], 2, {"memory.reclaim", PAYS}),
        (["memory_reclaim", "mem_cgroup_force_empty_write"], 1, {"memory.force_empty"}),
        (["lru_gen_seq_write", "mem_cgroup_from_id"], 2, set()),  # damaged
    ],
)
def test_interfaces_are_told_by_symbols(
    symbols: list[str], version: int, expected: set[str]
) -> None:
    """A plan would print commands that this kernel doesn't know."""
    fake = FakeKernel(KERNEL)
    fake.symbols |= dict.fromkeys(symbols, 0xFFFFFFFF81000000)
    assert set(interfaces(fake.kernel, version)) == expected


@pytest.mark.parametrize("named", [True, False])  # 7.0+ has another name
@pytest.mark.parametrize("on", [0, 1])
def test_lru_gen_is_of_use_where_it_names_offline_memcgs_and_is_on(
    named: bool, on: int
) -> None:
    """A plan would promise zombies by an LRU that Debian's 6.1 has switched off."""
    fake = FakeKernel({**KERNEL, "static_key": {"gap": "u64", "enabled": "u64"}})
    names = ["lru_gen_seq_write", *(["mem_cgroup_from_id"] if named else [])]
    fake.symbols |= dict.fromkeys(names, 0xFFFFFFFF81000000)
    fake.symbols["lru_gen_caps"] = fake.make("static_key", {"enabled": on})
    expected = {"lru_gen by private id"} if named and on else set()
    assert set(interfaces(fake.kernel, 2)) == expected


def test_interfaces_are_told_by_types() -> None:
    """The swappiness= key would be an error."""
    keys = {"scan_control": {"proactive_swappiness": "void *"}}
    fake = FakeKernel({**KERNEL, **keys})
    assert set(interfaces(fake.kernel, 2)) == {"memory.reclaim swappiness"}
    assert interfaces(FakeKernel(KERNEL).kernel, 2) == ()


def test_a_hierarchy_that_is_not_mounted_is_no_error() -> None:
    """A census of a damaged core would fail for the sake of a path."""
    forest = Forest(KERNEL)
    tree = read_tree(forest.fake.kernel)
    assert cgroup_mount(forest.fake.kernel, tree) is None
