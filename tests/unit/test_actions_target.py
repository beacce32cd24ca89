"""Files, processes and cgroups told by what they are, on the machine of the test."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from memcgctl.actions.host import target
from memcgctl.actions.host.machine import ActionError, Machine, Mount, read_machine
from memcgctl.model import Backing, Process


@pytest.fixture(scope="module")
def machine() -> Machine:
    return read_machine()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "file"
    file.write_bytes(b"the one")
    return file


def backing(path: Path, machine: Machine) -> Backing:
    fd = os.open(path, os.O_RDONLY)
    found, generation = os.fstat(fd), target.generation(fd)
    os.close(fd)
    device = f"{os.major(found.st_dev)}:{os.minor(found.st_dev)}"
    kinds = [mount.fs for mount in machine.mounts if mount.device == device]
    return Backing(
        kind="file",
        fs=kinds[0] if kinds else "?",
        device=device,
        inode=found.st_ino,
        generation=generation or 0,
        path=str(path),
        container_path=None,
        deleted=False,
        size_bytes=found.st_size,
    )


def process(pid: int, machine: Machine) -> Process:
    start = target.start_ticks(pid, machine.proc)
    assert start is not None
    return Process(pid, "test", "/", 1, 0, start)


def contents(file: Backing, machine: Machine, *processes: Process) -> bytes:
    with target.open_file(file, processes, machine) as fd:
        return os.read(fd, 100)


def refused(file: Backing, machine: Machine, *processes: Process) -> str:
    with (
        pytest.raises(ActionError) as raised,
        target.open_file(file, processes, machine),
    ):
        pass
    return str(raised.value)


def test_by_its_path(path: Path, machine: Machine) -> None:
    """Nothing would ever be done."""
    assert contents(backing(path, machine), machine) == b"the one"


def test_another_file_of_that_name(path: Path, machine: Machine) -> None:
    """Somebody else's file would be written and dropped."""
    meant = backing(path, machine)
    kept = path.rename(path.with_name("kept"))
    path.write_bytes(b"another")
    assert str(path) in refused(replace(meant, device="0:0"), machine)
    with kept.open("rb"):
        us = process(os.getpid(), machine)
        assert contents(meant, machine, us) == b"the one"


def test_a_link_of_that_name(path: Path, machine: Machine) -> None:
    """A user could have root open a file of the user's choice."""
    meant = backing(path, machine)
    path.rename(path.with_name("moved"))
    path.symlink_to(path.with_name("moved"))
    opened: list[int] = []
    for fd in target._candidates(replace(meant, device="0:0"), (), machine, []):
        opened.append(fd)
        assert not target._is(fd, replace(meant, device="0:0"), machine)
        os.close(fd)


LEADERLESS = """
import ctypes, sys, threading, time
file = open(sys.argv[1], "rb")
threading.Thread(target=time.sleep, args=(60,)).start()
print(threading.enumerate()[1].native_id, flush=True)
ctypes.CDLL(None).syscall(ctypes.c_long(60), 0)  # exit, of this thread alone
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the number of exit")
def test_a_process_whose_first_thread_has_ended(path: Path, machine: Machine) -> None:
    """Promised, and then "pid 478 is gone", though its other threads live on."""
    meant = replace(backing(path, machine), deleted=True, path=None)
    with subprocess.Popen(
        [sys.executable, "-c", LEADERLESS, path], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout
        tid = int(child.stdout.readline())
        while Path(f"/proc/{child.pid}/stat").read_text().split()[2] != "Z":
            time.sleep(0.01)
        started = target.start_ticks(child.pid, machine.proc, tid)
        assert started is not None
        theirs = Process(child.pid, "test", "/", 1, 0, started, tid=tid)
        with target.hold(theirs, machine):
            assert target.alive(theirs) == tid
        assert contents(meant, machine, theirs) == b"the one"
        with (
            pytest.raises(ActionError, match="is gone"),
            target.hold(replace(theirs, tid=os.getpid()), machine),
        ):
            pass
        os.kill(child.pid, signal.SIGKILL)


def test_a_deleted_file_by_who_has_it_open(path: Path, machine: Machine) -> None:
    """Zombies of deleted log files would stay until the process ends."""
    meant = replace(backing(path, machine), deleted=True, path=None)
    with path.open("rb"):
        path.unlink()
        us = process(os.getpid(), machine)
        assert contents(meant, machine, us) == b"the one"


def test_another_inode(path: Path, machine: Machine) -> None:
    """A file that was put in its place would pass for it."""
    meant = backing(path, machine)
    refused(replace(meant, inode=meant.inode + (1 << 40)), machine)


def test_another_generation(path: Path, machine: Machine) -> None:
    """An inode number that was used again would pass for the file."""
    meant = backing(path, machine)
    fd = os.open(path, os.O_RDONLY)
    known = target.generation(fd)
    os.close(fd)
    if known is None:
        pytest.skip("this file system tells no generation")
    refused(replace(meant, generation=known ^ 1), machine)


def test_a_subvolume_has_a_device_of_its_own(
    path: Path, machine: Machine, tmp_path: Path
) -> None:
    """On btrfs no file would be found, or one of another file system be taken."""
    meant = backing(path, machine)
    here = tmp_path / "proc/self"
    (here / "fdinfo").mkdir(parents=True)
    (here / "fd").symlink_to("/proc/self/fd")
    (here / "mountinfo").write_text("9 1 0:99 / /nowhere rw - btrfs x rw\n")
    for fd in range(1024):
        (here / f"fdinfo/{fd}").write_text("pos:\t0\nmnt_id:\t9\nino:\t1\n")
    other = replace(machine, proc=here.parent)
    assert contents(replace(meant, device="0:99"), other) == b"the one"
    refused(replace(meant, device="0:98"), other)


@pytest.mark.timeout(20)
def test_a_fifo_is_not_opened(path: Path, machine: Machine) -> None:
    """A FIFO in the file's place would be opened, which wakes its other end."""
    meant = backing(path, machine)
    path.unlink()
    os.mkfifo(path)
    woken = threading.Event()

    def write() -> None:
        os.close(os.open(path, os.O_WRONLY))
        woken.set()

    threading.Thread(target=write, daemon=True).start()
    fd = os.open(path, os.O_PATH)
    found, generation = os.fstat(fd), target.generation(fd)
    os.close(fd)
    fifo = replace(meant, inode=found.st_ino, generation=generation or 0)
    refused(fifo, machine)
    assert not woken.wait(0.3)
    os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as child:
        yield child
        child.kill()


