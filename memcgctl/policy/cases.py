"""Into which cases does what holds an offline memcg fall?

The cases are those of the recharging proposal (file-backed or swap-backed, mapped or
unmapped, swap entries), and beside them what it doesn't speak of: the page cache of
block devices, kernel pages, and holders that are references without memory.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from dataclasses import replace
from typing import Literal, NamedTuple

from memcgctl.model import (
    MAPPERS,
    OWNERS,
    Backing,
    ChargeGroup,
    Coldness,
    Details,
    Holder,
    Memcg,
    Process,
    SwapDeviceUse,
    SwapOwner,
)

Case = Literal[
    "file-unmapped",
    "file-mapped",
    "swap-backed-unmapped",
    "swap-backed-mapped",
    "swap",
    "metadata",
    "kernel",
    "hugetlb",
    "writeback",
    "stock",
    "other",
]
MEMORY: tuple[Case, ...] = (
    *("file-unmapped", "file-mapped", "swap-backed-unmapped", "swap-backed-mapped"),
    *("metadata", "kernel", "hugetlb"),
)
REFERENCES: tuple[Case, ...] = ("writeback", "stock", "other")
CASES: tuple[Case, ...] = (*MEMORY, "swap", *REFERENCES)


LOCKED = "locked (mlock)"
# Keeps the kernel's own reclaim away, and nothing that is asked for by name: neither
# fadvise nor MADV_PAGEOUT look at it, nor what reclaims from the memcg right above
# (``mem_cgroup_calculate_protection``), where an offline one has none of its own.
PROTECTED = "memory.min protection"


# What a swap device of the run's own is the answer to.
NO_ROOM_IN_SWAP = ("no swap", "swap not read", "swap full")


class Part(NamedTuple):
    """One thing that holds a memcg; ``bytes`` is 0 for a mere reference.

    ``group`` is there for folios, ``device`` for swap entries, ``holder`` for
    references. Without its own one it is what nobody looked at.
    """

    memcg: Memcg
    case: Case
    bytes: int
    group: ChargeGroup | None = None
    device: SwapDeviceUse | None = None
    holder: Holder | None = None


def parts(memcg: Memcg, page_size: int) -> Iterator[Part]:
    """All that holds ``memcg``, but for its children and what nobody accounts for."""
    return (part for _, part in numbered_parts(memcg, page_size))


def numbered_parts(
    memcg: Memcg, page_size: int, without: Container[int] = ()
) -> Iterator[tuple[int, Part]]:
    """The same, numbered, ``without`` those of some groups.

    A group without parts of its own has the index that it has in ``charge_groups``, if
    those before it have none, either.
    """
    details = memcg.details
    if details is None:
        return
    index = 0
    for whole in details.charge_groups:
        if index in without:
            index += 1
            continue
        for group in _by_size(whole):
            yield index, Part(memcg, case_of(group), group.bytes, group)
            index += 1
    rest = (*_swap(memcg, details, page_size), *_references(memcg, details))
    yield from enumerate(rest, index)


def _references(memcg: Memcg, details: Details) -> Iterator[Part]:
    for holder in details.holders:
        if holder.kind == "writeback":
            yield Part(memcg, "writeback", 0, holder=holder)
        elif holder.kind == "stock":
            yield Part(memcg, "stock", 0, holder=holder)
        elif holder.kind not in ("folio", "kernel", "swap", "child"):
            yield Part(memcg, "other", 0, holder=holder)


def _is_metadata(backing: Backing) -> bool:
    """Of a block device, or btrfs's own (``BTRFS_BTREE_INODE_OBJECTID``)."""
    own = backing.fs == "btrfs" and backing.inode == 1
    return backing.kind == "bdev" or own


def case_of(group: ChargeGroup) -> Case:
    if group.kind in ("kernel", "hugetlb"):
        return group.kind
    if group.backing and _is_metadata(group.backing):
        return "metadata"
    if group.kind == "file":
        return "file-mapped" if group.mapped else "file-unmapped"
    return "swap-backed-mapped" if group.mapped else "swap-backed-unmapped"


def _swap(memcg: Memcg, details: Details, page_size: int) -> Iterator[Part]:
    left = memcg.swap.entries if memcg.swap else 0
    for device in details.swap_devices:
        for one in _by_kind(device):
            yield Part(memcg, "swap", one.entries * page_size, device=one)
        left -= device.entries
    if left > 0:
        yield Part(memcg, "swap", left * page_size)


def _by_size(group: ChargeGroup) -> tuple[ChargeGroup, ...]:
    """What fills huge pages' worth of one process's addresses apart from the rest.

    What is locked is taken to be part of that, where it is enough.
    """
    huge = group.mappers[0].huge_bytes if len(group.mappers) == 1 else 0
    if not 0 < huge < group.bytes:
        return (group,)
    obstacles = [one for one in group.obstacles if one[0] != PROTECTED]
    locked = sum(size for what, size in obstacles if what == LOCKED)
    if locked > huge or any(what != LOCKED for what, _ in obstacles):
        return (group,)
    rest = group.bytes - huge
    return _share(group, huge, huge, locked), _share(group, rest, 0, 0)


