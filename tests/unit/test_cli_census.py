"""explain, audit and list as a shell sees them, on a saved census."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from memcgctl.model import Census, Charges
from memcgctl.snapshot import save
from tests.schemas import read
from tests.unit.zombies import METADATA, census, group, held, memcg

MAIN = "from memcgctl.__main__ import main; main()"
ROOT = memcg(1, "/", state="online", parent_id=0, refs=None)
FOLIO = memcg(
    20,
    "/pods/7",
    charges=Charges(file_bytes=4096, file_folios=1),
    **held(("folio", 1, ""), groups=(group(backing=METADATA),)),
)
AGAIN = memcg(30, "/pods/7", **held(("stock", 1, "CPU 1")))
LEAK = memcg(40, "/\x1b[31mleak", **held(("stock", 1, "CPU 1"), unexplained=2))


def run(*arguments: str | Path) -> Any:
    return subprocess.run(
        [sys.executable, "-c", MAIN, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "COLUMNS": "80"},
    )


def saved(path: Path, *memcgs: Any, **changes: Any) -> Path:
    made: Census = census(*memcgs, **changes)
    save(made, str(path / "census.json.zst"))
    return path / "census.json.zst"


def test_list_without_a_scan_shows_no_charges(tmp_path: Path) -> None:
    """A person would compare a list of a saved census with one that lacks charges."""
    done = run("list", "--no-scan", "--json", "--census", saved(tmp_path, ROOT, FOLIO))
    assert done.returncode == 0, done.stderr
    (row,) = read(done.stdout)["memcgs"]
    assert row["id"] == 20
    assert row["charged"] is row["swap"] is None


@pytest.mark.parametrize("text", ["20", "0xffff888000014000"])
def test_explain_begins_with_the_verdict(tmp_path: Path, text: str) -> None:
    """A person at 3 a.m. would read a table instead of a reason."""
    file = saved(tmp_path, ROOT, FOLIO, AGAIN, LEAK, warnings=("raced \x1b[0m",))
    done = run("explain", text, "--census", file)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("/pods/7 (id 20) can be freed by flush-device.")
    assert "\nHeld by 1 folio: filesystem metadata of vda" in done.stdout
    assert done.stderr == "memcgctl: warning: raced \\x1b[0m\n"
    document = read(run("explain", text, "--census", file, "--json").stdout)
    assert document["source"]["kind"] == "census"
    assert document["source"]["path"] == str(file)
    assert document["memcg"]["id"] == 20


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (
            "/pods/7",
            [
                "2 memcgs are '/pods/7'; give the id of one:",
                "  20 offline /pods/7",
                "  30 offline /pods/7",
            ],
        ),
        (
            "/leaks",
            ["no memcg is '/leaks'; similar ones:", r"  40 offline /\x1b[31mleak"],
        ),
        ("7", ["no memcg has id 7"]),
        ("99999", ["no memcg has id 99999"]),
    ],
)
def test_an_unclear_id_is_answered_with_candidates(
    tmp_path: Path, text: str, lines: list[str]
) -> None:
    """A person would get the wrong memcg, or no hint at the right one."""
    done = run("explain", text, "--census", saved(tmp_path, ROOT, FOLIO, AGAIN, LEAK))
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [f"memcgctl: {line}" for line in lines]


def test_memcgs_of_one_cgroup_are_offered_by_address(tmp_path: Path) -> None:
    """The memory controller came and went: to give the id would lead nowhere."""
    again = memcg(20, "/pods/7", address=0xFFFF8880000DEF00, private_id=12)
    file = saved(tmp_path, ROOT, FOLIO, again)
    done = run("explain", "20", "--census", file)
    assert done.stderr.splitlines() == [
        "memcgctl: 2 memcgs are '20'; give the address of one:",
        "memcgctl:   0xffff888000014000 20 offline /pods/7",
        "memcgctl:   0xffff8880000def00 (memcg:12) 20 offline /pods/7",
    ]
    assert run("explain", "memcg:12", "--census", file).returncode == 0


def test_what_was_matched_is_said(tmp_path: Path) -> None:
    """Another memcg than was meant would be explained, and nobody would notice."""
    done = run("explain", "leak", "--census", saved(tmp_path, ROOT, FOLIO, LEAK))
    assert done.returncode == 0
    assert done.stderr == "memcgctl: /\\x1b[31mleak (id 40) has 'leak' in it\n"


@pytest.mark.parametrize(
    ("under", "code", "shown", "said"),
    [
        *[
            (text, 0, 0, f"none of 2 offline memcgs is at or below '{text}'{hint}\n")
            for text, hint in (
                *[("nightly", "; 1 at or below '*nightly*'"), ("other", "")],
                ("/sys/fs/cgroup/other", ""),
            )
        ],
        ("7544", 2, None, "no memcg has id 7544\n"),
        ("50", 0, 1, ""),
        ("nightly-backup.service", 0, 1, ""),
        ("/sys/fs/cgroup/system.slice", 0, 1, ""),
    ],
)
def test_a_list_that_nothing_matches(
    tmp_path: Path, under: str, code: int, shown: int | None, said: str
) -> None:
    """A person would read that there are no zombies at all."""
    backup = memcg(50, "/system.slice/nightly-backup.service")
    file = saved(tmp_path, LEAK, backup)
    done = run("list", "--json", "--under", under, "--census", file)
    assert done.returncode == code
    assert done.stderr == (f"memcgctl: {said}" if said else "")
    if shown is not None:
        assert read(done.stdout)["totals"]["offline"] == shown


def test_candidates_are_bounded(tmp_path: Path) -> None:
    """3,000 candidates would scroll the question away."""
    file = saved(
        tmp_path, *(memcg(number, f"/pod{number}") for number in range(1, 100))
    )
    done = run("explain", "pod", "--census", file)
    assert len(done.stderr.splitlines()) == 22
    assert done.stderr.endswith("memcgctl:   and 79 more\n")


def test_audit_tells_by_its_exit_code(tmp_path: Path) -> None:
    """A monitor would have to read the table."""
    fine = run("audit", "--census", saved(tmp_path, ROOT, FOLIO, AGAIN))
    assert (fine.returncode, fine.stderr) == (0, "")
    assert fine.stdout.startswith("2 offline memcgs, 2 references: all of them acc")
    for leak in (LEAK, memcg(refs=1), memcg(**held(unexplained=-1))):
        file = saved(tmp_path, ROOT, FOLIO, leak)
        assert run("audit", "--census", file).returncode == 4
        done = run("audit", "--census", file, "--json")
        assert done.returncode == 4
        assert read(done.stdout)["schema"] == "memcgctl/audit/1"


def test_list_reads_a_saved_census(tmp_path: Path) -> None:
    """Who sends a census could not be answered with a list."""
    done = run("list", "--json", "--census", saved(tmp_path, ROOT, FOLIO, AGAIN, LEAK))
    assert done.returncode == 0, done.stderr
    assert read(done.stdout)["totals"]["offline"] == 3


@pytest.mark.parametrize(
    "command", [["list"], ["audit"], ["explain", "1"]], ids=lambda command: command[0]
)
def test_a_census_excludes_a_kernel(tmp_path: Path, command: list[str]) -> None:
    """A person would read one kernel's zombies as another's."""
    file = saved(tmp_path, ROOT)
    done = run(*command, "--census", file, "--vmcoreinfo", "/x")
    assert done.returncode == 2
    assert "--census" in done.stderr
    assert run("explain", "1", "--folios", "--census", file).returncode == 2
    file.write_text("{}")
    done = run(*command, "--census", file)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith(f"memcgctl: error: {file}: not a saved census")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["explain"], 2),
        (["snapshot"], 2),
        (["snapshot", "-o", "x", "--core", "/no/such/core"], 3),
        (["explain", "1", "--core", "/no/such/core"], 3),
        (["audit", "--core", "/no/such/core"], 3),
    ],
)
def test_exit_codes(arguments: list[str], code: int) -> None:
    """A script could not tell its own mistake from a broken core."""
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert "Traceback" not in done.stderr


def test_several_are_explained_in_one_go(tmp_path: Path) -> None:
    """Lost: ten zombies of one pod, and a scan of all memory for each."""
    file = saved(tmp_path, ROOT, FOLIO, LEAK)
    done = run("explain", "20", "40", "20", "--census", file)
    assert done.returncode == 0
    verdicts = [line for line in done.stdout.splitlines() if ", offline)" in line]
    assert [line.partition("(id ")[2][:2] for line in verdicts] == ["20", "40"]
    written = run("explain", "20", "40", "--census", file, "--json").stdout
    decoder, ids = json.JSONDecoder(), []
    while written := written.strip():
        document, end = decoder.raw_decode(written)
        ids.append(read(document)["memcg"]["id"])
        written = written[end:]
    assert ids == [20, 40]
    missing = run("explain", "20", "7777", "--census", file)
    assert (missing.returncode, missing.stdout) == (2, "")
