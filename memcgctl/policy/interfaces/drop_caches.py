"""What cannot be aimed: /proc/sys/vm/drop_caches."""

from __future__ import annotations

from memcgctl.model import HostTarget
from memcgctl.policy.cases import Part
from memcgctl.policy.commands import sync
from memcgctl.policy.effects import WRITTEN
from memcgctl.policy.interfaces.base import Action, Interface, Reach, Served
from memcgctl.policy.interfaces.common import evicted
from memcgctl.policy.interfaces.world import World


def reach(part: Part, world: World) -> Reach:
    return evicted(part, HostTarget(), world, WRITTEN)


def action(target: HostTarget, served: Served, world: World) -> Action:
    return Action(
        target,
        "all file systems",
        command(),
        "everybody's page cache goes",
    )


def collateral(target: HostTarget, served: Served, world: World) -> int:
    return world.innocent_files


def command() -> str:
    return f"{sync()}; echo 1 > /proc/sys/vm/drop_caches"


INTERFACE = Interface(
    name="drop_caches",
    options=("evict",),
    cases=("file-unmapped", "metadata"),
    needs=("drop_caches",),
    seen=("5.10", "6.1", "6.12"),
    requires="root, awk, sync of GNU coreutils",
    effect="nobody is charged until it is read again",
    touches="the page cache of the whole machine",
    cannot="mapped, locked and pinned pages, shmem, anonymous memory, swap",
    reach=reach,
    action=action,
    collateral=collateral,
    aimed=False,
    ask="drop-caches",
)
