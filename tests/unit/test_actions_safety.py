"""What a hostile or unlucky host does to actions: sparse files, odd names, no room."""

from __future__ import annotations

import errno
import mmap
import os
import signal
import struct
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from memcgctl.actions import fadvise, pageout, pageout_file, swapin
from memcgctl.actions.host import child, lru, pages, target
from memcgctl.actions.host.libc import Mapping
from memcgctl.actions.host.machine import (
    ENDED,
    ActionError,
    Guard,
    Machine,
    Mount,
    Outcome,
    read_machine,
)
from memcgctl.actions.run.executor import Unreadable, carry_out
from memcgctl.model import Backing, Census, FileTarget, ProcessTarget, Step
from memcgctl.report.result import headline, screen
from tests.unit.plans import USER
from tests.unit.test_actions_executor import KERNEL, QUICK, Bench, Pretend, plan, step
from tests.unit.test_actions_target import backing

STEP = Step((1,), "swapin", "recharge-mapper", "pid 7 (x)", "", 4096, (), 0, "")


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, Pretend({1, 2, 3}))


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine whose /proc and memcgs the test writes."""
    point = tmp_path / "cgroup"
    mount = Mount(1, "0:1", "/", str(point), "cgroup2", frozenset(), frozenset())
    (tmp_path / "proc/7").mkdir(parents=True)
    (point / "app").mkdir(parents=True)
    return replace(read_machine(), proc=tmp_path / "proc", cgroup1=None, cgroup2=mount)


def test_all_that_is_in_swap_has_to_fit(machine: Machine) -> None:
    """A plan for one page would bring back gigabytes, and drive the memcg into OOM."""
    assert machine.cgroup
    app = Path(machine.cgroup.point, "app")
    (app / "memory.current").write_text("4096")
    (app / "memory.max").write_text("16384")
    with pytest.raises(ActionError, match="room in memory cannot be read"):
        swapin._must_fit(12288, app, STEP, machine)
    (machine.proc / "meminfo").write_text("MemAvailable:    4096 kB\n")
    swapin._must_fit(12288, app, STEP, machine)
    with pytest.raises(ActionError, match="/app would be pushed over a limit"):
        swapin._must_fit(16384, app, STEP, machine)
    swapin._must_fit(16384, app, replace(STEP, over_limit=("/app",)), machine)
    (app / "memory.max").unlink()
    app.rename(app.with_name("gone"))
    with pytest.raises(ActionError, match="limits of /app cannot be read"):
        swapin._must_fit(12288, app, STEP, machine)
    (machine.proc / "meminfo").write_text("MemAvailable:       8 kB\n")
    with pytest.raises(ActionError, match="no room in memory"):
        swapin._must_fit(12288, app, STEP, machine)


def test_a_cgroup_named_like_the_end_of_a_line(machine: Machine) -> None:
    """Whoever may name a cgroup could end the run of root."""
    assert machine.cgroup
    (machine.proc / "7/cgroup").write_text("0::/a\x0bb\u2028c\n")
    assert str(target.cgroup_of(7, machine)) == machine.cgroup.point + "/a\x0bb\u2028c"


def test_a_cgroup_that_cannot_be_removed_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A cgroup of ours would stay, and nobody know of it."""
    monkeypatch.setattr(signal, "pthread_sigmask", lambda *_: None)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    prefix = f"{tmp_path}/memcgctl."
    assert child.cgroup(prefix) == 0
    assert os.listdir(tmp_path) == []
    made = os.mkdir

    def busy(path: str) -> None:
        made(path)
        made(f"{path}/other")

    monkeypatch.setattr(os, "mkdir", busy)
    assert child.cgroup(prefix) == 1
    assert "cannot be removed" in capsys.readouterr().err


