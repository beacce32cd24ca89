"""Whose memory it is, against what the guests' own files said of every page frame.

The truth is /proc/kpagecgroup and /proc/kpageflags for each charged frame, and pagemap,
smaps and the descriptors of each process (tests/lab/users.py), taken just before the
dump; for pins, protection and paths in a container, which no file tells, it is what the
lab told its processes to do. Left out is what only the processes that counted had: they
were in the root cgroup, and are gone in the core. MEMCGCTL_CORES names another
directory with cores and truth files to be tested.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from memcgctl.census import take_census
from memcgctl.census.charges.collect import collect_folios
from memcgctl.census.charges.groups import KINDS
from memcgctl.kernel.program import Sources, open_kernel
from memcgctl.linux.structs import addresses
from memcgctl.model import ChargeGroup, Memcg

FIXTURES = Path(
    os.environ.get("MEMCGCTL_CORES", Path(__file__).parents[2] / "fixtures")
)
CORES = sorted(FIXTURES.glob("*-users*.zst"))
CGROUPS = "/sys/fs/cgroup"
ROOT = 1  # the cgroup id of the root
LAYERS = "/mnt/ext4/layers"

pytestmark = [
    pytest.mark.skipif(not CORES, reason="there are no cores in fixtures/"),
    pytest.mark.parametrize("core", CORES, ids=lambda core: core.stem),
]


class Frame(NamedTuple):
    """A charged page frame: whose it is, for whom the kernel shows it, its class."""

    memcg: int
    shown: int
    kind: str


class Found(NamedTuple):
    """What is in a core: all memcgs with details, and each charged page frame."""

    memcgs: dict[int, Memcg]
    frames: dict[int, Frame]

    def groups(self) -> Iterator[tuple[int, ChargeGroup]]:
        """Each group of folios with the id of its memcg."""
        for memcg in self.memcgs.values():
            assert memcg.details is not None
            for group in memcg.details.charge_groups:
                yield memcg.id, group


@cache
def truth_of(core: Path) -> dict[str, Any]:
    truth: dict[str, Any] = json.loads(core.with_suffix(".json").read_text())
    return truth


def page_of(core: Path) -> int:
    return int(truth_of(core).get("page_size", 4096))


def whole_pages(core: Path, size: int) -> int:
    """The bytes of the pages that a size needs."""
    return -(-size // page_of(core)) * page_of(core)


@cache
def found_in(core: Path) -> Found:
    with open_kernel(Sources(core)) as kernel:
        tree = take_census(kernel, scan=False)
        # Where there are merged pages, all of all processes is looked through: the
        # reverse map of others would not be put to the test beside them.
        merged = {m.id for m in tree.memcgs if m.path == "/app/merged"}
        census = take_census(kernel, details={m.id for m in tree.memcgs} - merged)
        others = take_census(kernel, details=merged)
        every = addresses([memcg.address for memcg in census.memcgs])
        folios = collect_folios(kernel, every, every)
    assert census.warnings == ()
    by_path = {m.path: m.id for m in census.memcgs if m.state == "online"}
    shown = [
        by_path[m.path if m.id in by_path.values() else m.ancestor]
        for m in census.memcgs
    ]
    frames = {
        pfn + tail: Frame(census.memcgs[row].id, shown[row], KINDS[kind])
        for pfn, pages, row, kind in zip(
            *(
                a.tolist()
                for a in (folios.pfn, folios.all_pages, folios.memcg, folios.kind)
            ),
            strict=True,
        )
        for tail in range(pages)
    }
    detailed = {m.id: m for m in (*census.memcgs, *others.memcgs) if m.details}
    assert len(detailed) == len(census.memcgs)
    return Found(detailed, frames)


def true_frames(core: Path) -> Iterator[tuple[range, Frame, set[str]]]:
    """Runs of page frames that are alike, and how the kernel marks them."""
    for line in truth_of(core)["users"]["frames"]:
        where, memcg, shown, kind, marks = line.split(" ")
        first, count = map(int, where.split("+"))
        yield (
            range(first, first + count),
            Frame(int(memcg), int(shown), kind),
            set(marks.split(",")),
        )


def processes(core: Path, word: str) -> Iterator[tuple[int, list[str]]]:
    """The processes that were told this ``word``, and all that they were told."""
    for process in truth_of(core)["processes"]:
        if any(w.partition("=")[0] == word for w in process["words"]):
            yield process["pid"], process["words"]


def told(words: list[str], word: str) -> str:
    """What the first ``word`` was told with."""
    return next(w.partition("=")[2] for w in words if w.partition("=")[0] == word)


def bytes_of(text: str) -> int:
    units = {"K": 1 << 10, "M": 1 << 20}
    return int(text[:-1]) * units[text[-1]]


def charged_to(core: Path, path: str) -> int:
    """The id of the memcg that has what was charged at ``path``, by now."""
    reparents = truth_of(core)["shape"]["reparents"]
    there: dict[str, int] = {
        memcg["path"]: memcg["id"]
        for memcg in truth_of(core)["memcgs"]
        if memcg["state"] == "online" or not reparents
    }
    while path not in there:
        path = path.rpartition("/")[0]
    return there[path]


def stays(core: Path) -> set[int]:
    """The processes that are in the core as they were when all was told."""
    return {process["pid"] for process in truth_of(core)["processes"]}


def test_every_frame_is_whose_the_kernel_says(core: Path) -> None:
    """Lost: the owner of some page, its class, or the ancestor that answers for it."""
    # obj_cgroups have the kernel's pages since 5.11, and were handed to the parent.
    moved = not truth_of(core)["shape"]["keeps_kernel_pages"]
    passing = {"anon", "kernel"}  # in the root: of the processes that counted
    true = {
        pfn: frame._replace(memcg=frame.shown)
        if moved and frame.kind == "kernel"
        else frame
        for run, frame, _ in true_frames(core)
        if frame.shown != ROOT or frame.kind not in passing
        for pfn in run
    }
    found = {
        pfn: frame
        for pfn, frame in found_in(core).frames.items()
        if frame.shown != ROOT or frame.kind not in passing
    }
    # /proc/kpagecgroup does not show the second page of a page-table root.
    second = {
        pfn
        for pfn, frame in found.items()
        if pfn not in true and frame.kind == "kernel" and true.get(pfn - 1) == frame
    }
    assert len(second) <= 3
    assert len(true) * page_of(core) > 12 << 20
    assert {pfn: found[pfn] for pfn in found.keys() - second} == true


def test_marks_of_folios(core: Path) -> None:
    """Lost: what can be evicted at all; dirty, locked and mapped memory cannot."""
    true: Counter[tuple[int, str, str]] = Counter()
    for run, frame, marks in true_frames(core):
        if frame.shown == ROOT or frame.kind == "kernel":
            continue
        size = len(run) * page_of(core)
        for mark in marks & {"dirty", "writeback", "mapped", "mlocked"}:
            true[frame.memcg, frame.kind, mark] += size
        if "unevictable" in marks and "mlocked" not in marks:
            true[frame.memcg, frame.kind, "unevictable"] += size
        if "swapcache" in marks and frame.kind == "anon":
            true[frame.memcg, frame.kind, "swapcache"] += size
    found: Counter[tuple[int, str, str]] = Counter()
    for memcg, group in found_in(core).groups():
        if memcg == ROOT or group.kind == "kernel":
            continue
        obstacles = Counter(dict(group.obstacles))
        found[memcg, group.kind, "dirty"] += group.dirty_bytes
        found[memcg, group.kind, "writeback"] += obstacles["under writeback"]
        found[memcg, group.kind, "mapped"] += group.bytes * group.mapped
        found[memcg, group.kind, "mlocked"] += obstacles["locked (mlock)"]
        found[memcg, group.kind, "unevictable"] += obstacles["unevictable"]
        found[memcg, group.kind, "swapcache"] += group.swap_entry_bytes
    assert +found == +true
    marked = {mark for *_, mark in true}
    assert marked >= {"dirty", "writeback", "mapped", "mlocked", "swapcache"}


def test_dirty_and_locked_are_what_the_lab_made(core: Path) -> None:
    """Lost: the sense of the words; page flags alone could be misread on both sides."""
    dirty = charged_to(core, "/app/dirty")
    files = [f["path"] for f in truth_of(core)["files"] if "/dirty" in f["path"]]
    found = {
        group.backing.path: (group.bytes, dict(group.obstacles)["dirty"])
        for memcg, group in found_in(core).groups()
        if memcg == dirty and group.backing and group.backing.path in files
    }
    assert found == dict.fromkeys(files, (whole_pages(core, 12 << 10),) * 2)
    locked = Counter[int]()
    for _, words in processes(core, "lock"):
        if "anon" in words[1]:
            path = told(words, "join").removeprefix(CGROUPS)
            locked[charged_to(core, path)] += bytes_of(told(words, "anon"))
    for memcg, group in found_in(core).groups():
        if group.kind == "anon" and memcg != ROOT:
            locked[memcg] -= dict(group.obstacles).get("locked (mlock)", 0)
    assert not any(locked.values())


def test_pins_are_the_registered_buffers(core: Path) -> None:
    """Lost: the one obstacle that no file of the kernel shows at all."""
    pinned: Counter[int] = Counter()
    for _, words in processes(core, "pin"):
        path = told(words, "join").removeprefix(CGROUPS)
        pinned[charged_to(core, path)] += bytes_of(told(words, "anon"))
    found: Counter[int] = Counter()
    for memcg, group in found_in(core).groups():
        found[memcg] += dict(group.obstacles).get("pinned", 0)
    assert +found == pinned
    assert pinned.total() == (64 << 10) + (2 << 20)


def test_extra_references_are_those_of_the_pipe(core: Path) -> None:
    """Lost: what holds a page that no page table, cache or pin accounts for."""
    held: Counter[int] = Counter()
    for _, words in processes(core, "splice"):
        path = told(words, "join").removeprefix(CGROUPS)
        held[charged_to(core, path)] += whole_pages(core, bytes_of(told(words, "anon")))
    found: Counter[int] = Counter()
    for memcg, group in found_in(core).groups():
        obstacles = dict(group.obstacles)
        # Whoever waits for the end of writeback holds the page meanwhile.
        if memcg != ROOT and "under writeback" not in obstacles:
            found[memcg] += obstacles.get("extra references", 0)
    assert +found == held
    assert held.total() == whole_pages(core, 40 << 10)
    # Of the last pages to be touched, in the root, per-CPU batches hold one more each.
    for memcg, group in found_in(core).groups():
        if memcg == ROOT and group.kind == "anon":
            assert "extra references" not in dict(group.obstacles)


def test_protection_and_swap_limits(core: Path) -> None:
    """Lost: why nothing takes the memory that is all else than locked."""
    for obstacle, path in (
        ("memory.min protection", "/app/guarded"),
        ("swap limit (memory.swap.max)", "/app/no-swap"),
    ):
        memcg = charged_to(core, path)
        (group,) = (g for m, g in found_in(core).groups() if m == memcg and g.backing)
        assert group.kind == "shmem"
        assert (obstacle, group.bytes) in group.obstacles
        assert group.evictable_bytes == 0


def test_mappers_have_what_their_page_maps_say(core: Path) -> None:
    """Lost: the rightful user of memory, or a share of it that is another's."""
    still = stays(core)
    cgroups = truth_of(core)["users"]["cgroups"]
    true = {
        (said["memcg"], said["pid"]): (said["bytes"], cgroups[str(said["pid"])])
        for said in truth_of(core)["users"]["mapped"]
        if said["memcg"] != ROOT or said["pid"] in still
    }
    found: dict[tuple[int, int], tuple[int, str]] = {}
    for memcg, group in found_in(core).groups():
        for process in group.mappers:
            key = memcg, process.pid
            if memcg == ROOT and process.pid not in still:
                continue
            size = found.get(key, (0, ""))[0] + process.bytes
            found[key] = size, process.memcg
    # Page maps have a page as often as it is mapped: two processes map pages twice,
    # and KSM made one page of many of others.
    for path, word in (("/app/twice", "map"), ("/app/merged", "merge")):
        memcg = charged_to(core, path)
        for pid, words in processes(core, word):
            size, where = true.get((memcg, pid), (0, ""))
            if path == "/app/merged":
                assert 0 < found[memcg, pid][0] < size
                true[memcg, pid] = found[memcg, pid]
            elif twice(words):
                true[memcg, pid] = size - bytes_of(TWICE), where
    assert found == true


