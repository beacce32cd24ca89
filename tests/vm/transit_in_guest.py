"""What runs in a guest without swap: a swap device for the transit, and what ends it.

``python transit_in_guest.py ROUND ...`` prints a line of JSON for each round: what the
kernel counts before and after, what swap devices there are, whether files and the
memory of processes are as they were. A round is ``whole``, a signal and the moment in
the journal at which it comes (``KILL:on``), ``foreign`` or ``tight``.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CGROUPS = Path("/sys/fs/cgroup")
V1 = Path(CGROUPS, "memory.use_hierarchy").exists()
ABOVE, HOLDER, LIVING = CGROUPS / "app", CGROUPS / "holder", CGROUPS / "app/living"
TMPFS = Path("/mnt/tmpfs")
JOURNAL = Path("/var/lib/memcgctl/journal")
NOTE = Path("/run/memcgctl/temp-swap")
KIB = {"file": 1021, "mapped": 512, "anon": 768}  # of each zombie
FILES = 4
Json = dict[str, Any]
held: list[tuple[int, int]] = []


def lab(*words: object) -> str:
    command = ["lab", "do", *map(str, words)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def dying() -> int:
    if V1:
        lines = Path("/proc/cgroups").read_text().splitlines()
        total = next(int(line.split()[2]) for line in lines if line[:7] == "memory\t")
        return total - sum(1 for _ in CGROUPS.rglob("memory.stat"))
    lines = (CGROUPS / "cgroup.stat").read_text().splitlines()
    return int(dict(line.split() for line in lines)["nr_dying_descendants"])


def charged(cgroup: Path) -> Json:
    stat = dict(map(str.split, (cgroup / "memory.stat").read_text().splitlines()))
    names = ("total_rss", "total_shmem") if V1 else ("anon", "shmem")
    return {name.removeprefix("total_"): int(stat[name]) for name in names}


def swaps() -> list[str]:
    lines = Path("/proc/swaps").read_text().splitlines()[1:]
    return [Path(line.split()[0]).name for line in lines]


def drives() -> list[str]:
    return sorted(path.name for path in Path("/sys/block").glob("zram*"))


def zombies(name: str) -> None:
    """Of unmapped files, one that another cgroup maps, a process that has moved."""
    anon, mapped = KIB["anon"], KIB["mapped"]
    for n in range(FILES):
        with Gone(f"{name}-file{n}") as cgroup:
            lab(f"join={cgroup}", f"write={KIB['file']}K:{TMPFS}/{name}-{n}")
    with Gone(f"{name}-mapped") as cgroup:
        path = f"{TMPFS}/{name}-mapped"
        lab(f"join={cgroup}", f"write={mapped}K:{path}")
        lab(f"join={HOLDER}", f"map={path}", "look", "hold")
    with Gone(f"{name}-anon") as cgroup:
        # Page tables are the holder's: up to 5.10 they would stay charged.
        words = f"join={HOLDER}", f"anon={anon}K", "look", f"join={cgroup}", "touch"
        pid = int(lab(*words, f"join={HOLDER}", "hold"))
        held.append((pid, anon))


class Gone:
    """A cgroup that is removed in the end."""

    def __init__(self, name: str) -> None:
        self.cgroup = ABOVE / name

    def __enter__(self) -> Path:
        self.cgroup.mkdir()
        return self.cgroup

    def __exit__(self, *_: object) -> None:
        deadline = time.monotonic() + 300
        while True:  # until its last process is gone
            try:
                self.cgroup.rmdir()
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
            else:
                return


def keeps(pid: int, kib: int) -> bool:
    """Whether a process still has what "touch" wrote."""
    expected = b"".join(bytes([1 + n & 255]) + bytes(4095) for n in range(kib // 4))
    with open(f"/proc/{pid}/mem", "rb") as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            start, end = (int(n, 16) for n in line.split()[0].split("-"))
            if "rw" in line and end - start >= len(expected):
                memory.seek(start)
                if expected in memory.read(end - start):
                    return True
    return False


def contents() -> str:
    files = sorted(path for path in TMPFS.iterdir() if path.is_file())
    found = [hashlib.md5(path.read_bytes()).hexdigest() for path in files]
    return " ".join([*found, *(str(keeps(*one)) for one in held)])


def look() -> Json:
    return {
        "dying": dying(),
        "app": charged(ABOVE),
        "living": charged(LIVING),
        "swaps": swaps(),
        "drives": drives(),
    }


def memcgctl(*words: str) -> Json:
    ran = subprocess.run(["memcgctl", *words], capture_output=True, text=True)
    return {"status": ran.returncode, "stdout": ran.stdout, "stderr": ran.stderr}


def states(since: int) -> Iterator[str]:
    """What the journal says from there on: the transit's states, and each step."""
    if not JOURNAL.exists():
        return
    for line in JOURNAL.read_text()[since:].splitlines():
        if line.endswith("}"):
            entry = json.loads(line)
            yield entry.get("state") or f"{entry['event']}{entry.get('n', '')}"


