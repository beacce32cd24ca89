"""Swap entries are counted from maps made by hand, in each form kernels have had."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memcgctl.census.swap import maps
from memcgctl.kernel.program import OpenedKernel
from tests.unit.fake_kernel import BASE, PAGE, FakeKernel

PAGES = {  # until 6.13
    "swap_cgroup_ctrl": {"map": "void *", "length": "u64", "lock": "u64"},
    "page": {"rest": "u64[8]"},
    "swap_cluster_info": {"data": "u64"},
}
PACKED = {  # 6.14 to 7.1
    "swap_cgroup_ctrl": {"map": "void *"},
    "swap_info_struct": {"gap": "u64[2]", "max": "u32", "gap2": "u32"},
    "swap_cluster_info": {"data": "u64"},
}
CLUSTERS = {  # since 7.2
    "swap_info_struct": {"gap": "u64", "max": "u32", "x": "u32", "cluster_info": "u64"},
    "swap_cluster_info": {"gap": "u64[2]", "memcg_table": "void *"},
    "swap_memcg_table": {"id": "u16[512]"},
}
VMEMMAP = 0xFFFFEA0000000000
DIRECT_MAP = 0xFFFF900000000000
PER_PAGE = PAGE // 2

Device = Sequence[int] | None  # ids of the entries of a swap device; None: swapoff


def id_bytes(ids: Sequence[int], length: int) -> bytes:
    return np.array([*ids, *[0] * (length - len(ids))], "<u2").tobytes()


def pages_kernel(devices: Sequence[Device]) -> FakeKernel:
    fake = FakeKernel(PAGES)
    fake.variables["vmemmap"] = VMEMMAP
    controls = b""
    frame = 100
    for ids in devices:
        pointers = []
        for at in range(0, len(ids or ()), PER_PAGE):
            frame += 3
            assert ids is not None
            content = id_bytes(ids[at : at + PER_PAGE], PER_PAGE)
            fake.allocate(content, at=DIRECT_MAP + frame * PAGE)
            pointers.append(VMEMMAP + frame * 64)
        table = fake.allocate(np.array(pointers, "<u8").tobytes()) if pointers else 0
        controls += np.array([table, len(pointers), 0], "<u8").tobytes()
    fake.symbols["swap_cgroup_ctrl"] = fake.allocate(controls or b"\0")
    fake.global_variable("nr_swapfiles", len(devices), 4)
    return fake


def infos(fake: FakeKernel, values: Sequence[dict[str, int]]) -> None:
    pointers = [fake.make("swap_info_struct", value) for value in values]
    fake.symbols["swap_info"] = fake.allocate(
        np.array(pointers, "<u8").tobytes() + b"x"
    )
    fake.global_variable("nr_swapfiles", len(values), 4)


def packed_kernel(devices: Sequence[Device]) -> FakeKernel:
    fake = FakeKernel(PACKED)
    infos(fake, [{"max": 100 if ids is None else len(ids)} for ids in devices])
    maps = [
        0 if ids is None else fake.allocate(id_bytes(ids, len(ids) + 1))
        for ids in devices
    ]
    fake.symbols["swap_cgroup_ctrl"] = fake.allocate(
        np.array(maps, "<u8").tobytes() + b"x"
    )
    return fake


def cluster_kernel(devices: Sequence[Device]) -> FakeKernel:
    fake = FakeKernel(CLUSTERS)
    values = []
    for ids in devices:
        clusters = b""
        for at in range(0, len(ids or ()), 512):
            assert ids is not None
            part = ids[at : at + 512]
            # A cluster without entries has no table.
            table = fake.allocate(id_bytes(part, 512)) if any(part) else 0
            clusters += np.array([0, 0, table], "<u8").tobytes()
        address = fake.allocate(clusters) if clusters else 0
        values.append({"max": len(ids or ()), "cluster_info": address})
    infos(fake, values)
    return fake


KERNELS = [pages_kernel, packed_kernel, cluster_kernel]


@pytest.fixture(autouse=True, scope="module")
def direct_map() -> Iterator[None]:
    """drgn asks page tables for it, which a kernel made by hand has not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            maps,
            "phys_to_virt",
            lambda prog, at: SimpleNamespace(value_=lambda: DIRECT_MAP + at),
        )
        yield


