"""What runs in a guest: for each action a zombie that it frees, and the action alone.

``python each_action.py keeps|reparents CASE ...`` prints a line of JSON for each case:
what the kernel counts before and after, and what memcgctl said of it. Where folios are
reparented when a memcg goes offline, many a zombie goes at once; what it had is there
still, and the action is done on that.
"""

from __future__ import annotations

import fcntl
import importlib
import json
import os
import pkgutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import replace
from itertools import cycle
from pathlib import Path

sys.path.insert(0, "/checkout")
sys.path.insert(0, "/run")

import memcgctl
from memcgctl.actions.run.executor import carry_out
from memcgctl.actions.run.pace import Limits
from memcgctl.census import take_census
from memcgctl.cli.policy import load_policy
from memcgctl.kernel import program
from memcgctl.kernel.program import OpenedKernel
from memcgctl.model import Details, Plan
from memcgctl.policy.plan import plan
from tests.vm.in_guest import (
    ABOVE,
    CGROUPS,
    EXT4,
    HOLDER,
    PAGE,
    SWAPS,
    TMPFS,
    Json,
    a_file,
    checked,
    command,
    forked,
    lab,
    libc,
    memcg,
    remove,
    until,
)

ZRAM = b"/dev/zram0"
BLKFLSBUF = 0x1261
DIRECTORY, EMPTY = EXT4 / "directory", EXT4 / "empty"
ALLOWED = ["--allow", "unaimed", "--allow", "drop-caches"]
ODD = 64 * PAGE - 1000  # bytes of a file that ends within its last page
ATTEMPTS = 30  # to have a stock name a memcg; all can fail
Making = Iterator[None]

held: list[int] = []


def hold(*words: object) -> None:
    """A process that stays, in /holder, till the case is over."""
    held.append(int(lab(*words, f"join={HOLDER}", "hold")))


def moved(cgroup: Path, size: str, *words: object) -> None:
    """Memory that a process of /holder uses and the memcg is charged for.

    The process has its page tables from before, which up to 5.10 would stay charged.
    """
    first = (f"join={HOLDER}", f"anon={size}", "look")
    hold(*first, f"join={cgroup}", "touch", *words)


def drain() -> None:
    """What is in a CPU's LRU batches stays, of processes that have ended as well."""
    for cpu in (0, 1):
        lab(f"cpu={cpu}", f"forget={EMPTY}")


def flush_entries() -> None:
    """What up to 6.13 a CPU keeps of freed swap entries goes with more of them."""
    for cpu in (0, 1):
        lab(f"cpu={cpu}", "anon=1M", "touch", "pageout", "sleep=300")


def let_go(cgroup: Path) -> None:
    """Have the kernel let go of what was written to swap but is still in memory."""
    time.sleep(0.3)
    for _ in range(2):
        drain()
        with suppress(OSError):
            if (cgroup / "memory.force_empty").exists():
                (cgroup / "memory.force_empty").write_text("0")
            elif (cgroup / "memory.reclaim").exists():
                (cgroup / "memory.reclaim").write_text("8M")
            else:
                (cgroup / "memory.high").write_text("0")
                (cgroup / "memory.high").write_text("max")


# --- zombies: what comes after the yield is done when the cgroup is removed -----------


def clean_file(cgroup: Path, size: int = 255) -> Making:
    path = a_file(size, EXT4 / cgroup.name)
    lab(f"join={cgroup}", f"read={path}")
    yield


def whole_pages(cgroup: Path) -> Making:
    """Up to 5.10 the read that meets the end leaves a page beyond it."""
    yield from clean_file(cgroup, 256)


def dirty_file(cgroup: Path) -> Making:
    lab(f"join={cgroup}", f"write=64K:{EXT4 / cgroup.name}")
    yield


def mapped_file(cgroup: Path) -> Making:
    path = a_file(255, EXT4 / cgroup.name)
    lab(f"join={cgroup}", f"read={path}")
    hold(f"join={HOLDER}", f"map={path}", "look")
    yield


def anonymous(cgroup: Path) -> Making:
    moved(cgroup, "512K")
    yield


def page_tables(cgroup: Path) -> Making:
    hold(f"join={cgroup}", "anon=512K", "touch")
    yield


def small_pages(cgroup: Path) -> Making:
    moved(cgroup, "4M")
    yield


def shmem(cgroup: Path) -> Making:
    lab(f"join={cgroup}", f"write={ODD}:{TMPFS / cgroup.name}")
    yield


def swapped(cgroup: Path) -> Making:
    moved(cgroup, "512K", "pageout")
    let_go(cgroup)
    yield


def swapped_shmem(cgroup: Path) -> Making:
    path = TMPFS / cgroup.name
    lab(f"join={cgroup}", f"write={ODD}:{path}", f"map={path}", "look", "pageout")
    let_go(cgroup)
    yield


def swapped_and_file(cgroup: Path) -> Making:
    """lru_gen's file has those memcgs' ids that have swap entries."""
    moved(cgroup, "512K", "pageout")
    let_go(cgroup)
    path = a_file(255, EXT4 / cgroup.name)
    lab(f"join={cgroup}", f"read={path}")
    yield


