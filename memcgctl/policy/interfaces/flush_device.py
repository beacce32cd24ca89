"""A file system's metadata in its device's page cache: BLKFLSBUF."""

from __future__ import annotations

from dataclasses import replace

from memcgctl.model import DeviceTarget
from memcgctl.policy.cases import Part
from memcgctl.policy.commands import quote
from memcgctl.policy.effects import WRITTEN
from memcgctl.policy.interfaces.base import Action, Interface, Reach, Served, cannot
from memcgctl.policy.interfaces.common import (
    backing_of,
    evicted,
    group_of,
    rest_of_file,
)
from memcgctl.policy.interfaces.context import PlanContext


def reach(part: Part, context: PlanContext) -> Reach:
    backing = backing_of(part)
    if backing is None or backing.device[:1].isdigit():
        return cannot(part, "its device has no name")
    return evicted(part, DeviceTarget(backing.device), context, WRITTEN)


def action(target: DeviceTarget, served: Served, context: PlanContext) -> Action:
    return Action(
        replace(target, file=group_of(served).backing),
        f"/dev/{target.device}",
        command(target.device),
        "all of the device's clean metadata is read again when it is needed",
    )


def command(name: str) -> str:
    """Write a block device back and drop its page cache (``BLKFLSBUF``)."""
    return f"blockdev --flushbufs {quote(f'/dev/{name}')}"


INTERFACE = Interface(
    name="flush-device",
    does="drops clean metadata of a disk",
    harm=130,
    options=("evict", "deferred"),
    cases=("metadata",),
    needs=(),
    seen=("5.10", "6.12"),
    requires="root, blockdev of util-linux",
    effect="nobody is charged until it is read again",
    touches="all clean metadata of the device",
    cannot="buffers that a mounted file system keeps",
    reach=reach,
    action=action,
    collateral=rest_of_file,
)
