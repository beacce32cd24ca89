"""Temporary swap on machines without any: what it frees, and what ends it halfway.

tests/vm/transit_in_guest.py makes zombies of tmpfs files and anonymous memory, and has
memcgctl free them. How many there are is the kernel's word; files and the memory of
processes are compared by checksums. ``--every-kernel`` adds kernels and moments.
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
from tests.lab.scenarios import SWAPS
from tests.vm.test_actions import bind
from tests.vm.test_live import give_up, require_programs

Json = dict[str, Any]
GUESTS: list[tuple[str, int, tuple[str, ...]]] = [
    ("6.12", 2, ("whole", "KILL:before3")),
]
MOMENTS = (
    *("KILL:planned", "KILL:made", "KILL:on", "KILL:before2", "KILL:removing"),
    *("INT:before2", "TERM:before3", "TERM+TERM:before3", "INT+INT+INT:before4"),
)
# With --every-kernel; from 7.1 on such memory makes no zombies.
MORE: list[tuple[str, int, tuple[str, ...]]] = [
    *((series, 2, ("whole", "KILL:before3")) for series in ("5.10", "6.1", "6.18")),
    ("7.0", 2, ("whole", "KILL:before3")),
    ("6.1", 1, ("whole",)),
    ("6.12", 2, (*MOMENTS, "tight", "foreign")),
]
SLACK = 8 * 4096  # what a process that has just ended leaves in a CPU's batch
Played = dict[str, Json]


def play(series: str, version: int, rounds: tuple[str, ...]) -> Played:
    kernel = packages.get(series)
    with tempfile.TemporaryDirectory(prefix="memcgctl-lab-") as name:
        disks = run.make_disks(Path(name), False)
        machine = Machine(memory="512M", cpu=CPU, disks=disks)
        with boot_with_python(kernel, machine) as guest:
            run.prepare(guest, version)
            bind(guest)
            guest.sh(f"""
                swapoff {SWAPS[0]}
                cp /bin/lab /bin/busybox {ROOT}/usr/bin
            """)
            program = Path(__file__).with_name("transit_in_guest.py").read_text()
            guest.write(f"{ROOT}/run/transit.py", program)
            guest.agent.settimeout(1500)
            ran = run_in(guest, sys.executable, "/run/transit.py", *rounds)
    assert (ran.status, ran.stderr) == (0, "")
    return {one["round"]: one for one in map(json.loads, ran.stdout.splitlines())}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    every = metafunc.config.getoption("--every-kernel", False)
    guests = GUESTS + (MORE if every else [])
    names = [
        f"{series} v{version} {n}" for n, (series, version, _) in enumerate(guests)
    ]
    metafunc.parametrize("played", guests, indirect=True, ids=names, scope="module")


@pytest.fixture(scope="module")
def played(request: pytest.FixtureRequest) -> Played:
    require_programs()
    series, version, rounds = request.param
    try:
        found = play(series, version, rounds)
    except packages.PackageError as error:
        give_up(f"no kernel packages: {error}")
    return found


def ended(played: Played) -> list[Json]:
    return [one for name, one in played.items() if ":" in name]


def test_all_go_and_nobody_loses_anything(played: Played) -> None:
    """On a machine without swap tmpfs and anonymous memory would hold zombies for ever.

    Or it would come back charged to somebody else, or not at all.
    """
    if "whole" not in played:
        return
    whole = played["whole"]
    before, after = whole["before"], whole["after"]
    document = json.loads(whole["ran"]["stdout"])
    assert whole["ran"]["stderr"] == ""
    assert before["dying"] - after["dying"] == len(document["predicted"]["freed"])
    assert document["predicted"]["freed"] == document["measured"]["freed"]
    assert document["complete"]
    for where in ("app", "living"):
        for kind, size in before[where].items():
            assert abs(after[where][kind] - size) <= SLACK, (where, kind)
    assert whole["same"]
    assert (after["swaps"], after["drives"]) == ([], before["drives"])


def test_whatever_ends_a_run_its_device_is_found_and_finished(played: Played) -> None:
    """Somebody's memory would stay in a swap device that nobody knows of."""
    for one in ended(played):
        assert one["same"], one["round"]
        assert one["finished"]["status"] == 0, one["finished"]
        assert one["after"]["swaps"] == [], one["round"]
        # One that was made and not written down yet has no size, and stays.
        if one["round"] != "KILL:planned":
            assert one["after"]["drives"] == one["before"]["drives"], one["round"]


def test_a_signal_has_it_all_brought_back(played: Played) -> None:
    """Ctrl-C would leave a swap device switched on."""
    for one in ended(played):
        if not one["round"].startswith("KILL"):
            assert one["ran"]["status"] == 4, one["ran"]
            assert one["left"]["swaps"] == [], one["round"]


def test_it_goes_in_portions_where_an_ancestor_has_little_room(played: Played) -> None:
    """Living cgroups would be reclaimed from when all comes back at once."""
    if "tight" not in played:
        return
    one = played["tight"]
    assert one["after"]["dying"] == one["began"], one["ran"]
    assert (one["ran"]["events"]["max"], one["ran"]["events"]["oom"]) == ("0", "0")
    assert one["before"]["living"] == one["after"]["living"]
    assert one["same"]


def test_a_swap_device_of_others_is_left_alone(played: Played) -> None:
    """Somebody's zram swap would be switched off, since a note has its number."""
    if "foreign" not in played:
        return
    one = played["foreign"]
    assert one["swaps"] == [f"zram{one['theirs']}"]
    assert "no run left a swap device" in one["finished"]["stderr"]
    assert one["after"]["dying"] == one["began"], one["ran"]
    assert one["same"]
