"""Reads how a kernel stores memcgs, charges and references into the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from memcgctl.census import dying, identity, overhead, sockets
from memcgctl.census.limits import CGROUP_MEMBERS, MEMBERS, limits, swap_bytes
from memcgctl.census.tree import Tree, read_tree
from memcgctl.kernel.program import OpenedKernel
from memcgctl.linux.host import read_host
from memcgctl.model import (
    MEMCG_IDS,
    Census,
    Charges,
    Kernel,
    Limits,
    Memcg,
    Overhead,
    SwapUse,
    ids_used,
)

if TYPE_CHECKING:
    from memcgctl.census.details import Wanted

Progress = Callable[[str, int, int], None]
# In the order of folios.FILE and so on.
_CLASSES = ("file", "shmem", "anon", "kernel", "hugetlb")
_BYTES = [f"{name}_bytes" for name in _CLASSES]
_FOLIOS = [f"{name}_folios" for name in _CLASSES]


# struct cgroup_freezer_state: by the cgroup itself or one above it. 5.2+, "cgroup:
# cgroup v2 freezer" (76f969e8948d).
FROZEN = "freezer.e_freeze"


def take_census(
    kernel: OpenedKernel,
    *,
    scan: bool = True,
    identities: bool | None = None,
    details: Wanted | None = None,
    progress: Progress | None = None,
) -> Census:
    """All memcgs of the kernel, online ones and the root included.

    Without ``scan`` memory and swap maps are not read; charges, swap and limits are
    None; when they were made and removed is read then only if ``identities`` is asked
    for. ``details`` are taken of the memcgs with these cgroup ids, or of
    the offline ones.
    ``progress`` gets what is done, how much of it, and how much there is. Raises
    KernelError if the kernel's memory makes no sense.
    """
    kernel.trouble.restart()
    tree = read_tree(
        kernel,
        dict.fromkeys((*overhead.MEMCG_MEMBERS, *MEMBERS, *sockets.MEMBERS)),
        (
            *(*overhead.CGROUP_MEMBERS, *identity.MEMBERS, *dying.MEMBERS),
            *(*CGROUP_MEMBERS, FROZEN),
        ),
    )
    machine = overhead.read_machine(kernel)
    page_size = kernel.memory.page_size
    scanned = _scan(kernel, tree, progress) if scan else _Scanned.nothing(tree)
    who = [identity.Identity()] * len(tree.address)
    if identities or (identities is None and scan):
        who = identity.identities(kernel, tree)
    overheads = overhead.overheads(kernel, tree, machine)
    census = Census(
        kernel=_kernel(kernel, tree, machine, scanned),
        memcgs=tuple(_memcgs(tree, page_size, overheads, scanned, who)),
        warnings=(),
    )
    if details is not None:
        census = _detailed(kernel, tree, census, details, progress)
    return replace(
        census,
        warnings=(
            *_ids_used(census),
            *kernel.trouble.sentences(),
            *kernel.trouble.consequences(),
        ),
        unread=tuple(topic.value for topic in kernel.trouble.unread),
    )


class _Scanned(NamedTuple):
    """What the scan found, a list with an element for each memcg; None: no scan."""

    charges: list[Charges | None]
    swaps: list[SwapUse | None]
    limits: list[Limits | None]
    swap_total_bytes: int | None = None
    swap_free_bytes: int | None = None

    @classmethod
    def nothing(cls, tree: Tree) -> _Scanned:
        count = len(tree.address)
        return cls([None] * count, [None] * count, [None] * count)


def _scan(kernel: OpenedKernel, tree: Tree, progress: Progress | None) -> _Scanned:
    """Read memory map, swap maps, socket memory and limits."""
    from memcgctl.census import folios
    from memcgctl.census.swap import maps, zswap

    page_size, count = kernel.memory.page_size, len(tree.address)
    bounds = [*limits(tree, page_size)]
    swap_total, swap_free = swap_bytes(kernel)
    found = folios.count_folios(kernel, tree.address, progress)
    socket_pages = sockets.socket_pages(kernel, tree)
    charges = [
        _charges(f, p * page_size, None if sock < 0 else int(sock) * page_size)
        for f, p, sock in zip(
            found.folios[:count], found.pages[:count], socket_pages, strict=True
        )
    ]
    entries = maps.entries(kernel, tree).tolist()
    inside = zswap.compressed(kernel, tree)
    columns = [[None] * count] * 2 if inside is None else [c.tolist() for c in inside]
    swaps = [
        SwapUse(n, n * page_size, *more)
        for n, *more in zip(entries, *columns, strict=True)
    ]
    return _Scanned([*charges], [*swaps], [*bounds], swap_total, swap_free)


def _kernel(
    kernel: OpenedKernel, tree: Tree, machine: overhead.Machine, scanned: _Scanned
) -> Kernel:
    host = read_host(kernel)
    dying_count, bare_count = dying.dying_cgroups(tree)
    return Kernel(
        kind=kernel.kind,
        path=kernel.path,
        release=kernel.release,
        types=kernel.types,
        cgroup_version=tree.cgroup_version,
        page_size=kernel.memory.page_size,
        possible_cpus=machine.cpus,
        numa_nodes=machine.nodes,
        swap_total_bytes=scanned.swap_total_bytes,
        swap_free_bytes=scanned.swap_free_bytes,
        host=host.name,
        boot_id=host.boot_id,
        machine_id=host.machine_id,
        taken_at=host.time,
        dying_cgroups=dying_count,
        bare_cgroups=bare_count,
    )


def _detailed(
    kernel: OpenedKernel,
    tree: Tree,
    census: Census,
    details: Wanted,
    progress: Progress | None,
) -> Census:
    """With details of what is wanted, and what this kernel can do."""
    # list does without all that these import
    from memcgctl.census.details import with_details
    from memcgctl.census.swap.maps import at_once_bytes
    from memcgctl.census.traits import cgroup_mount, interfaces

    detailed = with_details(kernel, tree, census.memcgs, details, progress)
    at_once = at_once_bytes(kernel)
    described = replace(
        census.kernel,
        interfaces=interfaces(kernel, tree.cgroup_version),
        swaps_at_once=None if at_once is None else at_once > 0,
        at_once_bytes=at_once,
        cgroup_mount=cgroup_mount(kernel, tree),
    )
    return replace(census, kernel=described, memcgs=detailed)


def _memcgs(
    tree: Tree,
    page_size: int,
    overheads: list[Overhead],
    scanned: _Scanned,
    who: list[identity.Identity],
) -> Iterator[Memcg]:
    """The memcgs of the tree, in its order, with what was found out about each."""
    ids = tree.id.tolist()
    columns = (
        tree.parent.tolist(),
        tree.ancestor.tolist(),
        tree.online.tolist(),
        tree.refs.tolist(),
        tree.children.tolist(),
        tree.memcg["memory.usage.counter"].tolist(),
        tree.address.tolist(),
        tree.memcg["id.id"].tolist(),
        _frozen(tree),
    )
    rows = enumerate(zip(*columns, strict=True))
    for i, (up, ancestor, online, refs, children, usage, at, private, frozen) in rows:
        yield Memcg(
            id=ids[i],
            path=tree.path[i],
            state="online" if online else "offline",
            ancestor=tree.path[max(ancestor, 0)],
            refs=None if refs < 0 else refs,
            children=children,
            usage_bytes=usage * page_size,
            overhead=overheads[i],
            address=at,
            private_id=private,
            charges=scanned.charges[i],
            swap=scanned.swaps[i],
            parent_id=0 if up < 0 else ids[up],
            limits=scanned.limits[i],
            created_at=who[i].created_at,
            removed_at=who[i].removed_at,
            xattrs=who[i].xattrs,
            frozen=frozen,
        )


def _ids_used(census: Census) -> Iterator[str]:
    """Without a free id no memory cgroup can be made: mkdir says ENOSPC."""
    used = ids_used(census)
    if used > MEMCG_IDS * 9 // 10:
        words = "are used up" if used >= MEMCG_IDS else "run out"
        yield f"memcg ids {words}: {used:,} of {MEMCG_IDS:,}"


def _frozen(tree: Tree) -> list[bool]:
    """Whether the freezer of cgroup v2 stops each one's processes, or is about to."""
    if FROZEN not in (tree.cgroup.dtype.names or ()):
        return [False] * len(tree.address)
    frozen: list[bool] = (tree.cgroup[FROZEN] != 0).tolist()
    return frozen


def _charges(
    folio_counts: NDArray[np.int64],
    sizes_bytes: NDArray[np.int64],
    sock_bytes: int | None,
) -> Charges:
    """Charges of one memcg from its rows of counts, by kind, and its sockets'."""
    sizes = zip(_BYTES, sizes_bytes.tolist(), strict=True)
    counts = zip(_FOLIOS, folio_counts.tolist(), strict=True)
    return Charges(**dict(sizes), **dict(counts), sock_bytes=sock_bytes)
