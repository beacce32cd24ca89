"""Why is a memcg still there, in plain words?

Sentences for a person at 3 a.m.: what holds it, the largest reason first, what stands
in the way of eviction, and what its memory costs while it waits. Names are raw here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from memcgctl.model import (
    HOLDERS,
    Backing,
    ChargeGroup,
    Explanation,
    Holder,
    Inherited,
    Keeper,
    KeptHow,
    Memcg,
    Process,
    SwapDeviceUse,
    SwapOwner,
    SwapUse,
)
from memcgctl.report.text import counted, size, unread_words

SHOWN = 3
CLASSES = {
    "file": "page cache",
    "shmem": "shmem",
    "anon": "anonymous memory",
    "kernel": "kernel pages",
    "hugetlb": "hugetlb pages",
}
NOUNS = {
    "folio": ("folio", "folios"),
    "kernel": ("kernel page", "kernel pages"),
    "swap": ("swap entry", "swap entries"),
    "child": ("child", "children"),
    "writeback": ("cgroup writeback", "cgroup writebacks"),
    "stock": ("per-CPU charge stock", "per-CPU charge stocks"),
    "socket": ("socket", "sockets"),
    "fsnotify": ("fsnotify group", "fsnotify groups"),
    "event": ("cgroup v1 event", "cgroup v1 events"),
    "objcg": ("obj_cgroup", "obj_cgroups"),
    "other": ("other reference", "other references"),
}


def verdict(explanation: Explanation, *, costs: bool = True) -> str:
    """One paragraph, the reason first; ``costs``: with what waits for it."""
    memcg = explanation.memcg
    sentences = [_state(explanation), _balance(explanation), _in_the_way(memcg)]
    if memcg.inherited:
        sentences.append(
            f"Inherited from removed memcgs: {legacy_words(memcg.inherited)}."
        )
    if costs and memcg.state == "offline":
        sentences.append(_waiting(memcg))
    return " ".join(filter(None, sentences))


def _state(explanation: Explanation) -> str:
    memcg = explanation.memcg
    if memcg.state == "online":
        charged = size(memcg.charges.total_bytes if memcg.charges else None, long=True)
        removed = sum(child.state == "offline" for child in explanation.children)
        children = f", {holders_words(removed, 'child')} offline" if removed else ""
        return f"Online, so no zombie: {charged} charged{children}."
    if memcg.details is None:
        return "What holds it was not looked at."
    if not memcg.details.holders:
        return "Nothing holds it any more." if memcg.details.unexplained == 0 else ""
    return _held(explanation)


def _held(explanation: Explanation) -> str:
    memcg, keeper = explanation.memcg, explanation.keeper
    reasons = _reasons(memcg)
    if len(reasons) == 1:
        ((what, why),) = reasons
        sentence = f"Held by {what}{f': {why}' if why else ''}."
    else:
        sentence = f"Held by {_listed(_bracketed(*reason) for reason in reasons)}."
    if keeper:
        held = _listed(_bracketed(*reason) for reason in _reasons(keeper))
        sentence += f" What really holds it is below: {keeper.path} (id {keeper.id})"
        sentence += f", held by {held}." if held else "."
    return sentence


def _reasons(memcg: Memcg) -> list[tuple[str, str]]:
    """How many holders of each kind, and what is to be said of these."""
    details = memcg.details
    if details is None:
        return []
    by_kind: dict[str, list[Holder]] = {}
    for holder in details.holders:
        by_kind.setdefault(holder.kind, []).append(holder)
    reasons = []
    for kind, holders in by_kind.items():
        number = sum(holder.count for holder in holders)
        why = _listed(dict.fromkeys(h.detail for h in holders if h.detail))
        what = holders_words(number, kind)
        if kind == "swap" and memcg.swap:
            what, why = _swap(memcg.swap, details.swap_devices)
        elif kind == "folio":
            why = _largest([g for g in details.charge_groups if g.kind != "kernel"])
        elif kind == "kernel":
            why = _kept(g for g in details.charge_groups if g.kind == "kernel")
        reasons.append((what, why))
    return reasons


def _swap(swap: SwapUse, devices: Sequence[SwapDeviceUse]) -> tuple[str, str]:
    names = _listed(
        one.device for one in devices if one.entries > (one.zswap_entries or 0)
    )
    places = [f"on {names}"] if names else []
    if any(one.zswap_entries for one in devices):
        places.append("in zswap")
    what = " ".join([holders_words(swap.entries, "swap"), " and ".join(places)])
    what = what.rstrip()
    owners = [owner for device in devices for owner in device.owners]
    if not owners:
        return what, ""
    largest = max(owners, key=lambda owner: owner.entries)
    whose = "" if largest.pid is None else "swapped memory of "
    return what, f"{whose}{process_words(largest)}{_others(len(owners) - 1)}"


def _kept(groups: Iterable[ChargeGroup]) -> str:
    """By whom the kernel's pages are kept, as far as that was found."""
    return _listed(keeper_words(one) for group in groups for one in group.keepers)


def _largest(groups: Sequence[ChargeGroup]) -> str:
    if not groups:
        return ""
    words = group_words(groups[0])
    return words if len(groups) == 1 else f"most of all {words}"


