"""Every memcg of every fixture, every class, against what its guest said of itself.

The truth files are the guests' own: /proc/kpagecgroup, memory.stat, cgroup.stat and
memory.swap.current (see tests/lab/truth.py). MEMCGCTL_CORES names another directory
with cores and truth files to be tested.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import drgn
import pytest
from drgn.helpers.linux.cpumask import for_each_possible_cpu
from drgn.helpers.linux.list import list_for_each_entry
from drgn.helpers.linux.mm import for_each_valid_page_range
from drgn.helpers.linux.percpu import per_cpu_ptr

from memcgctl.census import take_census
from memcgctl.kernel.layout import has_member
from memcgctl.kernel.program import Sources, open_kernel
from memcgctl.linux.memmap import page_ranges
from memcgctl.model import Census, Memcg

FIXTURES = Path(
    os.environ.get("MEMCGCTL_CORES", Path(__file__).parents[2] / "fixtures")
)
TRUTHS = sorted(FIXTURES.glob("*.json"))
CLASSES = ("file", "shmem", "anon", "kernel", "hugetlb")
# MEMCG_CHARGE_BATCH pages (5.10: 32) on each of two CPUs.
STORED = 2 * 32
# What holds a memcg by one reference for each charged folio, by one for all its swap
# entries, and by one for each child.
COUNTED = {"folio", "swap", "child"}

pytestmark = pytest.mark.parametrize("path", TRUTHS, ids=lambda path: path.stem)


@cache
def truth_of(path: Path) -> dict[str, Any]:
    truth: dict[str, Any] = json.loads(path.read_text())
    return truth


def page_of(path: Path) -> int:
    return int(truth_of(path).get("page_size", 4096))


@cache
def census_of(path: Path) -> Census:
    with open_kernel(Sources(core_of(path))) as kernel:
        return take_census(kernel)


def core_of(path: Path) -> Path:
    cores = [path.with_suffix(suffix) for suffix in (".zst", ".elf")]
    return next(core for core in cores if core.exists())


def pairs(path: Path) -> list[tuple[Memcg, dict[str, Any]]]:
    """Each memcg as it was found and as the guest knew it."""
    found = {memcg.id: memcg for memcg in census_of(path).memcgs}
    return [(found[true["id"]], true) for true in truth_of(path)["memcgs"]]


def test_tree(path: Path) -> None:
    """A memcg would be missed, shown twice, or under another's name."""
    truth = truth_of(path)
    keys = ("id", "path", "state", "ancestor")
    found = [
        (m.id, m.path, m.state, m.ancestor)
        for m in census_of(path).memcgs
        if m.path not in truth.get("besides", ())
    ]
    true = [tuple(memcg[key] for key in keys) for memcg in truth["memcgs"]]
    assert sorted(found) == sorted(true)
    # The kernel's own count: nr_dying_descendants of the root.
    assert sum(state == "offline" for _, _, state, _ in found) == truth["offline"]


def test_charges(path: Path) -> None:
    """Memory would be blamed on the wrong memcg, or lost, or counted twice."""
    found, true = {}, {}
    for memcg, expected in pairs(path):
        assert memcg.charges is not None
        for name in CLASSES:
            key = (memcg.path, name)
            found[key] = (
                getattr(memcg.charges, f"{name}_bytes"),
                getattr(memcg.charges, f"{name}_folios"),
            )
            sizes, counts = expected["charged"], expected["folios"]
            true[key] = (sizes.get(name, 0), counts.get(name, 0))
    # /proc/kpagecgroup shows the first page of a page-table root that has two.
    for name, pages in second_pages(path).items():
        size, number = true[name, "kernel"]
        true[name, "kernel"] = (size + pages * page_of(path), number)
    # The processes that counted were in the root, and are gone in the core.
    found.pop(("/", "anon"))
    true.pop(("/", "anon"))
    assert found == true


@cache
def second_pages(path: Path) -> Counter[str]:
    """How many page-table roots are charged to each memcg, by the kernel's own list.

    Until 6.13 only the first of their two pages names it; all fixtures' processors
    have page table isolation built in, but arm64, where a root is a page at most.
    """
    found: Counter[str] = Counter()
    release = truth_of(path)["kernel"]["release"]
    version = release.split(".")[:2]
    if tuple(map(int, version)) >= (6, 14) or "arm64" in release:
        return found
    with open_kernel(Sources(core_of(path))) as kernel:
        prog = kernel.prog
        by_memcg = {m.address: m.path for m in census_of(path).memcgs}
        head = kernel.declare("pgd_list", "struct list_head")
        for page in list_for_each_entry("struct page", head.address_of_(), "lru"):
            if has_member(prog, "struct page", "mem_cgroup"):
                owner = page.mem_cgroup
            elif objcg := page.memcg_data.value_() & ~7:
                owner = drgn.Object(prog, "struct obj_cgroup", address=objcg).memcg
            else:
                continue
            if owner.value_() in by_memcg:
                found[by_memcg[owner.value_()]] += 1
    return found


