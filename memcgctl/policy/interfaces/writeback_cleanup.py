"""Inodes whose writeback is a zombie's: all is written, a memcg goes offline."""

from __future__ import annotations

from memcgctl.model import HostTarget
from memcgctl.policy.cases import Part
from memcgctl.policy.commands import SYNC, quote
from memcgctl.policy.effects import Effect
from memcgctl.policy.interfaces.base import Action, Deed, Interface, Reach, Served
from memcgctl.policy.interfaces.world import World


def reach(part: Part, _: World) -> Reach:
    return Reach(Effect(part, "evict"), (Deed(HostTarget(), 0),))


def action(target: HostTarget, served: Served, world: World) -> Action:
    return Action(
        target,
        "all file systems",
        command(world.mount),
        "everybody's dirty files are written at once",
    )


def command(mount: str) -> str:
    """Write all back; then a memcg goes offline, and others' writeback with it."""
    return f'{SYNC}; rmdir "$(mktemp -d {quote(mount)}/memcgctl.XXXXXX)"'


INTERFACE = Interface(
    name="writeback-cleanup",
    options=("evict", "recharge-parent"),
    cases=("writeback",),
    needs=("writeback cleanup",),
    seen=("6.12", "7.3"),
    requires="root, awk, sync of GNU coreutils",
    effect="the inodes' writeback goes to the nearest online ancestor",
    touches="all dirty files, which are written",
    cannot="inodes that are dirty again before the memcg goes offline",
    reach=reach,
    action=action,
)