def test_a_process_is_held(sleeper: subprocess.Popen[bytes], machine: Machine) -> None:
    """No process could be acted on."""
    with target.hold(process(sleeper.pid, machine), machine) as pidfd:
        assert pidfd >= 0


def test_a_pid_that_is_another_process(
    sleeper: subprocess.Popen[bytes], machine: Machine
) -> None:
    """The memory of a process that nobody spoke of would be paged out."""
    meant = process(sleeper.pid, machine)
    earlier = replace(meant, start_ticks=meant.start_ticks - 1)
    with (
        pytest.raises(ActionError, match="another process"),
        target.hold(earlier, machine),
    ):
        pass


def test_a_process_that_is_gone(
    sleeper: subprocess.Popen[bytes], machine: Machine
) -> None:
    """A traceback, for a process that ended between plan and step."""
    meant = process(sleeper.pid, machine)
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)  # not reaped yet
    for _ in range(2):
        with pytest.raises(ActionError, match="is gone"), target.hold(meant, machine):
            pass
        sleeper.wait()


def test_the_start_of_a_process_with_a_strange_name(tmp_path: Path) -> None:
    """A process named like "a) S 1" would never be found to be itself."""
    directory = tmp_path / "7"
    directory.mkdir()
    fields = " ".join(str(n) for n in range(4, 40))
    (directory / "stat").write_text(f"7 (a) S 1 2) S {fields}\n")
    machine = replace(read_machine(), proc=tmp_path)
    assert target.start_ticks(7, machine.proc) == 22


def test_another_cgroup_of_that_path(tmp_path: Path, machine: Machine) -> None:
    """A pod that was made again under its old name would be reclaimed from."""
    (tmp_path / "pod").mkdir()
    mount = Mount(1, "0:0", "/", str(tmp_path), "cgroup2", frozenset(), frozenset())
    here = replace(machine, cgroup1=None, cgroup2=mount)
    inode = (tmp_path / "pod").stat().st_ino
    with target.open_cgroup(inode, "/pod", here) as fd:
        assert os.fstat(fd).st_ino == inode
    with (
        pytest.raises(ActionError, match="/pod is another cgroup now"),
        target.open_cgroup(inode + 1, "/pod", here),
    ):
        pass
    with (
        pytest.raises(ActionError, match="/gone is gone"),
        target.open_cgroup(inode, "/gone", here),
    ):
        pass


@pytest.mark.parametrize(
    ("line", "point"),
    [
        ("1 2 8:1 / /mnt/a\\040b rw - ext4 /dev/sda1 rw", "/mnt/a b"),
        ("1 2 8:1 /sub /mnt rw,noatime shared:1 master:2 - ext4 x rw", "/mnt"),
    ],
)
def test_mounts(tmp_path: Path, line: str, point: str) -> None:
    """A file system at a strange place would not be found."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/mountinfo").write_text(f"{line}\nnonsense\n")
    (mount,) = read_machine(proc=tmp_path / "proc", sys=tmp_path / "sys").mounts
    assert (mount.point, mount.device, mount.fs) == (point, "8:1", "ext4")