def test_socket_memory(path: Path) -> None:
    """Buffers that nobody reads would be in no sum at all."""
    exact = "5.10" not in path.stem
    for memcg, true in pairs(path):
        told = true["stat"].get("sock", true.get("tcp"))
        if told is None or memcg.children:
            continue
        assert memcg.charges is not None
        found = memcg.charges.sock_bytes
        assert found is not None
        # memory.stat of 5.10 leaves out what each CPU has in store.
        assert abs(found - told) <= (0 if exact else STORED * page_of(path)), memcg.path


def test_swap(path: Path) -> None:
    """Swapped memory would be blamed on the wrong memcg."""
    # The root has no file of its own for it; cgroup v1's is of the whole machine.
    known = [(m, true["swap"]["entries"]) for m, true in pairs(path) if m.path != "/"]
    found = [(m.path, m.swap and m.swap.entries) for m, _ in known]
    assert found == [(m.path, entries) for m, entries in known]


def test_percpu(path: Path) -> None:
    """The overhead would not be what the parent is charged for it."""
    census, told = census_of(path), truth_of(path)["after"]
    # Without memcgs below it what one has is its processes' own, such as mounts; the
    # parent gets it with the removal.
    truth = truth_of(path)
    paths = [*(m["path"] for m in truth["memcgs"]), *truth["gone"]]
    own = {
        said["path"]: said["stat"].get("percpu", 0)
        for said in (*truth["memcgs"], *told)
        if not any(other.startswith(said["path"].rstrip("/") + "/") for other in paths)
    }
    with open_kernel(Sources(core_of(path))) as kernel:
        for after in told:
            if "percpu" not in after["stat"]:
                continue  # cgroup v1
            above = after["path"].rstrip("/") + "/"
            below = [m for m in census.memcgs if f"{m.path}/".startswith(above)]
            itself = next(m for m in below if m.path == after["path"])
            charged = [m.overhead.percpu_accounted_bytes for m in below if m != itself]
            line = counted_percpu(kernel.prog, itself, below) or after["stat"]["percpu"]
            others = sum(own[leaf] for leaf in own if f"{leaf}/".startswith(above))
            assert sum(charged) + others == line, after["path"]


def counted_percpu(
    prog: drgn.Program, memcg: Memcg, below: Sequence[Memcg]
) -> int | None:
    """The percpu line where memory.stat leaves out what each CPU has in store.

    That is on 5.10, up to 32 pages a CPU. What the kernel counted is in the core.
    """
    if not has_member(prog, "struct mem_cgroup", "vmstats_local"):
        return None
    items = prog.type("enum memcg_stat_item").enumerators or ()
    item = next(e.value for e in items if e.name == "MEMCG_PERCPU_B")
    flushed, *stored = (
        drgn.Object(prog, "struct mem_cgroup", address=m.address)
        for m in (memcg, *below)
    )
    return int(flushed.vmstats[item].counter) + sum(
        int(per_cpu_ptr(counter.vmstats_percpu, cpu).stat[item])
        for counter in stored
        for cpu in for_each_possible_cpu(prog)
    )


def test_children(path: Path) -> None:
    """A memcg would seem to be held by nothing, or by children it does not have."""
    for memcg, _ in pairs(path):
        below = memcg.path.rstrip("/") + "/"
        children = [
            true["path"]
            for true in truth_of(path)["memcgs"]
            if true["path"].startswith(below)
            and "/" not in true["path"][len(below) :]
            and true["path"] != memcg.path
        ]
        if memcg.path == "/":
            children += truth_of(path).get("besides", ())
        assert memcg.children == len(children), memcg.path


def test_references(path: Path) -> None:
    """The count that the whole question is about would be off."""
    for memcg, true in pairs(path):
        if memcg.state == "online":
            continue
        charges, swap = memcg.charges, memcg.swap
        assert memcg.refs is not None
        assert charges is not None
        assert swap is not None
        folios = sum(getattr(charges, f"{name}_folios") for name in CLASSES)
        counted = folios + memcg.children + bool(swap.entries)
        # A memcg that has files can be held by their writeback, too.
        if COUNTED.issuperset(true["held_by"]) and not charges.file_folios:
            assert memcg.refs == counted, memcg.path
        else:
            assert memcg.refs >= counted, memcg.path


def test_page_frames(path: Path) -> None:
    """Pages in some part of memory would not be looked at. drgn knows them all."""
    with open_kernel(Sources(core_of(path))) as kernel:
        ranges = page_ranges(kernel)
        found = [(r.pfn, r.pfn + r.pages, r.address) for r in ranges]
        kernel.declare("__highest_present_section_nr", "unsigned long")
        assert found == [
            (start, end, int(pages) + start * drgn.sizeof(pages.type_.type))
            for start, end, pages in for_each_valid_page_range(kernel.prog)
        ]


def test_kernel(path: Path) -> None:
    """The machine would be another, or a sound core come with warnings."""
    census, truth = census_of(path), truth_of(path)
    assert census.kernel.release == truth["kernel"]["release"]
    assert census.kernel.cgroup_version == truth["cgroup_version"]
    assert census.kernel.possible_cpus == truth["possible_cpus"]
    assert census.warnings == ()
