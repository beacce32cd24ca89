"""The program as a shell sees it: help, exit codes, messages, signals, pipes."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

MAIN = "from memcgctl.__main__ import main; main()"
# A census is not needed here: one more command that does what the test wants.
COMMAND = """
import sys, time
from memcgctl.__main__ import main
from memcgctl.cli import app
from memcgctl.cli.terminal import progress_bar, say, write
@app.command("try")
def attempt() -> None:
{body}
main()
"""


def run(*arguments: str, code: str = MAIN, **environ: str) -> Any:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        encoding=environ.get("PYTHONIOENCODING", "utf-8"),
        timeout=60,
        env={**os.environ, "COLUMNS": "80", **environ},
    )


def trying(body: str) -> str:
    return COMMAND.format(body=textwrap.indent(textwrap.dedent(body), "    "))


@pytest.mark.parametrize(
    ("arguments", "environ", "shown"),
    [
        (["--help"], {}, "--version"),
        (["list", "--help"], {}, "--group-by"),
        (["--version"], {}, "memcgctl 0"),
        (
            [],
            {
                "_MEMCGCTL_COMPLETE": "complete_bash",
                "COMP_WORDS": "memcgctl l",
                "COMP_CWORD": "1",
            },
            "list",
        ),
        (
            [],
            {
                "_MEMCGCTL_COMPLETE": "complete_zsh",
                "_TYPER_COMPLETE_ARGS": "memcgctl list --sort sh",
            },
            "shmem",
        ),
    ],
)
def test_help_and_completion_are_light(
    arguments: list[str], environ: dict[str, str], shown: str
) -> None:
    """Each press of Tab would load drgn and NumPy."""
    code = (
        "import atexit, sys; sys.argv[0] = 'memcgctl'\n"
        "atexit.register(lambda: print({'drgn', 'numpy'} & {*sys.modules}))\n" + MAIN
    )
    done = run(*arguments, code=code, **environ)
    assert done.returncode == 0, done.stderr
    assert shown in done.stdout
    assert done.stdout.splitlines()[-1] == "set()"


@pytest.mark.parametrize(
    "arguments",
    [
        ["list", "--sort", "colour"],
        ["list", "--limit", "-1"],
        ["list", "--json", "--csv"],
        ["list", "--group-by", "parent"],
        ["list", "--group-by", "ancestor", "--all"],
        ["list", "--group-by", "ancestor", "--sort", "refs"],
        ["list", "--sort", "memcgs"],
        ["list", "/core"],
        ["lost"],
    ],
)
def test_wrong_usage_exits_2(arguments: list[str]) -> None:
    """A script could not tell its own mistake from a broken core."""
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Error" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_core_that_is_not_there_exits_3(tmp_path: Path) -> None:
    """A person would get a traceback for a typing mistake."""
    done = run("list", "--core", str(tmp_path / "no\x1bcore"))
    assert done.returncode == 3
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("memcgctl: error: ")
    assert r"no\x1bcore" in line


def test_an_internal_error_is_one_line() -> None:
    """A traceback tells a person nothing; with MEMCGCTL_DEBUG it tells us all."""
    code = trying("1 / 0")
    done = run("try", code=code)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("memcgctl: internal error: ZeroDivisionError: ")
    assert line.endswith("; set MEMCGCTL_DEBUG=1 for a traceback")
    debugged = run("try", code=code, MEMCGCTL_DEBUG="1")
    assert debugged.returncode == 1
    assert "Traceback" in debugged.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_quietly(number: int) -> None:
    """Ctrl-C would end in a traceback, or leave temporary files behind."""
    code = trying(
        """
        try:
            write("ready")
            time.sleep(60)
        finally:
            say("cleaned up")
        """
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, "try"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        assert process.stdout.read(5) == "ready"
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert errors == "memcgctl: cleaned up\n"


def test_signals_are_heeded_before_slow_imports() -> None:
    """Ctrl-C in the first tenths of a second would end in a traceback."""
    code = """
        import sys
        import memcgctl.__main__
        print({"typer", "numpy", "drgn"} & sys.modules.keys())
    """
    assert run(code=textwrap.dedent(code)).stdout == "set()\n"


@pytest.mark.parametrize("data", ["'x' * 10**6", "b'x' * 10**6", "'x'"])
def test_a_reader_may_leave(data: str) -> None:
    """``memcgctl list | head -1`` would end in a traceback."""
    with subprocess.Popen(
        [sys.executable, "-c", trying(f"sys.stdin.read(); write({data})"), "try"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        process.stdin.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_a_full_disk_is_an_error() -> None:
    """A script would go on with half a listing."""
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", trying("write('x')"), "try"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 1
    assert done.stderr == (
        "memcgctl: error: cannot write the output: No space left on device\n"
    )


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_name_on_any_terminal(encoding: str) -> None:
    """One hostile name would keep all others from being listed."""
    code = trying(
        r"""
        from memcgctl.views.listing import select
        from memcgctl.report.listing import screen
        from tests.unit.zombies import census, memcg
        names = ["/漢字\u202e\x1b[2J\n\udcff[b]\u05d0" * 9, "/é", "/\U0001f600"]
        listing = select(census(*(memcg(9, name) for name in names)))
        write(screen(listing, encoding=sys.stdout.encoding))
        say(f"warning: {names[0]}")
        """
    )
    done = run("try", code=code, PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 8
    assert len(done.stderr.splitlines()) == 1
    assert "\x1b" not in done.stdout + done.stderr


def progress(seconds: float, then: str = "") -> bytes:
    """What a scan of this length shows on a stderr that is a terminal."""
    body = f"""
        with progress_bar() as report:
            begin = time.monotonic()
            while time.monotonic() - begin < {seconds}:
                report("scanning the memory map", 1, 2)
                time.sleep(0.01)
            {then}
    """
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", trying(body), "try"],
        stdout=subprocess.PIPE,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "80"},
    ) as process:
        os.close(theirs)
        seen = b""
        try:
            while data := os.read(ours, 4096):
                seen += data
        except OSError:  # the terminal's other end is closed
            pass
        os.close(ours)
        assert process.stdout
        assert process.stdout.read() == b""
    assert process.returncode == 0
    return seen


def test_a_long_scan_shows_its_progress() -> None:
    """A person would think that it hangs; a short scan should not flicker."""
    assert b"scanning the memory map" in progress(1.5)
    assert progress(0.2) == b""


def test_no_bar_while_a_question_is_asked() -> None:
    """A bar that is drawn ten times a second would hide what is typed."""
    seen = progress(1.2, 'report("", 0, 0); print("?", file=sys.stderr); time.sleep(1)')
    assert b"scanning the memory map" in seen
    assert seen.rpartition(b"?")[2] == b"\r\n"


def test_no_progress_in_a_log() -> None:
    """A cron job's mail would be full of bars."""
    begin = time.monotonic()
    body = """
        with progress_bar() as report:
            time.sleep(1.1)
            report("scanning", 1, 2)
    """
    done = run("try", code=trying(body))
    assert time.monotonic() - begin > 1
    assert (done.stdout, done.stderr) == ("", "")
