"""Which interface of user space carries out an option, on whom, and at what price?

One table, the least harmful first: for each interface the options and cases that it is
for, what the kernel must have, where it was seen to work, what it needs, whom it
charges and what else it touches. What nobody has seen to work is not in it.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, cast

from memcgctl.model import Aim, Backing, Census, ChargeGroup, Memcg, Process
from memcgctl.policy import commands
from memcgctl.policy.cases import (
    LOCKED,
    Case,
    Part,
    charged_already,
    movable,
    swapped_users,
    users,
)
from memcgctl.policy.effects import WRITTEN, Effect, left
from memcgctl.policy.headroom import Headroom
from memcgctl.policy.policies import MapperRule, Option

_SWAP_BACKED: tuple[Case, ...] = ("swap-backed-unmapped", "swap-backed-mapped")
_FILES: tuple[Case, ...] = ("file-unmapped", "file-mapped")
# Swap devices without readahead (SWP_SYNCHRONOUS_IO).
_SYNCHRONOUS = re.compile(r"/dev/(zram|pmem|ram)\d")
# What one round of reclaim takes at least (SWAP_CLUSTER_MAX, MAX_LRU_BATCH; of large
# folios more): asked for one page, it took 786,432 bytes on 6.12.
_RECLAIM_BATCH = 1 << 20
_RECLAIMED = (
    "; what a disk has not written at once is left to memory.reclaim, which takes more "
    "than it is asked for"
)
WAITS = "it would wait in the swap cache until memory is short"
_CPU = re.compile(r"CPU (\d+):")
DEFAULT_MOUNT = {2: "/sys/fs/cgroup", 1: "/sys/fs/cgroup/memory"}


class Asked(NamedTuple):
    """The directories of memcgs whose memory.reclaim is asked, what this can cost.

    ``in_reach`` is what living memcgs can lose: all, or what a round takes.
    """

    directories: tuple[str, ...] = ()
    in_reach: int = 0
    unaimed: bool = False


class World:
    """What interfaces need to know of a census beyond the part at hand."""

    def __init__(self, census: Census, offline: Sequence[Memcg], rule: MapperRule):
        self.census = census
        self.room = Headroom(census)
        self.rule = rule
        self.page_size = census.kernel.page_size
        # Anonymous folios in the swap cache that stay, by the memcg's id, in bytes.
        self.stuck: Counter[int] = Counter()
        # And those that are mapped again by reading, and paged out then.
        self.mapped_again: Counter[int] = Counter()
        version = census.kernel.cgroup_version
        self.mount = census.kernel.cgroup_mount or DEFAULT_MOUNT[version]
        self._asked: dict[frozenset[int], Asked] = {}
        self._offline = offline

    @cached_property
    def _groups(self) -> list[ChargeGroup]:
        return [
            group
            for memcg in self._offline
            for group in (memcg.details.charge_groups if memcg.details else ())
            if group.backing
        ]

    @cached_property
    def known(self) -> dict[Hashable, int]:
        """Bytes of each file that zombies are charged for."""
        sizes: dict[Hashable, int] = defaultdict(int)
        for group in self._groups:
            sizes[identity(group.backing)] += group.bytes
        return sizes

    @cached_property
    def users(self) -> dict[Hashable, tuple[Process, ...]]:
        """The processes that have a file open or map it."""
        found: dict[Hashable, dict[int, Process]] = {}
        for group in self._groups:
            for process in (*group.openers, *group.mappers):
                known = found.setdefault(identity(group.backing), {})
                known.setdefault(process.pid, process)
        return {file: tuple(known.values()) for file, known in found.items()}

    @cached_property
    def innocent(self) -> Counter[int]:
        """What living memcgs at or below each one have that can be reclaimed."""
        below: Counter[int] = Counter()
        for memcg in self.room.memcgs.values():
            for one in self.room.chain(memcg.id):
                below[one] += _reclaimable(memcg)
        return below

    @cached_property
    def innocent_files(self) -> int:
        """The page cache of all living memcgs."""
        living = self.room.memcgs.values()
        return sum(memcg.charges.file_bytes for memcg in living if memcg.charges)

    def directory(self, memcg_id: int) -> str:
        return self.mount + self.room.path(memcg_id).rstrip("/")

    @cached_property
    def at_once(self) -> int | None:
        """How much may be swapped out, so that shmem does not wait in the swap cache.

        None: no matter how much, or none at all.
        """
        kernel = self.census.kernel
        aimed = "memory.reclaim swappiness" in kernel.interfaces
        return kernel.at_once_bytes if kernel.swaps_at_once and not aimed else None

    @cached_property
    def unaimed(self) -> bool:
        """Whether what waits in the swap cache goes only with files of the living.

        From 5.19 to 6.10 memory.reclaim cannot be told what to prefer, and was seen to
        take all page cache of living memcgs with a few pages of shmem.
        """
        kernel = self.census.kernel
        return (
            "memory.reclaim" in kernel.interfaces
            and "memory.reclaim swappiness" not in kernel.interfaces
            and not kernel.swaps_at_once
        )

    def asked(self, *ancestors: int) -> Asked:
        """Of which of them memory.reclaim can be asked, and at what price."""
        key = frozenset(ancestors)
        if key not in self._asked:
            self._asked[key] = self._ask(key)
        return self._asked[key]

    def _ask(self, ancestors: frozenset[int]) -> Asked:
        kernel = self.census.kernel
        if "memory.reclaim swappiness" not in kernel.interfaces and not self.unaimed:
            return Asked()
        # Not the root, on any kernel.
        asked = sorted(one for one in ancestors - {0} if self.room.path(one) != "/")
        sizes = (self.innocent[one] for one in asked)
        return Asked(
            tuple(map(self.directory, asked)),
            sum(size if self.unaimed else min(size, _RECLAIM_BATCH) for size in sizes),
            self.unaimed and bool(asked),
        )

    @cached_property
    def reclaim_key(self) -> str:
        """What has memory.reclaim prefer anonymous memory and shmem."""
        here = self.census.kernel.interfaces
        return " swappiness=200" if "memory.reclaim swappiness" in here else ""

    def pays_for_swapin(self, part: Part, process: Process) -> int:
        """The memcg that is charged for swap entries that are read for a process.

        Up to 5.13 what is read ahead of a disk is charged to the root
        (``get_mem_cgroup_from_mm`` without an mm; 5.14+, "mm: charge active memcg when
        no mm is set"). The cleanup of writeback came with the same version.
        """
        ahead = part.device and not _at_once(part)
        if ahead and "writeback cleanup" not in self.census.kernel.interfaces:
            return self.room.by_path.get("/", process.memcg_id)
        return process.memcg_id

    def pays_for_files(self, part: Part) -> int:
        """The memcg that is charged for a file's entries read within the ancestor.

        Up to 5.13 that is the root, as for processes: shmem is always read ahead.
        """
        old = "writeback cleanup" not in self.census.kernel.interfaces
        root = self.room.by_path.get("/", 0)
        return root if old else self.room.ancestor(part.memcg)

    def word(self, backing: Backing) -> str | None:
        """What a shell opens a file by; None if nothing leads to it."""
        if _has_path(backing):
            return commands.quote(backing.path or "")
        if users := self.users.get(identity(backing)):
            return commands.file_of(users[0].pid, backing.inode)
        if _in_container(backing):
            root = f"/proc/{backing.container_pid}/root"
            return commands.quote(f"{root}{backing.container_path}")
        return None

    def leads_to(self, backing: Backing) -> bool:
        """Whether anything leads to a file."""
        if _has_path(backing) or _in_container(backing):
            return True
        return identity(backing) in self.users

    def file(self, backing: Backing, *, unaimed: bool = False) -> Aim:
        processes = self.users.get(identity(backing), ())
        return Aim(file=backing, processes=processes, unaimed=unaimed)

    def aim_at(self, memcg_id: int) -> Aim:
        return Aim(memcg_id=memcg_id, memcg_path=self.room.path(memcg_id))

    def waits_in_swap_cache(self, ancestor: int) -> bool:
        """Whether shmem that is in swap leaves memory only when that is short."""
        at_once = self.census.kernel.swaps_at_once
        return not at_once and not self.asked(ancestor).directories

    def charged_to(self, memcg_id: int) -> int:
        """What is charged to an online memcg itself and could be paged out."""
        memcg = self.room.memcgs.get(memcg_id)
        return _reclaimable(memcg) if memcg else 0

    def swapped_of(self, memcg_id: int) -> int:
        """What an online memcg itself has in swap."""
        memcg = self.room.memcgs.get(memcg_id)
        return memcg.swap.bytes if memcg and memcg.swap else 0


def _reclaimable(memcg: Memcg) -> int:
    charges = memcg.charges
    return charges.total_bytes - charges.kernel_bytes if charges else 0


def _at_once(part: Part) -> bool:
    """Whether a swap device lets go of an entry as soon as it is read."""
    return bool(part.device and _SYNCHRONOUS.search(part.device.device))


def _has_path(backing: Backing) -> bool:
    """Whether its path opens it."""
    named = backing.path and not backing.deleted
    return bool(named) and backing.kind in ("file", "tmpfs")


def _in_container(backing: Backing) -> bool:
    """Whether its path in a process's mount namespace opens it."""
    return bool(backing.container_pid) and not backing.deleted


def identity(backing: Backing | None) -> Hashable:
    return backing and (backing.fs, backing.device, backing.inode, backing.generation)


class Deed(NamedTuple):
    """A part's share in an action: deeds with equal keys are one step.

    ``charged`` is the id of the memcg that is charged for these bytes afterwards.
    """

    key: Hashable
    bytes: int
    charged: int | None = None


class Reach(NamedTuple):
    """What an interface does to a part: its effect, and how much by which action.

    ``unaimed``: on this kernel it cannot be kept from what is of living memcgs.
    """

    effect: Effect
    deeds: tuple[Deed, ...] = ()
    unaimed: bool = False


class Action(NamedTuple):
    """A step as it is shown: on what, by which command, at what risk."""

    aim: Aim
    target: str
    command: str
    risk: str


Served = list[tuple[Part, int]]


def _nothing_else(key: Hashable, served: Served, world: World) -> int:
    return 0


@dataclass(frozen=True)
class Interface:
    """One way of user space to do what ``options`` say in some ``cases``.

    ``needs`` are names out of ``Kernel.interfaces``; ``seen`` the kernels on which it
    did what is said here; ``requires`` what else must be there (privilege, mounts,
    programs); ``effect`` whom it charges, ``touches`` what else it moves, ``cannot``
    what it leaves; ``collateral`` is the bytes of others' that a step of it can move.
    With ``whole`` it takes all of a file whose folios nothing is in the way of: this is
    the collateral beside the file's own, by the memcgs' online ancestors.

    One that is not ``aimed`` is only taken where nothing innocent is in its reach, or
    if it is asked for; one with ``ask`` only if that is asked for. Those of a higher
    ``rank`` move what the others leave, so that they come later; one with ``after``
    moves nothing unless that was done to the same process before. What ``disturbs``
    makes a process wait for memory that it uses.
    """

    name: str
    options: tuple[Option, ...]
    cases: tuple[Case, ...]
    needs: tuple[str, ...]
    seen: tuple[str, ...]
    requires: str
    effect: str
    touches: str
    cannot: str
    reach: Callable[[Part, World], Reach]
    action: Callable[[Hashable, Served, World], Action]
    collateral: Callable[[Hashable, Served, World], int] = _nothing_else
    whole: Callable[[Iterable[int], World], int] | None = None
    aimed: bool = True
    ask: str | None = None
    rank: int = 0
    after: str | None = None
    disturbs: bool = False


def _cannot(part: Part, why: str) -> Reach:
    return Reach(left(part, why))


def _evicted(
    part: Part,
    key: Hashable,
    world: World,
    beaten: tuple[str, ...] = (),
    *,
    anew: bool = False,
) -> Reach:
    """Folios that nothing stubborn is in the way of leave memory by one action.

    ``anew``: they have no swap entries any more by then.
    """
    assert part.group
    size, why = movable(part.group, beaten)
    swapped = part.case in _SWAP_BACKED
    ancestor = world.room.ancestor(part.memcg)
    had = size if not swapped else 0 if anew else charged_already(part.group, size)
    if had < size and (limit := world.room.swap_room(ancestor)) < size - had:
        size, why = had + limit, ", ".join(filter(None, [why, "no room in swap"]))
    if not size:
        return _cannot(part, why)
    return _gone(part, key, ancestor, size, had, why)


def evicted_whole(part: Part, key: Hashable, world: World) -> Reach:
    """All of a file's folios leave memory, as there is nothing in the way."""
    group = _group([(part, 0)])
    swapped = part.case in _SWAP_BACKED
    had = charged_already(group, group.bytes) if swapped else group.bytes
    return _gone(part, key, world.room.ancestor(part.memcg), group.bytes, had, "")


def _gone(
    part: Part, key: Hashable, ancestor: int, size: int, had: int, why: str
) -> Reach:
    """``had`` of ``size`` bytes are just dropped, the others are swapped out."""
    assert part.group
    done = Effect(
        part,
        "evict",
        evicted_bytes=had,
        written_bytes=0
        if part.case in _SWAP_BACKED
        else min(size, part.group.dirty_bytes),
        swapped_bytes=size - had,
        left_bytes=part.bytes - size,
        why=why,
    )
    if not had:
        return Reach(done, (Deed(key, size, ancestor),))
    evicted = Deed(key, had)
    if had == size:
        return Reach(done, (evicted,))
    return Reach(done, (Deed(key, size - had, ancestor), evicted))


def _backing(part: Part) -> Backing | None:
    return part.group.backing if part.group else None


def _group(served: Served) -> ChargeGroup:
    group = served[0][0].group
    assert group
    return group


# --- page cache of a file that nobody maps -------------------------------------------


def _reach_file(part: Part, world: World) -> Reach:
    backing = _backing(part)
    if backing is None or backing.kind == "hugetlb":
        return _cannot(part, "it is no file's page cache")
    if not world.leads_to(backing):
        return _cannot(part, "no path leads to its file")
    return _evicted(part, identity(backing), world, WRITTEN)


def _forget_file(key: Hashable, served: Served, world: World) -> Action:
    backing = _group(served).backing
    assert backing
    dirty = any(part.group and _is_dirty(part.group) for part, _ in served)
    return Action(
        world.file(backing),
        file_words(backing),
        commands.forget_file(world.word(backing) or "", dirty=dirty),
        "whoever reads the file next reads it from the device and is charged for it",
    )


def _rest_of_file(key: Hashable, served: Served, world: World) -> int:
    backing = _group(served).backing
    assert backing
    return max(0, (backing.cached_bytes or 0) - world.known[identity(backing)])


def _is_dirty(group: ChargeGroup) -> bool:
    return bool(group.dirty_bytes) or any(
        name in WRITTEN for name, _ in group.obstacles
    )


def file_words(backing: Backing) -> str:
    """A file as a step names it."""
    if backing.path and not backing.deleted:
        return backing.path
    return f"inode {backing.inode} of {backing.fs} {backing.device}"


# --- what a process maps --------------------------------------------------------------


def _reach_mapped(part: Part, world: World) -> Reach:
    found = users(part, world.page_size)
    if not found:
        return _cannot(part, "no process was found that maps it")
    if sum(process.bytes for process in found) > part.bytes:
        return _cannot(part, "several processes map it, which MADV_PAGEOUT passes by")
    ancestor = world.room.ancestor(part.memcg)
    if not ancestor:
        return _cannot(part, "its ancestor is not in the census")
    if why := _waits_in_swap_cache(part, world):
        return _cannot(part, why)
    # A file's dirty pages are not written by MADV_PAGEOUT.
    reach = _evicted(part, None, world)
    deeds, rest = [], [deed.bytes for deed in reach.deeds]
    for process in found:
        size = process.bytes if process is not found[-1] else part.bytes
        for n, deed in enumerate(reach.deeds):
            moved = min(size, rest[n])
            size -= moved
            rest[n] -= moved
            if moved:
                deeds.append(Deed((process.pid, ancestor), moved, deed.charged))
    shmem = part.group is not None and part.group.kind == "shmem"
    return Reach(reach.effect, tuple(deeds), world.unaimed and shmem)


def _page_out(key: Hashable, served: Served, world: World) -> Action:
    pid, ancestor = cast("tuple[int, int]", key)
    files = {identity(_backing(part)) for part, _ in served}
    asked = _asked_for_shmem(ancestor, served, world)
    process = _process(pid, served, world)
    return Action(
        Aim(
            file=_group(served).backing if len(files) == 1 else None,
            processes=(process,),
            shown_ids=(ancestor,),
            unaimed=asked.unaimed,
        ),
        _process_words(process),
        commands.page_out(
            pid,
            [ancestor],
            world.page_size,
            asked.directories,
            world.reclaim_key,
        ),
        "it waits for the device when it touches them next",
    )


def _asked_for_shmem(ancestor: int, served: Served, world: World) -> Asked:
    shmem = any(part.group and part.group.kind == "shmem" for part, _ in served)
    return world.asked(ancestor) if shmem else Asked()


def _charged_to_ancestor(key: Hashable, served: Served, world: World) -> int:
    """What is its own, not a zombie's: /proc/kpagecgroup shows both the same."""
    _, ancestor, *_ = cast("tuple[int, int]", key)
    return world.charged_to(ancestor)


def _charged_to_ancestor_or_asked(key: Hashable, served: Served, world: World) -> int:
    _, ancestor = cast("tuple[int, int]", key)
    asked = _asked_for_shmem(ancestor, served, world)
    return world.charged_to(ancestor) + asked.in_reach


def _waits_in_swap_cache(part: Part, world: World) -> str:
    shmem = part.group is not None and part.group.kind == "shmem"
    waits = shmem and world.waits_in_swap_cache(world.room.ancestor(part.memcg))
    return WAITS if waits else ""


def _process(pid: int, served: Served, world: World) -> Process:
    """The process, with all that it uses of what is served."""
    parts = {id(part): part for part, _ in served}.values()
    found = [user for part in parts for user in users(part, world.page_size)]
    same = [user for user in found if user.pid == pid]
    return replace(same[0], bytes=sum(user.bytes for user in same))


def _process_words(process: Process) -> str:
    return f"pid {process.pid} ({process.comm})"


def _reach_cached(part: Part, world: World) -> Reach:
    """In the swap cache: mapped again when its entry is read, paged out after that."""
    found = swapped_users(part.memcg, world.page_size)
    ancestor = world.room.ancestor(part.memcg)
    if not part.group or part.group.kind != "anon" or not ancestor:
        return _cannot(part, "")
    if len(found) != 1 or found[0].bytes < part.bytes:
        return _cannot(part, "not just one process has its swap entries")
    reach = _evicted(part, (found[0].pid, ancestor, "again"), world, anew=True)
    # Half of it would only make a zombie's entries a zombie's pages.
    return _cannot(part, reach.effect.why) if reach.effect.why else reach


def _page_out_again(key: Hashable, served: Served, world: World) -> Action:
    pid, ancestor, _ = cast("tuple[int, int, str]", key)
    (process,) = swapped_users(served[0][0].memcg, world.page_size)
    return Action(
        Aim(processes=(process,), shown_ids=(ancestor,)),
        _process_words(process),
        commands.page_out(pid, [ancestor], world.page_size),
        "it waits for the device when it touches them next",
    )


def _reach_collapse(part: Part, world: World) -> Reach:
    found = users(part, world.page_size)
    ancestor = world.room.ancestor(part.memcg)
    # Only where nothing else is in the same 2 MiB of addresses, and nothing is missing.
    if len(found) != 1 or found[0].huge_bytes < part.bytes:
        return _cannot(part, "")
    if found[0].memcg_id not in world.room.memcgs or not ancestor:
        return _cannot(part, "")
    _, why = movable(_group([(part, 0)]), (LOCKED,))
    room = world.room.room(found[0].memcg_id)
    if room is not None and room < part.bytes:
        why = f"{found[0].memcg} has no room"
    if why:
        return _cannot(part, why)
    done = Effect(part, "recharge-mapper", charged=((found[0].memcg_id, part.bytes),))
    key = (found[0].pid, ancestor)
    return Reach(done, (Deed(key, part.bytes, found[0].memcg_id),))


def _collapse(key: Hashable, served: Served, world: World) -> Action:
    pid, ancestor = cast("tuple[int, int]", key)
    process = _process(pid, served, world)
    return Action(
        Aim(processes=(process,), shown_ids=(ancestor,)),
        _process_words(process),
        commands.collapse(pid, [ancestor], world.page_size),
        "it stays where there is no free huge page, or the process asked for none",
    )


# --- shmem that nobody maps -----------------------------------------------------------


def _reach_shmem(part: Part, world: World) -> Reach:
    backing = _backing(part)
    if backing is None or not part.group or part.group.kind != "shmem":
        return _cannot(part, "it is in the swap cache")
    if not world.leads_to(backing):
        return _cannot(part, "no path leads to its file")
    if why := _waits_in_swap_cache(part, world):
        return _cannot(part, why)
    reach = _evicted(part, identity(backing), world)
    return reach._replace(unaimed=True) if world.unaimed else reach


def _page_out_file(key: Hashable, served: Served, world: World) -> Action:
    backing = _group(served).backing
    assert backing
    asked = world.asked(*_ancestors(served, world))
    return Action(
        world.file(backing, unaimed=asked.unaimed),
        file_words(backing),
        commands.page_out_file(
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


def _rest_of_shmem(key: Hashable, served: Served, world: World) -> int:
    asked = _in_reach(_ancestors(served, world), world)
    return _rest_of_file(key, served, world) + asked


def _in_reach(ancestors: Iterable[int], world: World) -> int:
    return world.asked(*ancestors).in_reach


# --- swap entries ---------------------------------------------------------------------


def _reach_swap(part: Part, world: World) -> Reach:
    found = [u for u in users(part, world.page_size) if u.memcg_id in world.room.memcgs]
    if not found:
        if _swapped_file(part):
            return _cannot(part, "")
        return _cannot(part, "no process has them in its page tables")
    if "swap entries stay" in world.census.kernel.interfaces and not _at_once(part):
        return _cannot(part, "this kernel keeps them on the disk when they are read")
    cached = min(part.bytes, world.stuck[part.memcg.id])
    world.stuck[part.memcg.id] -= cached
    again = min(part.bytes - cached, world.mapped_again[part.memcg.id])
    world.mapped_again[part.memcg.id] -= again
    left_over = part.bytes - cached - again
    deeds: list[Deed] = []
    charged: Counter[int] = Counter()
    if again:  # the entry goes, its page stays the zombie's until it is paged out
        deeds.append(Deed(found[0].pid, again))
    if world.rule == "first":
        found.sort(key=lambda process: process.start_ticks)
    shared = 0 < left_over < sum(process.bytes for process in found) - again
    parents = (part.device.parents_entries if part.device else 0) * world.page_size
    for process in found:
        size = min(process.bytes, left_over)
        left_over -= size
        # What is in the swap cache stays with whoever is charged for its folio.
        mine = min(size, parents)
        parents -= mine
        # All who share an entry have to read it, though it is charged once.
        payer = world.pays_for_swapin(part, process)
        for one, share in (
            (world.room.ancestor(part.memcg), mine),
            (payer, size - mine),
        ):
            if share or (shared and one == payer):
                deeds.append(Deed(process.pid, share, one))
                charged[one] += share
    whys = ["not all of them are in page tables that were found"] if left_over else []
    if cached:
        whys.append("what is in the swap cache stays charged when it is read")
    done = Effect(
        part,
        "recharge-mapper",
        evicted_bytes=again,
        charged=tuple((one, size) for one, size in charged.items() if size),
        left_bytes=left_over + cached,
        why=", ".join(whys),
    )
    return Reach(done, tuple(deeds))


def _swap_in(key: Hashable, served: Served, world: World) -> Action:
    pid = cast("int", key)
    process = _process(pid, served, world)
    return Action(
        Aim(processes=(process,)),
        _process_words(process),
        commands.swap_in(pid, world.directory(process.memcg_id), world.page_size),
        "all it has in swap comes back to memory, other memcgs' as well; what lies "
        "beside that on a disk is read ahead (vm.page-cluster)",
    )


def _all_it_has_in_swap(key: Hashable, served: Served, world: World) -> int:
    process = _process(cast("int", key), served, world)
    return world.swapped_of(process.memcg_id)


def _swapped_file(part: Part) -> Backing | None:
    """The shmem file whose entries these are, if nobody maps them."""
    owners = part.device.owners if part.device else ()
    return owners[0].file if owners else None


def _reach_swapped_file(part: Part, world: World) -> Reach:
    backing = _swapped_file(part)
    if backing is None:
        return _cannot(part, "")
    if not world.leads_to(backing):
        return _cannot(part, "a file's that no path leads to")
    if not world.room.ancestor(part.memcg):
        return _cannot(part, "its ancestor is not in the census")
    here = world.census.kernel.interfaces
    payer = world.pays_for_files(part)
    deed = Deed((identity(backing), payer), part.bytes, payer)
    if not _pages_out(payer, world):
        if world.stuck[part.memcg.id]:
            return _cannot(part, "what is in the swap cache stays charged when read")
        charged = ((payer, part.bytes),)
        return Reach(Effect(part, "recharge-parent", charged=charged), (deed,))
    if not world.census.kernel.swaps_at_once and "memory.reclaim" not in here:
        return _cannot(part, WAITS)
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


def _swap_in_file(key: Hashable, served: Served, world: World) -> Action:
    _, payer = cast("tuple[Hashable, int]", key)
    backing = _swapped_file(served[0][0])
    assert backing
    directory, path = world.directory(payer), world.room.path(payer)
    again = _pages_out(payer, world)
    asked = world.asked(payer) if again else Asked()
    return Action(
        Aim(
            file=backing,
            processes=world.file(backing).processes,
            memcg_id=payer,
            memcg_path=path,
            page_out=again,
            unaimed=asked.unaimed,
        ),
        file_words(backing),
        commands.swap_in_file(
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


def _file_paged_out_again(key: Hashable, served: Served, world: World) -> int:
    _, payer = cast("tuple[Hashable, int]", key)
    backing = _swapped_file(served[0][0])
    assert backing
    if not _pages_out(payer, world):
        return 0
    return (backing.cached_bytes or 0) + world.asked(payer).in_reach


# --- what one offline memcg has -------------------------------------------------------


def _reach_lru_gen(part: Part, world: World) -> Reach:
    memcg, group = part.memcg, part.group
    assert group
    if not memcg.private_id:  # it has no swap entries
        return _cannot(part, "")
    if group.kind == "file":
        return _evicted(part, (memcg.id, 0), world)
    if group.mapped or group.backing:
        return _cannot(part, "")  # it would be its swap
    size, why = movable(group)
    if why:
        return _cannot(part, why)
    done = Effect(part, "evict", evicted_bytes=size)  # its entries are there already
    return Reach(done, (Deed((memcg.id, 200), size),))


def _evict_generations(key: Hashable, served: Served, world: World) -> Action:
    _, swappiness = cast("tuple[int, int]", key)
    memcg = served[0][0].memcg
    return Action(
        Aim(
            memcg_id=memcg.id,
            memcg_path=memcg.path,
            private_id=memcg.private_id,
            swappiness=swappiness,
        ),
        memcg.path,
        commands.evict_generations(memcg.private_id, swappiness),
        "who uses it waits for the device when it is touched next",
    )


# --- block devices, writeback, stocks ------------------------------------------------


def _reach_device(part: Part, world: World) -> Reach:
    backing = _backing(part)
    if backing is None or backing.device[:1].isdigit():
        return _cannot(part, "its device has no name")
    return _evicted(part, backing.device, world, WRITTEN)


def _flush_device(key: Hashable, served: Served, world: World) -> Action:
    backing = _group(served).backing
    assert backing
    return Action(
        Aim(file=backing, device=backing.device),
        f"/dev/{backing.device}",
        commands.flush_device(backing.device),
        "all of the device's clean metadata is read again when it is needed",
    )


def _reach_writeback(part: Part, _: World) -> Reach:
    return Reach(Effect(part, "evict"), (Deed("writeback", 0),))


def _clean_writeback(key: Hashable, served: Served, world: World) -> Action:
    return Action(
        Aim(),
        "all file systems",
        commands.sync_and_remove_a_cgroup(world.mount),
        "everybody's dirty files are written at once",
    )


def _reach_stock(part: Part, _: World) -> Reach:
    cpu = _CPU.match(part.holder.detail) if part.holder else None
    if not cpu:
        return _cannot(part, "its CPU is not known")
    return Reach(Effect(part, "evict"), (Deed(int(cpu[1]), 0),))


def _drain_stock(key: Hashable, served: Served, world: World) -> Action:
    cpu = cast("int", key)
    return Action(
        Aim(cpu=cpu),
        f"CPU {cpu}",
        commands.charge_on_cpu(cpu, world.mount),
        "none that is known",
    )


# --- what cannot be aimed -------------------------------------------------------------


def _reach_ancestor(part: Part, world: World) -> Reach:
    if not world.room.ancestor(part.memcg):
        return _cannot(part, "its ancestor is not in the census")
    if part.memcg.ancestor == "/":
        return _cannot(part, "the root cannot be asked to reclaim")
    return _evicted(part, world.room.ancestor(part.memcg), world, WRITTEN)


def _all_below(key: Hashable, served: Served, world: World) -> int:
    return world.innocent[cast("int", key)]


def _reclaim(key: Hashable, served: Served, world: World) -> Action:
    ancestor = cast("int", key)
    size = sum(moved for _, moved in served)
    return Action(
        world.aim_at(ancestor),
        world.room.path(ancestor),
        commands.reclaim(world.directory(ancestor), size),
        "it takes what is coldest, whoever's it is",
    )


def _force_empty(key: Hashable, served: Served, world: World) -> Action:
    ancestor = cast("int", key)
    return Action(
        world.aim_at(ancestor),
        world.room.path(ancestor),
        commands.force_empty(world.directory(ancestor)),
        "it takes all it can of everybody below",
    )


def _reach_all(part: Part, world: World) -> Reach:
    return _evicted(part, "caches", world, WRITTEN)


def _drop_caches(key: Hashable, served: Served, world: World) -> Action:
    return Action(
        Aim(),
        "all file systems",
        commands.drop_caches(),
        "everybody's page cache goes",
    )


def _all_page_cache(key: Hashable, served: Served, world: World) -> int:
    return world.innocent_files


INTERFACES: tuple[Interface, ...] = (
    Interface(
        name="fadvise",
        options=("evict", "deferred"),
        cases=("file-unmapped",),
        needs=("fadvise",),
        seen=("5.10", "6.1", "6.12", "7.3"),
        requires="read access to the file; dd and sync of GNU coreutils",
        effect="nobody is charged until somebody reads the file again",
        touches="what others are charged for of the same file's page cache",
        cannot="mapped, locked and pinned pages",
        reach=_reach_file,
        action=_forget_file,
        collateral=_rest_of_file,
        whole=lambda *_: 0,
    ),
    Interface(
        name="collapse",
        options=("recharge-mapper",),
        cases=("swap-backed-mapped",),
        needs=("process_madvise", "collapse", "pagemap", "kpagecgroup"),
        seen=("6.12", "7.3"),
        requires="root, Python 3.9, transparent huge pages",
        effect="the process's memcg is charged at once",
        touches="what the process maps that is charged to the ancestor itself",
        cannot="what does not fill 2 MiB of addresses of one mapping, huge pages, "
        "pinned pages, pages that several map",
        reach=_reach_collapse,
        action=_collapse,
        collateral=_charged_to_ancestor,
        rank=-1,  # pageout takes all that the process maps
        disturbs=True,
    ),
    Interface(
        name="pageout",
        options=("evict",),
        cases=("file-mapped", "swap-backed-mapped"),
        needs=("process_madvise", "pageout", "pagemap", "kpagecgroup"),
        seen=("5.10", "6.12", "7.3"),
        requires="root, Python 3.9; swap for what is not a file's",
        effect="nobody is charged for a file's pages until they are touched; what is "
        "swapped out is charged to the nearest online ancestor's swap",
        touches="what the process maps that is charged to the ancestor itself",
        cannot="locked and pinned pages, dirty files, pages that several map",
        reach=_reach_mapped,
        action=_page_out,
        collateral=_charged_to_ancestor_or_asked,
        disturbs=True,
    ),
    Interface(
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
        reach=_reach_shmem,
        action=_page_out_file,
        collateral=_rest_of_shmem,
        whole=_in_reach,
    ),
    Interface(
        # After swapin, which maps them.
        name="pageout",
        options=("evict",),
        cases=("swap-backed-unmapped",),
        needs=("process_madvise", "pageout", "pagemap", "kpagecgroup"),
        seen=("6.12",),
        requires="root, Python 3.9, swap",
        effect="the nearest online ancestor is charged for the swap",
        touches="what the process maps that is charged to the ancestor itself",
        cannot="locked and pinned pages, pages that several map",
        reach=_reach_cached,
        action=_page_out_again,
        collateral=_charged_to_ancestor,
        rank=2,
        after="swapin",
        disturbs=True,
    ),
    Interface(
        name="swapin",
        options=("recharge-mapper",),
        cases=("swap",),
        needs=("pagemap",),
        seen=("5.10", "6.1", "6.12", "6.18", "7.3"),
        requires="root, Python 3",
        effect="the memcg of the process whose addresses are read is charged",
        touches="all else that this process has in swap",
        cannot="entries of shmem that nobody maps, entries without an owner",
        reach=_reach_swap,
        action=_swap_in,
        collateral=_all_it_has_in_swap,
        rank=1,
        disturbs=True,
    ),
    Interface(
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
        reach=_reach_swapped_file,
        action=_swap_in_file,
        collateral=_file_paged_out_again,
        rank=1,
    ),
    Interface(
        name="writeback-cleanup",
        options=("evict", "recharge-parent"),
        cases=("writeback",),
        needs=("writeback cleanup",),
        seen=("6.12", "7.3"),
        requires="root, awk, sync of GNU coreutils",
        effect="the inodes' writeback goes to the nearest online ancestor",
        touches="all dirty files, which are written",
        cannot="inodes that are dirty again before the memcg goes offline",
        reach=_reach_writeback,
        action=_clean_writeback,
    ),
    Interface(
        name="charge-on-cpu",
        options=("evict",),
        cases=("stock",),
        needs=(),
        seen=("5.10", "6.1", "6.12", "6.18", "7.0"),
        requires="root, taskset of util-linux",
        effect="nobody is charged",
        touches="nothing",
        cannot="nothing that a stock is",
        reach=_reach_stock,
        action=_drain_stock,
    ),
    Interface(
        name="flush-device",
        options=("evict", "deferred"),
        cases=("metadata",),
        needs=(),
        seen=("5.10", "6.12"),
        requires="root, blockdev of util-linux",
        effect="nobody is charged until it is read again",
        touches="all clean metadata of the device",
        cannot="buffers that a mounted file system keeps",
        reach=_reach_device,
        action=_flush_device,
        collateral=_rest_of_file,
    ),
    Interface(
        name="lru_gen",
        options=("evict",),
        cases=(*_FILES, "swap-backed-unmapped", "metadata"),
        needs=("lru_gen by private id",),
        seen=("6.12", "6.18"),
        requires="root, debugfs mounted, the multi-generational LRU switched on",
        effect="nobody is charged until it is read again; swap entries stay",
        touches="nothing but what that memcg is charged for",
        cannot="memcgs without swap entries, mapped shmem and anonymous memory; all "
        "offline ones from 7.0 on, which names them by cgroup id and finds none",
        reach=_reach_lru_gen,
        action=_evict_generations,
        disturbs=True,
    ),
    Interface(
        name="memory.reclaim",
        options=("evict",),
        cases=(*_FILES, *_SWAP_BACKED, "metadata"),
        needs=("memory.reclaim",),
        seen=("6.1", "6.12", "7.3"),
        requires="write access to the cgroup; swap for what is not a file's",
        effect="what is swapped out is charged to the nearest online ancestor's swap",
        touches="everybody's memory at or below the ancestor, the coldest first",
        cannot="locked and pinned pages, what memory.min protects",
        reach=_reach_ancestor,
        action=_reclaim,
        collateral=_all_below,
        aimed=False,
    ),
    Interface(
        name="memory.force_empty",
        options=("evict",),
        cases=(*_FILES, *_SWAP_BACKED, "metadata"),
        needs=("memory.force_empty",),
        seen=("5.10", "6.1"),
        requires="root, cgroup v1; swap for what is not a file's",
        effect="what is swapped out is charged to the nearest online ancestor",
        touches="all memory at or below the ancestor",
        cannot="locked and pinned pages; the root has no such file",
        reach=_reach_ancestor,
        action=_force_empty,
        collateral=_all_below,
        aimed=False,
    ),
    Interface(
        name="drop_caches",
        options=("evict",),
        cases=("file-unmapped", "metadata"),
        needs=("drop_caches",),
        seen=("5.10", "6.1", "6.12"),
        requires="root, awk, sync of GNU coreutils",
        effect="nobody is charged until it is read again",
        touches="the page cache of the whole machine",
        cannot="mapped, locked and pinned pages, shmem, anonymous memory, swap",
        reach=_reach_all,
        action=_drop_caches,
        collateral=_all_page_cache,
        aimed=False,
        ask="drop-caches",
    ),
)
