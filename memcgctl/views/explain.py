"""Why is a memcg still there, and does every account balance?

Pure functions of the model; no kernel structure is read here. The words for a person
are the report's business.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from memcgctl.model import (
    Account,
    Audit,
    Census,
    ChargeGroup,
    Charges,
    Details,
    Explanation,
    Holder,
    Memcg,
    Process,
    User,
)


def explain(census: Census, memcg: Memcg) -> Explanation:
    """What holds ``memcg`` and who uses it, largest first, if it has details."""
    details = memcg.details
    if details:
        memcg = replace(memcg, details=_ordered(memcg, details))
    groups = details.charge_groups if details else ()
    return Explanation(
        kernel=census.kernel,
        memcg=memcg,
        explained=sum(holder.count for holder in details.holders) if details else 0,
        children=tuple(m for m in census.memcgs if m.parent_id == memcg.id),
        keeper=_keeper(census, memcg),
        users=_users(details) if details else (),
        unused_bytes=sum(map(_unused, groups)),
        unfound_bytes=sum(_unused(group) for group in groups if _nameless(group)),
        warnings=census.warnings,
        unread=census.unread,
    )


def _unused(group: ChargeGroup) -> int:
    """What of a group nobody has; only files are somebody's to have.

    Unmapped anonymous memory is a swap entry's.
    """
    files = ("file", "shmem", "hugetlb")
    if group.kind not in files or group.mapped or group.openers:
        return 0
    kept = max((keeper.process.bytes for keeper in group.keepers), default=0)
    return max(0, group.bytes - kept)


def _nameless(group: ChargeGroup) -> bool:
    """Whether a file is there only because somebody has it: no directory names it."""
    backing = group.backing
    return group.kind in ("shmem", "hugetlb") and (
        backing is None or backing.deleted or backing.kind in ("memfd", "shared-anon")
    )


def descendants(census: Census, memcg: Memcg) -> tuple[Memcg, ...]:
    """All memcgs below ``memcg``, parents before children."""
    ids = {memcg.id}
    found = []
    for other in census.memcgs:
        if other.parent_id in ids:
            ids.add(other.id)
            found.append(other)
    return tuple(found)


def _ordered(memcg: Memcg, details: Details) -> Details:
    def weight(holder: Holder) -> tuple[int, int]:
        return -_held_bytes(memcg, holder), -holder.count

    return replace(
        details,
        holders=tuple(sorted(details.holders, key=weight)),
        charge_groups=tuple(sorted(details.charge_groups, key=lambda g: -g.bytes)),
        swap_devices=tuple(sorted(details.swap_devices, key=lambda d: -d.entries)),
    )


def _held_bytes(memcg: Memcg, holder: Holder) -> int:
    """The memory or swap that would go with ``holder``; 0 for a mere reference."""
    if holder.kind == "swap":
        return memcg.swap.bytes if memcg.swap else 0
    charges = memcg.charges or Charges()
    held = {
        "folio": charges.user_bytes + charges.hugetlb_bytes,
        "kernel": charges.kernel_bytes,
        # of all the sockets together
        "socket": charges.sock_bytes or 0,
    }
    return held.get(holder.kind, 0)


def _keeper(census: Census, memcg: Memcg) -> Memcg | None:
    if memcg.state == "online" or not _only_children_hold(memcg):
        return None
    below = [m for m in descendants(census, memcg) if not _only_children_hold(m)]
    return max(below, key=lambda m: m.cost_bytes, default=None)


def _only_children_hold(memcg: Memcg) -> bool:
    if memcg.details is None:
        return False
    kinds = {holder.kind for holder in memcg.details.holders}
    return kinds == {"child"} and not memcg.details.unexplained


@dataclass
class _Use:
    """What is known of one memcg's use so far."""

    processes: set[tuple[int | None, int]] = field(default_factory=set)
    mapped_bytes: int = 0
    open_bytes: int = 0
    kept_bytes: int = 0
    swap_entries: int = 0
    exact: bool = True


