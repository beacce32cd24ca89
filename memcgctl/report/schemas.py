"""What are a memcg and a kernel in each version of the JSON? One function a version.

Version 1 of list, explain and plan stays for one release (``--schema 1``), to the byte:
in it a byte of a name that is not UTF-8 is a lone surrogate ``\\udcff``. From version 2
on it is ``\\xff``, and ``path_base64`` (``ancestor_base64`` …) has all bytes. Within a
version keys are added, never renamed; what is new goes into the function of the last.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from memcgctl import utf8
from memcgctl.model import Charges, Group, Holder, Kernel, Memcg
from memcgctl.report import documents
from memcgctl.views.overview import Row
from memcgctl.views.workload import Workload, workload

LATEST = 2
CLASSES = ("file", "shmem", "anon", "kernel")
# From version 2 on; the second are charged without a folio that tells of it.
FOLIO_CLASSES = (*CLASSES, "hugetlb")
CHARGED_CLASSES = (*FOLIO_CLASSES, "sock")
SOURCE = (
    *("kind", "path", "release", "types", "cgroup_version"),
    *("page_size", "possible_cpus", "numa_nodes"),
)


def dumper(schema: int) -> Callable[..., str]:
    """What writes a document of a version, with the arguments of ``json.dumps``."""
    return json.dumps if schema == 1 else utf8.dumps


def source_json(kernel: Kernel, schema: int = LATEST) -> dict[str, Any]:
    """What was read, by the contract."""
    return {1: _source_1, 2: _source_2}[schema](kernel)


def memcg_json(
    memcg: Memcg, schema: int = LATEST, row: Row | None = None
) -> dict[str, Any]:
    """One memcg by the contract; the keys after ``overhead`` are additions to it.

    ``row`` adds what a plan says of it, from version 2 on.
    """
    return _memcg_1(memcg) if schema == 1 else _memcg_2(memcg, row)


def costs_json(row: Memcg | Group, schema: int = LATEST) -> dict[str, Any]:
    """What a memcg, or all below an ancestor, cost."""
    return {1: _costs_1, 2: _costs_2}[schema](row)


def _source_1(kernel: Kernel) -> dict[str, Any]:
    return {key: getattr(kernel, key) for key in SOURCE}


def _source_2(kernel: Kernel) -> dict[str, Any]:
    return _source_1(kernel) | {
        "host": kernel.host,
        "boot_id": kernel.boot_id,
        "machine_id": kernel.machine_id,
        "taken_at": kernel.taken_at,
    }


def _memcg_1(memcg: Memcg) -> dict[str, Any]:
    return {
        "id": memcg.id,
        "path": memcg.path,
        "state": memcg.state,
        "ancestor": memcg.ancestor,
        "refs": memcg.refs,
        "children": memcg.children,
        **_costs_1(memcg),
        "parent_id": memcg.parent_id,
        "private_id": memcg.private_id,
        "address": f"{memcg.address:#x}",
    }


def _memcg_2(memcg: Memcg, row: Row | None) -> dict[str, Any]:
    holders = memcg.details.holders if memcg.details else None
    return (
        _memcg_1(memcg)
        | _costs_2(memcg)
        | {
            "workload": _workload_json(workload(memcg.path, memcg.xattrs)),
            "created_at": memcg.created_at,
            "removed_at": memcg.removed_at,
            "held_by": None if holders is None else _by_kind(holders),
            "freeable": row.freeable if row else "unknown",
            "why_not": (row.why_not or None) if row else None,
        }
    )


def _workload_json(found: Workload) -> documents.Workload:
    return {
        "runtime": found.runtime,
        "pod_uid": found.pod_uid,
        "container_id": found.container_id,
        "unit": found.unit,
        "session": found.session,
        "name": found.name,
        "family": found.family,
        "invocation": found.invocation,
    }


def _by_kind(holders: Iterable[Holder]) -> dict[str, int]:
    """How many references each kind of holder has."""
    found: Counter[str] = Counter()
    for holder in holders:
        found[holder.kind] += holder.count
    return dict(found)


def _costs_1(row: Memcg | Group) -> dict[str, Any]:
    return {
        "charged": row.charges and _by_class(row.charges, "bytes"),
        "folios": row.charges and _by_class(row.charges, "folios"),
        "swap": row.swap and {"entries": row.swap.entries, "bytes": row.swap.bytes},
        "overhead": {
            "percpu": row.overhead.percpu_bytes,
            "percpu_accounted": row.overhead.percpu_accounted_bytes,
            "structs": row.overhead.structs_bytes,
        },
        "usage_bytes": row.usage_bytes,
    }


def _costs_2(row: Memcg | Group) -> dict[str, Any]:
    """``sock`` and what is in zswap are null where they are not known."""
    charged = row.charges and _by_class(row.charges, "bytes", CHARGED_CLASSES)
    folios = row.charges and _by_class(row.charges, "folios", FOLIO_CLASSES)
    swap = row.swap and {
        "entries": row.swap.entries,
        "bytes": row.swap.bytes,
        "zswap_entries": row.swap.zswap_entries,
        "zswap_bytes": row.swap.zswap_bytes,
    }
    return _costs_1(row) | {"charged": charged, "folios": folios, "swap": swap}


def _by_class(
    charges: Charges, unit: str, classes: tuple[str, ...] = CLASSES
) -> dict[str, int | None]:
    return {kind: getattr(charges, f"{kind}_{unit}") for kind in classes}
