"""What cannot be aimed: /proc/sys/vm/drop_caches."""

from __future__ import annotations

from memcgctl.model import HostTarget
from memcgctl.policy.cases import Part
from memcgctl.policy.commands import sync
from memcgctl.policy.effects import WRITTEN
from memcgctl.policy.interfaces.base import Action, Interface, Reach, Served
from memcgctl.policy.interfaces.common import evicted
from memcgctl.policy.interfaces.context import PlanContext


def reach(part: Part, context: PlanContext) -> Reach:
    return evicted(part, HostTarget(), context, WRITTEN)


def action(target: HostTarget, served: Served, context: PlanContext) -> Action:
    return Action(
        target,
        "all file systems",
        command(),
        "everybody's page cache goes",
    )


def collateral(target: HostTarget, served: Served, context: PlanContext) -> int:
    return context.living_page_cache


def command() -> str:
    return f"{sync()}; echo 1 > /proc/sys/vm/drop_caches"


INTERFACE = Interface(
    name="drop_caches",
    does="drops everybody's page cache",
    harm=170,
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
    targeted=False,
    ask="drop-caches",
)
