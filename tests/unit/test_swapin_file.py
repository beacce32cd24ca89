"""A shmem file is read from within a memcg, and nothing is left of what that takes."""

from __future__ import annotations

import os
import struct
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from memcgctl.actions import swapin_file
from memcgctl.actions.host import helper, measure
from memcgctl.actions.host.machine import ActionError, Guard, Mount, read_machine
from memcgctl.model import SwappedFileTarget
from tests.unit.plans import PAGE, TMPFS, step

STEP = step(
    "swapin-file",
    option="recharge-parent",
    charged_to=("/app",),
    aim=SwappedFileTarget(TMPFS, memcg_id=5, memcg_path="/app"),
)


def read(
    fd: int, directory: Path, batches: list[list[int]]
) -> tuple[int, bytes, bytes]:
    """What ``child.py`` makes of batches of offsets."""
    told = b"".join(struct.pack(f"={1 + len(b)}Q", len(b), *b) for b in batches)
    words = str(fd), str(directory), str(min(os.sched_getaffinity(0))), str(PAGE)
    ran = subprocess.run(
        helper.command("read", *words),
        input=told,
        capture_output=True,
        pass_fds=(fd,),
        check=False,
    )
    return ran.returncode, ran.stdout, ran.stderr


def test_it_is_read_from_within_the_memcg(tmp_path: Path) -> None:
    """Lost: who is charged: the file would be read by us, for us."""
    (tmp_path / "cgroup.procs").touch()
    (tmp_path / "file").write_bytes(bytes(3 * PAGE))
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    assert read(fd, tmp_path, [[0, PAGE], [2 * PAGE]]) == (0, b"..", b"")
    os.close(fd)
    assert (tmp_path / "cgroup.procs").read_text() == "0"


def test_a_cgroup_that_was_made_for_it_is_removed(tmp_path: Path) -> None:
    """Lost: a cgroup of ours in somebody's tree, here as nothing can be joined."""
    (tmp_path / "cgroup.type").touch()
    fd = os.open(tmp_path / "cgroup.type", os.O_RDONLY)
    status, answers, said = read(fd, tmp_path, [[0]])
    os.close(fd)
    assert (status, answers) == (1, b"")
    assert b"memcgctl." in said
    assert [path.name for path in tmp_path.iterdir()] == ["cgroup.type"]


def test_what_would_push_the_ancestor_over_its_limit_is_not_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Lost: an OOM kill for a file that is in memory for a moment only."""
    machine = read_machine()
    monkeypatch.setattr(
        measure, "room", lambda *_, swap: measure.Room((PAGE - 1, "/app"))
    )
    with pytest.raises(ActionError, match="/app would be pushed over"):
        swapin_file.apply(STEP, machine, Guard())
    asked = replace(
        STEP,
        over_limit=("/app",),
        aim=SwappedFileTarget(TMPFS, memcg_id=1 << 60, memcg_path="/app"),
    )
    with pytest.raises(ActionError, match="gone"):
        swapin_file.apply(asked, machine, Guard())


def test_a_cgroup_whose_maker_was_killed_is_removed(tmp_path: Path) -> None:
    """Lost: the promise that nothing stays behind, for cgroups below others."""
    mount = Mount(1, "0:26", "/", str(tmp_path), "cgroup2", frozenset(), frozenset())
    machine = replace(read_machine(), cgroup1=None, cgroup2=mount)
    ours, alive = f"memcgctl.{1 << 30}", f"memcgctl.{os.getpid()}"
    for name in (ours, alive, "memcgctl.slice"):
        (tmp_path / "app" / name).mkdir(parents=True)
    with pytest.raises(ActionError, match="it is gone"):
        swapin_file.apply(STEP, machine, Guard())
    assert {path.name for path in (tmp_path / "app").iterdir()} == {
        alive,
        "memcgctl.slice",
    }


def test_if_memory_runs_out_it_is_the_reader_that_dies(tmp_path: Path) -> None:
    """Lost: a process of the user's, to what was to free memory."""
    (tmp_path / "cgroup.procs").touch()
    cpu = str(min(os.sched_getaffinity(0)))
    with subprocess.Popen(
        helper.command("read", "0", str(tmp_path), cpu, str(PAGE)),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    ) as child:
        deadline = time.monotonic() + 20
        scores: set[str] = set()
        while "1000" not in scores and time.monotonic() < deadline:
            time.sleep(0.01)
            below = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text()
            scores = {
                Path(f"/proc/{pid}/oom_score_adj").read_text().strip()
                for pid in below.split()
            }
        assert child.stdin
        child.stdin.close()
    assert scores == {"1000"}
