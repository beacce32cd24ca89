"""What a tired person mistypes, cuts off or may not read gets a clear line."""

from __future__ import annotations

import csv
import io
import os
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from memcgctl.cli import app
from memcgctl.cli.policy import load_policy, parse_size
from memcgctl.kernel.errors import KernelError
from memcgctl.policy.commands import quote
from memcgctl.report.listing import to_csv
from memcgctl.snapshot import CensusError, load, save
from memcgctl.views.find import near
from memcgctl.views.listing import select
from tests.unit.zombies import census, memcg

LOAD = "import sys; from memcgctl.snapshot import load; load(sys.argv[1]); print(1)"
MAIN = "from memcgctl.__main__ import main; main()"


def test_a_census_that_was_cut_off_is_called_truncated(tmp_path: Path) -> None:
    """Lost: that the copy of the file failed, not the snapshot."""
    path = tmp_path / "a.zst"
    save(census(memcg(1, "/")), str(path))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CensusError, match="truncated"):
        load(str(path))


def test_brackets_without_end_are_no_internal_error(tmp_path: Path) -> None:
    """Lost: what is wrong with the policy file."""
    path = tmp_path / "deep.toml"
    path.write_text("x=" + "[" * 5000)
    with pytest.raises(typer.BadParameter, match="not TOML"):
        load_policy(str(path))


def test_a_size_of_a_thousand_digits_is_no_size() -> None:
    """Lost: a clear line, to one about Python's integers."""
    with pytest.raises(typer.BadParameter, match="is no size"):
        parse_size("9" * 5000)


def test_none_is_similar_for_having_no_private_id() -> None:
    """Lost: the ids that are similar, among all memcgs that have none."""
    others = census(memcg(2, "/a", private_id=0), memcg(3, "/b", private_id=12))
    assert [found.id for found in near(others, "memcg:1")] == [3]


def test_a_named_pipe_is_no_census_but_a_shells_is(tmp_path: Path) -> None:
    """The command would wait for ever for somebody to write."""
    named = tmp_path / "fifo"
    os.mkfifo(named)

    def write_nothing() -> None:  # lest the test waits for ever, too
        with suppress(OSError):
            os.close(os.open(named, os.O_WRONLY | os.O_NONBLOCK))

    late = threading.Timer(5, write_nothing)
    late.start()
    with pytest.raises(CensusError, match="fifo: not a regular file"):
        load(str(named))
    late.cancel()
    path = tmp_path / "census"
    save(census(memcg(1, "/")), str(path))
    shell = subprocess.run(
        ["bash", "-c", '"$0" -c "$1" <(cat "$2")', sys.executable, LOAD, path],
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert shell.stdout == b"1\n", shell.stderr


@pytest.mark.parametrize("option", ["--core", "--census"])
def test_a_file_that_may_not_be_read_is_no_wrong_usage(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lost: exit code 3, which a script waits for: Typer would look first and say 2."""
    (tmp_path / "file").touch()
    monkeypatch.setattr("os.access", lambda *_, **__: False)
    done = CliRunner().invoke(app, ["list", option, str(tmp_path / "file")])
    assert isinstance(done.exception, KernelError)


def test_help_on_a_full_disk_is_one_clear_line() -> None:
    """Lost: the reason, behind "internal error"."""
    with open("/dev/full", "w") as full:
        words = [sys.executable, "-c", MAIN, "--help"]
        done = subprocess.run(
            words, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60
        )
    assert done.returncode == 1
    assert "error: cannot write the output: No space left" in done.stderr
    assert "internal" not in done.stderr


def test_names_are_utf_8_whatever_the_locale(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lost: commands that meet the file; in an ISO-8859-1 locale they met another."""
    monkeypatch.setattr("os.fsencode", lambda text: text.encode("latin-1"))
    said = r"""$(printf 'gro\303\237\345\206\205\377')"""
    assert quote("gro\u00df\u5185\udcff") == f'"{said}"'


def test_a_name_with_a_carriage_return_stays_one_row_of_csv() -> None:
    """Lost: all rows after it; such a name was two rows to who reads the CSV."""
    names = ["/a\rb", "/c\nd", '/e"f', "/g,h", "/i"]
    taken = census(*(memcg(10 + n, name) for n, name in enumerate(names)))
    text = to_csv(select(taken, sort="id")).decode()
    rows = csv.DictReader(io.StringIO(text, newline=""))
    assert [row["path"] for row in rows] == names
    assert "\r\n" not in text
