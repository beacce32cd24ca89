"""The commands of a plan work as they stand, whatever the names in them are."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from memcgctl.policy import commands
from memcgctl.policy.interfaces import (
    charge_on_cpu,
    drop_caches,
    fadvise,
    flush_device,
    force_empty,
    memory_reclaim,
    writeback_cleanup,
)
from memcgctl.policy.plan import plan
from memcgctl.policy.policies import POLICIES
from memcgctl.report.summary import script
from tests.unit.plans import FILE, world, zombie
from tests.unit.zombies import group

BASH = shutil.which("bash")
needs_bash = pytest.mark.skipif(BASH is None, reason="bash is not here")

NASTY = [
    *("plain", "with space", "quo'te", 'dou"ble', "$(reboot)", "`reboot`", "a;b", "*"),
    *("-rf", "back\\slash", "new\nline", "\x1b[2J", "größe 内存", "\udcff\udc80", "~"),
]


def bash(command: str) -> bytes:
    assert BASH
    ran = subprocess.run([BASH, "-c", command], capture_output=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, b"")
    return ran.stdout


# What a shell may make something of, beside any byte.
SPECIAL = st.sampled_from([*b"'\"\\$`%-(); \n", 0xC3])
NAMES = st.lists(SPECIAL | st.integers(1, 255), min_size=1, max_size=9).map(bytes)
SHELLS = [shell for shell in map(shutil.which, ("bash", "dash", "zsh")) if shell]
BUSYBOX = [f"{shell} sh" for shell in [shutil.which("busybox")] if shell]


@settings(deadline=None, max_examples=200)
@given(NAMES)
@example("é'; echo pwned; '".encode())
@example("é\n'; echo pwned; '\n".encode())
@example(b"\xff%s$(echo pwned)")
def test_a_name_of_any_bytes_is_one_word(name: bytes) -> None:
    """Lost: a root shell to whoever names a file: reclaim --commands is a sh script."""
    word = commands.quote(os.fsdecode(name))
    assert word.isascii()
    assert word.isprintable()
    for shell in SHELLS + BUSYBOX:
        script = f"printf '<%s>' {word}"
        argv = [*shell.split(), "-c", script]
        ran = subprocess.run(argv, capture_output=True, check=False)
        assert (ran.returncode, ran.stderr) == (0, b""), shell
        if name.endswith(b"\n") and "dash" in shell:  # another name, and no more
            assert ran.stdout == b"<$" + word[2:-1].encode() + b">"
        else:
            assert ran.stdout == b"<" + name + b">", shell


@needs_bash
@pytest.mark.parametrize("name", NASTY)
@pytest.mark.parametrize("dirty", [False, True])
def test_a_file_is_forgotten_and_stays_as_it_is(
    tmp_path: Path, name: str, dirty: bool
) -> None:
    """Lost: the file, if the command truncates it; or the step, if it fails."""
    path = tmp_path / name
    path.write_bytes(b"content")
    bash(fadvise.command(commands.quote(str(path)), dirty=dirty))
    assert path.read_bytes() == b"content"


@pytest.fixture
def user(tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """The pid of a process that has a file open, which is unlinked afterwards."""
    path = tmp_path / "open"
    path.write_bytes(b"\1" * 8192)
    script = f"f=open({str(path)!r},'r+b');print(1,flush=True);input()"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout
        child.stdout.readline()
        yield child.pid, path
        child.kill()


@needs_bash
def test_a_deleted_file_is_found_by_who_has_it_open(user: tuple[int, Path]) -> None:
    """Lost: deleted files, which no path leads to."""
    pid, path = user
    inode = path.stat().st_ino
    path.unlink()
    word = commands.file_of(pid, inode)
    assert bash(f"cat {word}") == b"\1" * 8192
    bash(fadvise.command(word, dirty=True))


@needs_bash
@pytest.mark.parametrize(
    "command",
    [
        writeback_cleanup.command("/sys/fs/cgroup"),
        charge_on_cpu.command(3, "/sys/fs/cgroup/memory"),
        flush_device.command("sda 1"),
        memory_reclaim.command("/sys/fs/cgroup/a b", 4096),
        force_empty.command("/sys/fs/cgroup/memory/$x"),
        drop_caches.command(),
    ],
)
def test_the_shell_can_parse_every_command(command: str) -> None:
    """Lost: the step, to a quote too many."""
    assert BASH
    subprocess.run([BASH, "-n", "-c", command], check=True)


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    "command", [writeback_cleanup.command, lambda _: drop_caches.command()]
)
def test_a_command_waits_for_disks_alone(
    tmp_path: Path, shell: str, command: Callable[[str], str]
) -> None:
    """A person's shell would hang in sync until a file server answers again."""
    at = str(tmp_path)
    table = (
        ("8:1", f"{at}/disk", "ext4"),
        ("8:1", f"{at}/again\\040with\\011blanks", "ext4"),
        ("0:30", f"{at}/pool", "btrfs"),
        ("0:40", f"{at}/server", "nfs4"),
        ("8:2", f"{at}/ntfs", "fuseblk"),
        ("0:41", f"{at}/tmp", "tmpfs"),
        ("8:3", f"{at}/under", "xfs"),
        ("0:42", f"{at}/under", "nfs4"),
    )
    (tmp_path / "mountinfo").write_text(
        "".join(
            f"9 1 {n} / {point} rw shared:1 - {fs} x rw\n" for n, point, fs in table
        )
    )
    sync = tmp_path / "bin/sync"
    sync.parent.mkdir()
    sync.write_text(f'#!/bin/sh\nprintf "%s|" "$@" >> {at}/synced\n')
    sync.chmod(0o755)
    typed = command(at).replace("/proc/self/mountinfo", f"{at}/mountinfo")
    typed = typed.replace("/proc/sys/vm/drop_caches", f"{at}/drop_caches")
    path = f"{sync.parent}:{os.environ['PATH']}"
    ran = subprocess.run(
        [shell, "-c", typed], env={"PATH": path}, capture_output=True, check=True
    )
    assert ran.stderr == b""
    words = (tmp_path / "synced").read_text().split("|")[:-1]
    assert words[::2] == ["-f"] * 3
    names = {os.path.relpath(word, at) for word in words[1::2]}
    assert names == {"disk", "again with\tblanks", "pool"}
    assert not list(tmp_path.glob("memcgctl.*"))


