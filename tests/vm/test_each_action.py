"""Each action alone, on the zombie made for it, on every kernel it is for or not for.

tests/vm/each_action.py makes the zombies in a guest, has ``memcgctl reclaim --only`` do
one action on each, and tells what the kernel counts before and after: zombies by
cgroup.stat (v1: /proc/cgroups), pages by /proc/kpagecgroup, what is in swap. What ought
to be is told here, by what kernels charge to whom and when they let go of it.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.lab import packages, run
from tests.lab.guest import Machine
from tests.lab.live import CHECKOUT, CPU, ROOT, boot_with_python, python_of, run_in
from tests.schemas import read
from tests.vm.test_actions import bind
from tests.vm.test_live import give_up, on_arm64, require_programs

Json = dict[str, Any]

PROGRAMS = "tests/vm/in_guest.py", "tests/vm/each_action.py"
GUESTS = [("6.12", 2)]
# With --every-kernel. Under load one case in some fifty was seen to come out otherwise:
# buffers that a CPU's LRU list holds, a page that was just referenced.
MORE = [("5.10", 2), ("6.1", 2), ("6.18", 2), ("7.0", 2), ("7.3", 2), ("6.1", 1)]
ARM64 = [("6.12-arm64", 2)]  # with --arm64, instead: all cases
UNSTEADY = {"flush-device", "charge-on-cpu"}  # as well
NAMES = ("5.10", "6.1", "6.12", "6.18", "7.0", "7.3", "6.1 v1")

# What becomes of the zombie:
#   frees   it goes by this action
#   stays   the action does its work, but something else holds the zombie
#   none    nothing is done: the kernel has no such interface, or it would be in vain
#   gone    it went at rmdir; what it had is its parent's, and the action is done on it
#   -       nothing new: as with the disk (zram), as on other kernels
# From 7.1 on folios are handed to the parent at rmdir, which makes "gone" of all that
# have nothing but folios. What a process dirtied stays attached to its memcg's wb, on
# v2 (inode_cgwb_enabled), which 5.14 learnt to clean up. Up to 5.10 page tables are
# charged to the memcg itself. What MADV_PAGEOUT writes to a disk is let go of by
# memory.reclaim alone (5.19+, v2). 7.0 keeps a disk's entry when its page returns.
TABLE = """
                    5.10   6.1    6.12   6.18   7.0    7.3    6.1v1
