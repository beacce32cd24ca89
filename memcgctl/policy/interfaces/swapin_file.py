"""Swap entries of a shmem file that nobody maps: it is read within the ancestor."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from memcgctl.model import Backing, SwappedFileTarget
from memcgctl.policy.cases import Part
from memcgctl.policy.commands import MADV_PAGEOUT, quote
from memcgctl.policy.effects import Effect
from memcgctl.policy.interfaces import pageout_file
from memcgctl.policy.interfaces.base import (
    Action,
    Deed,
    Interface,
    Reach,
    Served,
    cannot,
)
from memcgctl.policy.interfaces.common import WAITS, file_words, swapped_file
from memcgctl.policy.interfaces.world import Asked, World


def reach(part: Part, world: World) -> Reach:
    backing = swapped_file(part)
    if backing is None:
        return cannot(part, "")
    if not world.leads_to(backing):
        return cannot(part, "a file's that no path leads to")
    if not world.room.ancestor(part.memcg):
        return cannot(part, "its ancestor is not in the census")
    here = world.census.kernel.interfaces
    payer = world.pays_for_files(part)
    deed = Deed(_target(backing, payer, world), part.bytes, payer)
    if not _pages_out(payer, world):
        if world.stuck[part.memcg.id]:
            return cannot(part, "what is in the swap cache stays charged when read")
        charged = ((payer, part.bytes),)
        return Reach(Effect(part, "recharge-parent", charged=charged), (deed,))
    if not world.census.kernel.swaps_at_once and "memory.reclaim" not in here:
        return cannot(part, WAITS)
    done = Effect(part, "recharge-parent", swapped_bytes=part.bytes)
    return Reach(done, (deed,), world.unaimed)


def _pages_out(payer: int, world: World) -> bool:
    """Whether what was read has to go again.

    cgroup v2 has no processes where there are memcgs below, the root aside: it is read
    from within a memcg that is made for it, which up to 7.0 is a zombie until its
    folios are gone, whose swap the ancestor is charged for then.
    """
    kernel = world.census.kernel
    here = kernel.cgroup_version == 1 or world.room.path(payer) == "/"
    return not here and "folios go to the parent" not in kernel.interfaces


def _target(backing: Backing, payer: int, world: World) -> SwappedFileTarget:
    known = world.file(backing)
    return SwappedFileTarget(
        known.file,
        known.users,
        memcg_id=payer,
        memcg_path=world.room.path(payer),
        page_out=_pages_out(payer, world),
    )


def action(target: SwappedFileTarget, served: Served, world: World) -> Action:
    backing = swapped_file(served[0][0])
    assert backing
    payer, path, again = target.memcg_id, target.memcg_path, target.page_out
    directory = world.directory(payer)
    asked = world.asked(payer) if again else Asked()
    return Action(
        replace(target, file=backing, unaimed=asked.unaimed),
        file_words(backing),
        command(
            world.word(backing) or "",
            directory,
            world.page_size,
            own=world.census.kernel.cgroup_version == 2 and path != "/",
            again=again,
            reclaim=asked.directories,
            key=world.reclaim_key,
        ),
        "the file comes back to memory, and what lies beside it on a disk is read ahead"
        + (
            "; it is paged out again, by memory.reclaim if it waits in the swap cache, "
            "which takes more than it is asked for"
            if again
            else ""
        ),
    )


def collateral(target: SwappedFileTarget, served: Served, world: World) -> int:
    backing = swapped_file(served[0][0])
    assert backing
    if not target.page_out:
        return 0
    return (backing.cached_bytes or 0) + world.asked(target.memcg_id).in_reach


def command(
    file: str,
    directory: str,
    page_size: int,
    *,
    own: bool,
    again: bool,
    reclaim: Iterable[str],
    key: str,
) -> str:
    """Read a file of shmem from within a memcg, then page it out if it is to go again.

    With an ``own`` memcg below that one where it can have no processes itself. Freed
    entries are made way for from outside, as in ``swap_in``: entries of its own would
    have the memcg that was made for this pay for all.
    """
    make = 't+="/memcgctl.%d"%os.getpid();os.mkdir(t);' if own else ""
    script = (
        "import mmap,os,sys,time;f=os.open(sys.argv[1],0);t=sys.argv[2];"
        f"os.sched_setaffinity(0,{{min(os.sched_getaffinity(0))}});{make}p=os.fork();"
        'p or(open(t+"/cgroup.procs","w").write("0"),[os.pread(f,1,x)for x in '
        f"range(0,os.fstat(f).st_size,{page_size})],os._exit(0));os.waitpid(p,0);"
        f"n=128*{page_size};m=mmap.mmap(-1,n);m[:]=os.urandom(n);"
        f"m.madvise({MADV_PAGEOUT});time.sleep(1);m[:]=bytes(n)"
        f"{';os.rmdir(t)' if own else ''}"
    )
    out = f" && {pageout_file.command(file, page_size, reclaim, key)}" if again else ""
    return f"python3 -c '{script}' {file} {quote(directory)}{out}"


INTERFACE = Interface(
    name="swapin-file",
    options=("recharge-parent", "deferred"),
    cases=("swap",),
    needs=("pageout",),
    seen=("5.10", "6.12", "7.0", "7.3"),
    requires="root, Python 3.8",
    effect="the nearest online ancestor is charged, up to 5.13 the root: in "
    "memory, or, where that is no root of v2, up to 7.0 in swap again",
    touches="what others are charged for of the same file",
    cannot="files that no path leads to; on a disk where there is no "
    "memory.reclaim, from 5.14 on",
    reach=reach,
    action=action,
    collateral=collateral,
    rank=1,
)