# What mapped_twice (tests/lab/scenarios.py) maps twice.
TWICE = "80K"


def twice(words: list[str]) -> str:
    """The path that a process was told to map twice, if it was."""
    maps = [word.partition("=")[2] for word in words if word.startswith("map=")]
    return maps[0] if len(maps) > len({*maps}) else ""


def test_nobody_maps_more_than_is_charged(core: Path) -> None:
    """Lost: trust; and one process that maps a page twice is taken for two."""
    for _, group in found_in(core).groups():
        most = max((process.bytes for process in group.mappers), default=0)
        total = sum(process.bytes for process in group.mappers)
        assert most <= group.mapped_bytes <= min(total, group.bytes)
        assert group.mapped or not group.mapped_bytes
        if group.mapped and group.bytes == page_of(core) * group.folios:
            assert group.mapped_bytes == group.bytes


def test_mapped_files_are_those_of_smaps(core: Path) -> None:
    """Lost: which file it is that a process maps, by its path, device and inode."""
    true: Counter[tuple[int, str]] = Counter()
    for area in truth_of(core)["users"]["areas"]:
        if area["path"].startswith("/") and area["pid"] in stays(core):
            true[area["pid"], area["path"]] += area["rss"] - area["anonymous"]
    words = {said["pid"]: said["words"] for said in truth_of(core)["processes"]}
    found: Counter[tuple[int, str]] = Counter()
    for _, group in found_in(core).groups():
        for process in group.mappers:
            if group.backing and process.pid in stays(core):
                path = seen_as(core, process.pid, group.backing.path or "")
                times = 1 + (path == twice(words.get(process.pid, [])))
                if group.backing.kind in ("memfd", "sysv", "shared-anon"):
                    path = f"/{path} (deleted)"
                found[process.pid, path] += process.bytes * times
    assert +found == +true