def _users(details: Details) -> tuple[User, ...]:
    uses: defaultdict[tuple[str, int], _Use] = defaultdict(_Use)
    for group in details.charge_groups:
        for key, part, exact in _parts(group, group.mappers):
            uses[key].mapped_bytes += part
            uses[key].exact &= exact
        for key, part, exact in _parts(group, group.openers):
            uses[key].open_bytes += part
            uses[key].exact &= exact
        keepers = _keeping(group)
        for key, part, exact in _parts(group, keepers):
            uses[key].kept_bytes += part
            uses[key].exact &= exact
        for process in (*group.mappers, *group.openers, *keepers):
            key = (process.memcg, process.memcg_id)
            uses[key].processes.add((process.pid, process.start_ticks))
    for owner in (owner for device in details.swap_devices for owner in device.owners):
        if not owner.memcg:  # an inode, or a CPU's cache of freed entries
            continue
        use = uses[owner.memcg, owner.memcg_id]
        use.swap_entries += owner.entries
        use.processes.add((owner.pid, owner.start_ticks))
    users = [
        User(
            memcg,
            memcg_id,
            len(use.processes),
            use.mapped_bytes,
            use.open_bytes,
            use.swap_entries,
            use.exact,
            use.kept_bytes,
        )
        for (memcg, memcg_id), use in uses.items()
    ]
    return tuple(
        sorted(users, key=lambda u: (-u.mapped_bytes, -u.swap_entries, -u.open_bytes))
    )


def _keeping(group: ChargeGroup) -> tuple[Process, ...]:
    """Who keeps a group otherwise, but for those who map it or have it open as well."""
    known = {process.pid for process in (*group.mappers, *group.openers)}
    most: dict[int, Process] = {}
    for process in (keeper.process for keeper in group.keepers):
        if process.pid not in known:
            before = most.setdefault(process.pid, process)
            most[process.pid] = max(before, process, key=lambda one: one.bytes)
    return tuple(most.values())


def _parts(
    group: ChargeGroup, processes: Iterable[Process]
) -> Iterable[tuple[tuple[str, int], int, bool]]:
    """Each memcg's part of ``group``: who, bytes, and whether it is just that.

    A part is no larger than its processes' together, and no smaller than the largest
    one's or than what the others leave, if all of the group is known to be used.
    """
    by_memcg: defaultdict[tuple[str, int], list[int]] = defaultdict(list)
    for process in processes:
        by_memcg[process.memcg, process.memcg_id].append(process.bytes)
    total = sum(map(sum, by_memcg.values()))
    for key, sizes in by_memcg.items():
        most = min(sum(sizes), group.bytes)
        left = group.bytes - (total - sum(sizes)) if total >= group.bytes else 0
        least = max(*sizes, left)
        yield key, min(least, most), least >= most


def audit(census: Census) -> Audit:
    """The accounts of all offline memcgs."""
    accounts = [_account(m) for m in census.memcgs if m.state == "offline"]
    accounts.sort(
        key=lambda a: (a.unexplained == 0, -(a.memcg.refs or 0), a.memcg.path)
    )
    held: Counter[str] = Counter()
    for account in accounts:
        held.update(account.held)
    differences = [account.unexplained or 0 for account in accounts]
    return Audit(
        kernel=census.kernel,
        accounts=tuple(accounts),
        held=dict(held),
        unexplained=sum(n for n in differences if n > 0),
        missing=-sum(n for n in differences if n < 0),
        unknown=sum(account.unexplained is None for account in accounts),
        root=next((m for m in census.memcgs if m.path == "/"), None),
        warnings=census.warnings,
        unread=census.unread,
    )


def _account(memcg: Memcg) -> Account:
    held: Counter[str] = Counter()
    for holder in memcg.details.holders if memcg.details else ():
        held[holder.kind] += holder.count
    return Account(
        memcg, dict(held), memcg.details.unexplained if memcg.details else None
    )