def count(fake: FakeKernel) -> tuple[dict[int, int], tuple[str, ...]]:
    counts = maps.count_swap(fake.kernel)
    assert len(counts) == 65536
    (ids,) = counts.nonzero()
    return {
        int(number): int(counts[number]) for number in ids
    }, fake.kernel.trouble.sentences()


runs = st.tuples(st.sampled_from([0, 1, 2, 255, 256, 65535]), st.integers(1, 3000))
devices = st.lists(
    st.none()
    | st.lists(runs, max_size=4).map(lambda r: [i for i, n in r for _ in range(n)]),
    max_size=4,
)


@pytest.mark.parametrize("make", KERNELS)
@settings(deadline=None, max_examples=30)
@given(devices=devices)
def test_any_entries(
    make: Callable[[Sequence[Device]], FakeKernel], devices: list[Device]
) -> None:
    """Each entry counts for its owner, on whichever device and wherever it is."""
    expected = Counter(owner for ids in devices for owner in ids or () if owner)
    assert count(make(devices)) == (expected, ())


@pytest.mark.parametrize("make", KERNELS)
def test_unreadable_map(make: Callable[[Sequence[Device]], FakeKernel]) -> None:
    """The part of a map that is not in the dump is missed with a warning."""
    fake = make([[7] * 5000, [8] * 5000])
    name = "swap_info" if "memcg_table" in str(fake.structs) else "swap_cgroup_ctrl"
    table = fake.symbols[name]
    if make is cluster_kernel:
        at = int.from_bytes(fake.memory[table][:8], "little")
        fake.put(at, "swap_info_struct", {"cluster_info": BASE + (1 << 40)})
    else:
        fake.memory[table][:8] = (BASE + (1 << 40)).to_bytes(8, "little")
    counts, warnings = count(fake)
    assert counts == {8: 5000}
    (warning,) = warnings
    assert warning.startswith("a part of the swap map cannot be read")


@pytest.mark.parametrize("make", [pages_kernel, packed_kernel, cluster_kernel])
def test_absurd_size(make: Callable[[Sequence[Device]], FakeKernel]) -> None:
    """A damaged size costs a moment and a warning, not minutes."""
    fake = make([[7] * 100])
    if make is pages_kernel:
        control = fake.memory[fake.symbols["swap_cgroup_ctrl"]]
        control[8:16] = b"\xff" * 8
    else:
        info = fake.memory[fake.symbols["swap_info"]]
        at = int.from_bytes(info[:8], "little")
        fake.put(at, "swap_info_struct", {"max": 2**32 - 1})
    _, warnings = count(fake)
    assert warnings == (
        f"a part of the swap map cannot be read ({maps.MAX_FAULTS:,} times)",
    )


def test_without_swap() -> None:
    """A kernel without swap has no entries, and nothing to warn of."""
    assert count(FakeKernel(PACKED)) == ({}, ())


def test_too_many_devices() -> None:
    """A damaged number of devices does not make up entries."""
    fake = packed_kernel([[7] * 10])
    fake.global_variable("nr_swapfiles", 2**32 - 1, 4)
    counts, warnings = count(fake)
    assert not counts
    assert len(warnings) == 1


def test_the_next_generation_costs_a_function_and_a_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Lost: an afternoon, whenever a kernel keeps the ids of swap entries elsewhere."""

    def beside_the_device(
        kernel: OpenedKernel, devices: int
    ) -> Iterator[tuple[int, maps.Pieces]]:
        info = maps._devices(kernel, devices, {"size": "max", "map": "memcg_ids"})
        return maps._each(kernel, info["map"], info["size"], maps._array_ids)

    row = (("struct swap_info_struct", "memcg_ids"), beside_the_device)
    monkeypatch.setattr(maps, "GENERATIONS", [row, *maps.GENERATIONS])
    made_up = {"gap": "u64", "max": "u32", "x": "u32", "memcg_ids": "u64"}
    fake = FakeKernel({"swap_info_struct": made_up})
    ids = fake.allocate(id_bytes([7, 0, 7, 9], 4))
    infos(fake, [{"max": 4, "memcg_ids": ids}, {"max": 100}])
    assert count(fake) == ({7: 2, 9: 1}, ())