def group_words(group: ChargeGroup) -> str:
    """``page cache of /var/log/x (ext4 on 254:0), mapped by sleep (pid 7) in /a``."""
    words = backing_words(group.backing) if group.backing else CLASSES[group.kind]
    if group.kind == "anon" and not group.mapped:
        words += " in the swap cache"
    if group.mappers:
        return f"{words}, mapped by {_first(group.mappers)}"
    if group.openers:
        return f"{words}, open in {_first(group.openers)}"
    if group.keepers:
        return f"{words}, {keeper_words(group.keepers[0])}" + _others(
            len({keeper.process.pid for keeper in group.keepers}) - 1
        )
    if group.mapper_missing_bytes:
        return f"{words}, mapped by somebody who was not found"
    return words


KEPT: dict[KeptHow, str] = {
    "untouched": "mapped, but not touched, by",
    "in flight": "in flight to a socket of",
    "io_uring file": "registered with an io_uring of",
    "pipe": "in a pipe of",
    "DMA buffer": "in a DMA buffer of",
    "io_uring": "in an io_uring of",
}


def keeper_words(keeper: Keeper) -> str:
    """``in a pipe of cat (pid 7) in /a (fd 3, 4)``."""
    fds = f" (fd {', '.join(map(str, keeper.fds))})" if keeper.fds else ""
    return f"{KEPT[keeper.how]} {process_words(keeper.process)}{fds}"


def backing_words(backing: Backing) -> str:
    """What a person calls the object that folios belong to."""
    if backing.kind == "bdev":
        return (
            f"filesystem metadata of {backing.device} in the block device's page cache"
        )
    name = backing.path or f"inode {backing.inode}"
    deleted = "deleted " if backing.deleted else ""
    if backing.kind == "file":
        where = f" ({backing.fs} on {backing.device})"
        return f"page cache of {deleted}{name}{where}"
    what = {
        "tmpfs": "tmpfs file",
        "memfd": "memfd",
        "sysv": "SysV shared memory",
        "shared-anon": "shared anonymous memory",
        "hugetlb": "hugetlb file",
    }[backing.kind]
    return f"{deleted}{what} {name}"


def process_words(process: Process | SwapOwner) -> str:
    """``sleep (pid 7) in /a``; a swap owner without a pid is an inode or the like."""
    thread = f":{process.tid}" if process.tid else ""
    pid = "" if process.pid is None else f" (pid {process.pid}{thread})"
    memcg = f" in {process.memcg}" if process.memcg else ""
    return f"{process.comm}{pid}{memcg}"


def _first(processes: Sequence[Process]) -> str:
    return f"{process_words(processes[0])}{_others(len(processes) - 1)}"


def _others(number: int) -> str:
    return f" and {counted(number, 'other')}" if number else ""


def _balance(explanation: Explanation) -> str:
    details = explanation.memcg.details
    if details is None or explanation.memcg.state == "online":
        return ""
    live = explanation.kernel.kind == "live"
    number = details.unexplained
    if number is None:
        return "How many references it has in all could not be read."
    if number > 0 and (why := unread_words(explanation.unread, HOLDERS)):
        return f"{counted(number, 'reference')} whose holder was not found: {why}."
    if number > 0:
        passing = ", or one that is already gone" if live else ""
        return (
            f"{counted(number, 'reference')} that nobody accounts for: a kernel bug "
            f"or a holder memcgctl doesn't know{passing}."
        )
    if number < 0:
        why = "it changed while it was read" if live else "a kernel bug or memcgctl's"
        return f"{counted(-number, 'holder')} more than references: {why}."
    return ""


def legacy_words(inherited: Sequence[Inherited]) -> str:
    """``3 obj_cgroups with 12 folios (1.0 MiB)``."""
    objcgs = sum(legacy.objcgs for legacy in inherited)
    folios = sum(legacy.folios for legacy in inherited)
    charged = size(sum(legacy.charged_bytes for legacy in inherited), long=True)
    words = holders_words(objcgs, "objcg")
    return f"{words} with {counted(folios, 'folio')} ({charged})" if folios else words


def _in_the_way(memcg: Memcg) -> str:
    """What keeps its folios from being evicted."""
    obstacles: dict[str, int] = {}
    for group in memcg.details.charge_groups if memcg.details else ():
        for name, size_bytes in group.obstacles:
            obstacles[name] = obstacles.get(name, 0) + size_bytes
    if not obstacles or memcg.state == "online":
        return ""
    largest = sorted(obstacles, key=lambda name: -obstacles[name])
    named = (f"{name} {size(obstacles[name], long=True)}" for name in largest)
    return f"In the way of eviction: {_listed(named)}."


def _waiting(memcg: Memcg) -> str:
    """What could be freed, against what it waits for."""
    if not memcg.overhead.percpu_bytes:
        return ""
    percpu = size(memcg.overhead.percpu_bytes, long=True)
    if memcg.charges and memcg.charges.total_bytes:
        held = size(memcg.charges.total_bytes, long=True)
    elif memcg.swap and memcg.swap.bytes:
        held = f"{size(memcg.swap.bytes, long=True)} of swap"
    elif memcg.refs:
        held = counted(memcg.refs, "reference")
    else:
        return ""
    return f"{percpu} of per-CPU memory wait for {held}."


def holders_words(number: int, kind: str) -> str:
    """``1 folio``, ``2 children``."""
    one, many = NOUNS[kind]
    return f"{number:,} {one if number == 1 else many}"


def _bracketed(what: str, why: str) -> str:
    return f"{what} ({why})" if why else what


def _listed(parts: Iterable[str]) -> str:
    """``a, b and c``; of many parts the first and how many more there are."""
    shown = list(parts)
    if len(shown) > SHOWN:
        shown[SHOWN - 1 :] = [f"{len(shown) - SHOWN + 1} more"]
    return " and ".join(filter(None, [", ".join(shown[:-1]), *shown[-1:]]))
