"""What a guest does to get zombies: one function for each way, lists of them by name.

A step makes memcgs, has processes charge memory to them, and says what will hold
each one after its removal. It works with the guest's shell and the words of
``lab do`` (guest.c). To add a way of making zombies, write a function, put it into a
list, and give ``lab do`` a new word if it needs one.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from tests.lab.guest import Guest, Machine
from tests.lab.users import Frame

CGROUPS = "/sys/fs/cgroup"
EXT4, XFS, TMPFS, HUGE = "/mnt/ext4", "/mnt/xfs", "/mnt/tmpfs", "/mnt/huge"
SWAPS = ["/dev/disk/swap1", "/dev/disk/swap2"]


@dataclass
class Made:
    """A memcg that a step made. ``held_by`` says why it outlives its removal:
    folio, swap, child, writeback, stock, socket, fsnotify, other."""

    path: str
    how: str
    held_by: tuple[str, ...]
    online: bool
    id: int = 0
    # Extended attributes, and the guest's clock around mkdir and rmdir.
    xattrs: dict[str, str] = field(default_factory=dict)
    created: tuple[float, float] | None = None
    removed: tuple[float, float] | None = None


@dataclass
class Held:
    """A process that a step left behind, and what ``lab do`` had told it."""

    pid: int
    words: tuple[str, ...]


@dataclass
class Scene:
    """A booted guest in which steps make memcgs."""

    guest: Guest
    version: int
    made: list[Made] = field(default_factory=list)
    held: list[Held] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    # Cgroups that steps make for themselves, of which the truth tells no more.
    besides: list[str] = field(default_factory=list)
    # Cgroups that were removed and are held, though they have no memcg.
    bare: int = 0
    # Whom each page frame is charged to while all is online.
    frames: dict[int, Frame] = field(default_factory=dict)
    # Work that remains when all memcgs are removed, with the memcg that it is for.
    finish: list[tuple[Made, Callable[[], None]]] = field(default_factory=list)

    def memcg(
        self,
        path: str,
        how: str,
        held_by: tuple[str, ...] = ("folio",),
        *,
        online: bool = False,
    ) -> str:
        """Make a cgroup and return its directory, joinable by ``join=``."""
        directory = f"{CGROUPS}/{path}"
        if self.version == 2:
            parent = directory.rpartition("/")[0]
            self.guest.write(f"{parent}/cgroup.subtree_control", "+memory")
        else:  # cgroup v1 has no cgroup writeback
            held_by = tuple(holder for holder in held_by if holder != "writeback")
        self.guest.run("mkdir", directory)
        self.made.append(Made("/" + path, how, held_by, online))
        return directory

    def named(self, path: str, how: str, **xattrs: str) -> str:
        """A cgroup as a manager makes it: by the clock, with extended attributes.

        A dot in an attribute's name is written as two underscores.
        """
        before = self.clock()
        directory = self.memcg(path, how)
        made = self.made[-1]
        made.xattrs = {name.replace("__", "."): v for name, v in xattrs.items()}
        for name, value in made.xattrs.items():
            self.do(f"xattr={name}={value}:{directory}")
        made.created = before, self.clock()
        return directory

    def clock(self) -> float:
        """The guest's time, in seconds since the epoch."""
        return float(self.do("clock"))

    def do(self, *words: str) -> str:
        """A process that performs ``words`` and exits."""
        return self.guest.run("lab", "do", *words).decode()

    def hold(self, *words: str) -> None:
        """A process that performs ``words``, moves to /holder and stays."""
        words = (*words, f"join={CGROUPS}/holder")
        self.held.append(Held(int(self.do(*words, "hold")), words))

    def reclaim(self, memcg: str) -> None:
        """Let go of what MADV_PAGEOUT wrote to swap but left in the swap cache.

        memory.reclaim is there from 5.19 on; cgroup v1 has memory.force_empty.
        """
        self.guest.sh(f"""
            cd "{memcg}"; sleep 0.3
            if [ -e memory.force_empty ]; then echo 1 > memory.force_empty
            elif [ -e memory.reclaim ]; then echo 8M > memory.reclaim || true
            else echo 0 > memory.high; echo max > memory.high; fi 2> /dev/null
        """)

    def file(self, size: str, path: str) -> str:
        """A file on disk, not in the page cache."""
        self.do(f"write={size}:{path}", f"fsync={path}", f"forget={path}")
        self.files.append(path)
        return path

    def write(self, size: str, path: str) -> str:
        """The word that creates a file, which stays."""
        self.files.append(path)
        return f"write={size}:{path}"


Step = Callable[[Scene], None]


def read_file(scene: Scene) -> None:
    path = scene.file("1M", f"{EXT4}/read")
    memcg = scene.memcg("app/file-read", "page cache of a file that it read")
    scene.do(f"join={memcg}", f"read={path}")


def written_file(scene: Scene) -> None:
    memcg = scene.memcg("app/file-written", "page cache of a file that it wrote")
    path = f"{EXT4}/written"
    scene.do(f"join={memcg}", scene.write("300K", path), f"fsync={path}")


