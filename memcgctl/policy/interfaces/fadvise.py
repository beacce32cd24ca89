"""Page cache of a file that nobody maps: POSIX_FADV_DONTNEED."""

from __future__ import annotations

from dataclasses import replace

from memcgctl.model import ChargeGroup, FileTarget
from memcgctl.policy.cases import Part
from memcgctl.policy.effects import WRITTEN
from memcgctl.policy.interfaces.base import Action, Interface, Reach, Served, cannot
from memcgctl.policy.interfaces.common import (
    backing_of,
    evicted,
    file_words,
    group_of,
    rest_of_file,
)
from memcgctl.policy.interfaces.context import PlanContext


def reach(part: Part, context: PlanContext) -> Reach:
    backing = backing_of(part)
    if backing is None or backing.kind == "hugetlb":
        return cannot(part, "it is no file's page cache")
    if backing.fs == "btrfs":
        return cannot(part, "which subvolume of btrfs its file is in is not known")
    if not context.leads_to(backing):
        return cannot(part, "no path leads to its file")
    return evicted(part, context.file(backing), context, WRITTEN)


def action(target: FileTarget, served: Served, context: PlanContext) -> Action:
    backing = group_of(served).backing
    assert backing
    dirty = any(part.group and _is_dirty(part.group) for part, _ in served)
    return Action(
        replace(target, file=backing),
        file_words(backing),
        command(context.word(backing) or "", dirty=dirty),
        "whoever reads the file next reads it from the device and is charged for it",
    )


def _is_dirty(group: ChargeGroup) -> bool:
    return bool(group.dirty_bytes) or any(
        name in WRITTEN for name, _ in group.obstacles
    )


def command(file: str, *, dirty: bool) -> str:
    """Write a file back and drop its page cache (``POSIX_FADV_DONTNEED``)."""
    forget = f"dd if={file} iflag=nocache count=0 status=none"
    return f"sync {file} && {forget}" if dirty else forget


INTERFACE = Interface(
    name="fadvise",
    does="drops clean page cache of files",
    harm=10,
    options=("evict", "deferred"),
    cases=("file-unmapped",),
    needs=("fadvise",),
    seen=("5.10", "6.1", "6.12", "7.3"),
    requires="read access to the file; dd and sync of GNU coreutils",
    effect="nobody is charged until somebody reads the file again",
    touches="what others are charged for of the same file's page cache",
    cannot="mapped, locked and pinned pages",
    reach=reach,
    action=action,
    collateral=rest_of_file,
    whole=lambda *_: 0,
)
