"""memcgctl reclaim in guests where things go wrong: nothing of anybody's is lost.

tests/vm/in_guest.py makes zombies and faults in the guest, a file's and a process's
contents are compared there, and a file of a living memcg is to stay in memory.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.lab import packages, run, scenarios
from tests.lab.guest import Guest, Machine
from tests.lab.live import CPU, ROOT, boot_with_python, run_in
from tests.lab.scenarios import CGROUPS, Scene
from tests.schemas import read
from tests.vm.test_actions import bind
from tests.vm.test_live import give_up, require_programs

Json = dict[str, Any]

PROGRAM = Path(__file__).with_name("in_guest.py")
# Locked down is for ever, so the last. Signals and pids are no matter of the kernel.
ROUNDS = ["nothing", "targets", "swap", "two", "crowd", "pressure", "barred"]
GUESTS = {"6.12": ["nothing", "signals", "reused", *ROUNDS[1:]], "6.1": ROUNDS}
BYSTANDER = 64  # pages


def prepare(guest: Guest) -> None:
    """Two containers' zombies; then file systems that are only where memcgctl is."""
    run.prepare(guest, 2)
    bind(guest)
    scene = Scene(guest, 2)
    for step in (scenarios.on_overlay, scenarios.in_container):
        step(scene)
    for made in scene.made:
        run.remove(guest, CGROUPS + made.path)
    guest.sh(f"""
        cp /bin/lab {ROOT}/usr/bin/lab
        mount -t securityfs securityfs {ROOT}/sys/kernel/security
        cd {ROOT}/mnt; mkdir small a b c d
        mount -t tmpfs -o size=4M tmpfs small
        for name in a b c; do mount -t ext4 /dev/disk/$name $name; done
        truncate -s 8M small/disk
        mke2fs -F small/disk > /dev/null 2>&1
        truncate -s 2M small/hidden
        mke2fs -F small/hidden > /dev/null 2>&1
        losetup /dev/loop0 small/disk
        losetup /dev/loop1 small/hidden
        mount -t ext4 /dev/loop0 d
    """)


@pytest.fixture(scope="module", params=GUESTS)
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
        machine = Machine(
            memory="512M", cpu=CPU, disks=disks, modules=("overlay", "loop")
        )
        with boot_with_python(kernel, machine) as guest:
            prepare(guest)
            guest.write(f"{ROOT}/run/in_guest.py", PROGRAM.read_text())
            guest.agent.settimeout(1200)
            names = GUESTS[request.param]
            ran = run_in(guest, sys.executable, "/run/in_guest.py", *names)
    assert ran.stderr == ""
    said = map(json.loads, ran.stdout.splitlines())
    rounds = dict(zip(names, said, strict=True))
    errors = {name: one["error"] for name, one in rounds.items() if "error" in one}
    assert errors == {}
    return rounds


def steps(result: Json) -> dict[tuple[str, str], tuple[str, str]]:
    """What came of each, by action and the last part of its target."""
    found = {}
    for one in result["steps"]:
        step = one["step"]
        key = step["action"], step["target"].rpartition("/mnt/")[2]
        found[key] = one["status"], one["why"]
    return found


def freed(done: Json) -> set[str]:
    result = done["result"]
    return {result["paths"][str(one)] for one in result["freed"]}


def quiet(*commands: Json) -> bool:
    """One clear line at most, and no traceback."""
    texts = [command["stderr"] for command in commands]
    return not any("Traceback" in text or "internal error" in text for text in texts)


def told(done: Json) -> int:
    """How many a plan frees, or says why not."""
    predicted = read(done["rest"]["stdout"])["predicted"]
    return len(predicted["freed"]) + len(whys(done))


def whys(done: Json) -> list[str]:
    """Why those that a plan leaves stay."""
    predicted = read(done["rest"]["stdout"])["predicted"]
    return [one["why"] for one in predicted["remaining"]]