def mapped_file(scene: Scene) -> None:
    path = scene.file("512K", f"{EXT4}/mapped")
    memcg = scene.memcg("app/file-mapped", "page cache mapped in /holder")
    scene.do(f"join={memcg}", f"read={path}")
    scene.hold(f"join={CGROUPS}/holder", f"map={path}", "look")


def large_folios(scene: Scene) -> None:
    disk = XFS if scene.guest.call("test", "-d", XFS)[0] == 0 else EXT4
    path = scene.file("3M", f"{disk}/large")
    memcg = scene.memcg("app/file-large", "page cache in large folios")
    scene.do(f"join={memcg}", f"read={path}")


def tmpfs(scene: Scene) -> None:
    memcg = scene.memcg("app/tmpfs", "a file on tmpfs")
    scene.do(f"join={memcg}", scene.write("511500", f"{TMPFS}/plain"))


def tmpfs_mapped(scene: Scene) -> None:
    memcg = scene.memcg("app/tmpfs-mapped", "a file on tmpfs mapped in /holder")
    path = f"{TMPFS}/mapped"
    scene.do(f"join={memcg}", scene.write("200K", path))
    scene.hold(f"join={CGROUPS}/holder", f"map={path}", "look")


def tmpfs_huge(scene: Scene) -> None:
    memcg = scene.memcg("app/tmpfs-huge", "a file on tmpfs in huge pages")
    scene.do(f"join={memcg}", scene.write("2M", f"{HUGE}/huge"))


def shared_anonymous(scene: Scene) -> None:
    memcg = scene.memcg("app/shared", "shared anonymous memory of a process that moved")
    scene.hold(f"join={memcg}", "shared=160K", "touch")


def moved_process(scene: Scene) -> None:
    memcg = scene.memcg("app/anon", "anonymous memory of a process that moved away")
    scene.hold(f"join={memcg}", "anon=700K", "touch")


def private_copy(scene: Scene) -> None:
    path = scene.file("96K", f"{EXT4}/private")
    memcg = scene.memcg("app/anon-copy", "copies on write of a privately mapped file")
    scene.hold(f"join={memcg}", f"private={path}", "touch")


def locked(scene: Scene) -> None:
    memcg = scene.memcg("app/locked", "locked anonymous memory of a process that moved")
    scene.hold(f"join={memcg}", "anon=256K", "touch", "lock")


def huge_pages(scene: Scene) -> None:
    memcg = scene.memcg("app/anon-huge", "anonymous huge pages of a process that moved")
    scene.hold(f"join={memcg}", "anon=4M", "huge", "touch")


def pinned(scene: Scene) -> None:
    memcg = scene.memcg("app/pinned", "a registered buffer of an io_uring")
    scene.hold(f"join={memcg}", "anon=64K", "touch", "pin")


def swapped(scene: Scene) -> None:
    memcg = scene.memcg("app/swap", "swapped anonymous memory", ("folio", "swap"))
    scene.hold(f"join={memcg}", "anon=1M", "touch", "pageout")
    scene.reclaim(memcg)


def swapped_huge(scene: Scene) -> None:
    memcg = scene.memcg("app/swap-huge", "swapped huge pages", ("folio", "swap"))
    scene.hold(f"join={memcg}", "anon=2M", "huge", "touch", "pageout")
    scene.reclaim(memcg)


def swap_cached(scene: Scene) -> None:
    memcg = scene.memcg("app/swap-cached", "swapped and read again", ("folio", "swap"))
    scene.hold(f"join={memcg}", "anon=128K", "touch", "pageout", "look")


def swapped_shmem(scene: Scene) -> None:
    memcg = scene.memcg("app/swap-tmpfs", "a swapped file on tmpfs", ("folio", "swap"))
    path = f"{TMPFS}/swapped"
    write = scene.write("320K", path)
    scene.do(f"join={memcg}", write, f"map={path}", "look", "pageout")
    scene.reclaim(memcg)


def second_swap(scene: Scene) -> None:
    """From here on a second swap device is used, then a third of another kind."""
    scene.do(f"swapon=10:{SWAPS[1]}")
    memcg = scene.memcg("app/swap-2", "swapped to a second device", ("folio", "swap"))
    scene.hold(f"join={memcg}", "anon=400K", "touch", "pageout")
    scene.guest.sh("echo 8M > /sys/block/zram0/disksize; mkswap /dev/zram0")
    scene.do("swapon=20:/dev/zram0")
    memcg = scene.memcg("app/swap-zram", "swapped to zram", ("folio", "swap"))
    scene.hold(f"join={memcg}", "anon=240K", "touch", "pageout")
    scene.reclaim(memcg)


def swap_hole(scene: Scene) -> None:
    """A device that is gone again leaves a hole among the swap types."""
    scene.guest.sh(f"swapoff {SWAPS[1]}")


