"""The executor with actions that only pretend: its order, guards, journal and lock."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from memcgctl.actions.host import pages, swapcache, sync
from memcgctl.actions.host.machine import (
    ActionError,
    Guard,
    Machine,
    Mount,
    Outcome,
)
from memcgctl.actions.host.pages import U64
from memcgctl.actions.run import journal
from memcgctl.actions.run.executor import carry_out
from memcgctl.actions.run.lock import Locked
from memcgctl.actions.run.pace import Limits
from memcgctl.model import (
    Charges,
    FileTarget,
    Harm,
    Kernel,
    Memcg,
    Plan,
    Remaining,
    Result,
    Step,
    Usage,
)
from tests.unit import plans
from tests.unit.zombies import memcg as zombie

KERNEL = Kernel("live", None, "6.12", "btf", 2, 4096, 2, 1)
QUICK = Limits(settle_seconds=0.0, look_seconds=0.0)


@dataclass
class Pretend:
    """An action that frees what its step says, and notes that it was called."""

    offline: set[int]
    done: list[int] = field(default_factory=list)
    during: Callable[[Step], None] = lambda step: None
    outcome: Outcome = field(default_factory=lambda: Outcome(4096))
    unable: str | None = None

    def probe(self, machine: Machine) -> str | None:
        return self.unable

    def apply(self, step: Step, machine: Machine, guard: Guard) -> Outcome:
        self.done += step.memcgs
        self.during(step)
        self.offline.difference_update(step.frees)
        return self.outcome


def step(memcg: int, **changes: Any) -> Step:
    made = plans.step(
        "pretend",
        memcgs=(memcg,),
        target=f"file {memcg}",
        command=f"true {memcg}",
        frees=(memcg,),
    )
    return replace(made, **changes)


def plan(*steps: Step, remaining: tuple[Remaining, ...] = ()) -> Plan:
    freed = tuple(one for step in steps for one in step.frees)
    return Plan(KERNEL, "test", steps, (), freed, remaining, (), 0, 0)


@dataclass
class Bench:
    """A host of files in a directory, and a run on it."""

    root: Path
    action: Pretend

    def machine(self) -> Machine:
        mount = Mount(
            1,
            "0:1",
            "/",
            str(self.root / "cgroup"),
            "cgroup2",
            frozenset(),
            frozenset(),
        )
        return Machine(
            release="6.12",
            page_size=4096,
            cpus=frozenset({0}),
            mounts=(mount,),
            cgroup1=None,
            cgroup2=mount,
            swap_total_bytes=1 << 20,
            swap_free_bytes=1 << 20,
            euid=0,
            capabilities=frozenset(),
            lockdown=None,
            proc=self.root / "proc",
            sys=self.root / "sys",
            dev=self.root / "dev",
        )

    def memcg(self, path: str, **files: str) -> None:
        directory = self.root / "cgroup" / path.lstrip("/")
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (directory / name.replace("_", ".", 1)).write_text(text)

    def pressure(self, percent: float) -> None:
        file = self.root / "proc/pressure/memory"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"some avg10={percent:.2f} avg60=0.00 avg300=0.00 total=1\n")

    def frames(self, memcg_ids: dict[int, int]) -> None:
        """Page frames in the swap cache, and whom they are charged to."""
        words = [memcg_ids.get(frame, 0) for frame in range(16)]
        flags = [(frame in memcg_ids) << pages.SWAPCACHE for frame in range(16)]
        (self.root / "proc").mkdir(exist_ok=True)
        for name, of_all in (("kpagecgroup", words), ("kpageflags", flags)):
            (self.root / "proc" / name).write_bytes(struct.pack("=16Q", *of_all))

    def run(
        self, wanted: Plan, limits: Limits = QUICK, offline: Sequence[Memcg] = ()
    ) -> Result:
        return carry_out(
            wanted,
            lambda: set(self.action.offline),
            limits=limits,
            journal=self.root / "state/journal",
            lock=self.root / "state/lock",
            machine=self.machine,
            actions={"pretend": self.action},
            apart=False,
            offline=offline,
        )

    def journal(self) -> list[dict[str, Any]]:
        return list(journal.entries(self.root / "state/journal"))

    def events(self) -> list[str]:
        return [entry["event"] for entry in self.journal()]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, Pretend({1, 2, 3}))


def test_all_steps_in_order(bench: Bench) -> None:
    """A person would see a parent's step fail for a child that was not done yet."""
    result = bench.run(plan(step(2), step(1)))
    assert bench.action.done == [2, 1]
    assert result.freed == (2, 1)
    assert [one.freed for one in result.steps] == [(2,), (1,)]
    assert result.complete
    assert result.moved_bytes == 8192
    assert result.remaining == ()


