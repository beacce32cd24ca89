"""From a booted guest to zombies and the truth about them.

The order is what makes the truth exact: everything is counted while it is online,
then removed, then counted again, where zombies show up as their ancestor's pages.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.lab import truth
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
)
from tests.lab.truth import Count, Files

# Statistics are flushed every two seconds (mm/memcontrol.c, FLUSH_TIME).
SETTLE = 5


def make_disks(directory: Path) -> tuple[Path, ...]:
    """vda: ext4, vdb and vdc: swap, vdd: xfs. All sparse."""
    sizes = {"ext4": 32 << 20, "swap1": 64 << 20, "swap2": 16 << 20, "xfs": 304 << 20}
    disks = {name: directory / name for name in sizes}
    for name, path in disks.items():
        path.touch()
        os.truncate(path, sizes[name])
    path = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])
    for program, name in [("mke2fs", "ext4"), ("mkfs.xfs", "xfs")]:
        found = shutil.which(program, path=path)
        if found is None:
            raise FileNotFoundError(f"{program} is needed to make a disk")
        subprocess.run([found, "-q", disks[name]], check=True)
    return tuple(disks.values())


def prepare(guest: Guest, version: int) -> None:
    """Mounts, swap, and nothing in the background that moves pages about."""
    kind = "-t cgroup2 cgroup2" if version == 2 else "-t cgroup -o memory memory"
    guest.sh(f"""
        mount {kind} {CGROUPS}
        mkdir {EXT4} {XFS} {TMPFS} {HUGE}
        mount -t ext4 -o noatime /dev/vda {EXT4}
        mount -t xfs -o noatime /dev/vdd {XFS}
        mount -t tmpfs tmpfs {TMPFS}
        mount -t tmpfs -o huge=always tmpfs {HUGE}
        for swap in {" ".join(SWAPS)}; do mkswap $swap; done
        echo 0 > /sys/block/vdb/queue/rotational
        lab do swapon=1:{SWAPS[0]}
        echo 0 > /proc/sys/vm/dirty_writeback_centisecs
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


def charge(scene: Scene, memcg: str, pages: int) -> int:
    """Charge pages on CPU 1 and let go of them; return the highest usage."""
    file = f"{TMPFS}/stock"
    scene.do("cpu=1", f"join={memcg}", f"write={4 * pages}K:{file}")
    usage = truth.read_files(scene.guest, [memcg])[0].usage
    scene.guest.run("rm", file)
    return usage or 0


def hold_by_stock(scene: Scene) -> Made | None:
    """A memcg without any charge that a CPU's empty stock still names.

    ``drain_all_stock`` passes by a stock without pages, so the memcg must have used
    up what its CPU had in stock: one page more would have charged a new batch.
    """
    guest = scene.guest
    before = truth.offline(guest, CGROUPS)
    low, high = 1, 0
    probe = f"{CGROUPS}/app/probe"

    def usage(pages: int) -> int:
        guest.run("mkdir", probe)
        used = charge(scene, probe, pages)
        remove_one(guest, probe)
        return used

    least, high = usage(low), 130
    while high - low > 1:
        middle = (low + high) // 2
        if usage(middle) > least:
            high = middle
        else:
            low = middle
    memcg = scene.memcg("app/stock", "a CPU's empty stock names it", ("stock",))
    charge(scene, memcg, low)
    made = scene.made.pop()
    made.id = guest.files([memcg])[0][0]
    remove_one(guest, memcg)
    now = wait_until_stable(lambda: truth.offline(guest, CGROUPS))
    print("stock", low, before, now)
    return made if now > before else None


def remove_one(guest: Guest, directory: str) -> None:
    """rmdir, waiting for the last process if it is not quite gone."""
    deadline = time.monotonic() + 10
    while (answer := guest.call("rmdir", directory))[0]:
        if time.monotonic() > deadline:
            raise GuestError(f"rmdir {directory!r}: {answer[1]!r}")
        time.sleep(0.2)


def remove(scene: Scene) -> None:
    """Children before parents, otherwise in the order of making."""
    gone = [made for made in scene.made if not made.online]
    for made in sorted(gone, key=lambda made: -made.path.count("/")):
        remove_one(scene.guest, CGROUPS + made.path)