def nested(scene: Scene) -> None:
    """Held by swap inside, so that they stay where folios are reparented."""
    scene.memcg("app/outer", "an offline child", ("child",))
    scene.memcg("app/outer/middle", "an offline child", ("child",))
    memcg = scene.memcg(
        "app/outer/middle/inner", "three deep, swapped", ("folio", "swap")
    )
    scene.hold(f"join={memcg}", "anon=96K", "touch", "pageout")
    scene.reclaim(memcg)
    memcg = scene.memcg("app/outer/second", "a file on tmpfs, two deep")
    scene.do(f"join={memcg}", scene.write("60K", f"{TMPFS}/second"))


def at_the_root(scene: Scene) -> None:
    memcg = scene.memcg("alone", "a file on tmpfs; its parent is the root")
    scene.do(f"join={memcg}", scene.write("44K", f"{TMPFS}/alone"))


def under_online(scene: Scene) -> None:
    scene.memcg("app/pod.slice", "online, with an offline child", online=True)
    memcg = scene.memcg("app/pod.slice/task", "a file on tmpfs")
    scene.do(f"join={memcg}", scene.write("28K", f"{TMPFS}/task"))


NAMES = [
    "with  spaces ",
    "[bold red]markup",
    "[",
    "[/red]",  # below the one before: a closing tag
    "\x1b[31mescape\x1b[2J\x1b]0;title\x07",
    "latin-1 \udce9\udcff\udc80",  # the bytes E9 FF 80, not UTF-8
    "Speicher-großer 内存 🧟",
    "back\\slash and 'quotes\"",
    "tab\tand\rreturn",
    "right-to-left \u202e txet",
    "x" * 255,
    ".hidden",
    "-json",
    "*",
]


def names(scene: Scene) -> None:
    for i, name in enumerate(NAMES):
        memcg = scene.memcg(f"app/{name}", "a name that is hard to print")
        scene.do(f"join={memcg}", scene.write(f"{4 + 4 * i}K", f"{TMPFS}/name{i}"))


def small(scene: Scene) -> None:
    for i in range(8):
        memcg = scene.memcg(f"app/small-{i}", "one of many small ones")
        size = str(1 + 1000 * i)  # most files end within a page
        scene.do(f"join={memcg}", scene.write(size, f"{TMPFS}/small{i}"))


def online(scene: Scene) -> None:
    """Living memcgs with charges of each kind."""
    path = scene.file("200K", f"{EXT4}/online")
    memcg = scene.memcg("app/online", "a living memcg", online=True)
    scene.do(f"join={memcg}", f"read={path}", scene.write("100K", f"{TMPFS}/online"))
    words = ["anon=80K", "touch", "anon=120K", "touch", "pageout"]
    scene.held.append(Held(int(scene.do(f"join={memcg}", *words, "hold")), (*words,)))
    scene.memcg("app/idle", "a living memcg without any charge", online=True)


def account_sockets(scene: Scene, memcg: str) -> str:
    """cgroup v1 accounts sockets only where they are limited."""
    if scene.version == 1:
        scene.guest.write(f"{memcg}/memory.kmem.tcp.limit_in_bytes", "8M")
    return memcg


def socket(scene: Scene) -> None:
    memcg = scene.memcg("app/socket", "a TCP socket", ("folio", "socket"))
    scene.hold(f"join={account_sockets(scene, memcg)}", "socket")


def sockets(scene: Scene) -> None:
    """Of protocols with and without a slab cache; one has no file any more."""
    scene.guest.sh("ifconfig lo 127.0.0.1 up")
    memcg = scene.memcg("app/sockets", "sockets of many kinds", ("folio", "socket"))
    words = ["socket=udp", "socket=packet", "socket=netlink", "connect", "orphan"]
    scene.hold(f"join={account_sockets(scene, memcg)}", *words)


def unread(scene: Scene) -> None:
    scene.guest.sh("ifconfig lo 127.0.0.1 up")
    memcg = scene.memcg("app/unread", "data that nobody reads", ("folio", "socket"))
    words = ["connect", "unread=tcp", "unread=udp", "unread=unix"]
    scene.hold(f"join={account_sockets(scene, memcg)}", "anon=40K", "touch", *words)


def crowd(scene: Scene) -> None:
    """Up to 5.10 each one's page tables hold the memcg, their two roots among them."""
    memcg = scene.memcg("app/crowd", "page tables of processes that moved")
    scene.hold(f"join={memcg}", "anon=40K", "touch", f"crowd=20:{CGROUPS}/holder")


HUGETLB_ACCOUNTING = "memory_hugetlb_accounting"
HUGETLB = "/mnt/hugetlb"


def hugetlb(scene: Scene) -> None:
    """Charged where cgroup v2 is mounted so."""
    if HUGETLB_ACCOUNTING not in scene.guest.read("/proc/mounts"):
        return
    scene.guest.sh(f"""
        echo 8 > /proc/sys/vm/nr_hugepages
        mkdir {HUGETLB}; mount -t hugetlbfs hugetlbfs {HUGETLB}
    """)
    memcg = scene.memcg("app/hugetlb-private", "hugetlb pages of a process that moved")
    scene.hold(f"join={memcg}", "hugetlb=4M", "touch")
    memcg = scene.memcg("app/hugetlb-file", "a file of hugetlbfs")
    path = f"{HUGETLB}/file"
    scene.files.append(path)
    scene.do(f"join={memcg}", f"hugetlb-file=4M:{path}", "touch")
    memcg = scene.memcg("app/hugetlb-mapped", "hugetlb pages mapped in /holder")
    path = f"{HUGETLB}/mapped"
    scene.files.append(path)
    scene.hold(f"join={memcg}", f"hugetlb-file=2M:{path}", "touch")