def test_a_line_before_and_after_each_step(bench: Bench) -> None:
    """After a crash nobody could say what was being done."""
    seen: list[str] = []
    bench.action.during = lambda step: seen.append(bench.events()[-1])
    bench.run(plan(step(1), step(2)))
    assert seen == ["before", "before"]
    assert bench.events() == ["begin", *["before", "after"] * 2, "end"]
    before = bench.journal()[1]
    assert (before["n"], before["action"], before["memcgs"]) == (1, "pretend", [1])
    assert before["command"] == "true 1"


def test_who_is_gone_is_left_alone(bench: Bench) -> None:
    """A file's cache would be dropped for a zombie that is not there any more."""
    bench.action.offline.remove(1)
    result = bench.run(plan(step(1), step(2)))
    assert bench.action.done == [2]
    assert result.steps[0].status == "skipped"
    assert "gone already" in result.steps[0].why
    assert result.complete


def test_a_failure_is_told_and_the_rest_is_done(bench: Bench) -> None:
    """One unwritable file would keep a hundred zombies, or go unnoticed."""

    def fail(step: Step) -> None:
        if step.memcgs == (1,):
            raise ActionError("file 1: writing: Input/output error")
        if step.memcgs == (2,):
            raise OSError(13, "Permission denied")

    bench.action.during = fail
    result = bench.run(plan(step(1), step(2), step(3)))
    assert [one.status for one in result.steps] == ["failed", "failed", "done"]
    assert result.remaining == (
        Remaining(1, "step 1: file 1: writing: Input/output error"),
        Remaining(2, "step 2: file 2: Permission denied"),
    )
    assert not result.complete
    assert bench.journal()[2]["why"] == "file 1: writing: Input/output error"


def test_done_in_part(bench: Bench) -> None:
    """A person would be told that all is done while something is left."""
    bench.action.outcome = Outcome(100, "4096 bytes stay in memory")
    bench.action.during = lambda step: bench.action.offline.add(9)
    result = bench.run(plan(step(1, frees=())))
    assert result.steps[0].status == "part"
    assert result.steps[0].why == "4096 bytes stay in memory"


