"""What a hostile or unlucky host does to actions: sparse files, odd names, no room."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from memcgctl.actions import child, fadvise, swapin, target
from memcgctl.actions.machine import (
    ENDED,
    ActionError,
    Guard,
    Machine,
    Mount,
    read_machine,
)
from memcgctl.model import Aim, Backing, Step

STEP = Step((1,), "swapin", "recharge-mapper", "pid 7 (x)", "", 4096, (), 0, "")


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
    swapin._must_fit(12288, app, STEP, machine)
    with pytest.raises(ActionError, match="/app would be pushed over a limit"):
        swapin._must_fit(16384, app, STEP, machine)
    swapin._must_fit(16384, app, replace(STEP, over_limit=("/app",)), machine)
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
    with path.open("rb") as file:
        found = [*target.windows(file.fileno(), 1 << 43, 1 << 24)]
        assert found == [0, 1 << 42, (1 << 43) - (1 << 24)]
        file.seek(1 << 41)
        assert [*target.windows(file.fileno(), 4096, 1 << 24)] == [0]
    made = Backing("file", "?", "", 0, 0, str(path), None, False, 0)
    seen: list[int] = []

    def stop() -> bool:
        seen.append(1)
        return False

    guard = Guard(stop=stop)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fadvise, "open_file", lambda *_: opened(path))
        outcome = fadvise.apply(
            replace(STEP, aim=Aim(file=made)), read_machine(), guard
        )
    assert outcome.left == ""
    assert 0 < len(seen) < 100


@contextmanager
def opened(path: Path) -> Iterator[int]:
    with path.open("rb") as file:
        yield file.fileno()


def test_a_stop_is_heeded_where_nothing_is_in_memory(tmp_path: Path) -> None:
    """A large file without page cache could not be ended but by kill -9."""
    path = tmp_path / "empty"
    with path.open("wb") as file:
        file.truncate(1 << 36)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fadvise, "open_file", lambda *_: opened(path))
        made = Backing("file", "?", "", 0, 0, str(path), None, False, 0)
        step = replace(STEP, aim=Aim(file=made))
        outcome = fadvise.apply(step, read_machine(), Guard(stop=lambda: True))
    assert outcome.left == ENDED