def test_what_containers_use(played: dict[str, Json]) -> None:
    """What they map through an overlayfs, or have mounted alone, would be left."""
    done = played["nothing"]
    theirs = {f"/app/{name}" for name in ("overlay", "container", "on-tmpfs")}
    # What was just written to a disk may still be its journal's.
    left = [one["why"] for one in done["result"]["remaining"]]
    assert freed(done) | {"/app/on-disk"} == theirs | {"/app/on-disk"}
    assert len(freed(done)) + len(left) == 4
    assert all(left)
    statuses = {status for status, _ in steps(done["result"]).values()}
    assert "done" in statuses <= {"done", *(["part"] if left else [])}
    assert (done["changed"], done["bystander"]) == (False, BYSTANDER)
    assert done["dying"] == len(left)


def test_file_systems_and_files_that_changed(played: dict[str, Json]) -> None:
    """An action would go to another file, or an error end all the others."""
    done = played["targets"]
    found = steps(done["result"])
    unmounted = found["fadvise", "a/file"]
    assert unmounted[0] == "skipped" or "it is gone" in unmounted[1]
    for name in ("b/file", "c/clean", "c/dirty", "ext4/half"):
        assert found["fadvise", name] == ("done", ""), name
    assert found["fadvise", "ext4/none"][0] == "skipped"
    assert found["fadvise", "d/dirty"][0] == "failed"
    assert "writing: " in found["fadvise", "d/dirty"][1]
    names = ("detached", "half", "none", "read-only", "unmounted")
    assert freed(done) == {f"/app/{name}" for name in names}
    assert (done["changed"], done["half"]) == ([], done["half_expected"])
    assert done["helpers"] == []


def test_a_cgroup_of_the_same_name(played: dict[str, Json]) -> None:
    """Who made a cgroup of that name anew would lose page cache."""
    done = played["targets"]
    found = steps(done["result"])["memory.reclaim", "/app/parent"]
    assert found[0] == "failed"
    assert "another cgroup now" in found[1] or "is gone" in found[1]
    assert done["resident"] == {"innocent": 32, "bystander": BYSTANDER}


@pytest.mark.parametrize("fault", ["off", "full"])
def test_no_swap_any_more(played: dict[str, Json], fault: str) -> None:
    """Pages would be scanned in vain, or a process lose what it has."""
    done = played["swap"][fault]
    found = {
        (action, status, why)
        for (action, _), (status, why) in steps(done["result"]).items()
        if action.startswith("pageout")
    }
    # Of a process that is on its way to be paged out, the plan knows less.
    words = {"off": "no swap is switched on", "full": "no room in swap"}
    assert found
    assert {why for action, _, why in found if action == "pageout-file"} <= {
        words[fault]
    }
    assert {(status, why) for _, status, why in found} <= {
        ("skipped", why) for why in words.values()
    }
    assert (done["kept"], done["changed"], done["bystander"]) == (True, False, 64)
    later = played["swap"]["later"]
    assert (later["status"], later["stderr"]) == (0, "")


def test_two_at_once(played: dict[str, Json]) -> None:
    """Both would move what was allowed to one, whatever their environment."""
    first, second = played["two"]["first"], played["two"]["second"]
    assert (second["status"], second["stdout"]) == (1, "")
    assert f"pid {second['pid']} is at work" in second["stderr"]
    assert (first["status"], first["stderr"]) == (0, "")
    assert played["two"]["lost"] == []
    assert quiet(second)