def test_the_swap_cache_is_let_go_of_once_after_all(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Living memcgs would lose pages with each step: every reclaim passes by them."""
    asked: list[tuple[list[int], list[int]]] = []

    def drain(frames: U64, machine: Machine, **ways: bool) -> U64:
        asked.append(([*bench.action.done], frames.tolist()))
        return frames[-1:]

    monkeypatch.setattr(swapcache, "drain", drain)
    bench.frames(dict.fromkeys((5, 6, 7, 8), 40))
    waiting = iter(((5, 6), (7, 8)))
    bench.action.during = lambda step: setattr(
        bench.action, "outcome", Outcome(0, waiting=next(waiting))
    )
    result = bench.run(plan(step(1), step(2)))
    assert asked == [([1, 2], [5, 6, 7, 8])]
    assert [one.status for one in result.steps] == ["done", "part"]
    assert [one.moved_bytes for one in result.steps] == [8192, 4096]
    assert "4096 bytes stay in the swap cache" in result.steps[1].why
    assert result.moved_bytes == 12288


@pytest.mark.parametrize("untargeted", [False, True])
@pytest.mark.parametrize("collateral", [0, 4096])
def test_reclaim_without_a_preference_is_only_for_steps_that_may(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, untargeted: bool, collateral: int
) -> None:
    """A living memcg would lose its page cache where the plan had ruled that out.

    Or more of it than can be helped.
    """
    asked: list[dict[str, bool]] = []

    def drain(frames: U64, machine: Machine, **ways: bool) -> U64:
        asked.append(ways)
        return frames[:0]

    monkeypatch.setattr(swapcache, "drain", drain)
    bench.frames({5: 40})
    bench.action.outcome = Outcome(0, waiting=(5,))
    one = step(1)
    aim = FileTarget(plans.TMPFS, untargeted=untargeted)
    bench.run(plan(replace(one, aim=aim, collateral_bytes=collateral)))
    assert asked == [{"untargeted": untargeted, "among_zombies": not collateral}]


def test_each_steps_frames_are_let_go_of_in_its_own_way(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step for which files may be taken would have them taken for the others, too."""
    asked: dict[bool, list[int]] = {}

    def drain(frames: U64, machine: Machine, **ways: bool) -> U64:
        asked[ways["untargeted"]] = frames.tolist()
        return frames[:0]

    monkeypatch.setattr(swapcache, "drain", drain)
    bench.frames(dict.fromkeys((5, 6, 7, 8), 40))
    waiting = iter(((5, 6), (7, 8)))
    bench.action.during = lambda step: setattr(
        bench.action, "outcome", Outcome(0, waiting=next(waiting))
    )
    untargeted = step(2)
    bench.run(
        plan(step(1), replace(untargeted, aim=FileTarget(plans.TMPFS, untargeted=True)))
    )
    assert asked == {False: [5, 6], True: [7, 8]}


def test_a_frame_that_is_anothers_by_now_is_left_alone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A memcg that has nothing to do with the plan would be reclaimed from."""
    asked: list[list[int]] = []

    def drain(frames: U64, machine: Machine, **ways: bool) -> U64:
        asked.append(frames.tolist())
        return frames[:0]

    monkeypatch.setattr(swapcache, "drain", drain)
    bench.frames({5: 40, 6: 40})
    bench.action.outcome = Outcome(0, waiting=(5, 6))

    def free_and_use_again(step: Step) -> None:
        if step.memcgs == (2,):
            bench.action.outcome = Outcome(0)
            bench.frames({5: 40, 6: 77})

    bench.action.during = free_and_use_again
    result = bench.run(plan(step(1), step(2)))
    assert asked == [[5]]
    assert result.steps[0].moved_bytes == 4096
    assert "4096 bytes stay in the swap cache" in result.steps[0].why


def test_an_odd_swap_cache_does_not_take_the_report(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All steps would be done and nobody told, or nobody told that the last failed."""

    def drain(frames: U64, machine: Machine, **ways: bool) -> U64:
        raise ValueError("no such frame")

    monkeypatch.setattr(swapcache, "drain", drain)
    bench.frames({5: 40})
    bench.action.outcome = Outcome(0, waiting=(5,))
    result = bench.run(plan(step(1)))
    assert result.steps[0].status == "part"
    for why in (result.steps[0].why, bench.journal()[-2]["why"]):
        assert "ValueError: no such frame" in why
    assert "wait in the swap cache" in result.steps[0].why
    assert bench.events()[-2:] == ["swap-cache", "end"]


def test_the_plans_reason_for_who_stays(bench: Bench) -> None:
    """A person would not know why a zombie that nothing was done for is there."""
    result = bench.run(plan(step(1), remaining=(Remaining(3, "locked pages"),)))
    assert result.remaining == (Remaining(3, "locked pages"),)
    assert result.complete  # the plan had not promised it


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_step_in_hand_finish(bench: Bench, number: int) -> None:
    """Ctrl-C would leave a half-done step that the journal knows nothing of."""
    bench.action.during = lambda step: os.kill(os.getpid(), number)
    before = signal.getsignal(number)
    result = bench.run(plan(step(1), step(2)))
    assert bench.action.done == [1]
    assert result.stopped == f"stopped by {signal.Signals(number).name}"
    assert result.freed == (1,)
    assert result.remaining == (Remaining(2, result.stopped),)
    assert bench.events() == ["begin", "before", "after", "end"]
    assert bench.journal()[-1]["left"] == [2]
    assert signal.getsignal(number) == before


def test_a_second_signal_ends_between_windows(bench: Bench) -> None:
    """A long step could not be ended but by kill -9."""
    went_on: list[bool] = []

    class Slow(Pretend):
        def apply(self, step: Step, machine: Machine, guard: Guard) -> Outcome:
            for _ in range(3):
                went_on.append(guard.allows(4096))
                os.kill(os.getpid(), signal.SIGINT)
            return Outcome(0, "stopped")

    bench.action = Slow({1})
    bench.run(plan(step(1)))
    assert went_on == [True, True, False]


def test_what_was_not_done_is_not_waited_for(bench: Bench) -> None:
    """After Ctrl-C a person would wait for zombies to go that nothing was done for."""
    bench.action.during = lambda step: os.kill(os.getpid(), signal.SIGINT)
    began = time.monotonic()
    limits = replace(QUICK, settle_seconds=20.0, look_seconds=0.01)
    assert bench.run(plan(step(1), step(2)), limits).freed == (1,)
    assert time.monotonic() - began < 10


def test_zombies_have_time_to_go(bench: Bench) -> None:
    """What goes a moment after its step would be reported as still there."""
    offline = bench.action.offline

    class Late(Pretend):
        def apply(self, step: Step, machine: Machine, guard: Guard) -> Outcome:
            threading.Timer(0.2, offline.discard, step.frees).start()
            return self.outcome

    bench.action = Late(offline)
    limits = replace(QUICK, settle_seconds=20.0, look_seconds=0.01)
    assert bench.run(plan(step(1)), limits).freed == (1,)


def test_no_time_left(bench: Bench) -> None:
    """A run from a timer would go into working hours."""
    bench.action.during = lambda step: time.sleep(0.6)
    result = bench.run(plan(step(1), step(2)), replace(QUICK, max_seconds=0.5))
    assert bench.action.done == [1]
    assert result.stopped == "--max-seconds are over"


def test_max_bytes_counts_what_was_moved(bench: Bench) -> None:
    """More would be evicted than was allowed."""
    bench.action.outcome = Outcome(6000)
    result = bench.run(plan(step(1), step(2)), replace(QUICK, max_bytes=9000))
    assert bench.action.done == [1]
    assert "--max-bytes" in result.steps[1].why


def test_short_memory_is_waited_for(bench: Bench) -> None:
    """A host that thrashes would be made to thrash more."""
    bench.pressure(35)
    result = bench.run(plan(step(1)), replace(QUICK, max_seconds=1.0))
    assert bench.action.done == []
    assert result.stopped == "memory stayed short"
    bench.pressure(5)
    assert bench.run(plan(step(1))).complete


def test_room_is_looked_at_again(bench: Bench) -> None:
    """A memcg that has filled up since the plan would be driven into its limit."""
    bench.memcg("app")
    bench.memcg("app/holder", memory_current="8192", memory_max="12287")
    into = step(
        1,
        option="recharge-mapper",
        charged_to=("/app/holder",),
        charged_bytes=(4096,),
    )
    result = bench.run(plan(into))
    assert bench.action.done == []
    assert result.steps[0].why == "/app/holder would be pushed over a limit"
    bench.memcg("app/holder", memory_max="12288")
    bench.memcg("app", memory_current="8192", memory_high="9000")
    assert bench.run(plan(into)).steps[0].why.startswith("/app would")
    assert bench.run(plan(replace(into, over_limit=("/app",)))).complete


def test_room_in_a_memcgs_swap_is_looked_at_again(bench: Bench) -> None:
    """A memcg would be throttled for a zombie's swap (memory.swap.high)."""
    bench.memcg("app")
    swap = bench.root / "cgroup/app"
    (swap / "memory.swap.current").write_text("8192")
    out = step(1, charged_to=("/app",), charged_bytes=(4096,))
    for name in ("max", "high"):
        (swap / f"memory.swap.{name}").write_text("12287")
        assert bench.run(plan(out)).steps[0].why == "/app would be pushed over a limit"
        (swap / f"memory.swap.{name}").write_text("12288")
    assert bench.run(plan(out)).complete


def test_no_room_in_swap(bench: Bench) -> None:
    """Pages would be scanned and written in vain."""
    out = step(1, charged_to=("/app",), charged_bytes=(2 << 20,), bytes=2 << 20)
    assert bench.run(plan(out)).steps[0].why == "no room in swap"
    # What has a swap entry needs none.
    assert bench.run(plan(replace(out, charged_bytes=(1 << 20,)))).complete


def test_what_the_machine_does_not_allow(bench: Bench) -> None:
    """A person would see a traceback instead of the privilege that is missing."""
    bench.action.unable = "needs CAP_SYS_ADMIN"
    assert bench.run(plan(step(1))).steps[0].why == "needs CAP_SYS_ADMIN"
    assert bench.action.done == []


def test_the_second_run_says_who_holds_the_lock(bench: Bench) -> None:
    """Two runs would count each other's work, and move twice what was allowed."""
    errors: list[str] = []

    def again(_: Step) -> None:
        with pytest.raises(Locked) as raised:
            bench.run(plan(step(2)))
        errors.append(str(raised.value))

    bench.action.during = again
    assert bench.run(plan(step(1))).complete
    assert errors == [f"pid {os.getpid()} is at work: it holds {bench.root}/state/lock"]


def test_one_lock_for_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of root's shells with different environments would act at the same time."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    found = set()
    for name in ("a", "b"):
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / name))
        found.add(journal.lock_path())
    assert found == {Path("/run/memcgctl/lock")}
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert journal.lock_path() == tmp_path / "b/memcgctl/lock"