def inotify(scene: Scene) -> None:
    memcg = scene.memcg("app/inotify", "an inotify group", ("folio", "fsnotify"))
    scene.hold(f"join={memcg}", f"inotify={TMPFS}")


def fanotify(scene: Scene) -> None:
    memcg = scene.memcg("app/fanotify", "a fanotify group", ("folio", "fsnotify"))
    scene.hold(f"join={memcg}", "fanotify")


def in_flight(scene: Scene) -> None:
    how = "an inotify group that was sent to a socket and is open nowhere"
    memcg = scene.memcg("app/in-flight", how, ("folio", "fsnotify", "socket"))
    scene.hold(f"join={account_sockets(scene, memcg)}", f"send-inotify={TMPFS}")


def corpse(scene: Scene) -> None:
    memcg = scene.memcg("app/corpse", "a dead process not reaped", ("folio", "other"))
    scene.hold(f"join={memcg}", "corpse")


def namespace(scene: Scene) -> None:
    how = "the cgroup namespace of a process that moved away"
    memcg = scene.memcg("app/namespace", how, ("folio", "other"))
    scene.hold(f"join={memcg}", "cgroupns")


EVENT = "app/event"


def event(scene: Scene) -> None:
    """Online until the last moment: its removal is what the dump is in the midst of."""
    memcg = scene.memcg(EVENT, "an eventfd for its usage", ("event",), online=True)
    words = (f"event={memcg}", f"event={memcg}")
    scene.held.append(Held(int(scene.do(*words, "hold")), words))


def attach(scene: Scene, memcg: str, name: str) -> list[str]:
    """Files that a process in ``memcg`` writes and nobody syncs.

    Several, with pauses: the kernel allocates a memcg's wb without waiting, and if
    that fails, the inode at hand is attached to the root's wb for good.
    """
    paths = [f"{EXT4}/{name}{i}" for i in range(4)]
    words = [word for path in paths for word in (scene.write("12K", path), "sleep=300")]
    scene.do(f"join={memcg}", *words)
    return paths


def dirty(scene: Scene) -> None:
    """Dirty at the dump. Comes after all steps that sync."""
    memcg = scene.memcg("app/dirty", "dirty files", ("folio", "writeback"))
    attach(scene, memcg, "dirty")


def writeback(scene: Scene) -> None:
    """Without folios in the end: only inodes are still attached to its wb.

    The files must be dirty when the memcg goes offline, and no other memcg may go
    offline later (kernels from 5.14 on then let go of clean inodes).
    """
    memcg = scene.memcg("app/writeback", "inodes attached to its wb", ("writeback",))
    paths = attach(scene, memcg, "attached")

    def clean() -> None:
        words = [f"{word}={path}" for path in paths for word in ("fsync", "forget")]
        scene.do("cpu=0", *words)
        assert scene.do(*(f"resident={p}" for p in paths)) == "0\n" * len(paths)

    scene.finish.append((scene.made[-1], clean))


def under_writeback(scene: Scene) -> None:
    """Being written at the dump. The disk takes a byte a second from here on.

    The first request goes through, and what it is over its share delays all others.
    """
    memcg = scene.memcg("app/writing", "pages under writeback", ("folio", "writeback"))
    first, *others = attach(scene, memcg, "writing")
    names = ("bps", "bps_rd", "iops", "iops_rd", "iops_wr")
    limits = dict.fromkeys(names, 0)
    scene.guest.qmp("block_set_io_throttle", device="ext4", bps_wr=1, **limits)
    for path in (first, *others):
        scene.guest.sh(f"lab do fsync={path} > /dev/null 2>&1 &")
        scene.do("sleep=500")


def opened(scene: Scene) -> None:
    path = scene.file("128K", f"{EXT4}/opened")
    memcg = scene.memcg("app/opened", "page cache of a file that is open in /holder")
    scene.do(f"join={memcg}", f"read={path}")
    scene.hold(f"join={CGROUPS}/holder", f"open={path}")


def deleted(scene: Scene) -> None:
    path = f"{EXT4}/deleted"
    memcg = scene.memcg("app/deleted", "page cache of a deleted file that is open")
    scene.do(f"join={memcg}", f"write=60K:{path}", f"fsync={path}")
    scene.hold(f"join={CGROUPS}/holder", f"open={path}", f"remove={path}")


def memory_object(scene: Scene) -> None:
    memcg = scene.memcg("app/memfd", "a memfd of a process that moved")
    scene.hold(f"join={memcg}", "memfd=64K:object", "touch")


