"""Shmem that nobody maps: the file is mapped, then MADV_PAGEOUT."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import cache

from memcgctl.model import FileTarget
from memcgctl.policy.cases import Part
from memcgctl.policy.commands import MADV_PAGEOUT, READ, let_go, quote
from memcgctl.policy.interfaces.base import Action, Interface, Reach, Served, cannot
from memcgctl.policy.interfaces.common import (
    backing_of,
    evicted,
    file_words,
    group_of,
    rest_of_file,
    waits_in_swap_cache,
)
from memcgctl.policy.interfaces.world import World

_RECLAIMED = (
    "; what a disk has not written at once is left to memory.reclaim, which takes more "
    "than it is asked for"
)


def reach(part: Part, world: World) -> Reach:
    backing = backing_of(part)
    if backing is None or not part.group or part.group.kind != "shmem":
        return cannot(part, "it is in the swap cache")
    if not world.leads_to(backing):
        return cannot(part, "no path leads to its file")
    if why := waits_in_swap_cache(part, world):
        return cannot(part, why)
    reach = evicted(part, world.file(backing), world)
    return reach._replace(unaimed=True) if world.unaimed else reach


def action(target: FileTarget, served: Served, world: World) -> Action:
    backing = group_of(served).backing
    assert backing
    asked = world.asked(*_ancestors(served, world))
    return Action(
        replace(target, file=backing, unaimed=asked.unaimed),
        file_words(backing),
        command(
            world.word(backing) or "",
            world.page_size,
            asked.directories,
            world.reclaim_key,
        ),
        "whoever reads it next waits for the swap device"
        + (_RECLAIMED if asked.directories else ""),
    )


def _ancestors(served: Served, world: World) -> list[int]:
    return [world.room.ancestor(part.memcg) for part, _ in served]


def collateral(target: FileTarget, served: Served, world: World) -> int:
    asked = _in_reach(_ancestors(served, world), world)
    return rest_of_file(target, served, world) + asked


def _in_reach(ancestors: Iterable[int], world: World) -> int:
    return world.asked(*ancestors).in_reach


def command(
    file: str, page_size: int, directories: Iterable[str] = (), key: str = ""
) -> str:
    """Map a file of shmem, touch what of it is no hole, page it out.

    A hole that is touched gets a page: a sparse file could use up all memory. For
    ``directories`` and ``key`` see ``let_go``.
    """
    python, places = _python(page_size, tuple(directories), key)
    return f"{python} {file}{places}"


@cache
def _python(page_size: int, directories: tuple[str, ...], key: str) -> tuple[str, str]:
    """What comes before and after the file in that command."""
    touch = (
        'f=open(sys.argv[1],"rb");m=mmap.mmap(f.fileno(),0,prot=1);'
        "s=ctypes.CDLL(None).lseek;s.restype=l=ctypes.c_long;"
        f"[m[x]for x in range(0,len(m),{page_size})if s(f.fileno(),l(x),3)==x];"
    )
    page_out = f"m.madvise({MADV_PAGEOUT})"
    places = "".join(f" {quote(f'{one}/memory.reclaim')}" for one in directories)
    if not places:
        return f"python3 -c 'import ctypes,mmap,sys;{touch}{page_out}'", ""
    script = (
        f"import ctypes,mmap,os,sys,time;{touch}{READ}"
        "i=str(os.fstat(f.fileno()).st_ino);"
        f'a,z=[int(x,16)//{page_size} for l in open("/proc/self/maps")'
        'if l.split()[4]==i for x in l.split()[0].split("-")][:2];'
        'p=os.pread(os.open("/proc/self/pagemap",0),8*(z-a),8*a);'
        'n=[t&(1<<55)-1 for t in memoryview(p).cast("Q")if t>>63];'
        f"{page_out};{let_go(2, page_size, key)}"
    )
    return f"python3 -c '{script}'", places


INTERFACE = Interface(
    name="pageout-file",
    options=("evict",),
    cases=("swap-backed-unmapped",),
    needs=("pageout",),
    seen=("5.10", "6.1", "6.12", "6.18", "7.0", "7.3"),
    requires="root or the file's owner, Python 3.8, swap",
    effect="the nearest online ancestor is charged for the swap",
    touches="what others are charged for of the same file",
    cannot="locked and pinned pages, a tmpfs mounted with noswap; what a disk has "
    "not written at once stays in the swap cache where there is no memory.reclaim",
    reach=reach,
    action=action,
    collateral=collateral,
    whole=_in_reach,
)