fadvise             frees  frees  frees  frees  frees  gone   frees
fadvise-dirty       stays  stays  stays  stays  stays  none   frees
pageout             frees  frees  frees  frees  frees  gone   frees
pageout-tables      none   frees  -      -      -      -      -
pageout-mapped      frees  frees  frees  frees  frees  gone   frees
pageout-file        none   frees  frees  frees  frees  gone   none
swapin              frees  frees  frees  frees  none   frees  frees
swapin-file         frees  frees  frees  frees  frees  frees  frees
collapse            none   frees  frees  frees  frees  gone   frees
writeback-cleanup   none   frees  frees  frees  frees  frees  gone
lru_gen             none   none   frees  frees  none   frees  none
memory.reclaim      none   frees  frees  frees  frees  gone   none
memory.force_empty  none   none   none   none   none   -      frees
zram-pageout-file   frees  -      -      -      -      -      frees
zram-swapin         frees  -      -      -      frees  -      -
zram-swapin-file    frees  -      -      -      -      -      -
flush-device        frees  frees  frees  frees  frees  gone   frees
drop_caches         frees  frees  frees  frees  frees  gone   frees
charge-on-cpu       frees  frees  frees  frees  frees  gone   frees
"""
# Pages that the action moves, of the memcg's parent ("app") or of where the process is
# ("holder"); ALL is what there is of a kind. What is in swap counts for all above.
ALL = None
FILE, ANON, SHMEM = 64, 128, 64
Moves = dict[str, int | None]
MOVES: dict[str, Moves] = {
    "fadvise": {"app file": -FILE},
    "fadvise-dirty": {"app file": -16},
    # Whoever is online is charged for swap (mem_cgroup_id_get_online).
    "pageout": {"app anon": -ANON, "app swap": ANON},
    "pageout-tables": {"app anon": -ANON, "app swap": ANON},
    "pageout-mapped": {"app file": -FILE},
    "pageout-file": {"app shmem": -SHMEM, "app swap": SHMEM},
    # The entry's memcg is offline, so the process's is charged for the page.
    "swapin": {"app swap": -ANON, "holder anon": ANON},
    # It is read from within a memcg below app, and goes to swap again, as app's own.
    "swapin-file": {},
    "collapse": {"app anon": -1024, "holder anon": 1024},
    "writeback-cleanup": {},
    "charge-on-cpu": {},
    "lru_gen": {"app file": -FILE, "app swap": -ANON, "holder anon": ANON},
    "memory.reclaim": {"app file": -FILE},
    "memory.force_empty": {"app file": -FILE},
    "flush-device": {"app file": ALL},
    "drop_caches": {"app file": ALL},
}
IN_MEMORY: Moves = {"app shmem": SHMEM, "app swap": -SHMEM}
OTHER_MOVES: dict[tuple[str, str], Moves] = {
    # Up to 5.13 what is read ahead from a disk is the root's.
    ("swapin", "5.10"): {"app swap": -ANON},
    ("swapin-file", "5.10"): {"app swap": -SHMEM},
    ("zram-swapin", "5.10"): MOVES["swapin"],
    # v1 has processes in app itself; from 7.1 on the folios are app's at rmdir.
    ("swapin-file", "6.1 v1"): IN_MEMORY,
    ("swapin-file", "7.3"): IN_MEMORY,
    # The file's folios are app's already, so that swapin is enough.
    ("lru_gen", "7.3"): {"app swap": -ANON, "holder anon": ANON},
}
# Why nothing, or not all, is done, in the plan's words.
WHY = {
    "fadvise-dirty": "cgroup writeback: ",
    "pageout-tables": "page tables and stacks stay charged until their process ends",
    "pageout-file": "it would wait in the swap cache until memory is short",
    "swapin": "this kernel keeps them on the disk when they are read",
}
# Why there is no such action, in doctor's.
SINCE = {
    "collapse": "this kernel lacks it, 6.1 brought it",
    "writeback-cleanup": "this kernel lacks it, 5.14 brought it",
    "lru_gen": "only 6.1 to 6.19 name offline memcgs, with MGLRU on",
    "memory.reclaim": "only cgroup v2 has it, from 5.19 on",
    "memory.force_empty": "only cgroup v1 has it",
}
EMPTY = "memory.force_empty"
# Those that doctor is to deny, all others it is to grant.
LACKING = {
    "5.10": {"collapse", "writeback-cleanup", "lru_gen", "memory.reclaim", EMPTY},
    "6.1": {"lru_gen", EMPTY},  # Debian's 6.1 has it switched off
    "6.12": {EMPTY},
    "6.18": {EMPTY},
    "7.0": {"lru_gen", EMPTY},
    "7.3": {"lru_gen", EMPTY},
    "6.1 v1": {"writeback-cleanup", "lru_gen", "memory.reclaim"},
}
SLACK = 8  # pages: a batch of a process that has just ended, its stack


@dataclass(frozen=True)
class Played:
    """A guest's name, what doctor says in it, and what came of each case."""

    name: str
    doctor: Json
    cases: dict[str, Json]


def expected() -> dict[str, dict[str, str]]:
    """By the guest's name and the case."""
    rows = [line.split() for line in TABLE.split("\n")[2:-1]]
    return {
        name: {row[0]: row[1 + column] for row in rows if row[1 + column] != "-"}
        for column, name in enumerate(NAMES)
    }


def play(series: str, version: int, *cases: str) -> tuple[Json, list[Json]]:
    """What doctor says, and what came of each case."""
    kernel = packages.get(series)
    reparents = run.shape_of(kernel.release).reparents
    with tempfile.TemporaryDirectory(prefix="memcgctl-lab-") as name:
        disks = run.make_disks(Path(name), False)
        machine = Machine(memory="512M", cpu=CPU, disks=disks)
        with boot_with_python(kernel, machine) as guest:
            run.prepare(guest, version)
            bind(guest)
            guest.sh(f"""
                cp /bin/lab {ROOT}/usr/bin/lab
                mount -t debugfs debugfs {ROOT}/sys/kernel/debug
                echo 64M > /sys/block/zram0/disksize
                mkswap /dev/zram0
                mkdir -p {ROOT}/run/tests/vm
            """)
            for program in PROGRAMS:
                guest.write(
                    f"{ROOT}/run/{program}", Path(CHECKOUT, program).read_text()
                )
            guest.agent.settimeout(1200)
            words = "reparents" if reparents else "keeps", *cases
            python = python_of(kernel.arch)
            ran = run_in(guest, python, f"/run/{PROGRAMS[-1]}", *words)
    assert (ran.status, ran.stderr) == (0, "")
    doctor, *played = map(json.loads, ran.stdout.splitlines())
    return read(doctor["stdout"]), played


def _every_kernel(config: pytest.Config) -> bool:
    return bool(config.getoption("--every-kernel", False))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    guests = GUESTS + (MORE if _every_kernel(metafunc.config) else [])
    guests = ARM64 if on_arm64(metafunc.config) else guests
    names = ["{} v{}".format(*guest) for guest in guests]
    metafunc.parametrize("played", guests, indirect=True, ids=names, scope="module")


