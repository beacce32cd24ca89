"""What a hostile or unlucky host does to actions: sparse files, odd names, no room."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from memcgctl.actions import child, swapin, target
from memcgctl.actions.machine import ActionError, Machine, Mount, read_machine
from memcgctl.model import Step

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
