"""Who frees more zombies, and at whose cost: memcgctl, or what people do today?

    python -m tests.bench --reclaim [--kernel 6.12]

One guest for each way, with 200 zombies of six kinds and, below the same online cgroup,
a living one with page cache and anonymous memory that has done nobody any harm. Every
number is the guest's own: cgroup.stat of the root, memory.stat and memory.swap.current
of the living cgroup, /proc/PID/io of its process.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.lab import packages, run, truth
from tests.lab.guest import Guest, Machine
from tests.lab.live import CPU, ROOT, boot_with_python, make_disk, run_in
from tests.lab.scenarios import CGROUPS, EXT4, TMPFS, Scene
from tests.schemas import read

MIB = 1 << 20
INNOCENT = f"{CGROUPS}/app/online"
INNOCENT_FILE, INNOCENT_ANON = 72 * MIB, 24 * MIB
KINDS = {"read": 60, "mapped": 40, "tmpfs": 40, "anon": 20, "swapped": 20, "wrote": 20}
FILE = 64 << 10
# The innocent process opens both, one after the other, whenever it is to wait.
DONE, GO_ON = "/tmp/done", "/tmp/go-on"
ROUNDS = 20
# How long refaults are waited for, in seconds.
MINUTE = 60.0


@dataclass(frozen=True)
class Innocent:
    """What a living cgroup has, in bytes, and what it had to read again, in pages."""

    file: int
    anon: int
    swap: int
    refault_file: int
    refault_anon: int
    # From disk, by its process, in all its life: bytes.
    read: int


@dataclass(frozen=True)
class Measured:
    """What one way did; ``again`` is a minute later, the innocent having used its own.

    ``left`` is how many zombies of each kind are still there.
    """

    way: str
    zombies: int
    freed: int
    before: Innocent
    after: Innocent
    again: Innocent
    seconds: float
    again_seconds: float
    left: Counter[str]
    notes: tuple[str, ...]

    @property
    def lost(self) -> tuple[int, int]:
        """Bytes of page cache and of anonymous memory."""
        return (
            max(0, self.before.file - self.after.file),
            max(0, self.before.anon - self.after.anon),
        )


@dataclass
class Run:
    """A guest in which zombies are, and what is noted of it."""

    guest: Guest
    zombie_bytes: int
    notes: list[str] = field(default_factory=list)


def drop_caches(at: Run) -> float:
    return timed(at.guest, "echo 3 > /proc/sys/vm/drop_caches")


def memory_reclaim(at: Run) -> float:
    """As much as the zombies have, again and again, while fewer of them are left."""
    # Fails with EAGAIN when the kernel found less to reclaim.
    script = f"echo {at.zombie_bytes} > {CGROUPS}/app/memory.reclaim || true"
    times: list[float] = []
    left, before = run.dying(at.guest), -1
    while left != before and len(times) < ROUNDS:
        times.append(timed(at.guest, script))
        before, left = left, run.dying(at.guest)
    at.notes.append(f"{at.zombie_bytes:,} bytes, {len(times)} times")
    return sum(times)


def memcgctl(at: Run) -> float:
    begin = time.monotonic()
    ran = run_in(at.guest, "memcgctl", "reclaim", "--yes", "--json")
    seconds = time.monotonic() - begin
    at.notes.append(f"exit status {ran.status}")
    at.notes += ran.stderr.splitlines()
    if ran.stdout:
        result = read(ran.stdout)
        reasons = Counter(
            left["verdict"] or left["why"] for left in result["measured"]["remaining"]
        )
        at.notes += [f"{count} left: {why}" for why, count in reasons.most_common()]
    return seconds


WAYS: dict[str, Callable[[Run], float]] = {
    "echo 3 > drop_caches": drop_caches,
    "echo N > memory.reclaim": memory_reclaim,
    "memcgctl reclaim": memcgctl,
}


def timed(guest: Guest, script: str) -> float:
    begin = time.monotonic()
    guest.sh(script)
    return time.monotonic() - begin


def bench(series: str) -> list[Measured]:
    """Each way once, on a guest of its own."""
    found = []
    for way, act in WAYS.items():
        print(f"{way} ...", file=sys.stderr)
        with guest_with_zombies(series) as at:
            if act is memory_reclaim and not has_reclaim(at.guest):
                print(f"{way}: not on this kernel (5.19 has it)")
                continue
            found.append(measure(way, act, at))
    return found


def has_reclaim(guest: Guest) -> bool:
    return guest.call("test", "-e", f"{CGROUPS}/app/memory.reclaim")[0] == 0


def measure(way: str, act: Callable[[Run], float], at: Run) -> Measured:
    zombies, before = run.dying(at.guest), innocent(at.guest)
    seconds = act(at)
    acted = time.monotonic()
    left, after = run.dying(at.guest), innocent(at.guest)
    begin = time.monotonic()
    let_innocent_go_on(at.guest)
    again_seconds = time.monotonic() - begin
    time.sleep(max(0.0, acted + MINUTE - run.SETTLE - time.monotonic()))
    return Measured(
        way,
        zombies,
        zombies - left,
        before,
        after,
        innocent(at.guest),
        seconds,
        again_seconds,
        kinds_left(at.guest),
        tuple(at.notes),
    )


@contextmanager
def guest_with_zombies(series: str) -> Iterator[Run]:
    with tempfile.TemporaryDirectory(prefix="memcgctl-bench-") as name:
        disks = run.make_disks(Path(name), xfs=False)
        disks["ext4"] = file_disk(Path(name))
        machine = Machine(memory="768M", cpu=CPU, disks=disks)
        with boot_with_python(packages.get(series), machine) as guest:
            run.prepare(guest, 2)
            guest.sh(f"""
                mkfifo {DONE} {GO_ON}
                for place in {EXT4} {TMPFS} {CGROUPS}; do
                    mkdir -p {ROOT}$place; mount --bind $place {ROOT}$place
                done
            """)
            scene = Scene(guest, 2)
            start_innocent(scene)
            yield Run(guest, make_zombies(scene))


def file_disk(directory: Path) -> Path:
    """An ext4 image with the files that are to be read: none is in the page cache."""
    files = directory / "files"
    for kind in ("read", "mapped"):
        (files / kind).mkdir(parents=True)
        for n in range(KINDS[kind]):
            (files / kind / str(n)).write_bytes(os.urandom(FILE))
    (files / "wrote").mkdir()
    (files / "innocent").write_bytes(os.urandom(INNOCENT_FILE))
    return make_disk(files, directory / "files.ext4", 256)


def start_innocent(scene: Scene) -> None:
    """A process with a working set: it has read its file twice, and waits.

    Whenever it may go on, it uses all it has once more.
    """
    memcg = scene.memcg("app/online", "a living memcg", online=True)
    read, wait = f"read={EXT4}/innocent", [f"write=1:{DONE}", f"read={GO_ON}"]
    words = [f"join={memcg}", read, read, f"anon={INNOCENT_ANON}", "touch", *wait]
    words += ["look", read, *wait]
    scene.guest.sh(f"lab do {' '.join(words)} > /dev/null 2>&1 &")
    scene.guest.sh(f"cat {DONE} > /dev/null")


def let_innocent_go_on(guest: Guest) -> None:
    """Let it use all its memory and its file, and wait until it has."""
    guest.sh(f"echo > {GO_ON}; cat {DONE} > /dev/null")


def innocent(guest: Guest) -> Innocent:
    """What it has now, when the kernel's counters have been brought up to date."""
    time.sleep(run.SETTLE)
    stat = truth.parse_stat(guest.read(f"{INNOCENT}/memory.stat"))
    pid = int(guest.read(f"{INNOCENT}/cgroup.procs"))
    lines = guest.read(f"/proc/{pid}/io").splitlines()
    io = dict(line.split(": ") for line in lines)
    return Innocent(
        stat["file"],
        stat["anon"],
        int(guest.read(f"{INNOCENT}/memory.swap.current")),
        stat["workingset_refault_file"],
        stat["workingset_refault_anon"],
        int(io["read_bytes"]),
    )


