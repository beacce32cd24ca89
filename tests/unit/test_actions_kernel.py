"""What actions ask of the kernel, and what they make of its answers."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from memcgctl.actions import (
    charge_on_cpu,
    collapse,
    drop_caches,
    flush_device,
    force_empty,
    memory_reclaim,
    pageout,
    swapin,
    writeback_cleanup,
)
from memcgctl.actions.host import helper, lru, pages, reader, swapcache
from memcgctl.actions.host.machine import (
    ENDED,
    ActionError,
    Guard,
    Machine,
    Mount,
    read_machine,
)
from memcgctl.model import CgroupTarget, CpuTarget, DeviceTarget, ProcessTarget
from tests.unit.plans import USER, step

PAGE = 4096


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A host whose files the test writes."""
    mount = Mount(1, "0:1", "/", str(tmp_path), "cgroup2", frozenset(), frozenset())
    for name in ("proc", "sys", "dev"):
        (tmp_path / name).mkdir()
    free = "MemAvailable: 1048576 kB\nSwapFree: 1048576 kB\n"
    (tmp_path / "proc/meminfo").write_text(free)
    return replace(
        read_machine(),
        cgroup1=None,
        cgroup2=mount,
        euid=0,
        page_size=PAGE,
        proc=tmp_path / "proc",
        sys=tmp_path / "sys",
        dev=tmp_path / "dev",
    )


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is written to control files."""
    said: list[str] = []
    for module in (swapcache, memory_reclaim):
        monkeypatch.setattr(module, "open_cgroup", lambda *_: nullcontext(7))
        monkeypatch.setattr(module, "write_at", lambda _, name, text: said.append(text))
    monkeypatch.setattr(lru, "drain", lambda machine: None)
    return said


def answering(said: list[str], answer: Callable[[str], int]) -> Any:
    """A ``write_at`` that fails with the number that ``answer`` has, but for 0."""

    def write_at(_: int, name: str, text: str) -> None:
        assert name == "memory.reclaim"
        said.append(text)
        if number := answer(text):
            raise OSError(number, os.strerror(number))

    return write_at


NEW = ["8192 swappiness=max"] * 3
OLDER = [f"8192 swappiness={key}" for key in ("max", 200)] * 3
OLDEST = [f"8192{key}" for key in (" swappiness=max", " swappiness=200", "")] * 3


@pytest.mark.parametrize(
    ("known", "untargeted", "texts"),
    [
        (("max", "200"), True, NEW),
        (("200",), True, OLDER),
        ((), False, OLDER),
        ((), True, OLDEST),
    ],
)
@pytest.mark.parametrize("failing", [0, errno.EAGAIN])
def test_files_are_only_asked_for_where_that_is_allowed(
    machine: Machine,
    asked: list[str],
    monkeypatch: pytest.MonkeyPatch,
    known: tuple[str, ...],
    untargeted: bool,
    texts: list[str],
    failing: int,
) -> None:
    """Page cache of living memcgs would go for a few pages that wait in the swap cache.

    The kernel does not know some keys, and never gets all that is asked for (EAGAIN).
    """
    flags = [1 << pages.SWAPCACHE] * 4
    (machine.proc / "kpageflags").write_bytes(struct.pack("=4Q", *flags))
    (machine.proc / "kpagecgroup").write_bytes(struct.pack("=4Q", 5, 5, 5, 5))

    def answer(text: str) -> int:
        key = text.partition("=")[2]
        return errno.EINVAL if key and key not in known else failing

    monkeypatch.setattr(swapcache, "write_at", answering(asked, answer))
    left = swapcache.drain(np.array([1, 2], np.uint64), machine, untargeted=untargeted)
    assert left.tolist() == [1, 2]
    assert asked == texts


@pytest.mark.parametrize(
    ("among_zombies", "had", "rounds"),
    [(False, 99, 3), (True, 0, 3), (True, 5, 6), (True, 99, 20)],
)
def test_among_zombies_it_is_asked_for_more(
    machine: Machine,
    asked: list[str],
    monkeypatch: pytest.MonkeyPatch,
    among_zombies: bool,
    had: int,
    rounds: int,
) -> None:
    """A zombie would stay, as others' pages were taken first; or the run, for ever."""
    flags = [1 << pages.SWAPCACHE] * 4
    (machine.proc / "kpageflags").write_bytes(struct.pack("=4Q", *flags))
    (machine.proc / "kpagecgroup").write_bytes(struct.pack("=4Q", 5, 5, 5, 5))
    answers = iter([*[0] * had, *[errno.EAGAIN] * 99])
    answer = answering(asked, lambda _: next(answers))
    monkeypatch.setattr(swapcache, "write_at", answer)
    frames = np.array([1, 2], np.uint64)
    swapcache.drain(frames, machine, untargeted=False, among_zombies=among_zombies)
    assert len(asked) == rounds