def attached(cgroup: Path) -> Making:
    """Inodes that are attached to its wb; several, as in tests/lab/scenarios.py."""
    paths = [f"{EXT4 / cgroup.name}{number}" for number in range(4)]
    words = [word for path in paths for word in (f"write=12K:{path}", "sleep=300")]
    lab(f"join={cgroup}", *words)
    yield
    time.sleep(1)  # what is clean when the work for its removal is done is let go of
    words = [f"{word}={path}" for path in paths for word in ("fsync", "forget")]
    lab("cpu=0", *words)


def directory(cgroup: Path) -> Making:
    """A directory's blocks, which are the block device's page cache."""

    def look_around() -> None:
        (cgroup / "cgroup.procs").write_text("0")
        list(DIRECTORY.iterdir())

    libc.sync()
    Path("/proc/sys/vm/drop_caches").write_text("1")
    os.waitpid(forked(look_around), 0)
    yield
    # A CPU keeps the last buffers at hand, of all devices, which is no matter for long.
    with open(SWAPS[1], "rb") as other:
        other.read(PAGE)
        fcntl.ioctl(other, BLKFLSBUF)


_pages = cycle([64, 63, 64, 63, 62, 64, 63])


def stock(cgroup: Path) -> Making:
    """CPU 1's empty stock names it, if the pages were as many as it had."""
    path = TMPFS / "stock"
    first = [f"write=4K:{path}", f"remove={path}", "cpu=1", f"join={cgroup}"]
    write = f"write={4 * next(_pages)}K:{path}"
    os.sched_setaffinity(0, {0})
    lab(*first, write, f"join={CGROUPS}", f"forget={EMPTY}", "cpu=0")
    lab(f"remove={path}")
    os.sched_setaffinity(0, {0, 1})
    yield


def page_out_by_hand(cgroup: Path) -> None:
    lab(f"map={TMPFS / cgroup.name}", "look", "pageout", "sleep=300", "pageout")