def ancestor_of(path: str, online: set[str]) -> str:
    while path not in online:
        path = path.rpartition("/")[0] or "/"
    return path


def run(scenario: Scenario, guest: Guest, *, reparents: bool) -> dict[str, Any]:
    """Play a scenario and return the truth about what is there in the end.

    ``reparents``: folios go to the parent at removal (7.1 and later).
    """
    prepare(guest, scenario.version)
    scene = Scene(guest, scenario.version)
    living = [
        Made("/", "the root", (), True),
        Made("/holder", "where processes moved to", (), True),
        Made("/app", "the parent of most", (), True),
    ]
    for step in scenario.steps:
        step(scene)
    scene.made[:0] = living
    time.sleep(SETTLE)
    directories = [CGROUPS + made.path.rstrip("/") for made in scene.made]
    counts = truth.count(guest)
    files = truth.read_files(guest, directories)
    for made, said in zip(scene.made, files, strict=True):
        made.id = said.id
    expected = {made.id: counts.get(made.id, Count()) for made in scene.made}

    remove(scene)
    stock = hold_by_stock(scene) if scenario.stock else None
    if stock:
        scene.made.append(stock)
        files.append(Files(stock.id, {}, 0, 0))
        expected[stock.id] = Count()
    online = {made.path for made in scene.made if made.online}
    ancestors = {made.id: ancestor_of(made.path, online) for made in scene.made}
    ids = {made.path: made.id for made in scene.made if made.online}
    time.sleep(SETTLE)
    counts = truth.count(guest)
    check(expected, counts, ancestors, ids)
    for made, finish in scene.finish:
        finish()
        now = truth.count(guest)
        above = ids[ancestors[made.id]]
        released = now.get(above, Count()) + -counts.get(above, Count())
        expected[made.id] = (expected[made.id] + released).user()
        counts = now
    if reparents:
        for made in scene.made:
            expected[made.id] = counts.get(made.id, Count())
    dying = wait_until_stable(lambda: truth.offline(guest, CGROUPS))
    last = [CGROUPS + made.path for made in scene.made if made.online]
    after = truth.read_files(guest, last)
    held = [
        bool(set(made.held_by) - ({"folio"} if reparents else set()))
        for made in scene.made
    ]
    memcgs = [
        describe(made, said, expected[made.id], ancestors[made.id])
        for made, said, stays in zip(scene.made, files, held, strict=True)
        if made.online or stays
    ]
    return {
        "memcgs": memcgs,
        "offline": dying,
        "gone": [
            made.path
            for made, stays in zip(scene.made, held, strict=True)
            if not made.online and not stays
        ],
        "processes": [{"pid": h.pid, "words": h.words} for h in scene.held],
        "after": [
            {"id": a.id, "stat": a.stat, "usage_bytes": a.usage, "swap_bytes": a.swap}
            for a in after
        ],
        "swaps": guest.read("/proc/swaps").splitlines(),
    }


def check(
    expected: dict[int, Count],
    counts: dict[int, Count],
    ancestors: dict[int, str],
    ids: dict[str, int],
) -> None:
    """Nothing may have moved between the counts: the sums are the ancestors'."""
    sums: dict[int, Count] = {}
    for memcg, counted in expected.items():
        above = ids[ancestors[memcg]]
        sums[above] = sums.get(above, Count()) + counted
    for memcg, total in sums.items():
        now = counts.get(memcg, Count())
        if memcg != 1 and total.user() != now.user():
            raise GuestError(f"cgroup {memcg}: {total} before, {now} after removal")


def describe(made: Made, said: Files, charged: Count, ancestor: str) -> dict[str, Any]:
    return {
        "id": made.id,
        "path": made.path,
        "state": "online" if made.online else "offline",
        "ancestor": ancestor,
        "how": made.how,
        "held_by": list(made.held_by),
        "charged": {
            name: pages * truth.PAGE
            for name, pages in zip(truth.CLASSES, charged.pages, strict=True)
        },
        "folios": dict(zip(truth.CLASSES, charged.folios, strict=True)),
        "swap": {"entries": (said.swap or 0) // truth.PAGE, "bytes": said.swap or 0},
        "usage_bytes": said.usage,
        "stat": said.stat,
    }