@pytest.mark.timeout(20)
def test_a_file_that_is_one_hole(tmp_path: Path) -> None:
    """Anybody could keep root busy for years with ``truncate -s 8E``."""
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(1 << 43)
        for at in (0, 1 << 42, (1 << 43) - 1):
            os.pwrite(file.fileno(), b"x", at)
        file.flush()
    with opened(path) as fd:
        found = [*target.windows(fd, 1 << 43, 1 << 24)]
        assert found == [0, 1 << 42, (1 << 43) - (1 << 24)]
        assert [*target.windows(fd, 4096, 1 << 24)] == [0]
    made = Backing("file", "?", "", 0, 0, str(path), None, False, 0)
    seen: list[int] = []

    def stop() -> bool:
        seen.append(1)
        return False

    guard = Guard(stop=stop)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fadvise, "open_file", lambda *_: opened(path))
        outcome = fadvise.apply(
            replace(STEP, aim=FileTarget(made)), read_machine(), guard
        )
    assert outcome.left == ""
    assert 0 < len(seen) < 100


@contextmanager
def opened(path: Path) -> Iterator[int]:
    with path.open("rb") as file:
        yield file.fileno()


def test_what_cannot_be_written_is_not_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Data that a full disk does not take would be called freed."""
    path = tmp_path / "file"
    path.write_bytes(b"x")

    def fsync(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    forgotten: list[int] = []
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "posix_fadvise", lambda *_: forgotten.append(1))
    file = backing(path, read_machine())
    writing = replace(STEP, aim=FileTarget(file))
    with pytest.raises(ActionError, match="file: writing: No space left on device"):
        fadvise.apply(writing, read_machine(), Guard())
    assert forgotten == []


def test_a_page_that_is_not_up_to_date_is_forgotten(tmp_path: Path) -> None:
    """A small file on an ext4 of 1 KiB blocks would stay, and the step be "done".

    For mincore(2) a page that was written in part is not there.
    """
    path = tmp_path / "file"
    path.write_bytes(b"x" * 1000)
    made = Backing("file", "?", "", 0, 0, str(path), None, False, 0)
    forgotten: list[tuple[int, ...]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fadvise, "open_file", lambda *_: opened(path))
        patch.setattr(Mapping, "resident", lambda *_: bytes(2))
        patch.setattr(os, "posix_fadvise", lambda *words: forgotten.append(words))
        fadvise.apply(replace(STEP, aim=FileTarget(made)), read_machine(), Guard())
    assert len(forgotten) == 1


@pytest.mark.parametrize(("free", "paged_out"), [(8, True), (4, False)])
def test_what_goes_to_swap_has_to_fit(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, free: int, paged_out: bool
) -> None:
    """The device would be kept busy, and a zombie stay, for no room in swap.

    One of four pages is shmem, and one in the swap cache, which has its entry already.
    """
    frames = np.arange(1, 5, dtype=np.uint64)
    meant = pageout.Found(frames * np.uint64(4096), frames, frames == 1)
    flags = [(frame == 2) << pages.SWAPCACHE for frame in range(8)]
    (machine.proc / "kpageflags").write_bytes(struct.pack("=8Q", *flags))
    (machine.proc / "meminfo").write_text(f"SwapFree:       {free} kB\n")
    advised: list[int] = []

    def advise(pidfd: int, at: pages.U64, *_: object) -> bool:
        advised.append(len(at))
        return True

    empty = pageout.Found(pages.NONE, pages.NONE, pages.NONE != 0)
    for name, found in (("find", meant), ("_still", empty)):
        monkeypatch.setattr(pageout, name, lambda *_, found=found: found)
    monkeypatch.setattr(pageout, "hold", lambda *_: nullcontext(3))
    monkeypatch.setattr(pageout, "_advise", advise)
    out = replace(STEP, aim=ProcessTarget(USER, (1,)))
    if paged_out:
        assert pageout.apply(out, machine, Guard()).bytes == 4 * 4096
    else:
        with pytest.raises(ActionError, match="8192 bytes, no room in swap"):
            pageout.apply(out, machine, Guard())
    assert advised == [4] * paged_out


def test_a_stop_is_heeded_where_nothing_is_in_memory(tmp_path: Path) -> None:
    """A large file without page cache could not be ended but by kill -9."""
    path = tmp_path / "empty"
    with path.open("wb") as file:
        file.truncate(1 << 36)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fadvise, "open_file", lambda *_: opened(path))
        made = Backing("file", "?", "", 0, 0, str(path), None, False, 0)
        step = replace(STEP, aim=FileTarget(made))
        outcome = fadvise.apply(step, read_machine(), Guard(stop=lambda: True))
    assert outcome.left == ENDED


def test_the_budget_is_of_what_is_there_now(tmp_path: Path) -> None:
    """A file that grew since the plan would take more than --max-bytes."""
    path = tmp_path / "grown"
    path.write_bytes(bytes(1 << 20))
    made = Backing("file", "?", "", 0, 0, str(path), None, False, 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fadvise, "open_file", lambda *_: opened(path))
        step = replace(STEP, aim=FileTarget(made))
        outcome = fadvise.apply(step, read_machine(), Guard(most=4096))
    assert outcome.bytes == 0
    assert "--max-bytes" in outcome.left
    with pytest.raises(ActionError, match="pid 7: 8192 bytes are more"):
        Guard(most=4096).afford(8192, "pid 7")


def test_the_rate_is_kept_from_step_to_step(bench: Bench) -> None:
    """A thousand files of one window each would be dropped at once."""
    slept: list[float] = []

    class Small(Pretend):
        def apply(self, step: Step, machine: Machine, guard: Guard) -> Outcome:
            guard.sleep = slept.append
            assert guard.allows(100)
            self.offline.difference_update(step.frees)
            return Outcome(100)

    bench.action = Small({1, 2})
    bench.run(plan(step(1), step(2)), replace(QUICK, rate=10))
    assert len(slept) == 1
    assert 9 < slept[0] <= 10


def test_an_unforeseen_error_is_of_one_step(bench: Bench) -> None:
    """One odd process would keep all other zombies, and its step out of the journal."""

    def odd(step: Step) -> None:
        if step.memcgs == (1,):
            raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "odd")

    bench.action.during = odd
    result = bench.run(plan(step(1), step(2)))
    assert [one.status for one in result.steps] == ["failed", "done"]
    assert "UnicodeDecodeError" in result.steps[0].why
    assert bench.events() == ["begin", *["before", "after"] * 2, "end"]


def test_what_cannot_be_told_counts_as_planned(bench: Bench) -> None:
    """Actions that cannot tell what they moved would never use up --max-bytes."""
    bench.action.outcome = Outcome(None)
    result = bench.run(plan(step(1), step(2)), replace(QUICK, max_bytes=8000))
    assert bench.action.done == [1]
    assert "--max-bytes" in result.steps[1].why
    assert result.moved_bytes == 0


def test_a_kernel_that_cannot_be_read_any_more(bench: Bench) -> None:
    """All would be told to be gone, or the run end without its report."""

    def look() -> set[int]:
        if bench.action.done:
            raise Unreadable("the list of cgroups has no end")
        return {1, 2}

    result = carry_out(
        plan(step(1), step(2)),
        look,
        limits=QUICK,
        journal=bench.root / "state/journal",
        lock=bench.root / "state/lock",
        machine=bench.machine,
        actions={"pretend": bench.action},
        apart=False,
    )
    assert bench.action.done == [1]
    assert (result.freed, result.complete) == ((), False)
    assert result.stopped == "the list of cgroups has no end"
    assert bench.events()[-1] == "end"


def test_short_memory_does_not_keep_the_lock_for_ever(bench: Bench) -> None:
    """Each run from cron after it would find the lock held."""
    bench.pressure(35)
    limits = replace(QUICK, patience_seconds=0.0)
    assert bench.run(plan(step(1)), limits).stopped == "memory stayed short"


@pytest.mark.timeout(20)
def test_a_journal_that_is_a_fifo(bench: Bench) -> None:
    """The run would hang, with the lock held, until somebody reads."""
    (bench.root / "state").mkdir()
    os.mkfifo(bench.root / "state/journal")
    with pytest.raises(ActionError, match="the journal"):
        bench.run(plan(step(1)))


def test_a_mount_of_the_whole_hierarchy_is_taken(tmp_path: Path) -> None:
    """Limits would be looked up at places that are not there, and not be seen."""
    (tmp_path / "self").mkdir()
    (tmp_path / "self/mountinfo").write_text(
        "1 2 0:5 /docker/x /a\u2028b\u00a0c rw - cgroup2 cgroup2 rw\n"
        "3 2 0:5 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
    )
    here = read_machine(proc=tmp_path, sys=tmp_path / "sys")
    assert [mount.point for mount in here.mounts] == [
        "/a\u2028b\u00a0c",
        "/sys/fs/cgroup",
    ]
    assert here.cgroup2 == here.mounts[1]


SHM = Path("/dev/shm")


@pytest.mark.skipif(not os.access(SHM, os.W_OK), reason="no tmpfs here")
def test_a_tmpfs_file_that_is_truncated_meanwhile() -> None:
    """SIGBUS would kill the run in the middle of a step."""
    with tempfile.TemporaryFile(dir=SHM) as file:
        fd, size = file.fileno(), mmap.PAGESIZE
        os.ftruncate(fd, 8 * size)
        os.pwrite(fd, b"x" * 2 * size, 2 * size)
        with Mapping(fd, 0, 8 * size) as mapping:
            resident = mapping.resident(size)
            assert resident == bytes([0, 0, 1, 1, 0, 0, 0, 0])
            every = np.ones(8, np.bool_)
            frames = pageout_file._touch(mapping, every, read_machine())
            assert len(frames) in (0, 2)  # who is not root does not see which
            assert mapping.resident(size) == resident  # a hole is a hole still
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Mapping, "resident", lambda *_: resident)
                os.ftruncate(fd, 0)
                assert not len(pageout_file._touch(mapping, every, read_machine()))


@pytest.mark.timeout(20)
@pytest.mark.skipif(not os.access(SHM, os.W_OK), reason="no tmpfs here")
def test_a_tmpfs_file_of_exabytes(machine: Machine) -> None:
    """Any user's ``truncate -s 8E`` in /dev/shm would keep root busy for years."""
    with tempfile.TemporaryFile(dir=SHM) as file:
        fd, end = file.fileno(), (1 << 62) - 1
        os.ftruncate(fd, end)
        os.pwrite(fd, b"x", end - 1)
        os.pwrite(fd, b"x", 0)
        found = [*target.windows(fd, end, 1 << 24)]
        assert found == [0, end >> 24 << 24]