def _share(group: ChargeGroup, size: int, huge: int, locked: int) -> ChargeGroup:
    """``size`` bytes of a group that one process maps, as much of each number."""

    def part(number: int) -> int:
        return number * size // group.bytes

    (process,) = group.mappers
    mapped = size if huge else process.bytes - (group.bytes - size)
    cold = group.coldness
    return replace(
        group,
        folios=part(group.folios),
        bytes=size,
        evictable_bytes=size - locked,
        obstacles=((LOCKED, locked),) if locked else (),
        dirty_bytes=part(group.dirty_bytes),
        mappers=(replace(process, bytes=max(0, mapped), huge_bytes=huge),),
        coldness=Coldness(
            part(cold.active_bytes),
            part(cold.referenced_bytes),
            part(cold.workingset_bytes),
            tuple((age, part(number)) for age, number in cold.generations),
        ),
        swap_entry_bytes=part(group.swap_entry_bytes),
    )


def _by_kind(device: SwapDeviceUse) -> Iterator[SwapDeviceUse]:
    """The entries of each file apart from those that processes have."""
    rest = device.entries
    for owner in device.owners:
        if owner.file and (entries := min(owner.entries, rest)):
            rest -= entries
            yield replace(device, entries=entries, owners=(owner,), parents_entries=0)
    if rest:
        owners = tuple(owner for owner in device.owners if not owner.file)
        cached = min(rest, device.parents_entries)
        yield replace(device, entries=rest, owners=owners, parents_entries=cached)


def movable(group: ChargeGroup, beaten: Iterable[str] = ()) -> tuple[int, str]:
    """How much of it can be evicted at least, and what is in the way of the rest.

    ``beaten`` are the obstacles that whoever evicts it knows how to remove.
    """
    beaten = (PROTECTED, *beaten)
    stubborn = [(what, size) for what, size in group.obstacles if what not in beaten]
    if not stubborn:
        return group.bytes, ""
    # One folio can have several obstacles: these cannot be told from their sums.
    least = group.bytes - sum(size for _, size in stubborn)
    evictable = max(group.evictable_bytes, least, 0)
    return evictable, ", ".join(what for what, _ in stubborn)


def charged_already(group: ChargeGroup, size: int) -> int:
    """How much at least of ``size`` bytes of it takes no new charge to be in swap."""
    return max(0, group.swap_entry_bytes - (group.bytes - size))


def users(part: Part, page_size: int) -> list[Process]:
    """Who maps the folios, or has the swap entries in its page tables."""
    if part.group:
        return list(part.group.mappers)
    return _processes([part.device] if part.device else [], page_size)


def nobody(part: Part) -> str:
    """Why nobody is known who maps the folios, or has the swap entries."""
    unread = part.memcg.details.unread if part.memcg.details else ()
    if part.case == "swap":
        if any(topic in unread for topic in OWNERS):
            return "who has them in its page tables could not be read"
        return "no process has them in its page tables"
    if part.group is None or not part.group.mapped:
        return "nobody maps it"
    if any(topic in unread for topic in MAPPERS):
        return "who maps it could not be read"
    return "who maps it was not found"


def swapped_users(memcg: Memcg, page_size: int) -> list[Process]:
    """Who has any of the memcg's swap entries in its page tables, each once."""
    devices = memcg.details.swap_devices if memcg.details else ()
    found: dict[int, Process] = {}
    for process in _processes(devices, page_size):
        before = found.get(process.pid)
        size = process.bytes + (before.bytes if before else 0)
        found[process.pid] = replace(process, bytes=size)
    return list(found.values())


def _processes(devices: Iterable[SwapDeviceUse], page_size: int) -> list[Process]:
    return [
        _process(owner, owner.entries * page_size)
        for device in devices
        for owner in device.owners
        if owner.pid is not None
    ]


def _process(owner: SwapOwner, size_bytes: int) -> Process:
    return Process(
        pid=owner.pid or 0,
        comm=owner.comm,
        memcg=owner.memcg,
        memcg_id=owner.memcg_id,
        bytes=size_bytes,
        start_ticks=owner.start_ticks,
        tid=owner.tid,
    )


def warm_bytes(group: ChargeGroup) -> int:
    """At most how much of it was used of late, by the kernel's own marks.

    What is active, referenced or a workingset is likely to be touched again; what was
    only read once, some time ago, is not.
    """
    cold = group.coldness
    marked = cold.active_bytes + cold.referenced_bytes + cold.workingset_bytes
    return min(group.bytes, marked)
