"""What are the parts of a census in JSON: processes, files, holders, swap, users?

Each key is written out: a field of the model can be renamed, a key cannot.
"""

from __future__ import annotations

from collections.abc import Iterable

from memcgctl.model import (
    Backing,
    ChargeGroup,
    Frame,
    Frames,
    Holder,
    Inherited,
    Keeper,
    Process,
    Prospect,
    Remaining,
    SwapDeviceUse,
    SwapOwner,
    User,
)
from memcgctl.report import documents


def process_json(process: Process) -> documents.Process:
    return {
        "pid": process.pid,
        "comm": process.comm,
        "memcg": process.memcg,
        "memcg_id": process.memcg_id,
        "bytes": process.bytes,
        "start_ticks": process.start_ticks,
        "huge_bytes": process.huge_bytes,
        "tid": process.tid,
    }


def keeper_json(keeper: Keeper) -> documents.Keeper:
    return {
        "how": keeper.how,
        "process": process_json(keeper.process),
        "fds": [*keeper.fds],
    }


def backing_json(backing: Backing) -> documents.Backing:
    return {
        "kind": backing.kind,
        "fs": backing.fs,
        "device": backing.device,
        "inode": backing.inode,
        "generation": backing.generation,
        "path": backing.path,
        "container_path": backing.container_path,
        "deleted": backing.deleted,
        "size_bytes": backing.size_bytes,
        "cached_bytes": backing.cached_bytes,
        "container_pid": backing.container_pid,
    }


def charge_json(group: ChargeGroup) -> documents.Charge:
    return {
        "class": group.kind,
        "mapped": group.mapped,
        "folios": group.folios,
        "bytes": group.bytes,
        "evictable": group.evictable_bytes >= group.bytes,
        "obstacles": [name for name, _ in group.obstacles],
        "backing": backing_json(group.backing) if group.backing else None,
        "mappers": [process_json(process) for process in group.mappers],
        "openers": [process_json(process) for process in group.openers],
        "keepers": [keeper_json(keeper) for keeper in group.keepers],
        "mapped_bytes": group.mapped_bytes,
        "mapper_missing_bytes": group.mapper_missing_bytes,
        "evictable_bytes": group.evictable_bytes,
        "obstacle_bytes": dict(group.obstacles),
        "dirty_bytes": group.dirty_bytes,
        "coldness": {
            "active_bytes": group.coldness.active_bytes,
            "referenced_bytes": group.coldness.referenced_bytes,
            "workingset_bytes": group.coldness.workingset_bytes,
            "generations": [
                {"age_seconds": age, "bytes": part}
                for age, part in group.coldness.generations
            ],
        },
    }


def holder_json(holder: Holder) -> documents.Holder:
    return {
        "kind": holder.kind,
        "count": holder.count,
        "detail": holder.detail,
        "transient": holder.transient,
        "devices": None if holder.devices is None else [*holder.devices],
    }


def owner_json(owner: SwapOwner) -> documents.SwapOwner:
    return {
        "pid": owner.pid,
        "comm": owner.comm,
        "memcg": owner.memcg,
        "memcg_id": owner.memcg_id,
        "entries": owner.entries,
        "start_ticks": owner.start_ticks,
        "file": backing_json(owner.file) if owner.file else None,
        "tid": owner.tid,
    }


def device_json(device: SwapDeviceUse) -> documents.SwapDevice:
    return {
        "device": device.device,
        "entries": device.entries,
        "owners": [owner_json(owner) for owner in device.owners],
        "parents_entries": device.parents_entries,
        "synchronous": device.synchronous,
        "zswap_entries": device.zswap_entries,
        "unowned_entries": unowned(device),
    }


def unowned(device: SwapDeviceUse) -> int:
    """The entries that no owner was found for: at least so many."""
    return max(0, device.entries - sum(owner.entries for owner in device.owners))


def user_json(user: User) -> documents.User:
    return {
        "memcg": user.memcg,
        "memcg_id": user.memcg_id,
        "processes": user.processes,
        "mapped_bytes": user.mapped_bytes,
        "open_bytes": user.open_bytes,
        "swap_entries": user.swap_entries,
        "exact": user.exact,
        "kept_bytes": user.kept_bytes,
    }


def inherited_json(inherited: Iterable[Inherited]) -> list[documents.Inherited]:
    return [
        {
            "path": legacy.path,
            "id": legacy.id,
            "objcgs": legacy.objcgs,
            "refs": legacy.refs,
            "structs_bytes": legacy.structs_bytes,
            "folios": legacy.folios,
            "charged_bytes": legacy.charged_bytes,
        }
        for legacy in inherited
    ]


def frames_json(frames: Frames) -> documents.Frames:
    return {"total": frames.total, "frames": [*map(_frame_json, frames.frames)]}


def _frame_json(frame: Frame) -> documents.Frame:
    return {
        "pfn": frame.pfn,
        "pages": frame.pages,
        "kind": frame.kind,
        "inode": frame.inode,
        "mapcount": frame.mapcount,
        "refcount": frame.refcount,
        "pins": frame.pins,
        "flags": [*frame.flags],
    }


def option_json(option: Prospect) -> documents.Option:
    return {
        "option": option.option,
        "bytes": option.bytes,
        "supported": option.supported,
        "how": option.how,
        "effect": option.effect,
    }


def remaining_json(one: Remaining) -> documents.Remaining:
    return {"id": one.id, "why": one.why, "kinds": [*one.kinds]}
