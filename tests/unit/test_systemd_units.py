"""The units that run memcgctl unattended, against systemd's own judgement of them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from memcgctl.actions.host.machine import CAPABILITIES
from memcgctl.cli.systemd_units import UNITS, quoted

MAIN = """
import sys
sys.argv[0] = {program!r}
from memcgctl.__main__ import main
main()
"""
# What systemd 252 gives them, 0.1 being its unit: reading a kernel and freeing others'
# memory takes much of root.
EXPOSURE = 29


def run(*arguments: str, program: Path) -> subprocess.CompletedProcess[str]:
    code = MAIN.format(program=str(program))
    return subprocess.run(
        [sys.executable, "-c", code, "systemd-units", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A console script in a directory whose name systemd would read otherwise."""
    path = tmp_path / "50% of $HOME; %n" / "memcgctl"
    path.parent.mkdir()
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def directory(tmp_path: Path, program: Path) -> Path:
    directory = tmp_path / "units"
    directory.mkdir()
    ran = run("--directory", str(directory), program=program)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert sorted(os.listdir(directory)) == sorted(UNITS)
    return directory


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    if not shutil.which("systemd-analyze"):
        why = "the units cannot be checked without systemd-analyze"
        pytest.fail(why) if os.environ.get("CI") == "true" else pytest.skip(why)
    return subprocess.run(
        ["systemd-analyze", *arguments], capture_output=True, text=True, timeout=60
    )


def test_systemd_understands_them(directory: Path) -> None:
    """A person would enable a timer that starts nothing, or less hardened than said."""
    ran = analyze("verify", "--man=no", *(directory / name for name in UNITS))
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


def test_no_less_hardened_than_it_was(directory: Path) -> None:
    """A line lost from the service would leave it more of root than it needs."""
    ran = analyze(
        *("security", "--offline=true", "--no-pager", f"--threshold={EXPOSURE}"),
        directory / "memcgctl.service",
    )
    assert ran.returncode == 0, ran.stdout.splitlines()[-1]


def test_the_service_has_the_capabilities_that_actions_ask_for(
    directory: Path,
) -> None:
    """Unattended, an action would be refused each time, and nobody would look."""
    lines = (directory / "memcgctl.service").read_text().splitlines()
    given = {
        name
        for line in lines
        if line.startswith("CapabilityBoundingSet=")
        for name in line.partition("=")[2].split()
    }
    # CAP_SYS_ADMIN is accepted for it everywhere: checkpoint_restore_ns_capable.
    needed = set(CAPABILITIES) - {"checkpoint_restore"}
    assert given >= {f"CAP_{name.upper()}" for name in needed}
    explained = {line.split()[1] for line in lines if line.startswith("# CAP_")}
    assert given == explained


def test_on_a_screen_they_are_told_apart(program: Path) -> None:
    """A person could not tell where one unit ends and the next begins."""
    ran = run(program=program)
    assert ran.returncode == 0
    heads = [line for line in ran.stdout.splitlines() if line[2:] in UNITS]
    assert heads == [f"# {name}" for name in UNITS]
    assert f"ExecStart={quoted(str(program))} reclaim --yes --quiet" in ran.stdout


def test_a_directory_that_is_not_there(tmp_path: Path, program: Path) -> None:
    """A person would get a traceback for a mistyped directory."""
    ran = run("--directory", str(tmp_path / "nowhere"), program=program)
    assert ran.returncode == 1
    assert ran.stderr.startswith("memcgctl: error: cannot write ")
    assert len(ran.stderr.splitlines()) == 1


def test_a_program_that_systemd_would_refuse(tmp_path: Path) -> None:
    """A person would learn at the first start, or never, that the unit is void."""
    program = tmp_path / "it's" / "memcgctl"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    ran = run(program=program)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.startswith("memcgctl: error: systemd starts no program")


def test_a_script_of_another_name_is_not_started(tmp_path: Path) -> None:
    """The timer would start pytest, or whatever else imported memcgctl."""
    ran = run(program=tmp_path / "other")
    line = next(x for x in ran.stdout.splitlines() if x.startswith("ExecStart="))
    assert line.split()[0].endswith("/memcgctl")