@pytest.mark.parametrize("played", ["6.12"], indirect=True)
def test_a_signal_at_every_line_of_the_journal(played: dict[str, Json]) -> None:
    """After it, something of ours would be left, or something of others' gone."""
    done = played["signals"]
    whole, runs = done["whole"], done["runs"]
    assert whole["ran"]["status"] == 0
    wanted = {"fadvise", "pageout", "pageout-file", "swapin", "writeback-cleanup"}
    steps = read(whole["ran"]["stdout"])["steps"]
    assert wanted <= {step["action"] for step in steps}
    for one in (whole, *runs):
        status = one["ran"]["status"]
        assert quiet(one["ran"]), one
        assert one["left"] == [], one
        assert (one["changed"], one["lost"], one["bystander"]) == (False, [], 64), one
        if one["signal"] == "SIGKILL":
            assert status in (0, -9), one
            continue
        if one["line"] == 0:
            assert (status, one["events"]) == (4, []), one
            continue
        # The step in hand is finished, and the person told what came of all.
        assert status in (0, 4), one
        assert (one["events"][0], one["events"][-1]) == ("begin", "end"), one
        assert one["events"].count("before") == one["events"].count("after"), one
        result = read(one["ran"]["stdout"])
        assert (result["stopped"] == "stopped by SIGINT") == (status == 4), one
    for name, status in (("SIGINT", 4), ("SIGKILL", -9)):
        found = [one["ran"]["status"] for one in runs if one["signal"] == name]
        assert found.count(status) > len(found) // 3
    assert done["last"]["status"] == 0
    assert told(done) == done["dying"]


@pytest.mark.parametrize("played", ["6.12"], indirect=True)
def test_pids_that_are_others_now(played: dict[str, Json]) -> None:
    """A process that nobody meant would be paged out, or read through."""
    done = played["reused"]
    assert done["new"] == done["old"]
    assert done["has"] == done["had"]
    assert [len(lines) for lines in done["had"]] == [2, 2]  # Anonymous and Swap
    found = {
        result["step"]["action"]: (result["status"], result["why"])
        for result in done["result"]["steps"]
        if result["step"]["aim"].get("process", {}).get("pid") in done["old"]
    }
    assert found.keys() == {"pageout", "swapin"}
    for status, why in found.values():  # most of its memory goes with a process
        assert (status, why) == ("skipped", "what it serves is gone already") or (
            status == "failed" and "that pid is another process now" in why
        )


def test_cgroups_that_come_and_go(played: dict[str, Json]) -> None:
    """On a busy host there would be a traceback, a wrong target or no end."""
    done = played["crowd"]
    for name in ("list", "reclaim"):
        assert done[name]["status"] in (0, 4), done[name]
        assert quiet(done[name])
        read(done[name]["stdout"])
    assert (done["changed"], done["lost"], done["helpers"]) == ([], [], [])
    assert done["bystander"] == BYSTANDER
    assert told(done) == done["dying"]
    # Who was killed left children to init, and the guest's asks for none of them.
    # On 6.1, what is left of rounds before would cost the living their files.
    reasons = "dead but not reaped", "memory.reclaim would take living cgroups' memory"
    assert [w for w in whys(done) if not any(one in w for one in reasons)] == []
    assert (done["last"]["status"], done["last"]["stderr"]) == (0, "")


def test_memory_is_short(played: dict[str, Json]) -> None:
    """A host that thrashes would be made to thrash more, or the run never end."""
    done = played["pressure"]
    assert (done["short"], done["calm"]) == (True, True)
    assert done["ran"]["status"] == 4
    stopped = read(done["ran"]["stdout"])["stopped"]
    assert stopped in ("memory stayed short", "--max-seconds are over")
    assert done["events"] == ["begin", "end"]
    assert done["later"]["status"] == 0
    assert done["lost"] == []


def test_where_it_may_not(played: dict[str, Json]) -> None:
    """A traceback, or half of the work, where a person lacks a right."""
    ways = played["barred"]["ways"]
    expected = {
        "nobody": (3, "/proc/kcore"),
        "container": (1, "this is a container, with a pid namespace of its own"),
        "weak_container": (3, "CAP_SYS_RAWIO"),
        "without_admin": (4, ""),
        "locked_down": (3, "lockdown"),
    }
    for way, (status, words) in expected.items():
        ran = ways[way]
        assert ran["status"] == status, (way, ran)
        assert words in ran["stderr"], (way, ran)
        assert quiet(ran), (way, ran)
        assert len(ran["stderr"].splitlines()) == bool(words), (way, ran)
    assert "needs CAP_SYS_ADMIN" in ways["without_admin"]["stdout"]
    assert (played["barred"]["lost"], played["barred"]["bystander"]) == ([], 64)