def make_zombies(scene: Scene) -> int:
    """All kinds; the bytes that they have in all, by their ancestor's usage."""
    guest, holder = scene.guest, f"{CGROUPS}/holder"
    memcgs = {
        kind: [scene.memcg(f"app/{kind}{n}", kind) for n in range(count)]
        for kind, count in KINDS.items()
    }
    for kind in ("read", "mapped"):
        for n, memcg in enumerate(memcgs[kind]):
            scene.do(f"join={memcg}", f"read={EXT4}/{kind}/{n}")
    maps = [f"map={EXT4}/mapped/{n}" for n in range(KINDS["mapped"])]
    looks = [word for path in maps for word in (path, "look")]
    scene.hold(f"join={holder}", *looks)
    for n, memcg in enumerate(memcgs["tmpfs"]):
        scene.do(f"join={memcg}", f"write={FILE}:{TMPFS}/{n}")
    for memcg in memcgs["anon"]:
        scene.hold(f"join={memcg}", f"anon={FILE}", "touch")
    for memcg in memcgs["swapped"]:
        scene.hold(f"join={memcg}", f"anon={FILE}", "touch", "pageout")
        scene.reclaim(memcg)
    write(guest, memcgs["wrote"])
    for made in scene.made:
        if not made.online:
            run.remove(guest, CGROUPS + made.path)
    guest.sh("sync")  # as on any machine, half a minute later
    time.sleep(run.SETTLE)
    both, living = (
        int(guest.read(f"{memcg}/memory.current"))
        for memcg in (f"{CGROUPS}/app", INNOCENT)
    )
    return both - living


