"""What holds a memcg, or its memory, in ways that no descriptor or page table shows.

The truth is what the lab told its processes (``HOLDERS`` in tests/lab/scenarios.py).
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from memcgctl.census import take_census
from memcgctl.kernel.program import Sources, open_kernel
from memcgctl.model import Census, ChargeGroup, Memcg

FIXTURES = Path(__file__).parents[2] / "fixtures"
CORES = sorted(FIXTURES.glob("*-holders*.zst"))

pytestmark = [
    pytest.mark.skipif(not CORES, reason="there are no cores in fixtures/"),
    pytest.mark.parametrize("core", CORES, ids=lambda core: core.stem),
]


@cache
def census_of(core: Path) -> Census:
    with open_kernel(Sources(core)) as kernel:
        return take_census(kernel, details="offline")


def truth_of(core: Path) -> dict[str, Any]:
    truth: dict[str, Any] = json.loads(core.with_suffix(".json").read_text())
    return truth


def pid_of(core: Path, word: str) -> int:
    """The process that was told this word."""
    (pid,) = (p["pid"] for p in truth_of(core)["processes"] if word in p["words"])
    return int(pid)


def memcg(core: Path, path: str) -> Memcg:
    (found,) = (m for m in census_of(core).memcgs if m.path == path)
    return found


def details(core: Path, path: str) -> list[str]:
    known = memcg(core, path).details
    assert known is not None
    return [holder.detail for holder in known.holders]


def groups(core: Path, path: str) -> tuple[ChargeGroup, ...]:
    known = memcg(core, path).details
    assert known is not None
    return known.charge_groups


def join(name: str) -> str:
    return f"join=/sys/fs/cgroup/app/{name}"


def test_every_account_balances(core: Path) -> None:
    """Lost: audit, which is to show nothing but kernel bugs."""
    offline = [m for m in census_of(core).memcgs if m.state == "offline"]
    left = {m.path: m.details.unexplained for m in offline if m.details}
    assert left == {m.path: 0 for m in offline}
    assert census_of(core).warnings == ()


def test_network_namespaces_are_told_with_what_keeps_them(core: Path) -> None:
    """Lost: ``ip netns delete``, which is all that it takes."""
    for name in ("process", "open"):
        pid = pid_of(core, join(f"netns-{name}"))
        (detail,) = details(core, f"/app/netns-{name}")
        how = "used by lab" if name == "process" else "open in lab"
        assert f": {how} (pid {pid})" in detail
    (detail,) = details(core, "/app/netns-mount")
    assert re.fullmatch(
        r"the kernel's own, of network namespace \d+: mounted at /tmp/netns", detail
    )


def test_files_without_a_descriptor_name_who_has_them(core: Path) -> None:
    """Lost: the process to ask; "open in no process" was all that was said."""
    pid = pid_of(core, join("tun"))
    assert [d for d in details(core, "/app/tun") if d.startswith("tun, ")] == [
        f"tun, lab (pid {pid}): fd 5"
    ]
    pid = pid_of(core, join("fixed"))
    assert f"inotify, with an io_uring of lab (pid {pid}): fd 6" in details(
        core, "/app/fixed"
    )
    pid = pid_of(core, join("packet"))
    assert f"PACKET, only mapped, by lab (pid {pid})" in details(core, "/app/packet")
    pid = pid_of(core, join("in-flight"))
    (detail,) = (d for d in details(core, "/app/in-flight") if "inotify" in d)
    assert detail.startswith(f"inotify, in flight to lab (pid {pid}): fd ")


def test_a_mount_keeps_a_cgroup_namespace(core: Path) -> None:
    """Lost: what to unmount."""
    assert details(core, "/app/namespace-mount") == [
        "css_set: a cgroup namespace, mounted at /tmp/cgroupns"
    ]


def test_a_process_without_its_first_thread_is_where_the_others_are(core: Path) -> None:
    """Lost: the user; the zombie itself was named, "dead but not reaped"."""
    pid = pid_of(core, join("leader"))
    (detail,) = (d for d in details(core, "/app/leader") if d.startswith("css_set"))
    found = re.fullmatch(
        rf"css_set: ended threads of lab \(pid {pid}\); "
        rf"thread {pid}:(\d+) lives in /holder",
        detail,
    )
    assert found
    for group in groups(core, "/app/leader"):
        for mapper in group.mappers:
            assert (mapper.pid, mapper.tid) == (pid, int(found[1]))
            assert mapper.memcg == "/holder"


# By memcg: the class of its memory, how a process has it, how much, by so many fds.
KEPT = {
    "untouched": ("file", "untouched", 100, 0),
    "aio": ("file", "untouched", 32, 0),
    "sent-memfd": ("shmem", "in flight", 48, 1),
    "udmabuf": ("shmem", "DMA buffer", 40, 1),
    "spliced": ("anon", "pipe", 40, 2),
    "pipe": ("kernel", "pipe", 32, 2),
    "ring": ("kernel", "io_uring", 32, 1),
}


def test_memory_without_a_mapper_names_who_keeps_it(core: Path) -> None:
    """Lost: whom to ask; "nobody: neither mapped nor open" was said of all of it."""
    there = {m.path: m for m in census_of(core).memcgs if m.state == "offline"}
    for name, (kind, how, kib, fds) in KEPT.items():
        if f"/app/{name}" not in there:  # this kernel has no such means
            continue
        its = groups(core, f"/app/{name}")
        if kind == "kernel" and not any(group.kind == kind for group in its):
            continue  # only up to 5.10
        found = [
            (group.kind, keeper.how, keeper.process.bytes >> 10, len(keeper.fds))
            for group in its
            for keeper in group.keepers
        ]
        assert found == [(kind, how, kib, fds)], name


def test_parts_of_a_huge_page_are_counted_page_by_page(core: Path) -> None:
    """Lost: that a hole in it is nobody's, so that paging out cannot free it."""
    (group,) = (g for g in groups(core, "/app/huge-mapped") if g.kind == "shmem")
    assert group.bytes == 2 << 20
    assert sorted(one.bytes >> 10 for one in group.mappers) == [256, 512, 512]
    assert group.mapped_bytes == (768 + 256) << 10


def test_a_page_that_is_mapped_twice_is_mapped_once(core: Path) -> None:
    """Lost: more mapped than charged, and one process taken for several."""
    (group,) = (g for g in groups(core, "/app/twice") if g.mappers)
    (mapper,) = group.mappers
    assert mapper.bytes == group.mapped_bytes == group.bytes
    assert group.repeated_bytes == group.bytes


def test_dying_cgroups_without_a_memcg_are_counted(core: Path) -> None:
    """Lost: why the kernel counts more than the list has."""
    kernel, truth = census_of(core).kernel, truth_of(core)
    assert kernel.bare_cgroups == truth["bare"] == 2
    assert kernel.dying_cgroups == truth["offline"] + truth["bare"]


def test_a_disk_that_is_gone_holds_by_its_inodes(core: Path) -> None:
    """Lost: that unmounting the dead file system frees the memcg (up to 5.13)."""
    if not any(m.path == "/app/unplugged" for m in census_of(core).memcgs):
        return  # this kernel lets go of the memcg
    (detail,) = details(core, "/app/unplugged")
    assert "/mnt/ext4/unplugged0" in detail
    assert detail.endswith("the device is gone")
