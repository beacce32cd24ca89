"""The accounts of references in the fixtures balance, and name who holds what.

The truth is the lab's: what made each memcg outlive its removal, which processes were
left behind and what they had been told, which files were written.
"""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import drgn
import pytest
from drgn.helpers.linux.mm import follow_phys

from memcgctl.census import take_census
from memcgctl.census.holders.balance import holders
from memcgctl.census.holders.objcgs import inherited
from memcgctl.cli import app
from memcgctl.kernel import elf
from memcgctl.kernel.compressed import is_compressed, unpacked
from memcgctl.kernel.program import Sources, open_kernel
from memcgctl.model import Holder, Inherited, Memcg
from tests.schemas import read

CORES = sorted((Path(__file__).parents[2] / "fixtures").glob("*.zst"))
SMALLEST = min(CORES, key=lambda core: core.stat().st_size, default=None)

pytestmark = pytest.mark.skipif(not CORES, reason="there are no cores in fixtures/")
each_core = pytest.mark.parametrize("core", CORES, ids=lambda core: core.stem)

# What the lab does not promise to be absent: what else the process that it moved had
# charged, and an inode that stays attached after a write.
UNTOLD = {"folio", "kernel"}
MAYBE = {*UNTOLD, "writeback"}
LEAKED = 3


class Found(NamedTuple):
    """What was found for one memcg."""

    memcg: Memcg
    holders: tuple[Holder, ...]
    unexplained: int | None
    inherited: tuple[Inherited, ...]

    def kinds(self) -> Counter[str]:
        counts: Counter[str] = Counter()
        for holder in self.holders:
            counts[holder.kind] += holder.count
        return counts


def look(core: Path) -> tuple[dict[int, Found], tuple[str, ...]]:
    """By cgroup id."""
    with open_kernel(Sources(core=core)) as kernel:
        memcgs = take_census(kernel).memcgs
        held = holders(kernel, memcgs)
        legacies = inherited(kernel, memcgs)
    return {
        memcg.id: Found(memcg, *held[memcg.address], legacies.get(memcg.address, ()))
        for memcg in memcgs
    }, kernel.trouble.sentences()


look_once = cache(look)


def truth_of(core: Path) -> dict[str, Any]:
    truth: dict[str, Any] = json.loads(core.with_suffix(".json").read_text())
    return truth


def offline(core: Path) -> Iterator[tuple[dict[str, Any], Found]]:
    """What the lab says of each offline memcg, and what was found."""
    found, _ = look_once(core)
    for said in truth_of(core)["memcgs"]:
        if said["state"] == "offline":
            yield said, found[said["id"]]


def processes(core: Path, said: dict[str, Any]) -> dict[int, list[str]]:
    """Pids that were in the memcg before they moved, and what they were told."""
    join = f"join=/sys/fs/cgroup{said['path']}"
    told = {p["pid"]: p["words"] for p in truth_of(core)["processes"]}
    return {pid: words for pid, words in told.items() if join in words}


@each_core
def test_every_account_balances(core: Path) -> None:
    """Lost: audit, which is to show nothing but kernel bugs."""
    left = {said["path"]: found.unexplained for said, found in offline(core)}
    assert left == dict.fromkeys(left, 0)
    assert not look_once(core)[1]


@each_core
def test_the_kinds_of_holders_are_what_the_lab_made(core: Path) -> None:
    """Lost: the reason, or a reference counted under a wrong one that fits."""
    parents = Counter(
        said["path"].rpartition("/")[0] for said in truth_of(core)["memcgs"]
    )
    wrong = {}
    for said, found in offline(core):
        kinds = found.kinds()
        children = parents[said["path"]]
        told = {*said["held_by"], *(["child"] if children else [])}
        if not said["swap"]["entries"]:  # v1 uncharges those that are in the swap cache
            told.discard("swap")
        missing, more = told - UNTOLD - set(kinds), set(kinds) - MAYBE - told
        if missing or more or kinds["child"] != children:
            wrong[said["path"]] = (told, found.holders)
    assert wrong == {}


