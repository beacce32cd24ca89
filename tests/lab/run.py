"""From a booted guest to zombies and the truth about them.

The order is what makes the truth exact: everything is counted while it is online,
then removed, then counted again, where zombies show up as their ancestor's pages.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.lab import truth, users
from tests.lab.guest import Guest, GuestError
from tests.lab.scenarios import (
    CGROUPS,
    EXT4,
    HUGE,
    SWAPS,
    TMPFS,
    XFS,
    Made,
    Scenario,
    Scene,
    large_folios,
)
from tests.lab.truth import Count, Files

# Statistics are flushed every two seconds (mm/memcontrol.c, FLUSH_TIME).
SETTLE = 5


@dataclass(frozen=True)
class Shape:
    """What a kernel does at removal. The lab knows it by release; memcgctl must not."""

    # Kernel pages are charged to the memcg itself, not to an obj_cgroup (up to 5.10).
    keeps_kernel_pages: bool
    # Folios go to the parent (since 7.1).
    reparents: bool
    # Statistics are exact when read: rstat since 5.13; before, each CPU kept back up
    # to MEMCG_CHARGE_BATCH pages' worth.
    exact_stat: bool
    # xfs has large folios since 5.18, ext4 since 6.16.
    needs_xfs: bool


def shape_of(release: str) -> Shape:
    version = tuple(
        int(part) for part in release.split("-")[0].split("+")[0].split(".")
    )
    return Shape(
        keeps_kernel_pages=version < (5, 11),
        reparents=version >= (7, 1),
        exact_stat=version >= (5, 13),
        needs_xfs=(5, 18) <= version < (6, 16),
    )


HOST = "node-17.example"


def uses_xfs(scenario: Scenario, shape: Shape) -> bool:
    return shape.needs_xfs and large_folios in scenario.steps


def make_disks(directory: Path, xfs: bool) -> dict[str, Path]:
    """File systems and room for swap, all sparse."""
    sizes = {"ext4": 32 << 20, "swap1": 64 << 20, "swap2": 16 << 20}
    programs = {"ext4": "mke2fs"}
    if xfs:
        sizes["xfs"], programs["xfs"] = 304 << 20, "mkfs.xfs"
    return {
        name: make_disk(directory / name, size, programs.get(name))
        for name, size in sizes.items()
    }


def make_disk(disk: Path, size: int, program: str | None) -> Path:
    """A sparse file; with a file system if there is a program to make it."""
    disk.touch()
    os.truncate(disk, size)
    if program:
        path = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])
        found = shutil.which(program, path=path)
        if found is None:
            raise FileNotFoundError(f"{program} is needed to make a disk")
        subprocess.run([found, "-q", disk], check=True)
    return disk


def prepare(guest: Guest, version: int, option: str = "") -> None:
    """Mounts, swap, and nothing in the background that moves pages about.

    ``option`` is of cgroup v2's mount, on kernels that know it.
    """
    kind = "-t cgroup2 cgroup2" if version == 2 else "-t cgroup -o memory memory"
    if option:
        kind = f"-o {option} {kind} {CGROUPS} || mount {kind}"
    xfs = "/dev/disk/xfs"
    guest.sh(f"""
        mount {kind} {CGROUPS}
        mkdir {EXT4} {TMPFS} {HUGE}
        mount -t ext4 -o noatime /dev/disk/ext4 {EXT4}
        [ ! -e {xfs} ] || {{ mkdir {XFS}; mount -t xfs -o noatime {xfs} {XFS}; }}
        mount -t tmpfs tmpfs {TMPFS}
        mount -t tmpfs -o huge=always tmpfs {HUGE}
        for swap in {" ".join(SWAPS)}; do mkswap $swap; done
        echo 0 > /sys/block/$(basename $(readlink {SWAPS[0]}))/queue/rotational
        lab do swapon=1:{SWAPS[0]}
        echo 360000 > /proc/sys/vm/dirty_writeback_centisecs
        echo 360000 > /proc/sys/vm/dirty_expire_centisecs
        cd /sys/kernel/mm/transparent_hugepage
        echo madvise > enabled
        echo 4000000000 > khugepaged/scan_sleep_millisecs
        cd {CGROUPS}
        [ ! -e memory.use_hierarchy ] || echo 1 > memory.use_hierarchy
        [ {version} = 1 ] || echo +memory > cgroup.subtree_control
        mkdir holder app
    """)


def wait_until_stable(read: Callable[[], int]) -> int:
    """A memcg goes asynchronously: RCU, then a work item."""
    last, since = read(), time.monotonic()
    while time.monotonic() - since < 2:
        time.sleep(0.3)
        now = read()
        if now != last:
            last, since = now, time.monotonic()
    return last


def dying(guest: Guest) -> int:
    return wait_until_stable(lambda: truth.offline(guest, CGROUPS))


def hold_by_stock(scene: Scene) -> Made | None:
    """A memcg without any charge that a CPU's empty stock still names.

    ``drain_all_stock`` passes by a stock without pages, so the memcg must have used
    up what CPU 1 had in stock for it: about a batch (MEMCG_CHARGE_BATCH, 64 pages),
    less what slab takes. What its process did before and does after is charged to
    the root and on CPU 0. It does not always succeed; None then.
    """
    guest, file, empty = scene.guest, f"{TMPFS}/stock", f"{EXT4}/empty"
    guest.sh(f"touch {empty}; taskset -p 1 1")  # all that the agent starts: CPU 0
    before = dying(guest)
    # fadvise on an empty file does nothing but to drain the CPU's LRU batches
    after = [f"join={CGROUPS}", f"forget={empty}", "cpu=0"]
    for pages in [64, 63, 64, 63, 62, 64, 63]:
        memcg = scene.memcg("app/stock", "a CPU's empty stock names it", ("stock",))
        made = scene.made.pop()
        write = f"write={4 * pages}K:{file}"
        first = [f"write=4K:{file}", f"remove={file}", "cpu=1"]
        scene.do(*first, f"join={memcg}", write, *after)
        made.id, _ = guest.files([memcg])[0]
        scene.do(f"remove={file}")
        remove(guest, memcg)
        if dying(guest) > before:
            return made
    return None


def remove(guest: Guest, directory: str) -> None:
    """rmdir, waiting for the last process if it is not quite gone."""
    deadline = time.monotonic() + 10
    while (answer := guest.call("rmdir", directory))[0]:
        if time.monotonic() > deadline:
            raise GuestError(f"rmdir {directory!r}: {answer[1]!r}")
        time.sleep(0.2)


def ancestor_of(path: str, online: Iterable[str]) -> str:
    """The nearest online ancestor; the root's is the root."""
    while True:
        path = path.rpartition("/")[0] or "/"
        if path in online:
            return path


