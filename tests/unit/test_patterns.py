"""A person's own patterns of cgroup names: what they name, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.schemas import read
from tests.unit.test_cli_census import ROOT, saved
from tests.unit.zombies import memcg

GOOD = r"""
[[workload]]
runtime = "batch"
pattern = 'batch\.slice/job-(?P<session>\d+)'

[[workload]]
runtime = "mine"
pattern = '(?P<name>[a-z]+)-build\.service'
"""


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    code = "from memcgctl.__main__ import main; main()"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_they_come_before_the_known_ones(tmp_path: Path) -> None:
    """Lost: whose a zombie was, at a site that names its jobs by a rule of its own."""
    patterns = tmp_path / "patterns.toml"
    patterns.write_text(GOOD)
    zombies = (
        memcg(20, "/batch.slice/job-412"),
        memcg(30, "/system.slice/kernel-build.service"),
        memcg(40, "/system.slice/cron.service"),
    )
    census = saved(tmp_path, ROOT, *zombies)
    done = run("--patterns", patterns, "list", "--json", "--census", census)
    assert done.returncode == 0, done.stderr
    found = {row["id"]: row["workload"] for row in read(done.stdout)["memcgs"]}
    assert (found[20]["runtime"], found[20]["session"]) == ("batch", "412")
    assert (found[30]["runtime"], found[30]["name"]) == ("mine", "kernel")
    assert (found[30]["unit"], found[40]["runtime"]) == (
        "kernel-build.service",
        "systemd",
    )


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[[workload]", "not TOML"),
        ("x = 1", "has to be a list"),
        ("workload = 3", "has to be a list"),
        ("[[workload]]\nruntime = 'a'", "workload 1: has to have"),
        ("[[workload]]\nruntime = 'a'\npattern = 5", "strings"),
        ("[[workload]]\nruntime = 'a'\npattern = '('", "no regular expression"),
        ("[[workload]]\nruntime = 'a'\npattern = '(x)'", "(?:...)"),
        ("[[workload]]\nruntime = 'a'\npattern = '(?P<id>x)'", "a pattern's groups"),
        ("[[workload]]\nruntime = 'a'\npattern = 'x*'", "would match always"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, text: str, why: str) -> None:
    """Lost: a traceback, or a file that is passed over without a word."""
    patterns = tmp_path / "patterns.toml"
    patterns.write_text(text)
    done = run("--patterns", patterns, "list", "--census", saved(tmp_path, ROOT))
    assert (done.returncode, done.stdout) == (2, "")
    assert why in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    """Lost: names that are not there, since a path was mistyped."""
    for path in (tmp_path, tmp_path / "none"):
        done = run("--patterns", path, "list", "--census", saved(tmp_path, ROOT))
        assert done.returncode == 2