@pytest.fixture(scope="module")
def played(request: pytest.FixtureRequest) -> Played:
    require_programs(request.config)
    series, version = request.param
    # The same kernel does the same on each machine.
    name = series.partition("-")[0] + (" v1" if version == 1 else "")
    all_of_them = _every_kernel(request.config) or on_arm64(request.config)
    unsteady = set() if all_of_them else UNSTEADY
    cases = [case for case in expected()[name] if case not in unsteady]
    try:
        doctor, done = play(series, version, *cases)
    except packages.PackageError as error:
        give_up(f"no kernel packages: {error}")
    found = {one["case"]: one for one in done if one.get("made", True)}
    assert {*cases} - found.keys() <= {"charge-on-cpu"}
    return Played(name, doctor, found)


def said(case: Json) -> Json:
    """memcgctl's report; of a zombie that was not there, none."""
    if "ran" not in case:
        return {}
    assert case["ran"]["stderr"] == ""
    document: Json = read(case["ran"]["stdout"])
    return document


def went(case: Json) -> str:
    """What became of the zombie, by the kernel's count and the bytes it shows."""
    began, before, after = (
        *(case["began"], case["before"]["dying"], case["after"]["dying"]),
    )
    if before == began:
        return "gone"
    if after == began:
        return "frees"
    return "stays" if any(moved(case).values()) or said(case)["steps"] else "none"


def moved(case: Json) -> dict[str, int]:
    """Pages that came or went, by whose and what; those of a few processes are not."""
    before, after = case["before"], case["after"]
    found = {}
    for at, kind in enumerate(("file", "shmem", "anon")):
        found[f"app {kind}"] = after["app"]["pages"][at] - before["app"]["pages"][at]
    found["app swap"] = (after["app"]["swap"] - before["app"]["swap"]) // 4096
    found["holder anon"] = after["holder"]["pages"][2] - before["holder"]["pages"][2]
    return {what: pages for what, pages in found.items() if abs(pages) > SLACK}


def should_move(name: str, case: str, before: Json) -> dict[str, int]:
    """By the tables above."""
    plain = case.removeprefix("zram-")
    if expected()[name][case] == "none":
        return {}
    moves = OTHER_MOVES.get((case, name), OTHER_MOVES.get((plain, name), MOVES[plain]))
    return {
        what: -before["app"]["pages"][0] if pages is ALL else pages
        for what, pages in moves.items()
    }


def test_zombies_go_as_the_kernel_lets_them(played: Played) -> None:
    """A person would wait for zombies that no action frees, or be told of none."""
    found = {name: went(case) for name, case in played.cases.items()}
    assert found.items() <= expected()[played.name].items()


def test_the_plan_promises_just_those(played: Played) -> None:
    """The number of zombies would not fall as predicted."""
    wrong = {}
    for name, case in played.cases.items():
        if report := said(case):
            fell = case["before"]["dying"] - case["after"]["dying"]
            ours = [case["id"]] * (expected()[played.name][name] == "frees")
            predicted, measured = report["predicted"], report["measured"]
            found = fell, predicted["freed"], measured["freed"], report["complete"]
            if found != (len(ours), ours, ours, True):
                wrong[name] = found
    assert wrong == {}


def test_bytes_go_where_the_kernel_charges_them(played: Played) -> None:
    """What an action moves would be charged to somebody else than the plan says."""
    wrong = {}
    for name, case in played.cases.items():
        should, found = should_move(played.name, name, case["before"]), moved(case)
        for what in {*should, *found}:
            if abs(found.get(what, 0) - should.get(what, 0)) > SLACK:
                wrong[name, what] = should.get(what, 0), found.get(what, 0)
    assert wrong == {}


def test_what_is_not_done_is_told_why(played: Played) -> None:
    """Nobody would know whether it is the kernel's fault, the plan's or their own."""
    for name, case in played.cases.items():
        fate = expected()[played.name][name]
        if fate not in ("none", "stays"):
            continue
        report = said(case)
        (left,) = report["predicted"]["remaining"]
        assert left["id"] == case["id"]
        lacks = name in LACKING[played.name]
        why = f"{name} is not for this kernel" if lacks else WHY[name]
        assert why in left["why"], name
        assert fate == "stays" or report["steps"] == [], name


def test_what_is_left_undone_would_be_in_vain(played: Played) -> None:
    """A person would do by hand what the plan says nobody can."""
    for name, case in played.cases.items():
        if "by_hand" in case:
            assert case["by_hand"]["dying"] == case["after"]["dying"], name


def test_doctor_knows_which_there_are(played: Played) -> None:
    """A person would look for swap or a mount where the kernel lacks the action."""
    answers = {one["action"]: one for one in played.doctor["actions"]}
    lacking = {name: one["why"] for name, one in answers.items() if one["lack"]}
    assert lacking.keys() == LACKING[played.name]
    for name, why in lacking.items():
        assert SINCE[name] in why or why == "no writeback by cgroup on cgroup v1"
