"""Reverse maps made by hand: every area once, in whole and in damaged trees."""

from __future__ import annotations

from itertools import pairwise

from memcgctl.linux.rmap import anon_vmas, file_vmas
from memcgctl.linux.structs import addresses
from tests.unit.fake_kernel import FakeKernel

STRUCTS = {
    "rb_node": {"__rb_parent_color": "u64", "rb_right": "void *", "rb_left": "void *"},
    "rb_root": {"rb_node": "void *"},
    "rb_root_cached": {"rb_root": "rb_root", "rb_leftmost": "void *"},
    "address_space": {"host": "void *", "i_mmap": "rb_root_cached"},
    "shared": {"rb": "rb_node", "rb_subtree_last": "u64"},
    "vm_area_struct": {
        "vm_start": "u64",
        "vm_end": "u64",
        "vm_mm": "void *",
        "vm_pgoff": "u64",
        "shared": "shared",
        "vm_file": "void *",
    },
    "anon_vma": {"root": "void *", "gap": "u64", "rb_root": "rb_root_cached"},
    "anon_vma_chain": {"vma": "void *", "gap": "u64[2]", "rb": "rb_node"},
}
SHARED, CHAIN = 32, 24  # offsets of the rb_nodes in areas and chains


def area(fake: FakeKernel, number: int, mm: int = 0xFFFF888000777000) -> int:
    values = {"vm_start": number << 12, "vm_end": (number + 2) << 12, "vm_mm": mm}
    return fake.make("vm_area_struct", {**values, "vm_pgoff": number})


def tree(fake: FakeKernel, things: list[int], kind: str, inside: int, rb: str) -> int:
    """Link them as a balanced tree; the address of the root's rb_node."""
    if not things:
        return 0
    middle = len(things) // 2
    links = {
        f"{rb}.rb_left": tree(fake, things[:middle], kind, inside, rb),
        f"{rb}.rb_right": tree(fake, things[middle + 1 :], kind, inside, rb),
    }
    fake.put(things[middle], kind, links)
    return things[middle] + inside


def file(fake: FakeKernel, areas: list[int]) -> int:
    node = tree(fake, areas, "vm_area_struct", SHARED, "shared.rb")
    return fake.make("address_space", {"i_mmap.rb_root.rb_node": node})


def test_all_areas_of_all_files() -> None:
    """Lost: processes that map a file."""
    fake = FakeKernel(STRUCTS)
    first = file(fake, [area(fake, n) for n in range(1, 12)])
    second = file(fake, [area(fake, 50)])
    vmas = file_vmas(fake.kernel, addresses([first, file(fake, []), 0, second]))
    found = sorted(zip(vmas.owner.tolist(), vmas.pgoff.tolist(), strict=True))
    assert found == [*((0, n) for n in range(1, 12)), (3, 50)]
    assert (vmas.end - vmas.start == 0x2000).all()


def test_anonymous_areas_by_their_root_once() -> None:
    """Lost: the processes forked from the one that made the memory; or time."""
    fake = FakeKernel(STRUCTS)
    areas = [area(fake, n) for n in range(1, 6)]
    chains = [fake.make("anon_vma_chain", {"vma": vma}) for vma in areas]
    node = tree(fake, chains, "anon_vma_chain", CHAIN, "rb")
    root = fake.make("anon_vma", {"rb_root.rb_root.rb_node": node})
    fake.put(root, "anon_vma", {"root": root})
    children = [fake.make("anon_vma", {"root": root}) for _ in range(3)]
    vmas = anon_vmas(fake.kernel, addresses([*children, root]))
    assert sorted(vmas.pgoff.tolist()) == [1, 2, 3, 4, 5]


def test_a_cycle_ends_with_each_area_once() -> None:
    """Lost: the program, or bytes counted many times over."""
    fake = FakeKernel(STRUCTS)
    areas = [area(fake, n) for n in range(1, 4)]
    mapping = file(fake, areas)
    for vma in areas:
        fake.put(vma, "vm_area_struct", {"shared.rb.rb_left": areas[1] + SHARED})
        fake.put(vma, "vm_area_struct", {"shared.rb.rb_right": areas[0] + SHARED})
    vmas = file_vmas(fake.kernel, addresses([mapping]))
    assert sorted(vmas.pgoff.tolist()) == [1, 2]


def test_a_chain_without_end_is_cut_short_and_said() -> None:
    """Lost: the word that not all processes could be found."""
    fake = FakeKernel(STRUCTS)
    areas = [area(fake, n) for n in range(1, 200)]
    for vma, below in pairwise(areas):
        fake.put(vma, "vm_area_struct", {"shared.rb.rb_left": below + SHARED})
    mapping = fake.make("address_space", {"i_mmap.rb_root.rb_node": areas[0] + SHARED})
    assert len(file_vmas(fake.kernel, addresses([mapping])).mm) < len(areas)
    assert any("damaged" in warning for warning in fake.kernel.trouble.sentences())


def test_what_is_no_area_is_left_out() -> None:
    """Lost: trust, by areas of no process or of a negative size."""
    fake = FakeKernel(STRUCTS)
    bad = [area(fake, 1, mm=0), area(fake, 2)]
    fake.put(bad[1], "vm_area_struct", {"vm_end": 0})
    vmas = file_vmas(fake.kernel, addresses([file(fake, [*bad, area(fake, 3)])]))
    assert vmas.pgoff.tolist() == [3]
