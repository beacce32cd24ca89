"""What does ``memcgctl doctor`` show? The verdict, the facts, each action; or JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

from rich.text import Text

from memcgctl import utf8
from memcgctl.model import MEMCG_IDS, Ability, Checkup
from memcgctl.report import documents
from memcgctl.report.schemas import source_json
from memcgctl.report.text import counted, escape, size

SCHEMA = "memcgctl/doctor/1"
NAME = 22
TYPES = {"btf": "the kernel's own (BTF)", "dwarf": "debug info (DWARF)"}


def screen(checkup: Checkup, *, width: int = 80, encoding: str = "utf-8") -> Text:
    """The checkup as a person reads it: a pair of columns, wrapped, never cut."""
    text = Text()
    for sentence in headline(checkup):
        text.append(textwrap.fill(escape(sentence, encoding), width) + "\n", "bold")
    text.append("\n")
    for row in _facts(checkup):
        text.append(_row(*row, width, encoding))
    text.append("\nactions\n", "bold")
    for ability in checkup.abilities:
        can = _can(ability, read=checkup.kernel is not None)
        text.append(_row(f"  {ability.action}", can, width, encoding))
    return text


def headline(checkup: Checkup) -> Iterator[str]:
    """Can reclaim work here, and what is to be done if it cannot?"""
    if checkup.unread:
        yield f"Nothing can be listed or reclaimed here: {checkup.unread}."
        return
    refused = checkup.refused
    if checkup.memory_controller is False:
        yield "Reclaim cannot do much here: no cgroup file system with memory."
    elif checkup.memory_controller is None:
        yield "Whether reclaim works here cannot be told: cgroup.controllers is unread."
    elif refused:
        actions = counted(len(refused), "action")
        yield f"Reclaim works here in part: {actions} that it takes cannot be done."
    else:
        yield "Reclaim works here."
    if checkup.missing:
        yield _privileges(checkup)
    if (checkup.ids_used or 0) >= MEMCG_IDS:
        yield f"Memcg ids are used up: {checkup.ids_used:,} of {MEMCG_IDS:,}."
    if checkup.swap_total_bytes == 0 and any(
        one.action == "pageout-file" for one in refused
    ):
        yield (
            "Without swap, shmem and anonymous memory of zombies stays, unless "
            "--allow temp-swap moves it to the parent."
        )


def _privileges(checkup: Checkup) -> str:
    if checkup.euid:
        return "Run it as root."
    return "This root has not all capabilities, as in a container: use the host's."


def _facts(checkup: Checkup) -> Iterator[tuple[str, str]]:
    kernel = checkup.kernel
    how = "read through /proc/kcore" if kernel else "not read"
    yield "kernel", f"{checkup.release}, {how}"
    yield "types", TYPES[kernel.types] if kernel else "not known"
    yield "lockdown", checkup.lockdown or "none, or not told to this user"
    yield "cgroups", _cgroups(checkup)
    yield "swap", _swap(checkup)
    yield "temporary swap", _transit(checkup)
    missing = f"without {', '.join(checkup.missing)}"
    user = "root" if checkup.euid == 0 else f"user {checkup.euid}"
    yield "privileges", f"{user}, {missing if checkup.missing else 'all there'}"
    yield "zombies", _zombies(checkup)
    if checkup.ids_used is not None:
        yield "memcg ids", f"{checkup.ids_used:,} of {MEMCG_IDS:,} used"


def _cgroups(checkup: Checkup) -> str:
    mounts = [f"v{version} at {point}" for version, point in checkup.cgroups]
    if not mounts:
        return "not mounted"
    without = {
        True: "",
        False: ", without the memory controller",
        None: ", with what controllers cannot be read",
    }
    return ", ".join(mounts) + without[checkup.memory_controller]


def _swap(checkup: Checkup) -> str:
    if checkup.swap_total_bytes is None:
        return "cannot be read"
    if not checkup.swap_total_bytes:
        return "none"
    total = size(checkup.swap_total_bytes, long=True)
    return f"{total}, {size(checkup.swap_free_bytes, long=True)} of it free"


def _transit(checkup: Checkup) -> str:
    """Whether a swap device can be made for the transit, and if one was left."""
    can = next((one for one in checkup.abilities if one.action == "temp-swap"), None)
    if can is None or can.why:
        words = f"no: {can.why}" if can else "no"
    elif checkup.transit_room_bytes is None:
        words = "how much memory is free cannot be read"
    else:
        room = size(checkup.transit_room_bytes, long=True)
        words = f"with --allow temp-swap, {room} at once"
    if checkup.transit_left is None:
        words += "; whether a run left one cannot be told"
    elif checkup.transit_left:
        words += f"; a run left {checkup.transit_left}: memcgctl reclaim --finish"
    return words


def _zombies(checkup: Checkup) -> str:
    if checkup.zombies is None:
        counted_ = f"not counted: {checkup.zombies_source}"
    else:
        counted_ = f"{checkup.zombies:,} by {checkup.zombies_source}"
    parts = [counted_]
    if checkup.overhead_bytes:
        least = size(checkup.overhead_bytes, long=True)
        parts.append(f"estimated to take at least {least}")
    if checkup.offline is not None and checkup.offline != checkup.zombies:
        parts.append(f"{checkup.offline:,} in the kernel's memory")
    if checkup.kernel and checkup.kernel.bare_cgroups:
        bare = counted(checkup.kernel.bare_cgroups, "dying cgroup")
        parts.append(f"{bare} without a memcg")
    return "; ".join(parts)


def _can(ability: Ability, *, read: bool) -> str:
    if ability.lack == "needless":
        return f"not needed: {ability.why}"
    if ability.why:
        return f"no: {ability.why}"
    yes = "yes" if read else "allowed, if the kernel has it"
    return f"{yes}, with --allow {ability.ask}" if ability.ask else yes


def _row(name: str, value: str, width: int, encoding: str) -> str:
    lines = textwrap.wrap(
        escape(value, encoding),
        max(width - NAME, 20),
        break_long_words=False,
        break_on_hyphens=False,
    )
    return f"{name:<{NAME}}" + ("\n" + " " * NAME).join(lines) + "\n"


def to_json(checkup: Checkup) -> str:
    """``memcgctl/doctor/1``; ASCII."""
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "verdict": checkup.verdict,
        "release": checkup.release,
        "source": checkup.kernel and source_json(checkup.kernel),
        "unread": checkup.unread,
        "lockdown": checkup.lockdown,
        "cgroups": [
            {"version": version, "mount": point} for version, point in checkup.cgroups
        ],
        "memory_controller": checkup.memory_controller,
        "swap": {
            "total": checkup.swap_total_bytes,
            "free": checkup.swap_free_bytes,
            "transit_room": checkup.transit_room_bytes,
            "transit_left": checkup.transit_left,
        },
        "privileges": {"euid": checkup.euid, "missing": checkup.missing},
        "zombies": {
            "count": checkup.zombies,
            "source": checkup.zombies_source,
            "overhead_estimate": checkup.overhead_bytes,
            "in_kernel_memory": checkup.offline,
            "memcg_ids_used": checkup.ids_used,
            "dying_without_memcg": checkup.kernel and checkup.kernel.bare_cgroups,
        },
        "actions": [*map(_ability_json, checkup.abilities)],
    }
    return utf8.dumps(document, indent=1) + "\n"


def _ability_json(ability: Ability) -> documents.Ability:
    return {
        "action": ability.action,
        "why": ability.why,
        "lack": ability.lack,
        "ask": ability.ask,
    }