def segment(scene: Scene) -> None:
    memcg = scene.memcg("app/sysv", "a System V segment of a process that moved")
    scene.hold(f"join={memcg}", "sysv=48K", "touch")


def shared_by_fork(scene: Scene) -> None:
    """The parent moves to /holder, the child from there to another memcg."""
    there = scene.memcg("app/child", "a child process is here", online=True)
    memcg = scene.memcg("app/forked", "anonymous memory that two processes share")
    words = [f"join={memcg}", "anon=200K", "touch", f"join={CGROUPS}/holder", "fork"]
    words.append(f"join={there}")
    scene.held.append(Held(int(scene.do(*words, "hold")), (*words,)))


def threads(scene: Scene) -> None:
    """One process, one address space, however many tasks there are."""
    memcg = scene.memcg("app/threads", "anonymous memory of a process with threads")
    scene.hold(f"join={memcg}", "anon=140K", "touch", "threads=3")


def same_memory(scene: Scene) -> None:
    memcg = scene.memcg("app/same", "anonymous memory of two processes that are one")
    words = [f"join={memcg}", "anon=72K", "touch", f"join={CGROUPS}/holder"]
    scene.hold(*words, "share-memory")


def spliced(scene: Scene) -> None:
    memcg = scene.memcg("app/spliced", "anonymous memory that waits in a pipe")
    scene.hold(f"join={memcg}", "anon=40K", "touch", "splice")


def huge_in_parts(scene: Scene) -> None:
    """The parent maps a huge page as one, the child its pages one by one."""
    memcg = scene.memcg("app/huge-parts", "a huge page that is mapped in both ways")
    words = [f"join={memcg}", "anon=2M", "huge", "touch", f"join={CGROUPS}/holder"]
    scene.hold(*words, "fork", "split")


def charged_to_two(scene: Scene) -> None:
    """The first wrote the beginning of the file, the second all of it."""
    path = f"{TMPFS}/two"
    for name, size in (("first", "40K"), ("second", "100K")):
        memcg = scene.memcg(f"app/two-{name}", f"a file on tmpfs, {name} of two")
        scene.do(f"join={memcg}", f"write={size}:{path}")
    scene.files.append(path)
    scene.hold(f"join={CGROUPS}/holder", f"map={path}", "look")


def swapped_by_fork(scene: Scene) -> None:
    memcg = scene.memcg("app/swap-forked", "swapped by two", ("folio", "swap"))
    words = [f"join={memcg}", "anon=160K", "touch", f"join={CGROUPS}/holder", "fork"]
    scene.hold(*words, "pageout")
    scene.reclaim(memcg)


def swapped_mapping(scene: Scene) -> None:
    memcg = scene.memcg("app/swap-mapped", "swapped shmem, mapped", ("folio", "swap"))
    path = f"{TMPFS}/swap-mapped"
    scene.hold(
        f"join={memcg}", scene.write("240K", path), f"map={path}", "look", "pageout"
    )
    scene.reclaim(memcg)


def mapped_twice(scene: Scene) -> None:
    path = scene.file("80K", f"{EXT4}/twice")
    memcg = scene.memcg("app/twice", "page cache that one process maps twice")
    scene.do(f"join={memcg}", f"read={path}")
    scene.hold(f"join={CGROUPS}/holder", *(f"map={path}", "look") * 2)


def locked_file(scene: Scene) -> None:
    path = scene.file("56K", f"{EXT4}/locked")
    memcg = scene.memcg("app/file-locked", "page cache locked in /holder")
    scene.do(f"join={memcg}", f"read={path}")
    scene.hold(f"join={CGROUPS}/holder", f"map={path}", "look", "lock")


def pinned_huge(scene: Scene) -> None:
    memcg = scene.memcg("app/pinned-huge", "a huge page registered with an io_uring")
    scene.hold(f"join={memcg}", "anon=2M", "huge", "touch", "pin")


def merged(scene: Scene) -> None:
    """Two processes with the same pages; KSM is off again when they are one."""
    memcg = scene.memcg("app/merged", "pages that KSM merged")
    scene.guest.sh("cd /sys/kernel/mm/ksm; echo 9999 > pages_to_scan; echo 1 > run")
    for size in ("256K", "128K"):
        scene.hold(f"join={memcg}", f"anon={size}", "same", "merge")
    scene.guest.sh("sleep 8; echo 0 > /sys/kernel/mm/ksm/run")


def lazily_freed(scene: Scene) -> None:
    memcg = scene.memcg("app/lazy", "memory that is free to be taken (MADV_FREE)")
    scene.hold(f"join={memcg}", "anon=96K", "touch", "free")


def in_container(scene: Scene) -> None:
    """A mount namespace in which a directory of the host's is /data."""
    room = "/mnt/container"
    scene.guest.sh(f"""
        mkdir -p {EXT4}/volume {room}/data {room}/dev
        mknod {room}/dev/null c 1 3
    """)
    path = scene.file("72K", f"{EXT4}/volume/file")
    memcg = scene.memcg("app/container", "page cache of a container's volume")
    scene.do(f"join={memcg}", f"read={path}")
    words = [f"join={CGROUPS}/holder", "mountns", f"bind={EXT4}/volume:{room}/data"]
    words += [f"chroot={room}", "map=/data/file", "look"]
    scene.held.append(Held(int(scene.do(*words, "hold")), (*words,)))