def test_no_more_is_reclaimed_than_the_step_says(
    machine: Machine, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Living memcgs would lose more than the plan told."""
    wanted = step("memory.reclaim", bytes=40 << 20, aim=CgroupTarget(5, "/app"))
    outcome = memory_reclaim.apply(wanted, machine, Guard())
    assert asked == [str(16 << 20), str(16 << 20), str(8 << 20)]
    assert (outcome.bytes, outcome.left) == (40 << 20, "")
    stopped = memory_reclaim.apply(wanted, machine, Guard(stop=lambda: True))
    assert (stopped.bytes, stopped.left) == (0, ENDED)
    answers = iter([0, errno.EAGAIN])
    monkeypatch.setattr(
        memory_reclaim, "write_at", answering([], lambda _: next(answers))
    )
    less = memory_reclaim.apply(wanted, machine, Guard())
    assert (less.bytes, "found less" in less.left) == (16 << 20, True)
    monkeypatch.setattr(
        memory_reclaim, "write_at", answering([], lambda _: errno.EACCES)
    )
    with pytest.raises(ActionError, match=r"memory\.reclaim: Permission denied"):
        memory_reclaim.apply(wanted, machine, Guard())


def test_which_cgroup_version_has_what(machine: Machine) -> None:
    """A step would fail on a file that this hierarchy has not."""
    able = replace(machine, capabilities=frozenset({"dac_override"}))
    v1 = replace(able, cgroup1=able.cgroup2)
    for action in (writeback_cleanup, memory_reclaim):
        assert action.probe(able) is None
        assert "only cgroup v2" in (action.probe(v1) or "")
    assert force_empty.probe(v1) is None
    assert "only cgroup v1" in (force_empty.probe(able) or "")


@pytest.fixture
def mapped(machine: Machine) -> Machine:
    """A process with a page in each of four mappings, all but one of them special."""
    text = ""
    frames = {}
    for place, flag in enumerate(("ac", "lo", "nh", "ht"), 1):
        first = place * 16 * PAGE
        text += (
            f"{first:08x}-{first + PAGE:08x} rw-p 00000000 00:00 0\n"
            f"Rss:                   4 kB\nVmFlags: rd wr {flag}\n"
        )
        frames[place * 16] = 1 << 63 | place
    directory = machine.proc / "77"
    directory.mkdir()
    (directory / "smaps").write_text(text)
    with (directory / "pagemap").open("wb") as file:
        for at, entry in frames.items():
            file.seek(8 * at)
            file.write(struct.pack("=Q", entry))
    (machine.proc / "kpagecgroup").write_bytes(struct.pack("=5Q", 0, 5, 5, 5, 5))
    (machine.proc / "kpageflags").write_bytes(bytes(40))
    return machine


def test_what_the_kernel_refuses_is_counted_not_asked_for(mapped: Machine) -> None:
    """Locked memory would be called paged out, or never be collapsed."""
    aim = ProcessTarget(USER, (5,))
    found = pageout.find(aim, mapped)
    assert (found.frames.tolist(), found.refused) == ([1, 3], 2)
    found = pageout.find(aim, mapped, collapse._REFUSED)
    assert (found.frames.tolist(), found.refused) == ([1, 2], 2)


def test_a_process_that_maps_more_by_now(
    mapped: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More would be paged out than --max-bytes allows."""
    monkeypatch.setattr(pageout, "hold", lambda *_: nullcontext(3))
    monkeypatch.setattr(pageout, "_advise", lambda *_: pytest.fail("advised"))
    out = step("pageout", aim=ProcessTarget(USER, (5,)))
    with pytest.raises(ActionError, match="8192 bytes are more than --max-bytes"):
        pageout.apply(out, mapped, Guard(most=PAGE))


def test_a_mapping_that_was_locked_meanwhile_stops_no_other(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes after it would stay; of a process that is gone, all is hopeless."""
    calls: list[list[int]] = []
    error = OSError(errno.EINVAL, "Invalid argument")

    def advise(_: int, batch: list[tuple[int, int]], advice: int) -> Any:
        calls.append([at // PAGE for at, _ in batch])
        # The first range is done, the second is refused.
        return (PAGE, error) if len(batch) > 1 else (PAGE, None)

    monkeypatch.setattr(pageout, "process_madvise", advise)
    at = np.array([0, 2 * PAGE, 4 * PAGE], np.uint64)
    assert pageout._advise(3, at, machine, Guard())
    assert calls == [[0, 2, 4], [4]]
    error = OSError(errno.ESRCH, "No such process")
    with pytest.raises(OSError, match="No such process"):
        pageout._advise(3, at, machine, Guard())
    assert len(calls) == 3


@pytest.mark.parametrize(
    ("kind", "number", "found", "why"),
    [
        (stat.S_IFBLK, (8, 0), (8, 0), ""),
        (stat.S_IFBLK, (8, 0), (8, 1), "is not that device"),
        (stat.S_IFCHR, (8, 0), (8, 0), "is not that device"),
        (stat.S_IFBLK, (1, 0), (1, 0), "is a RAM disk"),
    ],
)
def test_only_the_device_that_is_meant_is_flushed(
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    kind: int,
    number: tuple[int, int],
    found: tuple[int, int],
    why: str,
) -> None:
    """Another disk would be flushed, or a RAM disk lose all that it has."""
    (machine.dev / "vda").touch()
    (machine.proc / "self").symlink_to("/proc/self")
    place = machine.sys / "class/block/vda/dev"
    place.parent.mkdir(parents=True)
    place.write_text("{}:{}\n".format(*number))
    flushed: list[int] = []
    told = SimpleNamespace(st_mode=kind, st_rdev=os.makedev(*found))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", lambda fd: told)
        patch.setattr(fcntl, "ioctl", lambda fd, what, _: flushed.append(what))
        with pytest.raises(ActionError, match=why) if why else nullcontext():
            flush_device.apply(
                step("flush-device", aim=DeviceTarget("vda")), machine, Guard()
            )
    # include/uapi/linux/fs.h: BLKFLSBUF, _IO(0x12, 97)
    assert flushed == ([] if why else [0x12 << 8 | 97])


def test_only_clean_page_cache_is_dropped(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everybody's dentries and inodes would go, too (3, not 1), or nothing dirty."""
    file = machine.proc / "sys/vm/drop_caches"
    file.parent.mkdir(parents=True)
    file.touch()
    (machine.proc / "meminfo").write_text("Cached:       12 kB\n")

    def write_dirty(_: Machine, guard: Guard) -> list[str]:
        assert file.read_text() == ""
        (machine.proc / "meminfo").write_text("Cached:       4 kB\n")
        return []

    monkeypatch.setattr(drop_caches, "sync_disks", write_dirty)
    assert drop_caches.apply(step("drop_caches"), machine, Guard()).bytes == 8192
    assert file.read_text() == "1"


def test_a_stock_is_taken_again_until_its_zombie_goes(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A zombie would stay for our own cgroup, which takes its place in the stock."""
    zombies: Iterator[int]
    cpus: list[int | None] = []
    monkeypatch.setattr(charge_on_cpu, "_GONE_WITHIN", 0.0)
    monkeypatch.setattr(helper, "use", lambda machine, cpu=None: cpus.append(cpu))
    monkeypatch.setattr(
        charge_on_cpu, "count_zombies", lambda _: SimpleNamespace(count=next(zombies))
    )
    one = replace(machine, cpus=frozenset({0, 1}))
    drain = step("charge-on-cpu", frees=(100,), aim=CpuTarget(cpu=1))
    zombies = iter([5, 4])
    charge_on_cpu.apply(drain, one, Guard())
    assert cpus == [1]
    zombies = iter([5] * 100)
    charge_on_cpu.apply(drain, one, Guard())
    assert cpus == [1] * 4
    with pytest.raises(ActionError, match="CPU 2 is offline"):
        charge_on_cpu.apply(replace(drain, aim=CpuTarget(cpu=2)), one, Guard())
    assert len(cpus) == 4


@pytest.mark.parametrize("left", [0, 1])
def test_what_stays_in_swap_is_told(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, left: int
) -> None:
    """A step would be called done whose zombie stays."""
    looks = iter([(np.arange(3, dtype=np.uint64), 3 * PAGE), (pages.NONE, left * PAGE)])
    monkeypatch.setattr(swapin, "_swapped", lambda *_: next(looks))
    monkeypatch.setattr(swapin, "_touch", lambda *_: True)
    monkeypatch.setattr(swapin, "hold", lambda *_: nullcontext(3))
    monkeypatch.setattr(swapin, "cgroup_of", lambda *_: Path("/"))
    outcome = swapin.apply(step("swapin", aim=ProcessTarget(USER)), machine, Guard())
    assert outcome.bytes == (3 - left) * PAGE
    assert outcome.left == ("4096 bytes stay in swap" if left else "")


def test_a_reader_that_is_frozen_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One process in a frozen cgroup would keep the whole run, and its lock."""
    sleep = [sys.executable, "-c", "import time; time.sleep(5)"]
    monkeypatch.setattr(helper, "command", lambda *_: sleep)
    monkeypatch.setattr(reader, "_PATIENCE", 0.2)
    began = time.monotonic()
    with pytest.raises(ActionError, match="is it frozen"), reader.reader() as read:
        read(np.array([1], np.uint64))
    assert time.monotonic() - began < 4