def play(scene: Scene, scenario: Scenario) -> list[Files]:
    """All steps; what the files say of ``scene.made`` while all of it is online."""
    scene.made = [
        Made("/", "the root", (), True),
        Made("/holder", "where processes moved to", (), True),
        Made("/app", "the parent of most", (), True),
    ]
    for step in scenario.steps:
        step(scene)
    time.sleep(SETTLE)
    directories = [CGROUPS + made.path.rstrip("/") for made in scene.made]
    files = truth.read_files(scene.guest, directories)
    for made, said in zip(scene.made, files, strict=True):
        made.id = said.id
    return files


def remove_all(scene: Scene) -> None:
    """Children before parents, otherwise in the order of making."""
    for made in sorted(scene.made, key=lambda made: -made.path.count("/")):
        if made.online:
            continue
        before = scene.clock() if made.created else 0.0
        remove(scene.guest, CGROUPS + made.path)
        if made.created:
            made.removed = before, scene.clock()


class Unsettled(GuestError):
    """A page came or went between two counts: the kernel may do that at any time."""


def charges_in_the_end(scene: Scene, shape: Shape, stock: bool) -> dict[int, Count]:
    """What is charged to each memcg after removal, by id.

    The kernel shows an offline memcg's pages as its nearest online ancestor's. What
    it has itself is what was counted when it was online; so no page may have moved
    between the two counts.
    """
    guest, none = scene.guest, Count()
    before = truth.count(guest)
    scene.frames = users.frames(guest)
    remove_all(scene)
    if stock and not shape.reparents and (made := hold_by_stock(scene)):
        scene.made.append(made)
    time.sleep(SETTLE)
    after = truth.count(guest)
    online = {made.path: made.id for made in scene.made if made.online}
    above = {
        made.id: online[ancestor_of(made.path, online)]
        for made in scene.made
        if not made.online
    }
    for memcg in online.values():
        below = [before.get(m, none) for m, a in above.items() if a == memcg]
        was = sum(below, before.get(memcg, none)).user()
        are = after.get(memcg, none).user()
        if memcg != 1 and was != are:
            raise Unsettled(f"cgroup {memcg}: {was} before, {are} after removal")

    charged = {memcg: before.get(memcg, none) for memcg in above}
    if not shape.keeps_kernel_pages:
        charged = {memcg: count.user() for memcg, count in charged.items()}
    for made, finish in scene.finish:
        finish()
        now = truth.count(guest)
        released = now.get(above[made.id], none) - after.get(above[made.id], none)
        charged[made.id] = (charged[made.id] + released).user()
        after = now
    if shape.reparents:
        charged = dict.fromkeys(above, none)
    for memcg in online.values():
        below = [charged[m] for m, a in above.items() if a == memcg]
        charged[memcg] = after.get(memcg, none) - sum(below, none)
    return charged


