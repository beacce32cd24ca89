"""Inodes whose writeback is a zombie's: all is written, a memcg goes offline."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from memcgctl.model import HostTarget
from memcgctl.policy.cases import Part
from memcgctl.policy.commands import quote, sync
from memcgctl.policy.effects import Effect
from memcgctl.policy.interfaces.base import (
    Action,
    Interface,
    Move,
    Reach,
    Served,
    cannot,
)
from memcgctl.policy.interfaces.context import PlanContext


def reach(part: Part, context: PlanContext) -> Reach:
    if why := context.no_cgroup():
        return cannot(part, why)
    return Reach(Effect(part, "evict"), (Move(HostTarget(), 0),))


def action(target: HostTarget, served: Served, context: PlanContext) -> Action:
    devices = _devices(part for part, _ in served)
    return Action(
        replace(target, devices=devices),
        "all file systems" if devices is None else _words(devices),
        command(context.mount, devices),
        "everybody's dirty files on them are written at once",
    )


def _devices(parts: Iterable[Part]) -> tuple[str, ...] | None:
    """Those whose inodes keep a zombie's writeback; None where one is not known."""
    found: set[str] = set()
    for part in parts:
        if part.holder is None or part.holder.devices is None:
            return None
        found |= {*part.holder.devices}
    return tuple(sorted(found))


def _words(devices: tuple[str, ...]) -> str:
    few = ", ".join(devices[:3])
    more = f" and {len(devices) - 3} more" if len(devices) > 3 else ""
    return f"writeback of {few or 'no device'}{more}"


def command(mount: str, devices: tuple[str, ...] | None = None) -> str:
    """Write these back; then a memcg goes offline, and others' writeback with it."""
    remove = f'rmdir "$(mktemp -d {quote(mount)}/memcgctl.XXXXXX)"'
    return remove if devices == () else f"{sync(devices)}; {remove}"


INTERFACE = Interface(
    name="writeback-cleanup",
    does="syncs disks, lets go of their inodes",
    harm=110,
    options=("evict", "recharge-parent"),
    cases=("writeback",),
    needs=("writeback cleanup",),
    seen=("6.12", "7.3"),
    requires="root, awk, sync of GNU coreutils",
    effect="the inodes' writeback goes to the nearest online ancestor",
    touches="all dirty files of these file systems, which are written",
    cannot="inodes that are dirty again before the memcg goes offline",
    reach=reach,
    action=action,
)
