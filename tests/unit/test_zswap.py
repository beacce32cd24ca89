"""Which swap entries zswap has, by trees of both kinds; damaged ones too."""

from __future__ import annotations

import pytest

from memcgctl.census.swap.zswap import read_zswap
from memcgctl.kernel.layout import offset_of, size_of
from tests.unit.fake_kernel import FakeKernel

RB_TREES = {
    "rb_node": {"rb_left": "void *", "rb_right": "void *"},
    "rb_root": {"rb_node": "void *"},
    "zswap_tree": {"pad": "u64", "rbroot": "rb_root"},
    "zswap_entry": {
        "pad": "u64",
        "rbnode": "rb_node",
        "offset": "u64",
        "length": "u32",
    },
}
XARRAYS = {
    "xarray": {"pad": "u64", "xa_head": "void *"},
    "xa_node": {"shift": "u8", "slots": "u64[64]"},
    "zswap_entry": {"pad": "u64", "length": "u32"},
}


def table(fake: FakeKernel, *trees: int) -> None:
    """``zswap_trees`` of so many devices."""
    words = b"".join(tree.to_bytes(8, "little") for tree in trees)
    fake.symbols["zswap_trees"] = fake.allocate(words.ljust(256, b"\0"))
    fake.global_variable("nr_swapfiles", len(trees), 4)


def rb_entry(fake: FakeKernel, offset: int, left: int = 0, right: int = 0) -> int:
    """The node of an entry that takes as many bytes as its offset."""
    values = {"offset": offset, "length": offset}
    values |= {"rbnode.rb_left": left, "rbnode.rb_right": right}
    return node_of(fake, fake.make("zswap_entry", values))


def node_of(fake: FakeKernel, entry: int) -> int:
    return entry + offset_of(fake.prog, "struct zswap_entry", "rbnode")


@pytest.fixture
def rb() -> FakeKernel:
    return FakeKernel(RB_TREES)


def test_red_black_trees(rb: FakeKernel) -> None:
    """Up to 6.9: what is in memory would be said to be on the disk."""
    root = rb_entry(rb, 20, rb_entry(rb, 10), rb_entry(rb, 40, rb_entry(rb, 30)))
    table(rb, 0, rb.make("zswap_tree", {"rbroot.rb_node": root}))
    found = read_zswap(rb.kernel)
    assert found
    assert found.entry.tolist() == [1 << 58 | n for n in (10, 20, 30, 40)]
    assert found.length.tolist() == [10, 20, 30, 40]


def test_a_damaged_tree_is_not_an_empty_one(rb: FakeKernel) -> None:
    """A walk without an end, or "nothing is in zswap"."""
    entry = rb.make("zswap_entry")
    node = node_of(rb, entry)
    rb.put(entry, "zswap_entry", {"rbnode.rb_left": node})
    table(rb, rb.make("zswap_tree", {"rbroot.rb_node": node}))
    assert read_zswap(rb.kernel) is None
    assert "what of swap is in zswap is not known" in rb.kernel.trouble.sentences()[0]


def test_xarrays() -> None:
    """From 6.10 on: the same, each device having a tree for 64 MiB."""
    fake = FakeKernel(XARRAYS)
    entries = [fake.make("zswap_entry", {"length": n}) for n in (100, 0)]
    node = fake.make("xa_node", {"shift": 0})
    slots = offset_of(fake.prog, "struct xa_node", "slots")
    for slot, entry in zip((3, 5), entries, strict=True):
        start = slots + 8 * slot
        fake.memory[node][start : start + 8] = entry.to_bytes(8, "little")
    size = size_of(fake.prog, "struct xarray")
    trees = fake.allocate(2 * size)
    head = offset_of(fake.prog, "struct xarray", "xa_head")
    fake.memory[trees][head : head + 8] = (node | 2).to_bytes(8, "little")
    table(fake, trees)
    fake.symbols["nr_zswap_trees"] = fake.allocate((2).to_bytes(4, "little") * 32)
    found = read_zswap(fake.kernel)
    assert found
    assert (found.entry.tolist(), found.length.tolist()) == ([3, 5], [100, 0])


def test_a_kernel_without_zswap() -> None:
    """Debian's cloud kernels: a warning on each of them."""
    fake = FakeKernel({})
    found = read_zswap(fake.kernel)
    assert found
    assert not len(found.entry)
    assert fake.kernel.trouble.sentences() == ()