def test_a_dead_server_is_not_waited_for(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sync(2) would hang, with the lock held, until a file server answers again."""
    synced: list[str] = []
    monkeypatch.setattr(
        sync, "syncfs", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}"))
    )
    mounts = []
    table = (
        ("disk", "8:1", "ext4", ""),
        ("again", "8:1", "ext4", ""),
        ("pool", "0:30", "btrfs", ""),
        ("server", "0:40", "nfs4", ""),
        ("ntfs", "8:2", "fuseblk", ""),
        ("tmp", "0:41", "tmpfs", ""),
        ("cd", "11:0", "iso9660", "ro"),
        ("under", "8:3", "xfs", ""),
        ("under", "0:42", "nfs4", ""),  # over the one before
        ("under/it", "8:5", "ext4", ""),  # what was there before is hidden
        ("server/disk", "8:6", "ext4", ""),  # to get there asks the server
        ("stuck", "8:4", "ext4", ""),
    )
    below = {"under/it": 7, "server/disk": 3}
    for n, (name, device, fs, options) in enumerate(table):
        point = bench.root / name
        point.mkdir(exist_ok=True, parents=True)
        split = frozenset(options.split(","))
        on = 7 if fs == "nfs4" and name == "under" else below.get(name, 99)
        mounts.append(Mount(n, device, "/", str(point), fs, split, split, on))
    machine = replace(bench.machine(), mounts=tuple(mounts))
    guard = Guard(avoid={"8:4": "since noon"})
    left = sync.sync_disks(machine, guard)
    assert synced == [f"{bench.root}/disk", f"{bench.root}/pool"]
    assert left == [f"{bench.root}/stuck hangs: since noon"]
    synced.clear()
    sync.sync_disks(machine, guard, ["0:30"])
    assert synced == [f"{bench.root}/pool"]


def test_a_killed_run_leaves_the_lock_free_and_its_place(bench: Bench) -> None:
    """After kill -9 no run would ever start again, or nobody knew what was in hand."""
    program = """
import os, signal, sys
sys.path[:0] = sys.argv[2:]
from pathlib import Path
from tests.unit.test_actions_executor import Bench, Pretend, plan, step
bench = Bench(Path(sys.argv[1]), Pretend({1, 2}))
bench.action.during = lambda step: os.kill(os.getpid(), signal.SIGKILL)
bench.run(plan(step(1), step(2)))
"""
    checkout = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", program, str(bench.root), checkout]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert bench.events() == ["begin", "before"]
    assert bench.run(plan(step(2))).complete


def test_a_lock_that_is_a_link_is_not_followed(bench: Bench) -> None:
    """Whoever may write there could have root empty a file."""
    (bench.root / "state").mkdir()
    (bench.root / "else").write_text("kept")
    (bench.root / "state/lock").symlink_to(bench.root / "else")
    with pytest.raises(ActionError, match="the lock"):
        bench.run(plan(step(1)))
    assert (bench.action.done, (bench.root / "else").read_text()) == ([], "kept")


def test_a_line_is_on_the_disk_before_its_step(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a crash of the host nobody would know what was in hand."""
    path = bench.root / "state/journal"
    on_disk: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda fd: on_disk.append(path.stat().st_size))

    def look(_: Step) -> None:
        assert bench.events() == ["begin", "before"]
        assert on_disk[-1] == path.stat().st_size

    bench.action.during = look
    assert bench.run(plan(step(1))).steps[0].status == "done"
    assert on_disk[-1] == path.stat().st_size


