"""Which pages are meant, by files of /proc that the test wrote; helpers' leftovers."""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from memcgctl.actions import pageout
from memcgctl.actions.host import helper, pages
from memcgctl.actions.host.libc import Mapping
from memcgctl.actions.host.machine import ActionError, Machine, Mount, read_machine
from memcgctl.model import Backing, Process, ProcessTarget

SMAPS = """\
55d0c0000000-55d0c0002000 rw-p 00001000 fd:01 77                         /a [b] (c)
Size:                  8 kB
Rss:                   4 kB
Swap:                  0 kB
VmFlags: rd wr mr mw me ac sd
7f0000000000-7f0000004000 rw-p 00000000 00:00 0
Size:                 16 kB
Rss:                   8 kB
Swap:                  4 kB
VmFlags: rd wr mr mw me lo ac
"""


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    (tmp_path / "7").mkdir()
    return replace(read_machine(), proc=tmp_path, page_size=4096)


def words(path: Path, values: dict[int, int]) -> None:
    """A file of 8-byte words; those not given are holes, that is zero."""
    with path.open("wb") as file:
        for place, value in values.items():
            file.seek(8 * place)
            file.write(struct.pack("=Q", value))


def test_shmem_in_swap_is_where_its_file_has_data(machine: Machine) -> None:
    """No page table has its entries: a zombie's would stay, whatever was read."""
    name = "7f0000000000-7f0000010000"
    (machine.proc / "7/map_files").mkdir()
    with (machine.proc / "7/map_files" / name).open("wb") as file:
        for page in (1, 3, 4, 20):  # 1 is before the mapping, 20 after it
            file.seek(page * 4096)
            file.write(b"x" * 4096)
    start = 0x7F0000000000
    words(machine.proc / "7/pagemap", {start // 4096 + 2: 1 << 63 | 5})  # page 4
    area = replace(
        pages.Area.of(start, 16 * 4096), flags=frozenset({"sh"}), offset=2 * 4096
    )
    assert pages.absent(7, area, machine).tolist() == [start + 4096]
    private = replace(area, flags=frozenset())
    assert not len(pages.absent(7, private, machine))


def test_the_mappings_of_a_process(machine: Machine) -> None:
    """What is locked would be tried in vain, or another file's pages be meant."""
    (machine.proc / "7/smaps").write_text(SMAPS)
    first, second = pages.areas(7, machine)
    assert (first.device, first.inode, first.resident_bytes) == ("253:1", 77, 4096)
    assert (second.resident_bytes, second.swapped_bytes) == (8192, 4096)
    assert "lo" in second.flags
    assert "lo" not in first.flags
    assert first.offset == 0x1000
    file = Backing("file", "ext4", "253:1", 77, 0, None, None, False, 0)
    assert [area.maps(file) for area in (first, second)] == [True, False]
    assert not first.maps(replace(file, device="253:2"))
    assert second.maps(None)


def test_a_file_that_is_mapped_through_an_overlay(machine: Machine) -> None:
    """A container's pages would be looked for in vain, and the step called done."""
    smaps = SMAPS.replace("fd:01 77", "00:21 77").replace(
        "  4 kB\nSwap", "  0 kB\nSwap"
    )
    (machine.proc / "7/smaps").write_text(smaps)
    mounts = "9 1 0:{} / / rw - overlay overlay rw,lowerdir=/l\n"
    file = Backing("file", "ext4", "253:1", 77, 0, "/l/a", None, False, 0)
    (machine.proc / "7/mountinfo").write_text(mounts.format(33))
    target = ProcessTarget(Process(7, "user", "/", 1, 4096), file=file)
    assert not pageout.find(target, machine).refused
    (machine.proc / "7/mountinfo").write_text(mounts.format(34))
    with pytest.raises(ActionError, match="pid 7 does not map /l/a"):
        pageout.find(target, machine)


def test_a_process_that_has_just_exited(machine: Machine) -> None:
    """A traceback: its files are there still, but empty."""
    (machine.proc / "7/smaps").write_text("")
    assert pages.areas(7, machine) == []
    with pytest.raises(ActionError, match="pid 8"):
        pages.areas(8, machine)


def test_whose_pages(machine: Machine) -> None:
    """Pages of living memcgs would be paged out with the zombies'."""
    words(machine.proc / "kpagecgroup", {5: 42, 6: 43, 9000: 42})
    words(machine.proc / "kpageflags", {})
    pfns = np.array([0, 5, 6, 7, 9000, 1 << 30], np.uint64)
    found = pages.of_memcgs(pfns, {42}, machine)
    assert found.tolist() == [False, True, False, False, True, False]


def test_pages_of_a_huge_page_are_its_firsts(machine: Machine) -> None:
    """On 5.10 only the first 4 KiB of each huge page would be paged out."""
    head, tail = 1 << 15, 1 << 16
    flags = dict.fromkeys(range(1024, 1536), tail) | {1024: head, 1536: head}
    words(machine.proc / "kpageflags", flags | {1537: tail, 1538: tail, 1539: tail})
    words(machine.proc / "kpagecgroup", {1024: 42, 1536: 43})
    pfns = np.array([1024, 1025, 1300, 1535, 1536, 1537, 1539, 1540], np.uint64)
    shown = pages.shown(pfns, machine).tolist()
    assert shown == [42, 42, 42, 42, 43, 43, 43, 0]


def test_entries_of_a_mapping(machine: Machine) -> None:
    """Addresses would be off, and other pages be moved."""
    present, swapped = 1 << 63, 1 << 62
    words(machine.proc / "7/pagemap", {16: present | 99, 18: swapped | 5, 19: 1})
    area = pages.Area.of(16 * 4096, 4 * 4096)
    ((addresses, values),) = pages.entries(7, area, machine)
    assert addresses.tolist() == [16 * 4096, 18 * 4096]
    assert pages.frames(values).tolist() == [99, 0]
    assert pages.swapped(values).tolist() == [False, True]


def test_a_mapping_that_ends_within_a_page_has_that_page() -> None:
    """Lost: zombies held by a file of any size that is no multiple of a page."""
    fd = os.memfd_create("odd")
    page = mmap.PAGESIZE
    os.write(fd, bytes(page + 1000))
    with Mapping(fd, 0, page + 1000) as mapping:
        ends = [mapping.address, mapping.address + page]
        for address in ends:
            ctypes.string_at(address, 1)
        area = pages.Area.of(mapping.address, mapping.size)
        ((addresses, _),) = pages.entries(os.getpid(), area, read_machine())
        assert addresses.tolist() == ends
    os.close(fd)


def test_runs_of_addresses() -> None:
    """One call for each page would take minutes; a range too long the page between."""
    at = np.array([1, 2, 3, 7, 8, 20], np.uint64) * np.uint64(4096)
    expected = [(4096, 8192), (3 * 4096, 4096), (7 * 4096, 8192), (20 * 4096, 4096)]
    assert [*pages.runs(at, 4096, 8192)] == expected
    assert [*pages.runs(pages.NONE, 4096, 8192)] == []


def test_what_a_killed_run_left_is_removed(machine: Machine, tmp_path: Path) -> None:
    """An empty cgroup would stay for each run that was killed at a bad moment."""
    top = tmp_path / "cgroup"
    mount = Mount(1, "0:1", "/", str(top), "cgroup2", frozenset(), frozenset())
    for name in ("memcgctl.8", "memcgctl.7", "memcgctl.slice", "other.8"):
        (top / name).mkdir(parents=True)
    helper.remove_stale(replace(machine, cgroup1=None, cgroup2=mount))
    # 7 runs, by the directory in this /proc
    assert sorted(os.listdir(top)) == ["memcgctl.7", "memcgctl.slice", "other.8"]