def swap_in_by_hand(_: Path) -> None:
    """Write to a process what "touch" wrote, to each page that it has in swap."""
    process = Path(f"/proc/{held[0]}")
    with open(process / "mem", "r+b", 0) as memory:
        for line in (process / "maps").read_text().splitlines():
            start, end = (int(word, 16) for word in line.split()[0].split("-"))
            with open(process / "pagemap", "rb") as pagemap:
                pagemap.seek(start // PAGE * 8)
                entries = pagemap.read((end - start) // PAGE * 8)
            words = [one for (one,) in struct.iter_unpack("=Q", entries)]
            found = [page for page, one in enumerate(words) if one >> 62 & 1]
            for number, page in enumerate(found):
                memory.seek(start + page * PAGE)
                memory.write(bytes([1 + number]))
    flush_entries()


# What the plan does not do on some kernels, as it would be in vain.
BY_HAND = {"pageout-file": page_out_by_hand, "swapin": swap_in_by_hand}
MAKERS: dict[str, tuple[Callable[[Path], Making], str]] = {
    "fadvise": (whole_pages, "fadvise"),
    "fadvise-dirty": (dirty_file, "fadvise"),
    "pageout": (anonymous, "pageout"),
    "pageout-tables": (page_tables, "pageout"),
    "pageout-mapped": (mapped_file, "pageout"),
    "pageout-file": (shmem, "pageout-file"),
    "swapin": (swapped, "swapin"),
    "swapin-file": (swapped_shmem, "swapin-file"),
    "collapse": (small_pages, "collapse"),
    "writeback-cleanup": (attached, "writeback-cleanup"),
    "lru_gen": (swapped_and_file, "lru_gen swapin"),
    "memory.reclaim": (clean_file, "memory.reclaim"),
    "memory.force_empty": (clean_file, "memory.force_empty"),
    "zram-pageout-file": (shmem, "pageout-file"),
    "zram-swapin": (swapped, "swapin"),
    "zram-swapin-file": (swapped_shmem, "swapin-file"),
    "flush-device": (directory, "flush-device"),
    "drop_caches": (clean_file, "drop_caches"),
    "charge-on-cpu": (stock, "charge-on-cpu"),
}


# --- what the kernel counts -----------------------------------------------------------


def dying() -> int:
    """As in tests/lab/truth.py: of v1, all memcgs but those with a directory."""
    stat = CGROUPS / "cgroup.stat"
    if stat.exists():
        said = dict(line.split() for line in stat.read_text().splitlines())
        return int(said["nr_dying_descendants"])
    for line in Path("/proc/cgroups").read_text().splitlines():
        name, _, total, *_ = line.split()
        if name == "memory":
            living = sum(path.is_dir() for path in CGROUPS.rglob("*"))
            return int(total) - living - 1
    raise LookupError("memory")


def settled() -> int:
    """A memcg goes asynchronously: RCU, then a work item."""
    last, since = dying(), time.monotonic()
    while time.monotonic() - since < 0.5:
        time.sleep(0.1)
        now = dying()
        if now != last:
            last, since = now, time.monotonic()
    return last


def look() -> Json:
    """Zombies; pages in memory (file, shmem, anon, kernel) and bytes in swap."""
    count = settled()
    pages = {}
    for line in subprocess.check_output(["lab", "count"], text=True).splitlines():
        inode, *numbers = map(int, line.split())
        pages[inode] = numbers[:4]
    found: Json = {"dying": count}
    for cgroup in (ABOVE, HOLDER):
        found[cgroup.name] = {
            "pages": pages.get(cgroup.stat().st_ino, [0] * 4),
            "swap": in_swap(cgroup),
        }
    return found


def in_swap(cgroup: Path) -> int:
    if (cgroup / "memory.swap.current").exists():
        return int((cgroup / "memory.swap.current").read_text())
    names = ("memory.memsw.usage_in_bytes", "memory.usage_in_bytes")
    both, memory = (int((cgroup / name).read_text()) for name in names)
    return both - memory


# --- a case ---------------------------------------------------------------------------


def played(name: str, kernel: OpenedKernel, reparents: bool) -> Json:
    """Make a zombie, have the action done on it, and let go of all that was made."""
    maker, actions = MAKERS[name]
    began = dying()
    tries = 1 if maker is not stock else 2 if reparents else ATTEMPTS
    for attempt in range(tries):
        cgroup = memcg(f"{name}-{attempt}")
        made = cgroup.stat().st_ino
        making = maker(cgroup)
        next(making)
        plan_ahead = as_offline(kernel, made, actions) if reparents else None
        remove(cgroup)
        next(making, None)
        if maker is not stock or settled() > began:
            break
    else:
        if not reparents:
            return {"case": name, "made": False}
    drain()
    before = look()
    done: Json = {"case": name, "id": made, "began": began, "before": before}
    if before["dying"] > began:
        only = [word for action in actions.split() for word in ("--only", action)]
        words = ["reclaim", "--yes", "--json", *only, *ALLOWED]
        done["ran"] = command(*words, f"/app/{cgroup.name}")
    elif plan_ahead:
        # It is gone, but what it was charged for is there: the action's own work.
        limits = Limits(settle_seconds=0)
        lock, journal = Path("/run/lock"), Path("/run/journal")
        result = carry_out(
            plan_ahead, lambda: {made}, limits=limits, lock=lock, journal=journal
        )
        done["steps"] = [
            {"action": one.step.action, "status": one.status, "why": one.why}
            for one in result.steps
        ]
    done["after"] = look()
    if name in BY_HAND and done["after"]["dying"] > began:
        BY_HAND[name](cgroup)
        done["by_hand"] = look()
    tidy(name, began)
    return done


def as_offline(kernel: OpenedKernel, made: int, actions: str) -> Plan:
    """What the plan would be if a memcg kept its folios when it goes offline."""
    census = take_census(kernel, details={made})
    (memcg,) = (one for one in census.memcgs if one.id == made)
    details = memcg.details
    assert details
    folios = tuple(one for one in details.holders if one.kind == "folio")
    groups = tuple(one for one in details.charge_groups if one.kind != "kernel")
    details = Details(folios, 0, groups, ())
    gone = replace(memcg, state="offline", ancestor="/app", details=details)
    memcgs = tuple(gone if one.id == made else one for one in census.memcgs)
    policy, allow = load_policy("least-harm"), ("unaimed", "drop-caches")
    only = actions.split()
    return plan(replace(census, memcgs=memcgs), policy, [made], allow=allow, only=only)


def tidy(name: str, began: int) -> None:
    """Let go of all that a case made."""
    while held:
        os.kill(held.pop(), signal.SIGKILL)
    for place in (EXT4, TMPFS):
        for path in place.glob(f"{name}-*"):
            path.unlink()
    for _ in range(4):
        if until(lambda: dying() <= began and not in_swap(ABOVE), 0.5):
            break
        flush_entries()


def prepare() -> None:
    if (ABOVE / "cgroup.subtree_control").exists():
        (ABOVE / "cgroup.subtree_control").write_text("+memory")
    EMPTY.touch()
    DIRECTORY.mkdir()
    for number in range(300):
        (DIRECTORY / f"{number:0200}").touch()
    libc.sync()


def main(reparents: str, *names: str) -> None:
    prepare()
    for module in pkgutil.walk_packages(memcgctl.__path__, "memcgctl."):
        if "metrics" not in module.name:  # which needs an extra
            importlib.import_module(module.name)  # once, not in each fork
    with program.open_kernel(program.Sources()) as kernel:
        program.open_kernel = lambda *_, **__: nullcontext(kernel)  # type: ignore
        print(json.dumps(command("doctor", "--json")), flush=True)
        zram = False
        for name in names:
            if name.startswith("zram-") and not zram:
                zram = True
                checked(libc.swapoff(SWAPS[0]))
                checked(libc.swapon(ZRAM, 0))
            began = time.monotonic()
            done = played(name, kernel, reparents == "reparents")
            took = {"seconds": round(time.monotonic() - began, 1)}
            print(json.dumps(done | took), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