def test_a_long_journal_makes_way(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A timer's journal would fill the disk, or the last run be lost with the first."""
    monkeypatch.setattr(journal, "_SIZE_LIMIT", 10)
    for number in (1, 2):
        bench.run(plan(step(number)))
    assert [entry["memcgs"] for entry in bench.journal() if "memcgs" in entry] == 2 * [
        [2]
    ]
    before = list(journal.entries(bench.root / "state/journal.1"))
    assert [entry["memcgs"] for entry in before if "memcgs" in entry] == 2 * [[1]]


def test_no_journal_no_action(bench: Bench) -> None:
    """Something would be done of which there is no record."""
    (bench.root / "state").mkdir(0o700)
    (bench.root / "state/journal").symlink_to(bench.root / "elsewhere")
    with pytest.raises(ActionError, match="the journal"):
        bench.run(plan(step(1)))
    assert bench.action.done == []
    assert not (bench.root / "elsewhere").exists()


def test_a_journal_that_others_can_write(bench: Bench) -> None:
    """Any user could write what root is said to have done."""
    bench.run(plan(step(1)))
    path = bench.root / "state/journal"
    path.chmod(0o620)
    with pytest.raises(ActionError, match="journal can be written to by others"):
        bench.run(plan(step(2)))
    path.chmod(0o600)
    bench.root.chmod(0o777)  # the whole directory could be another one the next time
    with pytest.raises(ActionError, match=f"{bench.root} can be written to by others"):
        bench.run(plan(step(2)))
    assert len(bench.action.done) == 1


def test_a_damaged_journal_can_be_read(bench: Bench) -> None:
    """A line cut short by a crash would hide all the others."""
    bench.run(plan(step(1)))
    path = bench.root / "state/journal"
    path.write_bytes(b'{"cut\n[]\n' + path.read_bytes() + b'{"schema": "memcgctl/jour')
    assert bench.events() == ["begin", "before", "after", "end"]
    assert all(json.dumps(entry) for entry in bench.journal())


def test_who_was_charged_and_what_was_lost(bench: Bench) -> None:
    """A person would have to believe the prediction.

    Or take what the zombies had for what others lost; or wait for minutes while the
    statistics of each of 65,000 living memcgs are read.
    """
    zombies = [
        zombie(n, f"/app/{n}", ancestor="/app", charges=Charges(file_bytes=3000))
        for n in (1, 2)
    ]
    bench.memcg("app", memory_current="1000", memory_swap_current="0")
    bench.memcg("app", memory_stat="anon 1\nfile 11500\nshmem 500\n")
    bench.memcg("app/living", memory_stat="anon 1\nfile 5000\nshmem 0\n")

    def move(_: Step) -> None:
        (bench.root / "cgroup/app/memory.swap.current").write_text("4096")
        bench.memcg("app", memory_stat="anon 1\nfile 7500\nshmem 500\n")

    (bench.root / "cgroup/app/memory.swap.current").write_text("0")
    bench.action.during = move
    wanted = plan(step(1, charged_to=("/app",), charged_bytes=(1,)))
    result = bench.run(wanted, offline=zombies)
    (usage,) = result.usages
    assert (usage.before_bytes, usage.after_bytes) == (1000, 1000)
    assert (usage.swap_before_bytes, usage.swap_after_bytes) == (0, 4096)
    assert (result.harm.file_before_bytes, result.harm.file_after_bytes) == (5000, 4000)


def test_what_cannot_be_read_is_not_nothing(bench: Bench) -> None:
    """In a container 8 MiB were moved, and "+0 +0" stood there."""
    whole = bench.machine()
    none = replace(whole, cgroup2=None, mounts=())
    bench.machine = lambda: none  # type: ignore[method-assign]
    result = bench.run(plan(step(1, charged_to=("/app",), charged_bytes=(1,))))
    (usage,) = result.usages
    assert usage == Usage("/app", None, None, None, None)
    assert result.harm == Harm(None, None, None, None)
    assert len(result.warnings) == 2
    assert "no cgroup file system with memory is mounted" in result.warnings[0]