def seen_as(core: Path, pid: int, path: str) -> str:
    """How smaps shows the path, if the process has another mount namespace."""
    for other, words in processes(core, "chroot"):
        if other == pid and "bind" in " ".join(words):
            there, _, here = told(words, "bind").partition(":")
            path = path.replace(there, here)
        elif other == pid:
            layers, _, room = told(words, "overlay").partition(":")
            path = path.replace(f"{layers}/lower", room)
    return path


def test_backing_objects_are_the_files_of_the_lab(core: Path) -> None:
    """Lost: the file that would have to be removed, evicted or truncated."""
    true = {
        (device_of(int(said["device"], 16)), said["inode"]): said
        for said in truth_of(core)["files"]
    }
    seen = set()
    for _, group in found_in(core).groups():
        backing = group.backing
        said = backing and true.get((backing.device, backing.inode))
        if not said or not backing:
            continue
        seen.add(said["path"])
        assert (backing.path, backing.size_bytes) == (said["path"], said["bytes"])
        assert not backing.deleted
        assert backing.kind == ("tmpfs" if "/tmpfs/" in said["path"] else "file")
        assert backing.fs == ("tmpfs" if "/tmpfs/" in said["path"] else "ext4")
    # But for what is in swap altogether.
    assert {said["path"] for said in true.values()} - seen <= {
        "/mnt/tmpfs/swapped",
        "/mnt/tmpfs/swap-mapped",
        "/mnt/ext4/private",
    }
    nameless = {
        (g.backing.kind, g.backing.path, g.bytes)
        for _, g in found_in(core).groups()
        if g.backing and g.backing.kind in ("memfd", "sysv", "shared-anon")
    }
    assert nameless == {
        ("memfd", "memfd:object", 64 << 10),
        ("sysv", "SYSV1234abcd", 48 << 10),
        ("shared-anon", "dev/zero", 160 << 10),
    }


