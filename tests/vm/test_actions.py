"""Plans carried out on running kernels, against the kernels' own counters and files.

A guest makes zombies (scenarios "basic" and "basic-v1"), plans and acts by the modules
of this checkout. How many zombies there are is cgroup.stat's word; that nothing was
lost is told by checksums of all files and by what the scenario's processes wrote into
their memory. Faults come between plan and step: a process ends, files are replaced,
deleted.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.lab import run
from tests.lab.guest import Guest
from tests.lab.live import ROOT, live, run_in
from tests.lab.packages import PackageError
from tests.lab.scenarios import CGROUPS, EXT4, HUGE, TMPFS
from tests.vm.test_live import give_up, require_programs

# Beside those of test_live: 6.1 and 6.18 lie between changes of what is charged where,
# 7.0 is the last before folios are reparented; on 6.1, cgroup v1 too.
GUESTS = [
    *((series, "basic") for series in ("5.10", "6.1", "6.12", "6.18", "7.0", "7.3")),
    ("6.1", "basic-v1"),
]
ACT = """
import dataclasses, json, sys
from pathlib import Path
sys.path.insert(0, "/checkout")
from memcgctl.actions.run.executor import carry_out
from memcgctl.actions.run.pace import Limits
from memcgctl.actions.run.journal import entries
from memcgctl.census import take_census
from memcgctl.cli.policy import load_policy
from memcgctl.cli.reading import opened
from memcgctl.policy.plan import plan

journal = Path("/run/journal")
with opened((None,) * 5) as (kernel, _):
    def look():
        memcgs = take_census(kernel, scan=False).memcgs
        return {memcg.id for memcg in memcgs if memcg.state == "offline"}

    census = take_census(kernel, details="offline")
    made = plan(census, load_policy("least-harm"))
    all_of = {"steps": tuple(made.steps), "left_out": tuple(made.left_out)}
    made = dataclasses.replace(made, **all_of)
    print(json.dumps(dataclasses.asdict(made)), flush=True)
    exec(sys.argv[1])
    result = carry_out(made, look, journal=journal, lock=Path("/run/lock"))
    print(json.dumps(dataclasses.asdict(result)))
    print(json.dumps(list(entries(journal))))
"""
# Pages that "touch" wrote begin with their number; the rest of each is zero.
CHECK = """
import re, sys
wrong = []
for pid, kib in (map(int, word.split(":")) for word in sys.argv[1:]):
    pages, found = kib // 4, False
    expected = b"".join(bytes([1 + n & 255]) + bytes(4095) for n in range(pages))
    with open(f"/proc/{pid}/mem", "rb") as memory:
        for line in open(f"/proc/{pid}/maps"):
            start, end = (int(n, 16) for n in line.split()[0].split("-"))
            if "rw" in line and end - start >= len(expected):
                memory.seek(start)
                found = found or expected in memory.read(end - start)
    if not found:
        wrong.append(pid)
print(wrong)
"""


@dataclass(frozen=True)
class Acted:
    """A guest before and after: what was planned, what came of it, what it says."""

    plan: dict[str, Any]
    result: dict[str, Any]
    journal: list[dict[str, Any]]
    stderr: str
    dying: tuple[int, int]
    checksums: tuple[str, str]
    innocent: tuple[dict[str, int], dict[str, int]]
    wrong_memory: str
    cgroups: str


def checksums(guest: Guest) -> str:
    return guest.sh(f"find {EXT4} {TMPFS} {HUGE} -type f | sort | xargs md5sum")


def innocent(guest: Guest) -> dict[str, int]:
    """What a living memcg has, by memory.stat (v1 has other words for it)."""
    wanted = {"anon", "file", "shmem", "rss", "cache"}
    lines = guest.read(f"{CGROUPS}/app/online/memory.stat").splitlines()
    stat = dict(line.split() for line in lines)
    return {name: int(stat[name]) for name in stat.keys() & wanted}


def bind(guest: Guest) -> None:
    """Show the guest's file systems where Python is."""
    guest.sh(f"""
        for place in {EXT4} {TMPFS} {HUGE} {CGROUPS}; do
            mkdir -p {ROOT}$place; mount --bind $place {ROOT}$place
        done
    """)


def touched(truth: dict[str, Any]) -> list[str]:
    """Processes that wrote to one piece of anonymous memory, and its size in KiB."""
    found = []
    for process in truth["processes"]:
        words = process["words"]
        sizes = [w.removeprefix("anon=") for w in words if w.startswith("anon=")]
        if len(sizes) == 1 and "touch" in words:
            scale = {"K": 1, "M": 1024}[sizes[0][-1]]
            found.append(f"{process['pid']}:{int(sizes[0][:-1]) * scale}")
    return found


def act(guest: Guest, truth: dict[str, Any], meanwhile: str = "") -> Acted:
    """Plan, do something (Python) meanwhile, and carry the plan out."""
    bind(guest)
    guest.write(f"{ROOT}/run/act.py", ACT)
    before = run.dying(guest), checksums(guest), innocent(guest)
    ran = run_in(guest, sys.executable, "/run/act.py", meanwhile)
    assert ran.status == 0, ran.stderr
    plan, result, journal = map(json.loads, ran.stdout.splitlines())
    after = run.dying(guest), checksums(guest), innocent(guest)
    check = run_in(guest, sys.executable, "-c", CHECK, *touched(truth))
    return Acted(
        plan,
        result,
        journal,
        ran.stderr,
        (before[0], after[0]),
        (before[1], after[1]),
        (before[2], after[2]),
        check.stdout.strip(),
        guest.sh(f"find {CGROUPS} -type d -name 'memcgctl*'"),
    )