def on_overlay(scene: Scene) -> None:
    """A container's root: a lower directory of ext4 under an overlayfs."""
    layers, room = f"{EXT4}/layers", "/mnt/overlay"
    scene.guest.sh(f"""
        mkdir -p {room} {layers}/lower/dev {layers}/upper {layers}/work
        mknod {layers}/lower/dev/null c 1 3
    """)
    mapped, open_ = (
        scene.file(size, f"{layers}/lower/{name}")
        for size, name in (("68K", "mapped"), ("36K", "open"))
    )
    memcg = scene.memcg("app/overlay", "page cache below an overlayfs")
    scene.do(f"join={memcg}", f"read={mapped}", f"read={open_}")
    words = [f"join={CGROUPS}/holder", "mountns", f"overlay={layers}:{room}"]
    words += [f"chroot={room}", "private=/mapped", "look", "open=/open"]
    scene.held.append(Held(int(scene.do(*words, "hold")), (*words,)))


def guarded(scene: Scene) -> None:
    """Only cgroup v2 has memory.min and a limit for swap alone."""
    memcg = scene.memcg("app/guarded", "protected by memory.min", online=True)
    scene.do(f"join={memcg}", scene.write("88K", f"{TMPFS}/guarded"))
    scene.guest.sh(f"cd {CGROUPS}/app; echo 1M | tee memory.min guarded/memory.min")
    memcg = scene.memcg("app/no-swap", "may not swap", online=True)
    scene.guest.sh(f"echo 0 > {memcg}/memory.swap.max")
    scene.do(f"join={memcg}", scene.write("84K", f"{TMPFS}/no-swap"))


def swap_out_file(scene: Scene, memcg: str, path: str) -> None:
    """64 KiB of tmpfs in swap, which make a zombie on every kernel."""
    scene.made[-1].held_by = ("folio", "swap")
    write = scene.write("64K", path)
    scene.do(f"join={memcg}", write, f"map={path}", "look", "pageout")
    scene.reclaim(memcg)


def hashed(text: str) -> str:
    """64 hexadecimal digits, as a container's ID."""
    return hashlib.sha256(text.encode()).hexdigest()


def pods(scene: Scene) -> None:
    """Pods as kubelet and containerd name them, with the systemd driver.

    Each has a sandbox, a container whose log is in the page cache and one that left
    memory on the pod's tmpfs; the last one's is in swap.
    """
    above = "kubepods.slice"
    scene.memcg(above, "of all pods", online=True)
    for quality in ("burstable", "besteffort"):
        above = f"kubepods.slice/kubepods-{quality}.slice"
        scene.memcg(above, "of a class of pods", online=True)
        for number in range(2):
            uid = str(uuid.UUID(hashed(f"{quality} {number}")[:32]))
            pod = f"{above}/kubepods-{quality}-pod{uid.replace('-', '_')}.slice"
            scene.named(pod, "a pod's", trusted__invocation_id=hashed(uid)[:32])
            scene.made[-1].held_by = ("child",)
            for role in ("log", "tmpfs", "swap"):
                name = f"{pod}/cri-containerd-{hashed(uid + role)}.scope"
                invocation = hashed(name)[:32]
                memcg = scene.named(
                    name, f"a container: {role}", trusted__invocation_id=invocation
                )
                path = f"{TMPFS}/{role}-{quality}{number}"
                if role == "swap":
                    swap_out_file(scene, memcg, path)
                elif role == "tmpfs":
                    scene.do(f"join={memcg}", scene.write("148K", path))
                else:
                    log = scene.file("260K", f"{EXT4}/{quality}{number}.log")
                    scene.do(f"join={memcg}", f"read={log}")


def services(scene: Scene) -> None:
    """Units, sessions and containers of Docker's, each held in its own way."""
    scene.memcg("system.slice", "of services", online=True)
    scene.memcg("user.slice", "of sessions", online=True)

    def unit(path: str, how: str) -> str:
        return scene.named(
            path,
            how,
            user__delegate="1",
            trusted__invocation_id=hashed(path)[:32],
            user__oomd_omit="1",
        )

    backup = scene.file("1M", f"{EXT4}/backup.tar")
    memcg = unit("system.slice/nightly-backup.service", "read a large file")
    scene.do(f"join={memcg}", f"read={backup}")
    memcg = unit("system.slice/logrotate@daily.service", "wrote a log")
    path = f"{EXT4}/daily.log"
    scene.do(f"join={memcg}", scene.write("60K", path), f"fsync={path}")
    memcg = unit("system.slice/agent.service", "memory that is locked")
    scene.hold(f"join={memcg}", "anon=256K", "touch", "lock")
    memcg = unit("system.slice/watcher.service", "an inotify group")
    scene.made[-1].held_by = ("folio", "fsnotify")
    scene.hold(f"join={memcg}", f"inotify={TMPFS}")
    for number in range(3):
        memcg = unit(f"system.slice/docker-{hashed(str(number))}.scope", "a container")
        swap_out_file(scene, memcg, f"{TMPFS}/docker{number}")
    for number in range(41, 49):
        memcg = unit(f"user.slice/session-{number}.scope", "a session's memory")
        if number % 2:
            swap_out_file(scene, memcg, f"{TMPFS}/session{number}")
        else:
            scene.hold(f"join={memcg}", "anon=128K", "touch")


