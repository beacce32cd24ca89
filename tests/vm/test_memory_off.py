"""A kernel that was booted with cgroup_disable=memory says so, live and in a core."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.lab import packages
from tests.lab.guest import Machine
from tests.lab.live import CPU, Ran, boot_with_python, run_in
from tests.vm.test_live import give_up, require_programs

COMMANDS = (("list",), ("explain", "1"), ("reclaim", "--dry-run"))
OFF = "memory cgroups are off (cgroup_disable=memory)"


@pytest.fixture(scope="module")
def played() -> dict[tuple[str, ...], Ran]:
    """What each command said in the guest, and list of its core."""
    require_programs()
    try:
        kernel = packages.get("6.12")
    except packages.PackageError as error:
        give_up(f"no kernel packages: {error}")
    with tempfile.TemporaryDirectory(prefix="memcgctl-lab-") as name:
        core = Path(name, "core")
        machine = Machine(memory="384M", cpu=CPU, cmdline="cgroup_disable=memory")
        with boot_with_python(kernel, machine) as guest:
            guest.sh("mount -t cgroup2 cgroup2 /sys/fs/cgroup")
            said: dict[tuple[str, ...], Ran] = {
                words: run_in(guest, "memcgctl", *words)
                for words in (*COMMANDS, ("doctor",))
            }
            guest.dump(core)
        command = [sys.executable, "-m", "memcgctl", "list", "--core", str(core)]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        said["core",] = Ran(ran.returncode, ran.stdout, ran.stderr)
    return said


@pytest.mark.parametrize("words", [*COMMANDS, ("core",)], ids=" ".join)
def test_each_command_says_that_memory_is_off(
    played: dict[tuple[str, ...], Ran], words: tuple[str, ...]
) -> None:
    """ "No offline memcgs.", and all seems well."""
    ran = played[words]
    assert (ran.status, ran.stdout) == (3, "")
    assert ran.stderr.count("\n") == 1
    assert OFF in ran.stderr


def test_doctor_says_it_first(played: dict[tuple[str, ...], Ran]) -> None:
    """A person would look for what keeps the kernel from being read: nothing does."""
    ran = played["doctor",]
    assert ran.status == 3
    first = " ".join(ran.stdout.partition("\n\n")[0].split())
    assert first.startswith("Nothing can be listed or reclaimed here: memory cgroups")
    assert OFF in first
    assert "cannot be read" not in first
