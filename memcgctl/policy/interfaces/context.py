"""What interfaces need to know of a census beyond the part at hand."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import NamedTuple

from memcgctl.model import (
    MEMCG_IDS,
    Backing,
    Census,
    CgroupTarget,
    ChargeGroup,
    FileTarget,
    Memcg,
    Process,
    ProcessTarget,
    ids_used,
)
from memcgctl.policy import commands
from memcgctl.policy.cases import NO_ROOM_IN_SWAP, Part, swapped_users
from memcgctl.policy.headroom import Headroom
from memcgctl.policy.policies import MapperRule

# What one round of reclaim takes of each memcg (MIN_LRU_BATCH, of large folios more):
# what goes to a disk does not count as reclaimed yet, so that the walk goes on through
# all of them. Asked for 75 pages beside 60 memcgs, it took 64 pages of each on 6.12.
_RECLAIM_BATCH = 1 << 20
DEFAULT_MOUNT = {2: "/sys/fs/cgroup", 1: "/sys/fs/cgroup/memory"}


class Asked(NamedTuple):
    """The directories of memcgs whose memory.reclaim is asked, what this can cost.

    ``collateral_bytes`` is what living memcgs can lose: all, or what a round takes.
    """

    directories: tuple[str, ...] = ()
    collateral_bytes: int = 0
    untargeted: bool = False


class PlanContext:
    """What interfaces need to know of a census beyond the part at hand."""

    def __init__(self, census: Census, offline: Sequence[Memcg], rule: MapperRule):
        self.census = census
        self.room = Headroom(census)
        self.rule = rule
        # Obstacles that are none here.
        self.beaten: tuple[str, ...] = ()
        self.page_size = census.kernel.page_size
        # Anonymous folios in the swap cache that stay, by the memcg's id, in bytes.
        self.stuck: Counter[int] = Counter()
        # And those that are mapped again by reading, and paged out then.
        self.mapped_again: Counter[int] = Counter()
        version = census.kernel.cgroup_version
        self.mount = census.kernel.cgroup_mount or DEFAULT_MOUNT[version]
        self._asked: dict[frozenset[int], Asked] = {}
        self._files: dict[Hashable, FileTarget] = {}
        self._processes: dict[int, Process] = {}
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
    def reclaimable_below(self) -> Counter[int]:
        """What living memcgs at or below each one have that can be reclaimed."""
        below: Counter[int] = Counter()
        for memcg in self.room.memcgs.values():
            for one in self.room.chain(memcg.id):
                below[one] += _reclaimable(memcg)
        return below

    @cached_property
    def swapped_in_below(self) -> frozenset[int]:
        """The online memcgs at or below which zombies' swap entries are used.

        What is swapped in there is charged to the living, and can be reclaimed then.
        """
        users = {
            process.memcg_id
            for memcg in self._offline
            for process in swapped_users(memcg, self.page_size)
        }
        return frozenset(one for user in users for one in self.room.chain(user))

    @cached_property
    def _losses(self) -> Counter[int]:
        """What a round of reclaim takes of the living memcgs at or below each one."""
        below: Counter[int] = Counter()
        for memcg in self.room.memcgs.values():
            loss = min(_reclaimable(memcg), _RECLAIM_BATCH)
            for one in self.room.chain(memcg.id) if loss else ():
                below[one] += loss
        return below

    @cached_property
    def _waiting(self) -> Counter[int]:
        """What zombies have of shmem and in swap, by their online ancestor."""
        sizes: Counter[int] = Counter()
        for memcg in self._offline:
            ancestor = self.room.ancestor(memcg)
            sizes[ancestor] += memcg.swap.bytes if memcg.swap else 0
            groups = memcg.details.charge_groups if memcg.details else ()
            sizes[ancestor] += sum(one.bytes for one in groups if one.kind == "shmem")
        return sizes

    def reclaim_untargeted(self, ancestor: int) -> bool:
        """Whether letting go of shmem costs living memcgs more than it is worth."""
        if self.untargeted or self.census.kernel.swaps_at_once:
            return self.untargeted
        worth = max(self._waiting[ancestor], _RECLAIM_BATCH)
        return self._losses[ancestor] > worth

    @cached_property
    def living_page_cache(self) -> int:
        """The page cache of all living memcgs."""
        living = self.room.memcgs.values()
        return sum(memcg.charges.file_bytes for memcg in living if memcg.charges)

    def directory(self, memcg_id: int) -> str:
        return self.mount + self.room.path(memcg_id).rstrip("/")

    @cached_property
    def room_for_shmem(self) -> int | None:
        """How much may be swapped out, so that shmem does not wait in the swap cache.

        None: no matter how much, or none at all.
        """
        kernel = self.census.kernel
        targeted = "memory.reclaim swappiness" in kernel.interfaces
        return kernel.at_once_bytes if kernel.swaps_at_once and not targeted else None

    @cached_property
    def no_transit(self) -> str:
        """Why no swap device can be made for the transit, if that is known."""
        why = self.census.kernel.temp_swap
        return f"no swap device can be made: {why}" if why else ""

    @cached_property
    def transit(self) -> PlanContext:
        """The same with a swap device that writes at once, and has room for all."""
        kernel = replace(self.census.kernel, swaps_at_once=True, at_once_bytes=None)
        census = replace(self.census, kernel=kernel)
        inner = PlanContext(census, self._offline, self.rule)
        inner.beaten = NO_ROOM_IN_SWAP
        inner.room.swap.clear()
        inner.room.free_swap = 1 << 62
        return inner

    @cached_property
    def untargeted(self) -> bool:
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
        if "memory.reclaim swappiness" not in kernel.interfaces and not self.untargeted:
            return Asked()
        # Not the root, on any kernel.
        asked = sorted(one for one in ancestors - {0} if self.room.path(one) != "/")
        costs = self.reclaimable_below if self.untargeted else self._losses
        return Asked(
            tuple(map(self.directory, asked)),
            sum(costs[one] for one in asked),
            self.untargeted and bool(asked),
        )

    def pays_for_swapin(self, part: Part, process: Process) -> int:
        """The memcg that is charged for swap entries that are read for a process.

        What is read ahead of a disk is charged to the root where its reader is not
        (``get_mem_cgroup_from_mm`` without an mm).
        """
        ahead = part.device and not is_synchronous(part)
        if ahead and "readers pay for readahead" not in self.census.kernel.interfaces:
            return self.room.by_path.get("/", process.memcg_id)
        return process.memcg_id

    def pays_for_files(self, part: Part) -> int:
        """The memcg that is charged for a file's entries read within the ancestor.

        Where readers do not pay, that is the root: shmem is always read ahead.
        """
        old = "readers pay for readahead" not in self.census.kernel.interfaces
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
        """Whether anything leads to a file.

        Not to one of btrfs: subvolumes and snapshots have equal inodes and generations
        on one device, so that none could be told from its copies.
        """
        if backing.fs == "btrfs":
            return False
        if _has_path(backing) or _in_container(backing):
            return True
        return identity(backing) in self.users

    def file(self, backing: Backing) -> FileTarget:
        """The same for all that is known of one inode."""
        known = self._files.get(key := identity(backing))
        if known is None:
            known = self._files[key] = FileTarget(backing, self.users.get(key, ()))
        return known

    def process(self, process: Process, *shown_ids: int) -> ProcessTarget:
        """The same for all that is known of one process, whatever each part has."""
        who = replace(process, bytes=0, huge_bytes=0)
        who = self._processes.setdefault(process.pid, who)
        return ProcessTarget(who, shown_ids)

    def memcg(self, memcg_id: int) -> CgroupTarget:
        return CgroupTarget(memcg_id, self.room.path(memcg_id))

    def waits_in_swap_cache(self, ancestor: int) -> bool:
        """Whether shmem that is in swap leaves memory only when that is short."""
        synchronous = self.census.kernel.swaps_at_once
        return not synchronous and not self.asked(ancestor).directories

    @cached_property
    def _ids(self) -> int:
        return ids_used(self.census)

    def no_cgroup(self, memcg_id: int | None = None) -> str:
        """Why no cgroup with a memcg can be made below one, or the root, if so.

        Because of MEM_CGROUP_ID_MAX, or as ``cgroup_check_hierarchy_limits`` has it.
        """
        if self._ids >= MEMCG_IDS:
            return f"memcg ids are used up: {self._ids:,} of {MEMCG_IDS:,}"
        root = self.room.by_path.get("/", 0)
        chain = self.room.chain(root if memcg_id is None else memcg_id)
        for level, memcg in enumerate(self.room.memcgs[one] for one in chain):
            limits = memcg.limits
            if limits is None:
                continue
            most = limits.max_descendants
            if most is not None and limits.descendants >= most:
                return f"cgroup.max.descendants of {memcg.path} is reached: {most:,}"
            if limits.max_depth is not None and level >= limits.max_depth:
                return f"cgroup.max.depth of {memcg.path} is reached"
        return ""

    def frozen(self, memcg_id: int) -> bool:
        """Whether what enters an online memcg stops there."""
        memcg = self.room.memcgs.get(memcg_id)
        return memcg is not None and memcg.frozen

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
    return charges.user_bytes if charges else 0


def is_synchronous(part: Part) -> bool:
    """Whether a swap device lets go of an entry as soon as it is read."""
    return bool(part.device and part.device.synchronous)


def _has_path(backing: Backing) -> bool:
    """Whether its path opens it."""
    named = backing.path and not backing.deleted
    return bool(named) and backing.kind in ("file", "tmpfs")


def _in_container(backing: Backing) -> bool:
    """Whether its path in a process's mount namespace opens it."""
    return bool(backing.container_pid) and not backing.deleted


def identity(backing: Backing | None) -> Hashable:
    return backing and (backing.fs, backing.device, backing.inode, backing.generation)