def network_namespace(scene: Scene) -> None:
    """Its kernel sockets are its maker's: ``ip netns add``, PrivateNetwork=.

    One is a process's, one mounted, one only open.
    """
    how = "a network namespace made in it"
    for name, words in (
        ("process", ()),
        ("mount", ("keep-ns=net:/tmp/netns",)),
        ("open", ("leave-netns",)),
    ):
        memcg = scene.memcg(f"app/netns-{name}", how, ("folio", "socket"))
        words = (f"join={account_sockets(scene, memcg)}", "netns", *words)
        if name == "mount":
            scene.do(*words)
        else:
            scene.hold(*words)


def tunnel(scene: Scene) -> None:
    memcg = scene.memcg("app/tun", "/dev/net/tun, open", ("folio", "socket"))
    scene.hold(f"join={account_sockets(scene, memcg)}", "open=/dev/net/tun")


def kept_without_descriptor(scene: Scene) -> None:
    """Files that are in no descriptor table."""
    memcg = scene.memcg("app/fixed", "an io_uring's file", ("folio", "fsnotify"))
    scene.hold(f"join={memcg}", f"fix-inotify={TMPFS}")
    memcg = scene.memcg("app/packet", "a mapped packet socket", ("folio", "socket"))
    scene.hold(f"join={account_sockets(scene, memcg)}", "map-packet")


def kept_namespace(scene: Scene) -> None:
    how = "a cgroup namespace that only a mount keeps"
    memcg = scene.memcg("app/namespace-mount", how, ("folio", "other"))
    scene.do(f"join={memcg}", "cgroupns", "keep-ns=cgroup:/tmp/cgroupns")


def without_leader(scene: Scene) -> None:
    how = "a process whose first thread ended before it moved"
    memcg = scene.memcg("app/leader", how, ("folio", "other"))
    scene.hold(f"join={memcg}", "anon=64K", "touch", "end-leader")


def untouched(scene: Scene) -> None:
    """Mapped, without a page in any page table."""
    path = scene.file("100K", f"{EXT4}/untouched")
    memcg = scene.memcg("app/untouched", "page cache mapped whole, touched by nobody")
    scene.do(f"join={memcg}", f"read={path}")
    scene.hold(f"join={CGROUPS}/holder", f"map={path}")
    memcg = scene.memcg("app/aio", "the ring of asynchronous I/O")
    scene.hold(f"join={memcg}", "aio=500")


def in_kernels_hands(scene: Scene) -> None:
    """Pages and files that a process has by a descriptor of another kind."""
    how = "a memfd in flight over a socket"
    memcg = scene.memcg("app/sent-memfd", how, ("folio", "socket"))
    scene.hold(f"join={memcg}", "send-memfd=48K")
    if scene.guest.call("test", "-e", "/dev/udmabuf")[0] == 0:
        memcg = scene.memcg("app/udmabuf", "a memfd that is a DMA buffer")
        scene.hold(f"join={memcg}", "udmabuf=40K")
    memcg = scene.memcg("app/pipe", "what waits in a pipe", ("folio", "kernel"))
    scene.hold(f"join={memcg}", "anon=4K", "touch", "pipe=32K")
    memcg = scene.memcg("app/ring", "rings of an io_uring", ("folio", "kernel"))
    scene.hold(f"join={memcg}", "anon=4K", "touch", "ring=256")


def in_parts(scene: Scene) -> None:
    """Of a huge page of tmpfs two processes map a part each, with a hole between."""
    path = f"{HUGE}/parts"
    memcg = scene.memcg("app/huge-mapped", "a huge page of tmpfs mapped in parts")
    scene.do(f"join={memcg}", scene.write("2M", path))
    for part in ("0:512K", "256K:512K", "1M:256K"):
        scene.hold(f"join={CGROUPS}/holder", f"map-part={part}:{path}", "look")


def unplugged(scene: Scene) -> None:
    """The disk goes while inodes are attached to the memcg's wb; comes last.

    Those that are open stay attached. From 5.14 on the kernel lets go of the memcg.
    """
    if scene.guest.call("grep", "-q", "offline_cgwbs", "/proc/kallsyms")[0] == 0:
        return
    memcg = scene.memcg("app/unplugged", "a disk that is gone", ("writeback",))
    paths = attach(scene, memcg, "unplugged")
    del scene.files[-len(paths) :]
    scene.hold(f"join={CGROUPS}/holder", *(f"open={path}" for path in paths))

    def unplug() -> None:
        words = [f"{word}={path}" for path in paths for word in ("fsync", "forget")]
        scene.do("cpu=0", *words)
        scene.guest.sh("""
            cd -P /sys/block/$(basename $(readlink /dev/disk/ext4))/device/..
            echo 1 > remove
        """)

    scene.finish.append((scene.made[-1], unplug))


