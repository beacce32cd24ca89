"""What doctor says in a guest: with the service's rights, and where it is barred.

One boot of 6.12 with three zombies; the interpreter is started once there and forks for
each way of being barred.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from memcgctl.actions.host.machine import CAPABILITIES
from memcgctl.cli.systemd_units import units
from tests.lab import packages
from tests.lab.guest import Machine, boot
from tests.lab.live import CPU, ROOT, checkout_disk, python_disk, run_in
from tests.schemas import read
from tests.vm.test_live import give_up, require_programs

CGROUPS = f"{ROOT}/sys/fs/cgroup"
ZOMBIES = f"""
    mount -t ext4 -o noatime /dev/disk/python {ROOT}
    mount -t ext4 -o ro /dev/disk/checkout {ROOT}/checkout
    for mount in proc sys dev; do mount --rbind /$mount {ROOT}/$mount; done
    mount -t tmpfs -o mode=755 tmpfs {ROOT}/run
    mount -t securityfs securityfs {ROOT}/sys/kernel/security
    mount -t debugfs debugfs {ROOT}/sys/kernel/debug
    mount -t cgroup2 cgroup2 {CGROUPS}
    echo +memory > {CGROUPS}/cgroup.subtree_control
    for name in a b c; do
        mkdir {CGROUPS}/$name
        sh -c "echo 0 > {CGROUPS}/$name/cgroup.procs
               dd if=/dev/zero of={ROOT}/run/$name bs=64k count=1 2> /dev/null"
        rmdir {CGROUPS}/$name
    done
"""
# Each way of being barred, then doctor; the first is the service's, for programs.
DRIVER = """
import ctypes, json, os, struct, sys

sys.path.insert(0, "/checkout")
import rich.progress
import memcgctl.actions.run.checkup, memcgctl.census.traits, memcgctl.kernel.program
import memcgctl.policy.interfaces, memcgctl.report.doctor
from memcgctl.cli import main

libc = ctypes.CDLL(None)

def keep(*numbers):
    bits = sum(1 << number for number in numbers)
    low, high = bits & 0xFFFFFFFF, bits >> 32
    data = struct.pack("=6I", low, low, 0, high, high, 0)
    assert libc.capset(struct.pack("=Ii", 0x20080522, 0), data) == 0

def bar(way):
    if way == "nobody":
        os.setgid(65534)
        os.setuid(65534)
    elif way == "masked":
        assert libc.unshare(0x20000) == 0  # CLONE_NEWNS
        assert libc.mount(b"none", b"/", None, 0x44000, None) == 0  # private
        assert libc.mount(b"/dev/null", b"/proc/kcore", None, 0x1000, None) == 0
    elif way == "locked down":
        with open("/sys/kernel/security/lockdown", "w") as file:
            file.write("confidentiality")
    else:
        keep(*json.loads(way))

def attempt(way, *arguments):
    with open("/run/stdout", "w+") as out, open("/run/stderr", "w+") as err:
        pid = os.fork()
        if not pid:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            bar(way)
            sys.argv = ["memcgctl", "doctor", *arguments]
            main()
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        out.seek(0)
        err.seek(0)
        return {"status": status, "stdout": out.read(), "stderr": err.read()}

ways = json.loads(sys.argv[1])
tried = [attempt(ways[0], "--json"), *map(attempt, ways[1:])]
print(json.dumps(dict(zip(ways, tried))))
"""


def service_capabilities() -> list[int]:
    service = units("/usr/bin/memcgctl")["memcgctl.service"]
    lines = re.findall(r"^CapabilityBoundingSet=(.+)$", service, re.M)
    numbers = {f"CAP_{name.upper()}": bit for name, bit in CAPABILITIES.items()}
    numbers["CAP_FOWNER"] = 3
    return sorted(numbers[name] for line in lines for name in line.split())


SERVICE = json.dumps(service_capabilities())
WITHOUT_RAWIO = json.dumps([bit for bit in service_capabilities() if bit != 17])
# Locked down is for ever, so the last.
WAYS = [SERVICE, WITHOUT_RAWIO, "nobody", "masked", "locked down"]


@dataclass(frozen=True)
class Said:
    """Zombies by cgroup.stat, and what doctor said each way."""

    dying: int
    tried: dict[str, dict[str, Any]]

    @property
    def json(self) -> Any:
        return read(self.tried[SERVICE]["stdout"])


@pytest.fixture(scope="module")
def said() -> Said:
    require_programs()
    try:
        kernel = packages.get("6.12")
    except packages.PackageError as error:
        give_up(f"no kernel packages: {error}")
    with tempfile.TemporaryDirectory(prefix="memcgctl-lab-") as name:
        disks = {"python": python_disk(), "checkout": checkout_disk(Path(name))}
        machine = Machine(memory="512M", cpu=CPU, disks=disks)
        with boot(kernel, machine) as guest:
            guest.sh(f"mkdir -p {ROOT}; {ZOMBIES}")
            stat = guest.read(f"{CGROUPS}/cgroup.stat")
            ran = run_in(guest, sys.executable, "-c", DRIVER, json.dumps(WAYS))
    assert ran.status == 0, ran.stderr
    found = re.search(r"^nr_dying_descendants (\d+)$", stat, re.M)
    assert found
    return Said(int(found[1]), json.loads(ran.stdout))


def test_the_services_capabilities_are_enough(said: Said) -> None:
    """The timer would fail each hour for a capability that the unit takes away."""
    assert said.tried[SERVICE]["status"] == 4
    assert said.json["privileges"] == {"euid": 0, "missing": []}
    assert said.json["source"]["types"] == "btf"
    assert [cgroup["version"] for cgroup in said.json["cgroups"]] == [2]
    refused = [
        one["action"]
        for one in said.json["actions"]
        if one["lack"] == "machine" and not one["ask"]
    ]
    assert refused == ["pageout-file"]  # there is no swap in this guest


def test_zombies_as_the_kernel_counts_them(said: Said) -> None:
    """A person would wait for a threshold that is long passed."""
    zombies = said.json["zombies"]
    assert said.dying == 3
    assert zombies["count"] == zombies["in_kernel_memory"] == said.dying


@pytest.mark.parametrize(
    ("way", "why"),
    [
        (WITHOUT_RAWIO, "lacks CAP_SYS_RAWIO"),
        ("nobody", "not root"),
        ("masked", "as in a container"),
        ("locked down", "lockdown: confidentiality"),
    ],
)
def test_who_is_barred_is_told_why(said: Said, way: str, why: str) -> None:
    """A person would get a traceback, or search where nothing is wrong."""
    tried = said.tried[way]
    assert tried["status"] == 3, tried["stderr"]
    first = tried["stdout"].partition("\n\n")[0].replace("\n", " ")
    assert first.startswith("Nothing can be listed or reclaimed here: ")
    assert why in first


def test_it_says_all_on_stdout_in_80_columns(said: Said) -> None:
    """Lines would be broken by the terminal, or messages hide among cron's mails."""
    assert [tried["stderr"] for tried in said.tried.values()] == [""] * len(said.tried)
    lines = [
        line for way in WAYS[1:] for line in said.tried[way]["stdout"].splitlines()
    ]
    assert max(map(len, lines)) <= 80