@needs_bash
def test_what_a_process_has_open_is_not_walked_through(tmp_path: Path) -> None:
    """Lost: an hour, and any file of that number, if it has the root directory open."""
    (tmp_path / "deep").mkdir()
    below = tmp_path / "deep/file"
    below.write_bytes(b"another")
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        word = commands.file_of(os.getpid(), below.stat().st_ino)
        assert bash(f"printf %s {word}") == b""
    finally:
        os.close(fd)


@needs_bash
def test_nothing_is_written_where_no_cgroup_can_be_made(tmp_path: Path) -> None:
    """Lost: a file named cgroup.procs in the root directory, of all places."""
    assert BASH
    command = charge_on_cpu.command(0, str(tmp_path / "none"))
    ran = subprocess.run([BASH, "-xc", command], capture_output=True, check=False)
    assert ran.returncode
    assert b"taskset" not in ran.stderr


HOSTILE = "/mnt/é'; touch pwned; '$(touch pwned)`touch pwned`\n; touch pwned #"


@pytest.mark.parametrize("shell", SHELLS)
def test_a_script_runs_nothing_that_a_name_says(tmp_path: Path, shell: str) -> None:
    """Lost: the machine, to whoever sends a census with a file of such a name."""
    file = replace(FILE, path=HOSTILE)
    held = zombie(100, group(backing=file), path=f"/app{HOSTILE}")
    text = script(plan(world(held), POLICIES["least-harm"]))
    assert "dd if=" in text
    (tmp_path / "script").write_text(text)
    for name in ("dd", "sync", "awk", "memcgctl", "rmdir", "mktemp"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    where = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    subprocess.run(
        [shell, "script"], cwd=tmp_path, env=where, check=True, capture_output=True
    )
    assert not (tmp_path / "pwned").exists()
