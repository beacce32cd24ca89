"""The process that does a step, with work that ends, fails, waits or hangs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from memcgctl.actions import fadvise
from memcgctl.actions.host.machine import ActionError, Guard, read_machine
from memcgctl.actions.run import worker
from memcgctl.actions.run.executor import carry_out
from memcgctl.actions.run.pace import Limits, Pace
from memcgctl.actions.run.signals import Signals
from memcgctl.actions.run.worker import Failed, Hangs, Worker, left_behind
from memcgctl.model import FileTarget, Plan, Step
from tests.unit.test_actions_executor import KERNEL
from tests.unit.test_actions_target import backing

SHORT = 0.6


def adds(one: int, other: int, guard: Guard) -> int:
    return one + other


def fails(error: Exception, guard: Guard) -> None:
    raise error


def sleeps(seconds: float, guard: Guard) -> None:
    guard.note("reading /mnt/far", "8:1")
    time.sleep(seconds)


def goes_on(seconds: float, guard: Guard) -> str:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        assert guard.allows(1)
        time.sleep(0.05)
    return "done"


def computes(seconds: float, guard: Guard) -> str:
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass
    return "done"


def files(guard: Guard) -> list[str]:
    return sorted(os.readlink(f"/proc/self/fd/{n}") for n in ("0", "1", "2")) + [
        name for name in os.listdir("/proc/self/fd") if int(name) > 2
    ]


def told(guard: Guard) -> tuple[int | None, dict[str, str]]:
    return guard.most, dict(guard.avoid)


def exits(guard: Guard) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def signals() -> Signals:
    return Signals()


@pytest.fixture
def runner(tmp_path: Path, signals: Signals) -> Iterator[Worker]:
    pace = Pace(Limits(rate=None), None, tmp_path)
    with closing(Worker(pace.guard, signals, None, tmp_path, patience=SHORT)) as made:
        yield made


def test_what_it_answers(runner: Worker) -> None:
    """A step's result would be lost, or its error told as another's."""
    assert runner.run(partial(adds, 1, 2)) == 3
    with pytest.raises(ActionError, match="file: gone"):
        runner.run(partial(fails, ActionError("file: gone")))
    with pytest.raises(Failed, match="Permission denied"):
        runner.run(partial(fails, PermissionError(13, "Permission denied")))
    with pytest.raises(Failed, match="internal error: ValueError: odd"):
        runner.run(partial(fails, ValueError("odd")))
    assert runner.run(told, 4096, {"8:1": "since"}) == (4096, {"8:1": "since"})


def test_a_step_that_hangs_is_left(runner: Worker) -> None:
    """One file system whose server is gone would stop all that comes after."""
    began = time.monotonic()
    with pytest.raises(Hangs, match="hangs: reading /mnt/far for") as hangs:
        runner.run(partial(sleeps, 60))
    assert time.monotonic() - began < 10
    assert hangs.value.device == "8:1"
    assert runner.run(partial(adds, 1, 2)) == 3


@pytest.mark.parametrize("work", [goes_on, computes])
def test_a_step_that_gets_on_is_waited_for(
    runner: Worker, work: Callable[[float, Guard], str]
) -> None:
    """A large file would be given up on a slow machine."""
    assert runner.run(partial(work, 3 * SHORT)) == "done"


def test_a_step_that_is_killed_is_told_of(runner: Worker) -> None:
    """Out of memory, say: the report would be lost with it."""
    with pytest.raises(ActionError, match="was killed"):
        runner.run(exits)
    assert runner.run(partial(adds, 1, 2)) == 3


def test_signals_end_the_wait(runner: Worker, signals: Signals) -> None:
    """Ctrl-C would be heard by nobody while a step hangs."""
    runner.patience = 60
    came = partial(signals.came.extend, ["SIGINT"] * 3)
    timer = threading.Timer(0.5, came)
    timer.start()
    began = time.monotonic()
    with pytest.raises(Hangs):
        runner.run(partial(sleeps, 60))
    timer.join()
    assert time.monotonic() - began < 10


def test_it_has_nothing_of_ours(runner: Worker) -> None:
    """The lock would stay held by a process that nobody can end, or our output open."""
    with open(os.devnull), open("/proc/self/status"):
        *links, pipe, listing = runner.run(files)
    assert links == ["/dev/null"] * 3
    assert {pipe, listing}


def test_who_is_left_behind_is_known_to_the_next_run(
    runner: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each run would wait for the same device, and leave one more process behind."""
    monkeypatch.setattr(worker, "_ended", lambda pid: False)
    with pytest.raises(Hangs, match=r"; pid \d+ is left behind"):
        runner.run(partial(sleeps, 60))
    (left,) = left_behind(tmp_path)
    assert (left.doing, left.device) == ("reading /mnt/far", "8:1")
    monkeypatch.undo()
    os.kill(left.pid, signal.SIGKILL)
    os.waitpid(left.pid, 0)
    assert left_behind(tmp_path) == []
    assert [*tmp_path.iterdir()] == []


def test_a_real_step_is_done_by_it(tmp_path: Path) -> None:
    """Each step would fail, as what it is to do cannot be sent to another process."""
    machine = read_machine()
    if fadvise.probe(machine):
        pytest.skip("not for this user")
    file = tmp_path / "file"
    file.write_bytes(bytes(100_000))
    target = FileTarget(backing(file, machine))
    step = Step((1,), "fadvise", "evict", "file", "", 1, (), 0, "", aim=target)
    offline = iter([{1}])
    result = carry_out(
        Plan(KERNEL, "test", (replace(step, frees=(1,)),), (), (1,), (), (), 0, 0),
        lambda: next(offline, set()),
        limits=Limits(settle_seconds=0, look_seconds=0),
        journal=tmp_path / "journal",
        lock=tmp_path / "state/lock",
    )
    (one,) = result.steps
    assert (one.status, one.why, one.freed) == ("done", "", (1,))


def test_it_ends_with_us(tmp_path: Path) -> None:
    """A step would go on for a run that was killed, whose lock another has by now."""
    program = """
import os, sys
from functools import partial
from pathlib import Path
from memcgctl.actions.run.executor import carry_out
from memcgctl.actions.run.pace import Limits, Pace
from memcgctl.actions.run.signals import Signals
from memcgctl.actions.run.worker import Worker
from tests.unit.test_worker import sleeps, adds
runner = Worker(Pace(Limits(), None, Path("/x")).guard, Signals(), None, Path("/x"))
runner.run(partial(adds, 1, 2))
print(runner._pid, flush=True)
runner.run(partial(sleeps, 60))
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout
        pid = int(parent.stdout.readline())
        parent.kill()
        parent.wait()
        assert parent.stdout.read() == ""
        until = time.monotonic() + 10
        while Path(f"/proc/{pid}").exists() and time.monotonic() < until:
            time.sleep(0.05)
        state = Path(f"/proc/{pid}/stat")
        assert not state.exists() or state.read_text().split()[2] == "Z"