@each_core
def test_folios_hold_as_the_kernel_has_them(core: Path) -> None:
    """Lost: one reference a page where it is one a folio, or the other way round."""
    wrong = {}
    for said, found in offline(core):
        kinds = ("file", "shmem", "anon", "hugetlb")
        folios = sum(said["folios"].get(kind, 0) for kind in kinds)
        if found.kinds()["folio"] != folios:
            wrong[said["path"]] = (folios, found.kinds())
    assert wrong == {}


@each_core
def test_processes_are_named(core: Path) -> None:
    """Lost: whom to ask to close the socket or to reap the dead."""
    wrong = {}
    for said, found in offline(core):
        for holder in found.holders:
            if holder.kind not in ("socket", "fsnotify"):
                continue
            pids = {int(pid) for pid in re.findall(r"\(pid (\d+)\)", holder.detail)}
            nobody = "no file" in holder.detail or "in no process" in holder.detail
            if "network namespace" in holder.detail:  # may be anybody's
                continue
            if pids != (set() if nobody else set(processes(core, said))):
                wrong[said["path"]] = holder
    assert wrong == {}


@each_core
def test_events_are_found_on_their_eventfds(core: Path) -> None:
    """Lost: what holds a memcg of cgroup v1 whose removal a worker has not finished."""
    for said, found in offline(core):
        if "event" in said["held_by"]:
            word = f"event=/sys/fs/cgroup{said['path']}"
            ((pid, number),) = (
                (p["pid"], p["words"].count(word))
                for p in truth_of(core)["processes"]
                if word in p["words"]
            )
            (holder,) = found.holders
            assert holder.count == number
            assert holder.detail.startswith(f"eventfd, lab (pid {pid}): fd ")


@each_core
def test_sockets_and_groups_without_a_descriptor(core: Path) -> None:
    """Lost: orphans of TCP and what is in flight, which no descriptor table shows."""
    details = {
        word: [h.detail for h in found.holders if h.kind in ("socket", "fsnotify")]
        for said, found in offline(core)
        for words in processes(core, said).values()
        for word in (w.partition("=")[0] for w in words)
    }
    if "orphan" in details:
        assert "TCP, no file, FIN_WAIT1" in details["orphan"]
    if "send-inotify" in details:
        (inotify,) = (d for d in details["send-inotify"] if d.startswith("inotify"))
        assert inotify.startswith("inotify, in flight to lab (pid ")


@each_core
def test_the_dead_and_the_namespaces_are_told(core: Path) -> None:
    """Lost: why a memcg without any memory stays while its process is long dead."""
    for said, found in offline(core):
        others = [holder.detail for holder in found.holders if holder.kind == "other"]
        for pid, words in processes(core, said).items():
            if "corpse" in words:
                assert len(others) == 1
                assert re.fullmatch(
                    r"css_set: lab \(pid \d+\), dead but not reaped", others[0]
                )
            if "cgroupns" in words:
                assert others == [f"css_set: the cgroup namespace of lab (pid {pid})"]


@each_core
def test_writeback_names_device_and_inodes(core: Path) -> None:
    """Lost: which files to write out so that the zombie goes."""
    files = {file["path"]: file["inode"] for file in truth_of(core).get("files", [])}
    for said, found in offline(core):
        its = [holder.detail for holder in found.holders if holder.kind == "writeback"]
        if "writeback" not in said["held_by"] or said["path"] == "/app/unplugged":
            continue
        stem = {
            "/app/dirty": "/dirty",
            "/app/writeback": "/attached",
            "/app/writing": "/writing",
        }[said["path"]]
        (detail,) = its
        device, _, inodes = detail.partition(": ")
        assert device == "vda"
        named = re.findall(r"(\d+) \((\S+)\)", inodes)
        assert named
        for number, path in named:
            assert files[path] == int(number)
            assert stem in path