def write(guest: Guest, memcgs: list[str]) -> None:
    """Files that are dirty when their writers' memcgs go: inodes stay on their wb.

    With pauses, all at once: the kernel allocates a memcg's wb without waiting.
    """
    paths = " ".join(f"{EXT4}/wrote/$n.{i}" for i in range(4))
    guest.sh(f"""
        n=0
        for memcg in {" ".join(memcgs)}; do
            words="join=$memcg"
            for path in {paths}; do words="$words write=16K:$path sleep=300"; done
            lab do $words &
            n=$((n + 1))
        done
        wait
    """)


def kinds_left(guest: Guest) -> Counter[str]:
    """By the names that zombies had, which memcgctl reads."""
    ran = run_in(guest, "memcgctl", "list", "--no-scan", "--json")
    memcgs = read(ran.stdout)["memcgs"] if ran.stdout else []
    names = [memcg["path"].rpartition("/")[2].rstrip("0123456789") for memcg in memcgs]
    return Counter(names)


def table(found: list[Measured]) -> str:
    """One row a way."""
    rows: list[tuple[str, ...]] = [
        ("", "zombies", "innocent", "of it", "swapped", "refaults", "read", ""),
        ("", "freed", "MiB lost", "anon", "MiB", "in 60 s", "again", "seconds"),
    ]
    for one in found:
        file, anon = one.lost
        again, after = one.again, one.after
        refaults = (
            again.refault_file
            - after.refault_file
            + again.refault_anon
            - after.refault_anon
        )
        rows.append(
            (
                one.way,
                f"{one.freed} of {one.zombies}",
                mib(file + anon),
                mib(anon),
                mib(max(0, after.swap - one.before.swap)),
                f"{refaults:,}",
                mib(again.read - after.read),
                f"{one.seconds:.1f}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            (row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:]))
        ).rstrip()
        for row in rows
    )


def mib(size: int) -> str:
    return f"{size / MIB:.2f}"


def verdict(found: list[Measured]) -> Iterator[str]:
    """What is to be reached: more zombies than either, under 1 % of the loss."""
    *others, ours = found
    best = max(other.freed for other in others)
    lost, dropped = sum(ours.lost), sum(found[0].lost)
    share = lost / dropped if dropped else float("nan")
    yield f"zombies: {ours.freed}, the others {best} at most (more is wanted)"
    yield f"innocent bytes: {share:.2%} of what drop_caches lost (under 1% is wanted)"
    for one in found:
        left = ", ".join(f"{count} {kind}" for kind, count in one.left.items())
        yield f"{one.way}: left {left or 'none'}; the innocent used all of its own"
        yield f"  again in {one.again_seconds:.1f} s"
        yield from (f"  {note}" for note in one.notes)


def report(series: str) -> None:
    kernel = packages.get(series)
    kinds = ", ".join(f"{count} {kind}" for kind, count in KINDS.items())
    print(f"{kernel.release}: {kinds}; an innocent memcg with")
    print(f"{mib(INNOCENT_FILE)} MiB of page cache, {mib(INNOCENT_ANON)} of anon\n")
    found = bench(series)
    print(table(found), "", *verdict(found), sep="\n")
