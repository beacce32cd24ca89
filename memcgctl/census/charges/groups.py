"""What is the memory that is charged to a memcg, can it be evicted, who uses it?

Puts the folios of each memcg (``collect``) into groups by class, backing object and
being mapped or not, with what stands in the way of eviction and how cold they are;
then names their backing objects (``backing``), the processes that map them (``rmap``)
and those that have the file open.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from memcgctl.census.charges import obstacles
from memcgctl.census.charges.coldness import Generations, generation_ages
from memcgctl.census.charges.collect import Folios, collect_folios
from memcgctl.census.charges.keepers import Keepers
from memcgctl.census.charges.mappers import FLAGS, Mappers, Sharers, find_mappers
from memcgctl.census.processes import Processes, name_processes
from memcgctl.census.swap.owners import swap_devices
from memcgctl.linux.backing import read_backings
from memcgctl.linux.files import Opened
from memcgctl.linux.openers import Sighting, read_openers, user_paths
from memcgctl.linux.rmap import Vmas, file_vmas
from memcgctl.linux.structs import U64, addresses, enumerators, read_structs
from memcgctl.linux.tasks import Tasks, read_tasks
from memcgctl.model import ChargeGroup, Coldness, SwapDeviceUse

if TYPE_CHECKING:
    from memcgctl.census.tree import Tree
    from memcgctl.kernel.program import OpenedKernel

Progress = Callable[[str, int, int], None]
_Kind = Literal["file", "shmem", "anon", "kernel", "hugetlb"]
# In the order of folios.FILE and so on.
KINDS: tuple[_Kind, ...] = ("file", "shmem", "anon", "kernel", "hugetlb")

_ANON_KIND = KINDS.index("anon")
_NOBODY: Sharers = Counter()


@dataclass(frozen=True)
class Groups:
    """Charge groups: parallel arrays; ``of`` is the group of each folio.

    ``memcg`` is the position of the memcg among those asked for; ``mapping`` is the
    ``struct address_space *``, 0 for anonymous and kernel memory.
    """

    of: NDArray[np.int64]
    memcg: NDArray[np.int64]
    kind: NDArray[np.int64]
    mapped: NDArray[np.bool_]
    mapping: U64


def details_for(
    kernel: OpenedKernel,
    tree: Tree,
    wanted: Sequence[int],
    progress: Progress | None = None,
) -> dict[int, tuple[tuple[ChargeGroup, ...], tuple[SwapDeviceUse, ...]]]:
    """Charge groups and swap devices, by ``struct mem_cgroup *``, of those ``wanted``.

    They must be in the tree. Groups come largest first. Raises KernelError if there is
    no memory map.
    """
    processes = name_processes(read_tasks(kernel), tree)
    memcgs = addresses(list(wanted))
    found = collect_folios(kernel, tree.address, memcgs, progress)
    groups = group_folios(found)
    mappings, which = np.unique(groups.mapping, return_inverse=True)
    is_mapped = np.zeros(len(mappings), np.bool_)
    is_mapped[which[groups.mapped]] = True
    vmas = file_vmas(kernel, np.where(is_mapped, mappings, np.uint64(0)))
    # A swap entry whose folio is in the swap cache belongs to those who map this.
    cached = _flag(kernel, found.flags, "PG_swapcache") & (found.kind == _ANON_KIND)
    users = find_mappers(kernel, found, vmas, cached, groups.of, processes.tasks)
    lists = _charge_groups(kernel, tree, memcgs, processes, found, groups, vmas, users)
    entries = {
        int(found.private[folio]): sharers for folio, sharers in users.by_folio.items()
    }
    row = {address: row for row, address in enumerate(tree.address.tolist())}
    ids = tree.memcg["id.id"].astype(np.int64)[[row[address] for address in wanted]]
    devices = swap_devices(kernel, ids, entries, processes)
    return {
        memcg: (tuple(of_memcg), on_devices)
        for memcg, of_memcg, on_devices in zip(wanted, lists, devices, strict=True)
    }


def _charge_groups(
    kernel: OpenedKernel,
    tree: Tree,
    wanted: U64,
    processes: Processes,
    found: Folios,
    groups: Groups,
    vmas: Vmas,
    mappers: Mappers,
) -> list[list[ChargeGroup]]:
    """The charge groups of each memcg in ``wanted``, largest first."""
    tasks, page_size = processes.tasks, kernel.memory.page_size
    mappings, which = np.unique(groups.mapping, return_inverse=True)
    openers = read_openers(kernel, mappings, tasks)
    users = [set(openers.tasks.get(index, ())) for index in range(len(mappings))]
    for group, sharers in mappers.by_group.items():
        users[which[group]].update(sharers)
    seen = {**_seen_mapped(kernel, vmas, tasks), **openers.seen}
    backings = read_backings(kernel, mappings, tasks, users, seen)
    on_bdev = np.array([b is not None and b.kind == "bdev" for b in backings], np.bool_)
    flags = read_structs(kernel, "struct address_space", mappings, {"flags": "flags"})[
        "flags"
    ]
    blocking = obstacles.obstacles(
        kernel, tree, wanted, found, flags[which][groups.of], on_bdev[which][groups.of]
    )
    keepers = Keepers(Opened(kernel), processes, found, groups.of, groups.mapping)
    unmapped = (~groups.mapped & (groups.mapping != 0)).nonzero()[0].tolist()
    keepers.add_files(unmapped)
    keepers.add_untouched(unmapped)
    keepers.add_pages(np.any([blocking[name] for name in obstacles.REFERENCED], axis=0))
    totals = _Totals(groups.of, found.all_pages, len(groups.memcg), page_size)
    free = ~np.any(list(blocking.values()), axis=0)
    in_the_way = {name: totals(mask) for name, mask in blocking.items()}
    every, evictable = totals(np.ones(len(free), np.bool_)), totals(free)
    alike = _alike(groups, found)
    sizes = _Totals(alike.group, alike.pages, len(groups.memcg), page_size)
    dirty = sizes(_flag(kernel, alike.flags, "PG_dirty"))
    # On v1 the charge becomes that of the entry when the folio leaves memory
    # (mem_cgroup_swapout, mem_cgroup_swapin_uncharge_swap: do_memsw_account).
    cached = _flag(kernel, alike.flags, "PG_swapcache") & (tree.cgroup_version == 2)
    in_swap = sizes(cached & (groups.kind[alike.group] == _ANON_KIND))
    cold = _coldness(kernel, wanted, groups, alike, sizes)
    folios = np.bincount(groups.of, found.folios, len(groups.memcg))
    result: list[list[ChargeGroup]] = [[] for _ in wanted]
    for group in sorted(range(len(every)), key=lambda group: -every[group]):
        index = int(which[group])
        result[groups.memcg[group]].append(
            ChargeGroup(
                kind=KINDS[groups.kind[group]],
                mapped=bool(groups.mapped[group]),
                folios=int(folios[group]),
                bytes=every[group],
                evictable_bytes=evictable[group],
                obstacles=tuple(
                    (name, sizes[group])
                    for name, sizes in in_the_way.items()
                    if sizes[group]
                ),
                dirty_bytes=dirty[group],
                backing=backings[index],
                mappers=tuple(
                    processes.process(
                        position,
                        pages * page_size,
                        mappers.huge.get(group, _NOBODY)[position] * page_size,
                    )
                    for position, pages in mappers.of(group).most_common()
                ),
                openers=tuple(
                    processes.process(position, every[group])
                    for position in openers.tasks.get(index, ())
                ),
                coldness=cold[group],
                swap_entry_bytes=in_swap[group],
                mapped_bytes=mappers.pages[group] * page_size,
                keepers=keepers.of_group(group),
                repeated_bytes=mappers.repeated[group] * page_size,
                mapper_missing_bytes=min(
                    every[group], mappers.missing.get(group, 0) * page_size
                ),
            )
        )
    return result


def group_folios(found: Folios) -> Groups:
    """Folios of one memcg, class and mapping, mapped or not, are a group."""
    # A movable page's mapping is no address space's.
    mapping = np.where(found.mapping & FLAGS, np.uint64(0), found.mapping)
    mapping[found.kind == KINDS.index("kernel")] = 0
    mappings, which = _unique(mapping)
    mapped = found.mapcount > 0
    key = (found.memcg * len(KINDS) + found.kind) * 2 + mapped
    key = key * max(len(mappings), 1) + which
    key, of = _unique(key)
    of_memcg, index = np.divmod(key, max(len(mappings), 1))
    of_memcg, mapped = np.divmod(of_memcg, 2)
    memcg, kind = np.divmod(of_memcg, len(KINDS))
    return Groups(of, memcg, kind, mapped.astype(np.bool_), addresses(mappings[index]))


def _unique(values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """``np.unique`` with the inverse: runs of one value are sorted as one."""
    first = np.ones(len(values), np.bool_)
    first[1:] = values[1:] != values[:-1]
    distinct, which = np.unique(values[first], return_inverse=True)
    return distinct, which[np.cumsum(first) - 1].astype(np.int64)


@dataclass(frozen=True)
class _Totals:
    """Adds up bytes by group: called with a mask of folios, a list by group."""

    of: NDArray[np.int64]
    pages: NDArray[np.int64]
    groups: int
    page_size: int

    def __call__(self, mask: NDArray[np.bool_]) -> list[int]:
        if not mask.any():  # as most are
            return [0] * self.groups
        pages = np.bincount(self.of[mask], self.pages[mask], self.groups)
        sizes: list[int] = (pages.astype(np.int64) * self.page_size).tolist()
        return sizes


def _flag(kernel: OpenedKernel, flags: U64, name: str) -> NDArray[np.bool_]:
    bit = enumerators(kernel.prog, "enum pageflags")[name]
    mask: NDArray[np.bool_] = flags & np.uint64(1 << bit) != 0
    return mask


class _Alike(NamedTuple):
    """Pages of one group whose flags are the same: parallel arrays, few for many."""

    group: NDArray[np.int64]
    flags: U64
    pages: NDArray[np.int64]


def _alike(groups: Groups, found: Folios) -> _Alike:
    flags, which = _unique(found.flags)
    key, which = _unique(groups.of * max(len(flags), 1) + which)
    group, index = np.divmod(key, max(len(flags), 1))
    pages = np.bincount(which, found.all_pages, len(key)).astype(np.int64)
    return _Alike(group, flags[index], pages)


def _seen_mapped(kernel: OpenedKernel, vmas: Vmas, tasks: Tasks) -> dict[int, Sighting]:
    """Where a process that maps a mapping sees it, for files under an overlayfs."""
    paths = user_paths(kernel, vmas.file)
    position = {mm: index for index, mm in enumerate(tasks.mm.tolist())}
    return {
        owner: Sighting(*paths[file], position[mm])
        for owner, file, mm in zip(
            vmas.owner.tolist(), vmas.file.tolist(), vmas.mm.tolist(), strict=True
        )
        if file in paths and mm in position
    }


def _coldness(
    kernel: OpenedKernel,
    wanted: U64,
    groups: Groups,
    found: _Alike,
    totals: _Totals,
) -> list[Coldness]:
    """How cold each group is."""
    layout = Generations(kernel)
    generation, node = layout.generation(found.flags), layout.node(found.flags)
    active = _flag(kernel, found.flags, "PG_active")
    by_age: list[dict[float | None, int]] = [{} for _ in groups.memcg]
    (listed,) = (generation >= 0).nonzero()
    if len(listed):
        # Each memcg has its own generations on each node.
        nodes = int(node[listed].max()) + 1
        lruvec = groups.memcg[found.group[listed]] * nodes + node[listed]
        lruvecs, of = _unique(lruvec)
        ages, young = generation_ages(
            kernel, layout, wanted[lruvecs // nodes], lruvecs % nodes
        )
        active[listed] |= young[of, generation[listed]]
        key = found.group[listed] * len(lruvecs) + of
        key, which = _unique(key * layout.count + generation[listed])
        sizes = np.bincount(which, found.pages[listed]) * totals.page_size
        for cell, size in zip(
            key.tolist(), sizes.astype(np.int64).tolist(), strict=True
        ):
            cell, number = divmod(cell, layout.count)
            group, index = divmod(cell, len(lruvecs))
            age = ages[index][number]
            by_age[group][age] = by_age[group].get(age, 0) + size
    columns = zip(
        totals(active),
        totals(_flag(kernel, found.flags, "PG_referenced")),
        totals(_flag(kernel, found.flags, "PG_workingset")),
        by_age,
        strict=True,
    )
    return [
        Coldness(
            active_bytes=active_bytes,
            referenced_bytes=referenced,
            workingset_bytes=workingset,
            # The youngest first, an unknown age last.
            generations=tuple(
                sorted(sizes.items(), key=lambda item: (item[0] is None, item[0] or 0))
            ),
        )
        for active_bytes, referenced, workingset, sizes in columns
    ]