@each_core
def test_what_online_memcgs_inherited(core: Path) -> None:
    """Lost: where the memory went that has no zombie since 7.1."""
    found, _ = look_once(core)
    truth = truth_of(core)
    reparents = truth["shape"]["reparents"]
    zombies = [said for said in truth["memcgs"] if said["state"] == "offline"]
    ((most, _),) = Counter(said["ancestor"] for said in zombies).most_common(1)
    app = next(f for f in found.values() if f.memcg.path == most)
    assert app.inherited
    gone = {said["path"] for said in truth["memcgs"] if said["state"] == "offline"}
    origins = [part for part in app.inherited if part.path is not None]
    assert {part.path for part in origins} <= gone
    assert all(found[part.id].memcg.path == part.path for part in origins)
    charged = app.memcg.charges
    assert charged is not None
    if reparents:
        # Nothing was ever charged to it itself: all that it has is inherited.
        assert sum(part.charged_bytes for part in app.inherited) == charged.total_bytes
        assert any(part.path is None for part in app.inherited)
    for memcg in found.values():
        if memcg.memcg.state == "offline":
            assert not memcg.inherited


@pytest.fixture(scope="module")
def leaked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Found]]:
    """A core with 3 more css references to the first of its offline memcgs."""
    assert SMALLEST is not None
    magic = SMALLEST.read_bytes()[:16]
    source = unpacked(SMALLEST, magic) if is_compressed(magic) else SMALLEST
    core = tmp_path_factory.mktemp("leaked") / "core"
    shutil.copyfile(source, core)
    victims = [found for _, found in offline(SMALLEST)]
    with open_kernel(Sources(core=core)) as kernel:
        memcg = kernel.prog.type("struct mem_cgroup")
        css = drgn.Object(kernel.prog, memcg, address=victims[0].memcg.address).css
        count = css.refcnt.data.count.counter
        mm = kernel.prog["init_mm"].address_of_()
        place = int(follow_phys(mm, count.address_of_().value_()))
        more = (int(count) + LEAKED).to_bytes(8, "little")
    with core.open("r+b") as file:
        for load in elf.read(file).segments:
            if load.physical <= place < load.physical + load.size:
                file.seek(load.offset + place - load.physical)
                file.write(more)
    return core, victims


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any]:
    """Exit code and output, JSON, of the program."""
    capsys.readouterr()
    try:
        code = app([*arguments, "--json"], standalone_mode=False) or 0
    except SystemExit as end:
        code = end.code
    out, err = capsys.readouterr()
    assert err == ""
    return code, read(out)


def test_a_leaked_reference_is_counted_to_the_last(
    leaked: tuple[Path, list[Found]],
) -> None:
    """Lost: the kernel bug that audit exists for; it would be hidden or miscounted."""
    core, (victim, *others) = leaked
    found, _ = look(core)
    assert found[victim.memcg.id].unexplained == LEAKED
    assert found[victim.memcg.id].holders == victim.holders
    assert all(found[other.memcg.id].unexplained == 0 for other in others)


def test_audit_points_at_the_leak_and_fails(
    leaked: tuple[Path, list[Found]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Lost: a script that watches for leaks would be told that all is well."""
    core, (victim, *others) = leaked
    code, audit = run(capsys, "audit", "--core", str(core))
    assert code == 4
    assert audit["totals"]["unexplained"] == LEAKED
    assert audit["totals"]["missing"] == audit["totals"]["unknown"] == 0
    first, *rest = audit["memcgs"]
    assert (first["id"], first["unexplained"]) == (victim.memcg.id, LEAKED)
    assert [memcg["unexplained"] for memcg in rest] == [0] * len(others)
    assert SMALLEST is not None
    code, audit = run(capsys, "audit", "--core", str(SMALLEST))
    assert (code, audit["totals"]["unexplained"]) == (0, 0)


def test_explain_says_that_nobody_accounts_for_the_leak(
    leaked: tuple[Path, list[Found]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Lost: a verdict that blames the memory when it is the kernel."""
    core, (victim, *_) = leaked
    code, said = run(capsys, "explain", str(victim.memcg.id), "--core", str(core))
    assert code == 0
    references = said["references"]
    assert references["unexplained"] == LEAKED
    assert references["explained"] + LEAKED == references["total"]
    assert f"{LEAKED} references" in said["verdict"]
