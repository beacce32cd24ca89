"""What runs in a guest: zombies, faults between plan and step, memcgctl in forks.

``python in_guest.py ROUND`` plays one round and prints what came of it as JSON. The
interpreter is started once for each: a fork is a memcgctl that is there at once.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import mmap
import os
import signal
import struct
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import asdict, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

sys.path.insert(0, "/checkout")

import rich.progress  # noqa: F401

from memcgctl.__main__ import main
from memcgctl.actions.run.executor import carry_out
from memcgctl.actions.run.pace import Limits
from memcgctl.census import take_census
from memcgctl.cli.policy import load_policy
from memcgctl.cli.reading import opened
from memcgctl.kernel import program
from memcgctl.kernel.program import OpenedKernel
from memcgctl.model import Census, CgroupTarget, Plan, Result, Step
from memcgctl.policy.plan import plan

CGROUPS = Path("/sys/fs/cgroup")
ABOVE, HOLDER, LIVING = (CGROUPS / name for name in ("app", "holder", "living"))
EXT4, TMPFS = Path("/mnt/ext4"), Path("/mnt/tmpfs")
SWAPS = b"/dev/disk/swap1", b"/dev/disk/swap2"
BYSTANDER = EXT4 / "bystander"
PAGE = 4096
KIB = 1024
Json = dict[str, Any]

libc = ctypes.CDLL(None, use_errno=True)


def lab(*words: object) -> str:
    """One process that does what tests/lab/guest.c has words for."""
    command = ["lab", "do", *map(str, words)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def checked(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def memcg(name: str, above: Path = ABOVE) -> Path:
    (above / name).mkdir()
    return above / name


def remove(cgroup: Path) -> None:
    """As soon as its last process is gone; one of a low priority can take long."""
    deadline = time.monotonic() + 300
    while True:
        try:
            cgroup.rmdir()
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


def a_file(size: int, path: Path) -> Path:
    """A file that is on its disk, and not in memory."""
    if not path.exists():
        lab(f"write={size}K:{path}")
    lab(f"fsync={path}", f"forget={path}")
    return path


def zombie(name: str, *words: object, moves: bool = False) -> int:
    """Make a zombie by what a process of it did; its pid if it ``moves`` and stays."""
    cgroup = memcg(name)
    last = [f"join={HOLDER}", "hold"] if moves else []
    pid = int(lab(f"join={cgroup}", *words, *last) or 0)
    if "pageout" in words:
        time.sleep(0.3)  # until it is written
        with suppress(OSError):
            (cgroup / "memory.reclaim").write_text("8M")
    remove(cgroup)
    return pid


def dying() -> int:
    lines = (CGROUPS / "cgroup.stat").read_text().splitlines()
    return int(dict(line.split() for line in lines)["nr_dying_descendants"])


def digests() -> dict[str, str]:
    """Of all files but what is no regular one."""
    return {
        str(path): hashlib.md5(path.read_bytes()).hexdigest()
        for top in (EXT4, TMPFS)
        for path in sorted(top.rglob("*"))
        if path.is_file()
    }


def resident(path: Path) -> int:
    """Pages of a file that are in memory."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        mapping = mmap.mmap(file.fileno(), size, mmap.MAP_PRIVATE)
        vector = ctypes.create_string_buffer(-(-size // PAGE))
        at = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
        checked(libc.mincore(ctypes.c_void_p(at), ctypes.c_size_t(size), vector))
        return sum(byte & 1 for byte in vector.raw)


def keeps(pid: int, kib: int) -> bool:
    """Whether a process still has what "touch" wrote: its number begins each page."""
    pages = range(kib // 4)
    expected = b"".join(bytes([1 + n & 255]) + bytes(PAGE - 1) for n in pages)
    with open(f"/proc/{pid}/mem", "rb") as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            start, end = (int(n, 16) for n in line.split()[0].split("-"))
            if "rw" in line and end - start >= len(expected):
                memory.seek(start)
                if expected in memory.read(end - start):
                    return True
    return False


def prepare() -> None:
    """A living memcg with a file in memory, that nothing may touch."""
    (ABOVE / "cgroup.subtree_control").write_text("+memory")
    if not LIVING.exists():
        LIVING.mkdir()
        a_file(256, BYSTANDER)
        lab(f"join={LIVING}", f"read={BYSTANDER}")


def command(
    *argv: str,
    name: str = "ran",
    bar: Callable[[], None] = lambda: None,
    watch: Callable[[int], None] = lambda pid: None,
) -> Json:
    """Run memcgctl in a fork, and ``watch`` it from here."""
    with open(f"/run/{name}.out", "w+") as out, open(f"/run/{name}.err", "w+") as err:
        pid = os.fork()
        if not pid:
            status = 99
            try:
                os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                bar()
                sys.argv = ["memcgctl", *argv]
                main()
            except SystemExit as error:
                status = error.code if isinstance(error.code, int) else 98
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        watch(pid)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        out.seek(0)
        err.seek(0)
        return {"status": status, "stdout": out.read(), "stderr": err.read()}


def forked(work: Callable[[], None]) -> int:
    """A child that never comes back to the round; what it raises is told."""
    pid = os.fork()
    if pid:
        return pid
    try:
        work()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(0)


def end(child: int) -> None:
    """End it and have its pid given back."""
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def end_all() -> None:
    """End all children: they would keep the pipe open that is read to its end."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parent = path.read_text().rsplit(")", 1)[1].split()[1]
            if parent == str(os.getpid()):
                end(int(path.parent.name))


def until(true: Callable[[], object], seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True


def lines(path: Path) -> list[bytes]:
    try:
        return path.read_bytes().splitlines()
    except FileNotFoundError:
        return []


def over(pid: int) -> bool:
    """Whether a child has exited; ``wait`` still gets its status."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def helpers() -> list[str]:
    """Cgroups and processes of memcgctl's own."""
    found = [str(path) for path in CGROUPS.rglob("memcgctl.*") if path.is_dir()]
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if b"/host/child.py" in path.read_bytes():
                found.append(str(path))
    return found


# --- between plan and step ------------------------------------------------------------


def planned() -> tuple[Census, Plan]:
    with opened((None,) * 5) as (kernel, _):
        census = take_census(kernel, details="offline")
        made = plan(census, load_policy("least-harm"))
        # As it was made: what comes between must not change it.
        return census, replace(made, steps=(*made.steps,), left_out=(*made.left_out,))


LIMITS = Limits(settle_seconds=2.0)


def carried_out(made: Plan, journal: Path, limits: Limits = LIMITS) -> Result:
    with opened((None,) * 5) as (kernel, _):

        def look() -> set[int]:
            memcgs = take_census(kernel, scan=False).memcgs
            return {memcg.id for memcg in memcgs if memcg.state == "offline"}

        return carry_out(made, look, limits=limits, journal=journal)


def acted(
    fault: Callable[[Plan], Plan | None], journal: str, limits: Limits = LIMITS
) -> Json:
    """Plan, have ``fault`` happen, carry the plan out."""
    for _ in range(5):  # what was removed goes offline later (css_killed_work_fn)
        time.sleep(0.5)
        census, made = planned()
        if dying() <= sum(memcg.state == "offline" for memcg in census.memcgs):
            break
    made = fault(made) or made
    said = json.loads(
        json.dumps(asdict(carried_out(made, Path("/run", journal), limits)))
    )
    said["paths"] = {memcg.id: memcg.path for memcg in census.memcgs}
    return {"result": said, "dying": dying(), "helpers": helpers()}


def targets() -> Json:
    """File systems and files that change; a cgroup of the same name that is another."""
    other, lazy, frozen, full = (Path("/mnt", name) for name in "abcd")
    for path in (other / "file", lazy / "file", frozen / "clean"):
        a_file(64, path)
    for name, size in (("half", 256), ("none", 128)):
        a_file(size, EXT4 / name)
    zombie("unmounted", f"read={other}/file")
    zombie("detached", f"read={lazy}/file")
    opener = int(lab(f"join={HOLDER}", f"open={lazy}/file", "hold"))
    zombie("read-only", f"read={frozen}/clean", f"write=64K:{frozen}/dirty")
    zombie("half", f"read={EXT4}/half")
    zombie("none", f"read={EXT4}/none")
    zombie("full", f"write=1024K:{full}/dirty")
    parent = memcg("parent")
    before = digests()

    def fault(made: Plan) -> Plan:
        checked(libc.umount2(bytes(other), 0))
        checked(libc.umount2(bytes(lazy), 2))  # MNT_DETACH
        flags = 0x21  # MS_REMOUNT, MS_RDONLY
        checked(libc.mount(b"none", bytes(frozen), None, flags, None))
        os.truncate(EXT4 / "half", 128 * KIB)
        os.truncate(EXT4 / "none", 0)
        with suppress(OSError), open("/mnt/small/filler", "wb") as file:
            while True:
                file.write(bytes(1 << 16))
                file.flush()
        was = parent.stat().st_ino
        remove(parent)
        parent.mkdir()
        a_file(128, EXT4 / "innocent")
        lab(f"join={parent}", f"read={EXT4}/innocent")
        step = Step(
            *((), "memory.reclaim", "evict", "/app/parent", "", 1 << 20, (), 0, ""),
            aim=CgroupTarget(was, "/app/parent"),
        )
        return replace(made, steps=(*made.steps, step))

    done = acted(fault, "targets")
    done["resident"] = {
        name: resident(EXT4 / name) for name in ("innocent", "bystander")
    }
    changed = {str(EXT4 / name) for name in ("half", "none", "innocent")}
    after = digests()
    done["changed"] = [
        path for path in before if path not in changed and before[path] != after[path]
    ]
    done["half"] = after[str(EXT4 / "half")]
    done["half_expected"] = hashlib.md5(b"x" * 128 * KIB).hexdigest()
    os.kill(opener, signal.SIGKILL)
    return done


def swap() -> Json:
    """Swap that is off, or full, when the step comes."""
    done: Json = {}
    for name in ("off", "full"):
        pid = zombie(f"anon-{name}", "anon=512K", "touch", moves=True)
        zombie(f"shmem-{name}", f"write=256K:{TMPFS}/shmem-{name}")
        before = digests()
        fillers: list[int] = []

        def off(_: Plan) -> None:
            checked(libc.swapoff(SWAPS[0]))

        def fill(_: Plan, fillers: list[int] = fillers) -> None:
            while swap_free() > 200 * KIB and len(fillers) < 8:
                size = max(64, swap_free() // KIB)
                words = [f"anon={size}K", "touch", "pageout", "hold"]
                fillers.append(int(lab(f"join={LIVING}", *words)))
                time.sleep(0.5)

        done[name] = acted(off if name == "off" else fill, f"swap-{name}")
        done[name] |= {
            "kept": keeps(pid, 512),
            "changed": before != digests(),
            "bystander": resident(BYSTANDER),
            "swap_free": swap_free(),
        }
        for one in fillers:
            os.kill(one, signal.SIGKILL)
        if name == "off":  # the small one
            checked(libc.swapon(SWAPS[1], 0))
    checked(libc.swapon(SWAPS[0], 0))
    done["later"] = command("reclaim", "--yes", "--json")
    done["dying"] = dying()
    return done


def reused() -> Json:
    """Processes of others have the pids of those that were to be read and paged out."""
    old = [pid for pid, _ in one_of_each()]
    new: dict[int, list[str]] = {}

    def use() -> None:
        (LIVING / "cgroup.procs").write_text("0")
        memory = mmap.mmap(-1, 512 * KIB, mmap.MAP_PRIVATE)
        for offset in range(0, len(memory), PAGE):
            memory[offset] = 1
        signal.pause()

    def has(pid: int) -> list[str]:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return [line for line in lines if line.startswith(("Anonymous:", "Swap:"))]

    def fault(_plan: Plan) -> None:
        for pid in old:
            end(pid)
            for _ in range(100):  # another can be faster
                Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))
                child = forked(use)
                if child == pid:
                    break
                end(child)
            time.sleep(1)  # until it has its memory
            new[child] = has(child)

    done = acted(fault, "reused")
    done |= {"old": old, "new": list(new), "had": list(new.values())}
    done["has"] = [has(pid) for pid in new]
    for pid in new:
        end(pid)
    return done


def swap_free() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("SwapFree"):
            return int(line.split()[1]) * KIB
    return 0


def nothing() -> Json:
    """No fault: what others made is in a mount namespace of its own."""
    ready = Path("/run/ready")
    child = forked(partial(hide, ready))
    until(ready.exists)
    before = digests()
    done = acted(lambda made: None, "nothing")
    end(child)
    return done | {"changed": before != digests(), "bystander": resident(BYSTANDER)}


def hide(ready: Path) -> None:
    """Zombies with files on file systems that no other mount namespace has."""
    unshare(0)
    for name, device, fs in (
        ("disk", b"/dev/loop1", b"ext4"),
        ("tmpfs", b"", b"tmpfs"),
    ):
        point = Path("/mnt/hidden", name)
        point.mkdir(parents=True)
        checked(libc.mount(device, bytes(point), fs, 0, None))
        zombie(f"on-{name}", f"write=64K:{point}/file", f"fsync={point}/file")
    ready.touch()
    signal.pause()


# --- while memcgctl runs --------------------------------------------------------------


def one_of_each() -> list[tuple[int, int]]:
    """Zombies that take an action each; processes, and what they have in KiB."""
    dirty, plain = EXT4 / "dirty", TMPFS / "plain"
    for path in (dirty, plain):  # whoever is left of a round before goes with them
        path.unlink(missing_ok=True)
    zombie("tmpfs", f"write=100K:{plain}")
    held = [
        (zombie("swapped", "anon=192K", "touch", "pageout", moves=True), 192),
        (zombie("anon", "anon=320K", "touch", moves=True), 320),
    ]
    zombie("dirty", f"write=64K:{dirty}")
    return held


def let_go(held: list[tuple[int, int]]) -> list[int]:
    """End the processes; those that have lost what they had."""
    lost = [pid for pid, kib in held if not keeps(pid, kib)]
    for pid, _ in held:
        os.kill(pid, signal.SIGKILL)
    return lost


def signals() -> Json:
    """SIGINT and SIGKILL when the journal has no line, one line, two, and so on."""
    first = Path("/run/first")
    whole = signalled(first, 0, 1 << 20)
    runs = [
        signalled(Path(f"/run/journal-{number}-{count}"), number, count)
        for number in (signal.SIGINT, signal.SIGKILL)
        for count in range(len(lines(first)) + 1)
    ]
    last = command("reclaim", "--yes", "--json")
    return {"whole": whole, "runs": runs, "last": last, **what_is_left()}


def what_is_left() -> Json:
    """By memcgctl and by the kernel, when those that go had time to."""
    time.sleep(3)
    rest = command("reclaim", "--dry-run", "--json")
    return {"rest": rest, "dying": dying()}


def signalled(journal: Path, number: int, count: int) -> Json:
    """Send a signal to memcgctl at a line of its journal, or while it still plans."""
    held = one_of_each()
    before = digests()

    def watch(pid: int) -> None:
        time.sleep(0.2)
        until(lambda: len(lines(journal)) >= count or over(pid), 60)
        os.kill(pid, number)

    words = ("reclaim", "--yes", "--json", "--journal", str(journal))
    ran = command(*words, watch=watch)
    gone = until(lambda: not helpers(), 10)
    entries = [json.loads(one) for one in lines(journal)]
    return {
        "signal": signal.Signals(number).name if number else "",
        "line": count,
        "ran": ran,
        "events": [entry["event"] for entry in entries],
        "left": [] if gone else helpers(),
        "changed": before != digests(),
        "lost": let_go(held),
        "bystander": resident(BYSTANDER),
    }


def two() -> Json:
    """A second run, with another environment, while the first is in its middle."""
    held = one_of_each()
    journal = Path("/run/two")
    second: Json = {}

    def watch(pid: int) -> None:
        until(lambda: len(lines(journal)) >= 2 or over(pid), 60)
        os.kill(pid, signal.SIGSTOP)
        os.environ["XDG_STATE_HOME"] = "/run/elsewhere"
        second.update(command("reclaim", "--yes", name="second"), pid=pid)
        del os.environ["XDG_STATE_HOME"]
        os.kill(pid, signal.SIGCONT)

    words = ("reclaim", "--yes", "--json", "--journal", str(journal))
    first = command(*words, watch=watch)
    return {"first": first, "second": second, "lost": let_go(held)}


def crowd() -> Json:
    """Twenty processes that make and remove cgroups all the time."""
    held = one_of_each()
    before = digests()
    names = [f"busy{number}" for number in range(20)]
    workers = [forked(partial(come_and_go, name)) for name in names]
    time.sleep(1)
    listed = command("list", "--json")
    ran = command("reclaim", "--yes", "--json")
    for pid in workers:
        end(pid)
    for path in ABOVE.glob("busy*"):
        remove(path)
    left = helpers()  # a run removes those of runs before
    last = command("reclaim", "--yes", "--json")
    done = {
        "list": listed,
        "reclaim": ran,
        "changed": [path for path, was in before.items() if digests()[path] != was],
        "bystander": resident(BYSTANDER),
        "helpers": left,
        "lost": let_go(held),
        "last": last,
    }
    for path in TMPFS.glob("busy*"):
        path.unlink()
    return done | what_is_left()


def come_and_go(name: str) -> None:
    """One that fails, as memory or a CPU is short, is not what is tested."""
    os.nice(19)
    for number in count():
        with suppress(OSError):
            cgroup = memcg(f"{name}.{number}")
            os.waitpid(forked(partial(be_there, cgroup, TMPFS / name)), 0)
            remove(cgroup)


def be_there(cgroup: Path, file: Path) -> None:
    with suppress(OSError):
        (cgroup / "cgroup.procs").write_text("0")
        file.write_bytes(bytes(8 * KIB))


def pressure() -> Json:
    """Processes that use more than their memcg is to have."""
    held = one_of_each()
    cgroup = memcg("short", CGROUPS)
    (cgroup / "memory.high").write_text("8M")

    def use() -> None:
        (cgroup / "cgroup.procs").write_text("0")
        memory = mmap.mmap(-1, 12 << 20)
        while True:
            for offset in range(0, len(memory), PAGE):
                memory[offset] = 1

    pids = [forked(use) for _ in range(3)]
    short = until(lambda: some_pressure() > 15, 60)
    journal = Path("/run/pressure")
    words = ("reclaim", "--yes", "--json", "--max-seconds", "3", "--journal")
    began = time.monotonic()
    ran = command(*words, str(journal))
    seconds = time.monotonic() - began
    for pid in pids:
        end(pid)
    remove(cgroup)
    calm = until(lambda: some_pressure() < 9, 60)
    return {
        "short": short,
        "calm": calm,
        "ran": ran,
        "seconds": seconds,
        "events": [json.loads(one)["event"] for one in lines(journal)],
        "later": command("reclaim", "--yes", "--json"),
        "lost": let_go(held),
    }


def some_pressure() -> float:
    word = Path("/proc/pressure/memory").read_text().split()[1]
    return float(word.removeprefix("avg10="))


# --- where it may not -----------------------------------------------------------------

_ADMIN, _RAWIO = 21, 17  # include/uapi/linux/capability.h


def without(*capabilities: int) -> None:
    bits = (1 << 41) - 1 - sum(1 << number for number in capabilities)
    low, high = bits & 0xFFFFFFFF, bits >> 32
    data = struct.pack("=6I", low, low, 0, high, high, 0)
    checked(libc.capset(struct.pack("=Ii", 0x20080522, 0), data))


def nobody() -> None:
    os.setgid(65534)
    os.setuid(65534)


def unshare(flags: int) -> None:
    checked(libc.unshare(flags | 0x20000))  # CLONE_NEWNS
    checked(libc.mount(b"none", b"/", None, 0x44000, None))  # private, recursively


def container() -> None:
    """Pids and mounts of its own, as root."""
    unshare(0x20000000)  # CLONE_NEWPID
    pid = os.fork()
    if pid:
        os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    checked(libc.mount(b"proc", b"/proc", b"proc", 0, None))


def weak_container() -> None:
    container()
    without(_ADMIN, _RAWIO)


def locked_down() -> None:
    Path("/sys/kernel/security/lockdown").write_text("confidentiality")


def barred() -> Json:
    """Each way of being barred; locked down is for ever, so the last."""
    held = one_of_each()
    done: Json = {}
    for bar in (
        *(nobody, container, weak_container),
        lambda: without(_ADMIN),
        locked_down,
    ):
        name = bar.__name__.replace("<lambda>", "without_admin")
        done[name] = command("reclaim", "--yes", bar=bar)
    return {"ways": done, "lost": let_go(held), "bystander": resident(BYSTANDER)}


def play(name: str, once: OpenedKernel) -> Json:
    """A round; but for one about opening it, the kernel is open already."""
    real = program.open_kernel
    if name != "barred":
        program.open_kernel = lambda *_, **__: nullcontext(once)  # type: ignore
    try:
        done: Json = globals()[name]()
    except Exception:  # the other rounds are worth having
        return {"error": traceback.format_exc()}
    finally:
        program.open_kernel = real
    return done


if __name__ == "__main__":
    checked(libc.prctl(36, 1))  # PR_SET_CHILD_SUBREAPER: of those that lab leaves
    prepare()
    with program.open_kernel(program.Sources()) as opened_once:
        for word in sys.argv[1:]:
            began_at = time.monotonic()
            played = play(word, opened_once)
            took = {"seconds": round(time.monotonic() - began_at, 1)}
            print(json.dumps(played | took), flush=True)
    end_all()