def test_deleted_files_and_paths_in_containers(core: Path) -> None:
    """Lost: a file that nobody finds any more, or one that only a container names."""
    ((pid, words),) = processes(core, "remove")
    deleted = [g for _, g in found_in(core).groups() if g.backing and g.backing.deleted]
    (group,) = deleted
    assert group.backing
    assert group.backing.path == told(words, "open")
    assert [process.pid for process in group.openers] == [pid]
    container = {
        g.backing.path: g.backing.container_path
        for _, g in found_in(core).groups()
        if g.backing and g.backing.container_path
    }
    assert container == {
        "/mnt/ext4/volume/file": "/data/file",
        f"{LAYERS}/lower/mapped": "/mapped",
        f"{LAYERS}/lower/open": "/open",
    }


def device_of(number: int) -> str:
    """As stat(2) has it, for numbers below 256: major and minor."""
    return f"{number >> 8}:{number & 255}"


def test_openers_are_those_of_proc_fd(core: Path) -> None:
    """Lost: who has unmapped page cache open, and would read it again."""
    overlay = {pid for pid, _ in processes(core, "overlay")}
    ext4 = next(f["device"] for f in truth_of(core)["files"] if "/ext4/" in f["path"])
    true: dict[tuple[str, int], set[int]] = {}
    for said in truth_of(core)["users"]["open"]:
        # A file below an overlayfs has the number it has in its layer.
        device = int(ext4, 16) if said["pid"] in overlay else said["device"]
        if said["pid"] in stays(core):
            key = device_of(device), said["inode"]
            true.setdefault(key, set()).add(said["pid"])
    found: dict[tuple[str, int], set[int]] = {}
    for _, group in found_in(core).groups():
        pids = {process.pid for process in group.openers} & stays(core)
        if group.backing and pids:
            found[group.backing.device, group.backing.inode] = pids
    assert found == true
    assert len(true) >= 4