def test_paging_out_leaves_room(machine: Machine) -> None:
    """Swap would be filled up for a page of a file of gigabytes."""
    (machine.proc / "meminfo").write_text("SwapFree:       8 kB\n")
    assert pageout_file._cannot(8192, 0, machine, Guard()) == ""
    assert pageout_file._cannot(8193, 0, machine, Guard()) == "no room in swap"
    assert "--max-bytes" in pageout_file._cannot(4096, 4096, machine, Guard(most=8000))


def test_a_number_that_is_no_less_is_called_that(bench: Bench) -> None:
    """Nothing would seem to have been moved by an action that cannot tell."""
    result = bench.run(plan(step(1)))
    assert "4.0 KiB of memory" in headline(result, Census(KERNEL, (), ()))
    assert "at least" not in headline(result, Census(KERNEL, (), ()))
    bench.action.outcome = Outcome(None)
    result = bench.run(plan(step(2)))
    assert "at least 0 B of memory" in headline(result, Census(KERNEL, (), ()))
    text = screen(result, Census(KERNEL, (), ()), {}).plain
    assert "memory moved, at least" in text


def test_cpus_that_are_kept_free_are_kept_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run would wait for ever behind a real-time thread, or disturb it."""
    asked: list[set[int]] = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, cpus: asked.append(cpus))
    lru.drain(replace(read_machine(), cpus=frozenset({1, 2, 3})))
    assert asked == [{1}, {0, 1}]


@pytest.mark.parametrize(
    ("before", "stopped"), [(signal.SIG_DFL, "stopped by SIGHUP"), (signal.SIG_IGN, "")]
)
def test_a_terminal_that_is_gone(
    bench: Bench, before: signal.Handlers, stopped: str
) -> None:
    """A lost connection would end the run in the middle of a step."""
    bench.action.during = lambda step: os.kill(os.getpid(), signal.SIGHUP)
    was = signal.signal(signal.SIGHUP, before)
    try:
        assert bench.run(plan(step(1), step(2))).stopped == stopped
    finally:
        signal.signal(signal.SIGHUP, was)