@pytest.fixture(scope="module", params=GUESTS, ids=" ".join)
def acted(request: pytest.FixtureRequest) -> Iterator[Acted]:
    require_programs()
    try:
        with live(*request.param) as (guest, truth):
            yield act(guest, truth)
    except PackageError as error:
        give_up(f"no kernel packages: {error}")


def test_the_kernel_counts_as_many_fewer_as_promised(acted: Acted) -> None:
    """A person would be promised zombies that stay, or shown ones as gone."""
    promised, freed = acted.plan["freed"], acted.result["freed"]
    assert promised
    assert set(promised) - set(freed) == waiting(acted)
    # One that was not promised can go after the last look.
    assert acted.dying[0] - acted.dying[1] >= len(freed)
    assert acted.dying[1] <= len(acted.result["remaining"])


def waiting(acted: Acted) -> set[int]:
    """Those whose shmem is written, but that only a kernel short of memory lets go of.

    That is so where there is no memory.reclaim (before 5.19).
    """
    if not acted.plan["kernel"]["release"].startswith("5.10"):
        return set()
    why = " stay in the swap cache until memory is short"
    left = acted.result["remaining"]
    return {memcg["id"] for memcg in left if memcg["why"].endswith(why)}


def test_each_step_did_what_it_said(acted: Acted) -> None:
    """A step would move less or more than the plan had said.

    It may find nothing to do: reclaim for an earlier one took offline memcgs' memory.
    """
    for result in acted.result["steps"]:
        step, moved = result["step"], result["moved_bytes"]
        if result["status"] == "skipped":
            assert result["why"] == "what it serves is gone already"
            continue
        if waiting(acted) & set(step["memcgs"]):
            assert result["status"] == "part"
            continue
        assert result["status"] == "done", (step["command"], result["why"])
        if step["bytes"] and moved:
            assert moved <= step["bytes"] + (64 << 10), step["command"]
            assert moved >= step["bytes"] * 0.95, step["command"]


def test_nothing_is_lost(acted: Acted) -> None:
    """A file or a process would have other contents than before."""
    assert acted.checksums[0] == acted.checksums[1]
    assert acted.wrong_memory == "[]"


def test_the_living_keep_what_they_have(acted: Acted) -> None:
    """A living cgroup's page cache would go as with drop_caches."""
    assert acted.innocent[0] == acted.innocent[1]


def test_it_leaves_nothing_but_the_journal(acted: Acted) -> None:
    """A helper cgroup would stay, or a step be missing from the journal."""
    assert acted.cgroups == ""
    assert acted.stderr == ""
    events = [entry["event"] for entry in acted.journal]
    if "swap-cache" in events[-2:]:  # what waited there, for all steps at once
        events.remove("swap-cache")
    steps = [
        event
        for result in acted.result["steps"]
        for event in (
            ["skipped"] if result["status"] == "skipped" else ["before", "after"]
        )
    ]
    assert events == ["begin", *steps, "end"]


# Of the files that zombies are charged for, one gets another name and a new file its
# own, one is gone, a FIFO takes one's place; a process ends, and one's pid is taken to
# be another's, as if it had been reused.
FAULTS = f"""
import os, signal
from dataclasses import replace
os.rename("{EXT4}/read", "{EXT4}/renamed")
with open("{EXT4}/read", "wb") as file:
    file.write(bytes(65536))
    os.fsync(file.fileno())
os.remove("{TMPFS}/plain")
os.rename("{TMPFS}/name0", "{TMPFS}/kept")
os.mkfifo("{TMPFS}/name0")
users = [step.aim.process.pid for step in made.steps if step.action == "pageout"]
os.kill(users[0], signal.SIGKILL)
steps = []
for step in made.steps:
    if step.action == "pageout" and step.aim.process.pid == users[1]:
        earlier = replace(step.aim.process, start_ticks=1)
        step = replace(step, aim=replace(step.aim, process=earlier))
    steps.append(step)
made = replace(made, steps=tuple(steps))
"""


def test_targets_that_changed_meanwhile() -> None:
    """A wrong file or process would be acted on, or a traceback end the run."""
    require_programs()
    try:
        with live("6.12") as (guest, truth):
            acted = act(guest, truth, FAULTS)
            resident = guest.run("lab", "do", f"resident={EXT4}/read").decode().strip()
    except PackageError as error:
        give_up(f"no kernel packages: {error}")
    assert acted.stderr == ""
    assert acted.cgroups == ""
    assert resident == "16"  # the new file of the old name
    pids: dict[int, list[dict[str, Any]]] = {}
    whys: dict[str, tuple[str, str]] = {}
    for result in acted.result["steps"]:
        step = result["step"]
        whys[step["target"]] = result["status"], result["why"]
        if step["action"] == "pageout":
            pids.setdefault(step["aim"]["process"]["pid"], []).append(result)
    assert whys[f"{EXT4}/read"] == ("done", "")  # found by its handle
    ended, other = list(pids.values())[:2]
    assert {result["status"] for result in ended} <= {"failed", "skipped"}
    assert other[0]["status"] == "failed"
    assert "another process now" in other[0]["why"]
    before, after = (
        {path: digest for digest, path in map(str.split, text.splitlines())}
        for text in acted.checksums
    )
    for path in before.keys() & after.keys() - {f"{EXT4}/read"}:
        assert before[path] == after[path]
    assert after[f"{EXT4}/renamed"] == before[f"{EXT4}/read"]
