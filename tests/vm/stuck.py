"""memcgctl reclaim where something never answers: the rest is done all the same.

tests/vm/stuck_in_guest.py stops a FUSE server, suspends a device and freezes a cgroup.
Not among the tests that are always run: ``pytest tests/vm/stuck.py``.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.lab import packages, run
from tests.lab.guest import Machine
from tests.lab.live import CPU, ROOT, boot_with_python, run_in
from tests.schemas import read
from tests.vm.test_faults import prepare
from tests.vm.test_live import give_up, require_programs

Json = dict[str, Any]

PROGRAMS = ("in_guest.py", "stuck_in_guest.py")
ROUNDS = ("frozen", "fuse", "device")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    more = ["6.1", "7.3"] if metafunc.config.getoption("--every-kernel") else []
    metafunc.parametrize("played", ["6.12", *more], indirect=True, scope="module")


@pytest.fixture(scope="module")
def played(request: pytest.FixtureRequest) -> dict[str, Json]:
    """What came of each round."""
    require_programs()
    try:
        kernel = packages.get(request.param)
    except packages.PackageError as error:
        give_up(f"no kernel packages: {error}")
    with tempfile.TemporaryDirectory(prefix="memcgctl-lab-") as name:
        disks = run.make_disks(Path(name), False)
        for other in "abc":
            disks[other] = run.make_disk(Path(name, other), 8 << 20, "mke2fs")
        modules = ("overlay", "loop", "fuse", "dm-mod")
        machine = Machine(memory="512M", cpu=CPU, disks=disks, modules=modules)
        with boot_with_python(kernel, machine) as guest:
            prepare(guest)
            guest.sh(f"mkdir -p {ROOT}/run/tests/vm")
            here = Path(__file__).parent
            for program in PROGRAMS:
                text = (here / program).read_text()
                guest.write(f"{ROOT}/run/tests/vm/{program}", text)
            guest.agent.settimeout(1200)
            path = f"/run/tests/vm/{PROGRAMS[-1]}"
            ran = run_in(guest, sys.executable, path, *ROUNDS)
    assert ran.stderr == ""
    said = map(json.loads, ran.stdout.splitlines())
    rounds = dict(zip(ROUNDS, said, strict=True))
    errors = {name: one["error"] for name, one in rounds.items() if "error" in one}
    assert errors == {}
    return rounds


def freed(done: Json) -> set[str]:
    result = done["result"]
    return {result["paths"][str(one)] for one in result["freed"]}


def whys(done: Json) -> dict[str, str]:
    return {s["step"]["action"]: s["why"] for s in done["result"]["steps"] if s["why"]}


def test_a_frozen_cgroup_is_passed_over(played: dict[str, Json]) -> None:
    """A run would wait a minute for each process that cannot run."""
    done = played["frozen"]
    plan = read(done["planned"]["stdout"])
    assert all(step["action"] != "swapin" for step in plan["steps"])
    assert any("/icy is frozen" in r["why"] for r in plan["predicted"]["remaining"])
    steps = [s for s in done["result"]["steps"] if s["step"]["action"] == "swapin"]
    assert len(steps) == 2
    for step in steps:
        assert (step["status"], step["why"]) == ("failed", "/icy is frozen")
    assert "/app/read" in freed(done)
    assert (done["later"]["status"], done["lost"]) == (0, [])


def test_a_server_that_is_stopped_is_not_asked(played: dict[str, Json]) -> None:
    """One process with a file on a dead server would stop all, for ever."""
    done = played["fuse"]
    assert {"/app/deleted", "/app/read"} <= freed(done)
    why = whys(done)["fadvise"]
    assert why.startswith("hangs: opening ")
    assert "/mnt/fuse/file for" in why
    assert done["later"]["status"] == 0


def test_a_device_that_is_suspended_is_left_out(played: dict[str, Json]) -> None:
    """Not even SIGKILL ended it, and no later run was let in."""
    done = played["device"]
    assert "/app/dirty-others" in freed(done["others"])
    assert whys(done["others"]) == {}
    assert "/app/dirty-zombies" in freed(done["zombies"])
    # The step is done again for all but the device that keeps its process for ever.
    assert "/mnt/stuck hangs" in whys(done["zombies"])["writeback-cleanup"]
    again = done["zombies"]["next"]
    assert "hangs since an earlier run" in again["stdout"]
    assert (done["later"]["status"], done["notes"]) == (0, [])