def run(scenario: Scenario, guest: Guest, shape: Shape) -> dict[str, Any]:
    """Play a scenario and return the truth about what is there in the end."""
    prepare(guest, scenario.version, scenario.mount_option)
    guest.run("hostname", HOST)
    scene = Scene(guest, scenario.version)
    files = {said.id: said for said in play(scene, scenario)}
    charged = charges_in_the_end(scene, shape, scenario.stock)
    offline = dying(guest)
    online = {made.path: made for made in scene.made if made.online}
    memcgs, gone = [], []
    for made in scene.made:
        holders = set(made.held_by) - ({"folio"} if shape.reparents else set())
        holders -= set() if shape.keeps_kernel_pages else {"kernel"}
        if not made.online and not holders:
            gone.append(made.path)
            continue
        children = [m for m in scene.made if m.path.rpartition("/")[0] == made.path]
        said = files.get(made.id, Files(made.id, {}, 0, 0))
        below = sum(
            files[child.id].swap or 0 for child in children if child.id in files
        )
        memcgs.append(
            {
                "id": made.id,
                "path": made.path,
                "state": "online" if made.online else "offline",
                # The root has the processes that did the counting.
                "exact": made.path != "/",
                "ancestor": ancestor_of(made.path, online),
                "how": made.how,
                "held_by": sorted(holders),
                **identity(made),
                **truth.describe(said, charged[made.id], below, guest.page_size),
            }
        )
    expected = sum(memcg["state"] == "offline" for memcg in memcgs)
    if expected + scene.bare != offline:
        raise GuestError(f"{expected} memcgs should be offline, {offline} are")
    last = truth.read_files(guest, [CGROUPS + path for path in online])
    return {
        "cgroup_version": scenario.version,
        "page_size": guest.page_size,
        "possible_cpus": possible_cpus(guest),
        "offline": expected,
        "bare": scene.bare,
        "memcgs": memcgs,
        "gone": gone,
        "besides": scene.besides,
        # The online ones after the removal of the others, with all below them.
        "after": [
            {"path": path, "stat": truth.select(said.stat), "usage_bytes": said.usage}
            for path, said in zip(online, last, strict=True)
        ],
        "files": describe_files(guest, scene.files),
        "processes": [{"pid": held.pid, "words": held.words} for held in scene.held],
        "users": users.describe(guest, scene.frames, above_of(scene, online, shape)),
        "swaps": guest.read("/proc/swaps").splitlines(),
        "host": guest.read("/proc/sys/kernel/hostname").strip(),
        "boot_id": guest.read("/proc/sys/kernel/random/boot_id").strip(),
    }


def identity(made: Made) -> dict[str, Any]:
    """When it was made and removed by the guest's clock, and its attributes."""
    if not made.created:
        return {}
    return {
        "created": made.created,
        "removed": made.removed,
        "xattrs": made.xattrs,
    }


def above_of(scene: Scene, online: dict[str, Made], shape: Shape) -> dict[int, int]:
    """By id: the memcg for which the kernel shows the frames of an offline one.

    Empty where they really are this one's (``shape.reparents``).
    """
    if shape.reparents:
        return {}
    ids = {path: made.id for path, made in online.items()}
    return {
        made.id: ids[ancestor_of(made.path, ids)]
        for made in scene.made
        if not made.online
    }


def remove_last(truth: dict[str, Any], command: str) -> None:
    """Correct the truth for a memcg that is removed after all the rest is told."""
    path = command.removeprefix(f"rmdir {CGROUPS}")
    (memcg,) = (memcg for memcg in truth["memcgs"] if memcg["path"] == path)
    memcg["state"] = "offline"
    truth["after"] = [said for said in truth["after"] if said["path"] != path]
    truth["offline"] += 1


def possible_cpus(guest: Guest) -> int:
    first, _, last = guest.read("/sys/devices/system/cpu/possible").partition("-")
    return int(last or first) + 1


def describe_files(guest: Guest, paths: list[str]) -> list[dict[str, Any]]:
    """Where the page cache of the scenario's files comes from."""
    if not paths:
        return []
    lines = guest.run("stat", "-c", "%D %i %s", *paths).decode().splitlines()
    return [
        {"path": path, "device": device, "inode": int(inode), "bytes": int(size)}
        for path, (device, inode, size) in zip(
            paths, map(str.split, lines), strict=True
        )
    ]
