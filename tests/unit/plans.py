"""A small world for tests of policies, and what becomes of it when a plan is done."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, TypeVar

from memcgctl.model import (
    Backing,
    Census,
    ChargeGroup,
    Details,
    Holder,
    Limits,
    Memcg,
    Process,
    Step,
    SwapDeviceUse,
    SwapOwner,
    SwapUse,
    Target,
)
from memcgctl.policy.effects import Effect
from memcgctl.policy.outcome import IN_VAIN
from memcgctl.policy.plan import Worked
from tests.unit import zombies
from tests.unit.zombies import KERNEL

PAGE = 4096
T = TypeVar("T", bound=Target)
ROOT, APP, HOLDER = 1, 5, 9
TMPFS = Backing("tmpfs", "tmpfs", "0:24", 5, 0, "/mnt/t", None, False, 8192)
DISK = Backing("bdev", "bdev", "vda", 266338304, 0, None, None, False, 1 << 30)
FILE = zombies.FILE
USER = Process(77, "user", "/holder", HOLDER, PAGE, 100)
INTERFACES = (
    *("fadvise", "process_madvise", "pageout", "pagemap", "kpagecgroup"),
    *("drop_caches", "writeback cleanup", "memory.reclaim"),
    "readers pay for readahead",
)


def step(action: str, **changes: Any) -> Step:
    """A step for one zombie, with no more in it than must be."""
    made = Step(
        memcgs=(100,),
        action=action,
        option="evict",
        target="/mnt/t",
        command="",
        bytes=PAGE,
        charged_to=(),
        collateral_bytes=0,
        risk="",
    )
    return replace(made, **changes)


def online(number: int, path: str, parent: int, **changes: Any) -> Memcg:
    values = {"state": "online", "parent_id": parent, "limits": Limits()}
    ancestor = "/" if parent <= ROOT else "/app"
    return zombies.memcg(number, path, ancestor=ancestor, **(values | changes))


def world(*memcgs: Memcg, **changes: Any) -> Census:
    """/, /app and /holder online, and these; ``changes`` are of the kernel."""
    values: dict[str, Any] = {
        "interfaces": INTERFACES,
        "cgroup_mount": "/sys/fs/cgroup",
        "swap_total_bytes": 1 << 40,
        "swap_free_bytes": 1 << 40,
        "swaps_at_once": True,
    }
    mine = {memcg.id for memcg in memcgs}
    above = (online(ROOT, "/", 0), online(APP, "/app", 1), online(HOLDER, "/holder", 1))
    return zombies.census(
        *(memcg for memcg in above if memcg.id not in mine),
        *memcgs,
        kernel=replace(KERNEL, **(values | changes)),
    )


def zombie(
    number: int = 100,
    *groups: ChargeGroup,
    swap: tuple[SwapDeviceUse, ...] = (),
    holders: tuple[Holder, ...] = (),
    **changes: Any,
) -> Memcg:
    entries = sum(device.entries for device in swap)
    values: dict[str, Any] = {
        "path": f"/app/z{number}",
        "swap": SwapUse(entries, entries * PAGE),
        "details": Details(holders, 0, groups, swap),
    }
    return zombies.memcg(number, **(values | changes))


def swapped(
    entries: int = 1,
    owner: bool = True,
    device: str = "/dev/zram0",
    file: Backing | None = None,
) -> Any:
    """Entries of a process, of a file that nobody maps, or of nobody."""
    owners = (SwapOwner(77, "user", "/holder", HOLDER, entries, 100),) if owner else ()
    if file:
        owners = (SwapOwner(None, file.path or "", "", 0, entries, file=file),)
    return (SwapDeviceUse(device, entries, owners, synchronous="zram" in device),)


CASES: dict[str, dict[str, Any]] = {
    "file-unmapped": {"backing": FILE},
    "file-mapped": {"backing": FILE, "mapped": True, "mappers": (USER,)},
    "swap-backed-unmapped": {"kind": "shmem", "backing": TMPFS},
    "swap-backed-mapped": {
        "kind": "anon",
        "backing": None,
        "mapped": True,
        "mappers": (USER,),
    },
    "metadata": {"backing": DISK},
    "kernel": {
        "kind": "kernel",
        "backing": None,
        "evictable_bytes": 0,
        "obstacles": (("kernel memory", PAGE),),
    },
    "hugetlb": {
        "kind": "hugetlb",
        "backing": None,
        "mapped": True,
        "mappers": (USER,),
        "evictable_bytes": 0,
        "obstacles": (("hugetlb (until truncated or unmapped)", PAGE),),
    },
}


def held_by(case: str) -> Memcg:
    """A zombie that one thing of this case holds, of one page if it has any."""
    if case in CASES:
        return zombie(100, zombies.group(**CASES[case]))
    if case == "swap":
        return zombie(100, swap=swapped())
    kinds: dict[str, Any] = {"other": "socket"}
    detail = {"stock": "CPU 3: 17 pages"}.get(case, "")
    return zombie(100, holders=(Holder(kinds.get(case, case), 1, detail),))


def done(census: Census, worked: Worked) -> Census:
    """The census after a plan did what it says to each part, limits aside."""
    return replace(census, memcgs=tuple(_left(census, worked)))


def _left(census: Census, worked: Worked) -> Iterator[Memcg]:
    gone = set(worked.plan.freed)
    for memcg in census.memcgs:
        if memcg.state == "online" or memcg.id not in worked.effects:
            yield memcg
        elif memcg.id not in gone:
            yield _reduced(memcg, worked.effects[memcg.id])


def _reduced(memcg: Memcg, effects: list[Effect]) -> Memcg:
    details = memcg.details
    if details is None:
        return memcg
    groups, devices, holders = [], [], []
    # Whose entries were read has their pages mapped, if these were in the swap cache.
    read = [one for one in effects if one.part.case == "swap" and one.evicted_bytes]
    for one in effects:
        part, moved = one.part, one.part.bytes - one.left_bytes
        if part.group and one.left_bytes:
            group = replace(
                part.group,
                bytes=one.left_bytes,
                evictable_bytes=0 if moved else part.group.evictable_bytes,
                swap_entry_bytes=0 if moved else part.group.swap_entry_bytes,
            )
            if read and part.case == "swap-backed-unmapped" and IN_VAIN in one.why:
                user = replace(USER, bytes=one.left_bytes)
                group = replace(group, mapped=True, mappers=(user,))
            groups.append(group)
        elif part.device and one.left_bytes:
            owners = () if moved else part.device.owners
            entries = one.left_bytes // PAGE
            devices.append(replace(part.device, entries=entries, owners=owners))
        elif part.holder and one.why:
            holders.append(part.holder)
    kept = [h for h in details.holders if h.kind in ("folio", "kernel", "child")]
    swap = sum(one.left_bytes for one in effects if one.part.case == "swap")
    return replace(
        memcg,
        swap=SwapUse(swap // PAGE, swap),
        details=replace(
            details,
            charge_groups=tuple(groups),
            swap_devices=tuple(devices),
            holders=(*kept, *holders),
        ),
    )


def aim(step: Step, kind: type[T]) -> T:
    """What a step acts on, which is of that kind."""
    assert isinstance(step.aim, kind)
    return step.aim