def without_memcg(scene: Scene) -> None:
    """Removed cgroups that no memcg belongs to: their parent has no controllers."""
    plain = f"{CGROUPS}/plain"
    scene.besides.append("/plain")
    scene.guest.sh(f"mkdir -p {plain}/watched {plain}/socket")
    holder = f"join={CGROUPS}/holder"
    scene.hold(holder, f"watch={plain}/watched")
    scene.hold(f"join={plain}/socket", "socket=udp")
    scene.guest.sh(f"rmdir {plain}/watched {plain}/socket")
    scene.bare += 2


BASIC: list[Step] = [
    *(read_file, tmpfs, mapped_file, moved_process, huge_pages),
    *(swapped, swap_cached, swapped_shmem),
    *(nested, at_the_root, under_online, names, small, online),
]
ZOO: list[Step] = [
    *(read_file, written_file, mapped_file, large_folios),
    *(tmpfs, tmpfs_mapped, tmpfs_huge, shared_anonymous),
    *(moved_process, private_copy, locked, huge_pages, pinned),
    *(swapped, swapped_huge, swap_cached, swapped_shmem, second_swap),
    *(nested, at_the_root, under_online, names, small, online),
    *(socket, sockets, inotify, fanotify, in_flight, corpse, namespace),
    *(dirty, writeback),
]

# Who uses it, where it comes from and what stands in the way of its eviction.
USERS: list[Step] = [
    *(read_file, mapped_file, tmpfs_mapped, shared_anonymous, moved_process),
    *(private_copy, locked, huge_pages, pinned, swapped, swap_cached, swapped_shmem),
    *(opened, deleted, memory_object, segment, threads, same_memory, spliced),
    *(huge_in_parts, charged_to_two),
    *(shared_by_fork, swapped_by_fork, swapped_mapping, mapped_twice, locked_file),
    *(pinned_huge, merged, lazily_freed, in_container, on_overlay, guarded, online),
    *(second_swap, dirty, under_writeback),
]

# What holds a memcg, or its memory, in ways that no descriptor or page table shows.
HOLDERS: list[Step] = [
    *(network_namespace, tunnel, kept_without_descriptor, kept_namespace),
    *(without_leader, untouched, in_kernels_hands, in_parts, mapped_twice),
    *(socket, sockets, in_flight, corpse, namespace, spliced, without_memcg),
    unplugged,
]
# Memory that no page of an LRU list tells of.
CLASSES: list[Step] = [tmpfs, online, unread, crowd, hugetlb]


@dataclass(frozen=True)
class Scenario:
    """Steps, the machine they need and the cgroup version."""

    steps: list[Step]
    version: int = 2
    machine: Machine = field(default_factory=Machine)
    stock: bool = True
    # The function in which the guest is at the dump, and what brings it there.
    stop_at: str = ""
    stop_by: str = ""
    # Of cgroup v2, where the kernel knows it.
    mount_option: str = ""


MODULES = Machine(modules=("overlay", "tun"))
# Two nodes, and as many possible CPUs as a large machine has.
WIDE = Machine(
    memory="224M",
    smp="2,maxcpus=64",
    qemu=(
        *("-object", "memory-backend-ram,id=m0,size=128M"),
        *("-object", "memory-backend-ram,id=m1,size=96M"),
        *("-numa", "node,nodeid=0,memdev=m0,cpus=0"),
        *("-numa", "node,nodeid=1,memdev=m1,cpus=1"),
    ),
)

SCENARIOS = {
    "basic": Scenario(BASIC, stock=False),
    "basic-v1": Scenario(BASIC, version=1, stock=False),
    "zoo-wide": Scenario(ZOO, machine=WIDE),
    "zoo": Scenario(ZOO),
    "zoo-v1": Scenario(ZOO, version=1),
    "users": Scenario(USERS, machine=Machine(modules=("overlay",)), stock=False),
    # Names, attributes and times as kubelet, containerd, docker and systemd give them.
    "named": Scenario([pods, services], stock=False),
    "holders": Scenario(HOLDERS, machine=MODULES, stock=False),
    "holders-debug": Scenario(
        HOLDERS, machine=replace(MODULES, cmdline="slub_debug=FZPU"), stock=False
    ),
    # The removal of a memcg takes events off its list and leaves the rest to a worker.
    "classes": Scenario(
        CLASSES,
        machine=Machine(memory="192M"),
        stock=False,
        mount_option=HUGETLB_ACCOUNTING,
    ),
    "event-v1": Scenario(
        [tmpfs, event],
        version=1,
        stock=False,
        stop_at="memcg_event_remove",
        stop_by=f"rmdir {CGROUPS}/{EVENT}",
    ),
}