def signalled(which: str, moment: str) -> Json:
    """A run that gets a signal (several: one after the other) at a moment."""
    since = len(JOURNAL.read_text()) if JOURNAL.exists() else 0
    words = ["memcgctl", "reclaim", "--yes", "--allow", "temp-swap"]
    with open("/run/said", "w") as file:
        running = subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT)
        while running.poll() is None and moment not in states(since):
            time.sleep(0.002)
        for one in which.split("+"):
            running.send_signal(getattr(signal, f"SIG{one}"))
            time.sleep(0.1)
        status = running.wait()
    time.sleep(0.5)
    said = Path("/run/said").read_text()
    return {"status": status, "states": [*states(since)], "said": said}


def foreign() -> Json:
    """Somebody else's zram swap, and a note that says that it is ours."""
    number = Path("/sys/class/zram-control/hot_add").read_text().strip()
    Path(f"/sys/block/zram{number}/disksize").write_text("8M")
    made = ["busybox", "mkswap", f"/dev/zram{number}"]
    subprocess.run(made, check=True, capture_output=True)
    lab(f"swapon=5:/dev/zram{number}")
    size = int(Path(f"/sys/block/zram{number}/disksize").read_text())
    NOTE.parent.mkdir(mode=0o700, exist_ok=True)
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    facts = {"uuid": "0" * 32, "size": size, "boot_id": boot, "number": int(number)}
    NOTE.write_text(json.dumps(facts))
    NOTE.chmod(0o600)
    finished = memcgctl("reclaim", "--finish")
    ran = memcgctl("reclaim", "--yes", "--allow", "temp-swap")
    found = {"finished": finished, "ran": ran, "swaps": swaps(), "theirs": number}
    subprocess.run(["busybox", "swapoff", f"/dev/zram{number}"], check=True)
    Path(f"/sys/block/zram{number}/reset").write_text("1")
    Path("/sys/class/zram-control/hot_remove").write_text(number)
    return found


def tight() -> Json:
    """A run with room in an ancestor for what is of two files only, at once."""
    current, limit = ABOVE / "memory.current", ABOVE / "memory.max"
    limit.write_text(str(int(current.read_text()) + (5 << 19)))
    ran = memcgctl("reclaim", "--yes", "--allow", "temp-swap")
    events = dict(map(str.split, (ABOVE / "memory.events").read_text().splitlines()))
    limit.write_text("max")
    return ran | {"events": events}


def play(name: str) -> Json:
    began = dying()
    zombies(name.lower().replace(":", "-").replace("+", "-"))
    before, files = look(), contents()
    found: Json = {"round": name, "began": began, "before": before}
    if name == "whole":
        found["dry"] = memcgctl("reclaim", "--dry-run", "--json")
        found["ran"] = memcgctl("reclaim", "--yes", "--allow", "temp-swap", "--json")
    elif name == "foreign":
        found |= foreign()
    elif name == "tight":
        found["ran"] = tight()
    else:
        found["ran"] = signalled(*name.split(":"))
        found["left"] = look()
        found["finished"] = memcgctl("reclaim", "--finish")
    found["after"] = look()
    found["same"] = contents() == files
    memcgctl("reclaim", "--yes", "--allow", "temp-swap")  # for the next one
    return found


def main() -> None:
    if not V1:
        (ABOVE / "cgroup.subtree_control").write_text("+memory")
    LIVING.mkdir(exist_ok=True)
    path = TMPFS / "living"
    lab(f"join={LIVING}", "anon=6M", "touch", f"write=3M:{path}", f"map={path}", "hold")
    os.environ.setdefault("PATH", "/usr/bin")
    for name in sys.argv[1:]:
        print(json.dumps(play(name)), flush=True)


if __name__ == "__main__":
    main()