def test_swap_owners_are_those_of_page_maps(core: Path) -> None:
    """Lost: who would bring a swapped page back, and on which device it is."""
    users = truth_of(core)["users"]
    names = ["swap cache", *(line.split()[0] for line in truth_of(core)["swaps"][1:])]
    true: Counter[tuple[int, str]] = Counter()
    for said in users["swapped"]:
        true[said["pid"], names[said["device"] + 1]] += said["entries"]
    # Page maps do not show what is swapped of shmem, smaps do.
    for area in users["areas"]:
        if area["path"].startswith("/mnt/tmpfs"):
            true[area["pid"], names[1]] += area["swap"] // page_of(core)
    found: Counter[tuple[int, str]] = Counter()
    for memcg in found_in(core).memcgs.values():
        assert memcg.details is not None
        for device in memcg.details.swap_devices:
            for owner in device.owners:
                if owner.pid is not None:
                    found[owner.pid, device.device] += owner.entries
    # No file tells on which device a page is that is in the swap cache, too.
    for pid, _ in [key for key in true if key[1] == names[0]]:
        true[pid, names[1]] += true.pop((pid, names[0]))
    assert found == +true


def test_swap_is_charged_to_whom_the_lab_had_swapped(core: Path) -> None:
    """Lost: which memcg a process's swapped memory is charged to."""
    by_path = {memcg.path: memcg for memcg in found_in(core).memcgs.values()}
    expected: dict[str, set[int]] = {}
    for pid, words in processes(core, "pageout"):
        if words[0].startswith("join"):
            expected.setdefault(told(words, "join").removeprefix(CGROUPS), set()).add(
                pid
            )
    assert len(expected) >= 6
    for path, pids in expected.items():
        details = by_path[path].details
        assert details is not None
        owners = {o.pid for device in details.swap_devices for o in device.owners}
        children = owners - pids - {None}
        # A child has the number after its parent's.
        assert children <= {pid + 1 for pid in pids}, path
        assert pids <= owners, path
    swapped = by_path["/app/swap-tmpfs"].details
    assert swapped is not None
    (device,) = swapped.swap_devices
    (owner,) = device.owners
    assert (owner.pid, owner.comm) == (None, "/mnt/tmpfs/swapped")
    assert owner.entries == device.entries
    inodes = {
        owner.comm
        for memcg in by_path.values()
        if memcg.details
        for device in memcg.details.swap_devices
        for owner in device.owners
        if owner.pid is None and owner.comm.startswith("/")
    }
    assert inodes == {"/mnt/tmpfs/swapped"}


def test_a_process_is_one_however_many_threads(core: Path) -> None:
    """Lost: a process counted once for each of its threads."""
    ((pid, words),) = processes(core, "threads")
    memcg = charged_to(core, told(words, "join").removeprefix(CGROUPS))
    (group,) = (
        g
        for m, g in found_in(core).groups()
        if m == memcg and g.kind == "anon" and g.mapped
    )
    sizes = [process.bytes for process in group.mappers if process.pid == pid]
    assert len(sizes) == 1
    assert sizes[0] >= bytes_of(told(words, "anon"))
