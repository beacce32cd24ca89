"""Journals as reclaim writes them, and as a crash or a full disk leaves them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from memcgctl.actions.run.history import read_history
from memcgctl.actions.run.journal import Journal
from memcgctl.model import History, PastRun
from memcgctl.report.journal import screen, to_json
from tests.schemas import read

MAIN = "from memcgctl.__main__ import main; main()"


def facts(n: int, target: str = "/var/log/x") -> dict[str, Any]:
    return {
        "n": n,
        "action": "fadvise",
        "target": target,
        "command": "dd",
        "memcgs": [7],
        "bytes": 4096,
    }


def run(path: Path, *, killed: bool = False, target: str = "/var/log/x") -> None:
    """A run of three steps with the events of ``executor``; or killed in its third."""
    with Journal(path) as journal:
        journal.write("begin", pid=42, policy="least-harm", release="6.12.0", steps=4)
        journal.write("before", **facts(1, target))
        journal.write(
            "after",
            **facts(1, target),
            status="done",
            why="",
            moved_bytes=8192,
            seconds=0.25,
        )
        journal.write("skipped", **facts(2), why="what it serves is gone already")
        journal.write("before", **facts(3))
        if killed:
            return
        journal.write(
            "after",
            **facts(3),
            status="part",
            why="4096 bytes stay in memory",
            moved_bytes=None,
            seconds=0.0,
        )
        journal.write(
            "end",
            stopped="stopped by SIGTERM",
            moved_bytes=8192,
            freed=[7, 8],
            left=[9],
        )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state/journal"


def plain(history: History, **how: Any) -> str:
    return screen(history, **how).plain


def command(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", MAIN, "journal", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "COLUMNS": "80", **environ},
    )


def test_a_run_as_it_was(path: Path) -> None:
    """A person could not tell what was done to the machine last night."""
    run(path)
    history = read_history(path)
    (past,) = history.runs
    assert history.damaged == 0
    assert (past.pid, past.policy, past.planned) == (42, "least-harm", 4)
    assert (past.ended, past.stopped) == (True, "stopped by SIGTERM")
    assert (past.moved_bytes, past.freed, past.left) == (8192, 2, 1)
    assert [(step.n, step.status) for step in past.steps] == [
        (1, "done"),
        (2, "skipped"),
        (3, "part"),
    ]
    assert (past.steps[0].moved_bytes, past.steps[0].seconds) == (8192, 0.25)
    text = " ".join(screen(history, 1).plain.split())
    assert "1. fadvise /var/log/x: done, 8.0 KiB moved, 0.2 s" in text
    assert "3 steps of 4, 8.0 KiB moved; 2 zombies freed, 1 left" in text
    assert "Stopped before the end: stopped by SIGTERM." in text


def test_a_run_that_was_killed(path: Path) -> None:
    """A person would not learn in which step a run was killed."""
    run(path, killed=True)
    (past,) = read_history(path).runs
    assert not past.ended
    assert past.steps[-1].status == "unfinished"
    text = " ".join(screen(read_history(path), 1).plain.split())
    assert "3. fadvise /var/log/x: no end: killed in it" in text
    assert "without an end: 1." in text


def test_cut_off_at_any_byte(path: Path) -> None:
    """A crash would take the journal with it, or what was whole of it."""
    run(path)
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        history = read_history(path)
        rest = whole[:size].rpartition(b"\n")[2]
        # The last line is whole when only its end is missing.
        torn = bool(rest) and whole[size : size + 1] != b"\n"
        assert history.damaged == torn
        entries = whole[:size].count(b"\n") + (bool(rest) and not torn)
        assert len(history.runs) == (entries > 0)
        plain(history)


def test_a_run_after_a_line_without_an_end(path: Path) -> None:
    """The run after a crash would lose its beginning to the line before it."""
    run(path, killed=True)
    path.write_bytes(path.read_bytes()[:-40])
    run(path)
    history = read_history(path)
    first, second = history.runs
    assert (history.damaged, first.ended, second.ended) == (1, False, True)
    assert (second.pid, second.policy) == (42, "least-harm")
    assert "1 damaged line of it passed over" in plain(history)


def test_the_file_before_is_read_first(path: Path) -> None:
    """A run would lose its beginning when the journal grew too long in it."""
    run(path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.with_name("journal.1").write_bytes(b"".join(lines[:3]))
    path.write_bytes(b"".join(lines[3:]))
    (past,) = read_history(path).runs
    assert (past.pid, len(past.steps), past.ended) == (42, 3, True)


@pytest.mark.parametrize(
    "line",
    [
        "null",
        "[]",
        "{}",
        '{"schema": "memcgctl/journal/2"}',
        "[" * 100_000,
        '{"schema": "memcgctl/journal/1", "n": ' + "9" * 5000 + "}",
        "\x00\xff\xfe",
    ],
)
def test_what_is_no_entry_is_counted(path: Path, line: str) -> None:
    """A person would get a traceback from a journal that somebody edited."""
    run(path)
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    history = read_history(path)
    assert (len(history.runs), history.damaged) == (1, 1)


@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"run": 1, "time": 2, "event": 3},
        {"event": "after", "n": "x", "status": [], "seconds": float("nan")},
        {"event": "after", "moved_bytes": 10**400, "seconds": "soon"},
        {"event": "begin", "pid": [], "steps": {}, "policy": None},
        {"event": "end", "freed": 3, "left": "x", "stopped": 1},
        {"event": "skipped", "action": None, "target": "\x1b[2J[red]\udcff"},
    ],
)
def test_an_entry_of_other_types(path: Path, facts: dict[str, Any]) -> None:
    """A person would get a traceback, or the terminal what a file name says."""
    path.parent.mkdir()
    path.write_text(json.dumps({"schema": "memcgctl/journal/1"} | facts) + "\n")
    history = read_history(path)
    assert len(history.runs) == 1
    assert plain(history).isprintable() or "\x1b" not in plain(history)
    assert read(to_json(history))["damaged"] == 0


def test_what_is_no_file_does_not_hang(tmp_path: Path) -> None:
    """A person would wait for ever on a FIFO."""
    os.mkfifo(tmp_path / "fifo")
    for place in (tmp_path / "fifo", tmp_path, Path("/dev/zero")):
        with pytest.raises(OSError, match=r"."):
            read_history(place)


@pytest.mark.parametrize("width", [80, 40])
def test_it_fits_the_screen(path: Path, width: int) -> None:
    """The terminal would break lines in the middle of words."""
    run(path, target="/var/log/messages of the day and of the night, on and on")
    run(path, killed=True)
    lines = plain(read_history(path), width=width).splitlines()
    assert max(map(len, lines)) <= max(width, len(str(path)) + 2)


def test_the_last_runs_only(path: Path) -> None:
    """A person would scroll through a year to see last night."""
    for _ in range(5):
        run(path)
    history = read_history(path)
    said = read(to_json(history, 2))
    assert (said["schema"], said["omitted"]) == ("memcgctl/runs/1", 3)
    assert [one["run"] for one in said["runs"]] == [
        past.run for past in history.runs[-2:]
    ]
    assert set(said["runs"][0]) == set(PastRun.__dataclass_fields__)
    assert "3 earlier runs, not shown." in plain(history, limit=2)


def test_the_command(path: Path) -> None:
    """A person would have to know where reclaim keeps its journal."""
    home = str(path.parent.parent)
    ran = command(XDG_STATE_HOME=home)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith("0 runs in")
    run(path.parent.parent / "memcgctl/journal")
    ran = command("--limit", "1", XDG_STATE_HOME=home)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "2 zombies freed" in " ".join(ran.stdout.split())
    ran = command("1", XDG_STATE_HOME=home)
    assert "1. fadvise /var/log/x: done" in ran.stdout
    ran = command("2", XDG_STATE_HOME=home)
    assert (ran.returncode, ran.stdout) == (2, "")
    ran = command("--json", XDG_STATE_HOME=home)
    assert len(read(ran.stdout)["runs"]) == 1


def test_a_journal_that_is_not_there(tmp_path: Path) -> None:
    """A person would take a mistyped path for a machine where nothing was done."""
    ran = command("--journal", str(tmp_path / "no"))
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.splitlines() == [
        f"memcgctl: error: the journal {tmp_path / 'no'} cannot be read: "
        "No such file or directory"
    ]


@pytest.mark.timeout(30)
def test_a_journal_of_terabytes(path: Path) -> None:
    """A sparse file would take all memory, and the machine with it."""
    run(path)
    whole = path.read_bytes()
    with path.open("r+b") as file:
        file.truncate(1 << 40)
        file.seek(1 << 40)
        file.write(b"\n" + whole)
    history = read_history(path)
    assert len(history.runs) == 1
    assert history.unread_bytes > 1 << 39
    assert history.damaged
    assert f"{history.unread_bytes:,} bytes before were not read" in plain(history)
    assert json.loads(to_json(history))["unread_bytes"] == history.unread_bytes
