"""What runs in a guest: what never answers, and memcgctl that does the rest.

``python stuck_in_guest.py`` prints a line of JSON for each round: a FUSE file system
whose server is stopped, a device that is suspended, a frozen cgroup.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import struct
import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, "/checkout")
sys.path.insert(0, "/run")

from memcgctl.actions.run.pace import Limits
from memcgctl.kernel import program
from memcgctl.model import Plan
from tests.vm.in_guest import (
    EXT4,
    HOLDER,
    KIB,
    TMPFS,
    Json,
    a_file,
    acted,
    checked,
    command,
    dying,
    end,
    end_all,
    forked,
    lab,
    let_go,
    libc,
    memcg,
    prepare,
    remove,
    zombie,
)

FUSE, STUCK = Path("/mnt/fuse"), Path("/mnt/stuck")
SHORT = Limits(settle_seconds=2.0, hang_seconds=10.0)


# --- a FUSE file system: include/uapi/linux/fuse.h ------------------------------------

_INIT, _LOOKUP, _GETATTR, _OPEN, _READ = 26, 1, 3, 14, 15
_NO_ANSWER = {2, 36, 42}  # FORGET, INTERRUPT, BATCH_FORGET
_ENOSYS = 38
_SIZE = 64 * KIB


def serve() -> None:
    """A directory in which every name is a file; nothing is kept, all is asked for."""
    fd = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
    checked(libc.mount(b"fuse", bytes(FUSE), b"fuse", 0, options))
    while True:
        request = os.read(fd, 1 << 18)
        _, opcode, unique, node = struct.unpack_from("=IIQQ", request)
        if opcode in _NO_ANSWER:
            continue
        answer = _answer(opcode, node, request[40:])
        error = 0 if answer is not None else -_ENOSYS
        body = answer or b""
        os.write(fd, struct.pack("=IiQ", 16 + len(body), error, unique) + body)


def _answer(opcode: int, node: int, body: bytes) -> bytes | None:
    if opcode == _INIT:
        return struct.pack("=IIIIHHIIHH8I", 7, 31, 0, 0, 12, 9, 4096, 1, 0, 0, *[0] * 8)
    if opcode == _LOOKUP:
        return struct.pack("=QQQQII", 2, 0, 0, 0, 0, 0) + _attributes(2)
    if opcode == _GETATTR:
        return struct.pack("=QII", 0, 0, 0) + _attributes(node)
    if opcode == _OPEN:
        return struct.pack("=QII", 0, 0, 0)
    if opcode == _READ:
        size = struct.unpack_from("=QQI", body)[2]
        return bytes(size)
    return None


def _attributes(node: int) -> bytes:
    mode, size = (0o40755, 0) if node == 1 else (0o100644, _SIZE)
    times = [0] * 6
    return struct.pack("=6Q10I", node, size, 0, *[0] * 3, *times[:3], mode, *[1] * 6)


def fuse() -> Json:
    """Its server is stopped when the steps come; one zombie has its page cache."""
    FUSE.mkdir(exist_ok=True)
    server = forked(serve)
    while not os.path.ismount(FUSE):
        time.sleep(0.05)
    deleted, read = TMPFS / "deleted", a_file(64, EXT4 / "read")
    first = int(lab(f"join={HOLDER}", f"open={FUSE}/open", "hold"))
    user = zombie(
        *("deleted", f"open={FUSE}/open", f"write=96K:{deleted}", f"open={deleted}"),
        f"remove={deleted}",
        moves=True,
    )
    zombie("read", f"read={read}")
    zombie("on-fuse", f"read={FUSE}/file")

    def stop(_: Plan) -> None:
        os.kill(server, signal.SIGSTOP)

    began = time.monotonic()
    done = acted(stop, "fuse", SHORT)
    done["seconds"] = time.monotonic() - began
    os.kill(server, signal.SIGCONT)
    for pid in (first, user):
        os.kill(pid, signal.SIGKILL)
    done["later"] = command("reclaim", "--yes", "--json")
    checked(libc.umount2(bytes(FUSE), 2))
    end(server)
    return done


# --- a device mapper: include/uapi/linux/dm-ioctl.h -----------------------------------

_CREATE, _REMOVE, _SUSPEND, _LOAD = 3, 4, 6, 9
_SUSPENDED, _SKIP_LOCKFS, _NOFLUSH = 1 << 1, 1 << 10, 1 << 11


def mapper(number: int, flags: int = 0, table: bytes = b"") -> None:
    sizes = 312 + len(table), 312, int(bool(table))
    head = struct.pack("=3I3IiIIIQ", 4, 0, 0, *sizes, 0, flags, 0, 0, 0)
    data = bytearray(head + b"stuck".ljust(128, b"\0") + bytes(136) + table)
    control = os.open("/dev/mapper/control", os.O_RDWR)
    fcntl.ioctl(control, 3 << 30 | 312 << 16 | 0xFD << 8 | number, data)
    os.close(control)


def map_device(disk: str) -> None:
    """The same sectors under another name, which can be made to wait."""
    name = Path(disk).resolve().name
    sectors = int(Path("/sys/class/block", name, "size").read_text())
    number = os.stat(disk).st_rdev
    parameters = f"{os.major(number)}:{os.minor(number)} 0\0".encode()
    size = (40 + len(parameters) + 7) // 8 * 8
    target = struct.pack("=QQiI16s", 0, sectors, 0, size, b"linear") + parameters
    mapper(_CREATE)
    mapper(_LOAD, table=target.ljust(size, b"\0"))
    mapper(_SUSPEND)  # which is to resume, without the flag


def device() -> Json:
    """It is suspended: first others have written to it, then a zombie."""
    checked(libc.umount2(b"/mnt/c", 0))
    map_device("/dev/disk/c")
    STUCK.mkdir(exist_ok=True)
    checked(libc.mount(b"/dev/dm-0", bytes(STUCK), b"ext4", 0, None))
    done: Json = {}
    for name, words in {
        "others": (f"join={HOLDER}", f"write=64K:{STUCK}/others"),
        "zombies": ("zombie",),
    }.items():
        if words[0] == "zombie":
            zombie("stuck", f"write=64K:{STUCK}/zombies")
        else:
            lab(*words)
        zombie(f"dirty-{name}", f"write=64K:{EXT4}/dirty-{name}")
        done[name] = acted(suspend, f"device-{name}", SHORT)
        began = time.monotonic()
        done[name]["next"] = command("reclaim", "--yes", "--json")
        done[name]["next"]["seconds"] = time.monotonic() - began
        mapper(_SUSPEND)
    time.sleep(2)
    done["later"] = command("reclaim", "--yes", "--json")
    time.sleep(3)
    done["notes"] = [path.name for path in Path("/run").glob("left.*")]
    done["dying"] = dying()
    checked(libc.umount2(bytes(STUCK), 0))
    mapper(_REMOVE)
    return done


def suspend(_: Plan) -> None:
    mapper(_SUSPEND, _SUSPENDED | _SKIP_LOCKFS | _NOFLUSH)


# --- a frozen cgroup ------------------------------------------------------------------


def frozen() -> Json:
    """Who has a zombie's swap entries is frozen, then between plan and step."""
    cgroup = memcg("icy", Path("/sys/fs/cgroup"))
    freeze = cgroup / "cgroup.freeze"
    zombie("swapped", *("anon=192K", "touch", "pageout", "sleep=500"))
    held = []
    for n in range(2):
        pid = zombie(f"swapped{n}", "anon=192K", "touch", "pageout", moves=True)
        (cgroup / "cgroup.procs").write_text(str(pid))
        held.append((pid, 192))
    zombie("read", f"read={a_file(64, EXT4 / 'read')}")
    freeze.write_text("1")
    done: Json = {"planned": command("reclaim", "--dry-run", "--json")}
    freeze.write_text("0")
    began = time.monotonic()

    def fault(_: Plan) -> None:
        freeze.write_text("1")

    done |= acted(fault, "frozen", SHORT)
    done["seconds"] = time.monotonic() - began
    freeze.write_text("0")
    done["later"] = command("reclaim", "--yes", "--json")
    done["lost"] = let_go(held)
    remove(cgroup)
    return done


if __name__ == "__main__":
    checked(libc.prctl(36, 1))  # PR_SET_CHILD_SUBREAPER: of those that lab leaves
    prepare()
    with program.open_kernel(program.Sources()) as opened_once:
        from contextlib import nullcontext

        program.open_kernel = lambda *_, **__: nullcontext(opened_once)  # type: ignore
        for word in sys.argv[1:]:
            try:
                played: Json = globals()[word]()
            except Exception:
                played = {"error": traceback.format_exc()}
            print(json.dumps(played), flush=True)
    end_all()
