"""Who holds the css references of each memcg, to the last one?

``css.refcnt`` of an offline memcg is the sum of what its holders took (``css_get`` and
``css_tryget``, and their callers). Folios, swap entries and children are counted by the
census; the others are found here, each kernel structure walked once for all memcgs.
Open files and sockets are looked for only where references are missing without them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import drgn

from memcgctl.census import folios
from memcgctl.census.holders.csets import css_set_holders, mm_list_holders, oom_holders
from memcgctl.census.holders.fsnotify import event_holders, fsnotify_holders
from memcgctl.census.holders.objcgs import objcg_holders
from memcgctl.census.holders.sockets import Sockets, kmalloc_holders, socket_holders
from memcgctl.census.holders.stock import stock_holders
from memcgctl.census.holders.writeback import unlisted_holders, writeback_holders
from memcgctl.census.tree import read_references
from memcgctl.kernel.layout import (
    LayoutError,
    has_member,
)
from memcgctl.kernel.trouble import (
    Topic,
    reading,
)
from memcgctl.linux.files import Opened
from memcgctl.linux.namespaces import Namespaces
from memcgctl.linux.structs import U64, addresses, read_pointers, read_structs
from memcgctl.model import Charges, Holder, Memcg

if TYPE_CHECKING:
    from memcgctl.kernel.program import OpenedKernel

MEMCG = "struct mem_cgroup"
ID_REF = "id.ref.refs.counter"
MEMBERS = ("css.refcnt.percpu_count_ptr", "css.refcnt.data", ID_REF)

# What a worker or an interrupt holds for a moment is gone after so many seconds.
PAUSE = 0.2

Found = tuple[int, Holder]  # by the address of the memcg
Left = dict[int, int | None]


@reading(Topic.REFERENCES)
def holders(
    kernel: OpenedKernel, wanted: Sequence[Memcg]
) -> dict[int, tuple[tuple[Holder, ...], int | None]]:
    """The holders of each memcg, and the references that they leave over; by address.

    Less than 0: holders without a reference. None: the kernel does not tell how many
    references there are (online memcgs), or nobody counted the folios. On a live kernel
    everything is looked at twice, and what counts is the second look: the references of
    that moment, and as ``transient`` the holders that the first one had not seen. What
    is gone by then has neither.
    """
    if kernel.kind != "live":
        found, left = _look(kernel, wanted)
        return {address: (tuple(now), left[address]) for address, now in found.items()}
    with kernel.trouble.aside():
        first, left = _look(kernel, wanted)
    time.sleep(PAUSE)
    there = _count_again(kernel, _still_there(kernel, wanted), left)
    found, left = _look(kernel, there)
    there = _still_there(kernel, there)
    if gone := len(wanted) - len(there):
        kernel.trouble.note(
            None, "a memcg went away before its holders were found", gone
        )
    result: dict[int, tuple[tuple[Holder, ...], int | None]] = {
        memcg.address: ((), 0) for memcg in wanted
    }
    for address in (memcg.address for memcg in there):
        now = _marked(first[address], found[address])
        result[address] = tuple(now), left[address]
    return result


def _still_there(kernel: OpenedKernel, wanted: Sequence[Memcg]) -> list[Memcg]:
    """Those whose memory has not become something else's in the meantime."""
    at = addresses([memcg.address for memcg in wanted])
    for type_name, member in (
        (MEMCG, "css.cgroup"),
        ("struct cgroup", "kn"),
        ("struct kernfs_node", "id"),
    ):
        at = read_structs(kernel, type_name, at, {"next": member})["next"]
    return [
        memcg for memcg, id_ in zip(wanted, at.tolist(), strict=True) if id_ == memcg.id
    ]


def _look(
    kernel: OpenedKernel, wanted: Sequence[Memcg]
) -> tuple[dict[int, list[Holder]], Left]:
    """One look: the holders, and the references that they leave over; by address."""
    at = addresses([memcg.address for memcg in wanted])
    rows = read_structs(kernel, MEMCG, at, {path: path for path in MEMBERS})
    refs = read_references(kernel.prog, kernel.memory, rows).tolist()
    found = {
        memcg.address: list(_counted(kernel, memcg, entries, count >= 0))
        for memcg, entries, count in zip(
            wanted, rows[ID_REF].tolist(), refs, strict=True
        )
    }
    online = addresses([memcg.address for memcg in wanted if memcg.state == "online"])
    opened = Opened(kernel)
    namespaces = Namespaces(kernel, opened)
    sockets = Sockets(kernel, opened, namespaces)
    here = frozenset(found)

    def look_for(what: str, holders_of: Callable[[], Iterable[Found]]) -> None:
        try:
            for address, holder in holders_of():
                found[address].append(holder)
        except (LookupError, LayoutError, drgn.FaultError) as error:
            kernel.trouble.note(
                Topic.REFERENCES, f"{what} cannot be looked for: {error}"
            )

    look_for("stocks", lambda: stock_holders(kernel, here))
    look_for("writeback", lambda: writeback_holders(kernel, here))
    look_for("css_sets", lambda: css_set_holders(kernel, at, namespaces))
    look_for("MGLRU's lists", lambda: mm_list_holders(kernel, at))
    look_for("tasks in OOM", lambda: oom_holders(kernel, here))
    look_for("obj_cgroups", lambda: objcg_holders(kernel, online))
    look_for("zswap", lambda: _zswap_holders(kernel, here))

    def missing() -> U64:
        left = _left_over(kernel, wanted, refs, found)
        return addresses([address for address, n in left.items() if (n or 0) > 0])

    if len(short := missing()):
        look_for("fsnotify", lambda: fsnotify_holders(kernel, short, opened))
        look_for("events", lambda: event_holders(kernel, short, opened))
        look_for("sockets", lambda: socket_holders(kernel, short, sockets))
    # What costs more: all objects of a size, all inodes.
    if len(short := missing()):
        look_for("other sockets", lambda: kmalloc_holders(kernel, short, sockets))
    if len(short := missing()):
        look_for("inodes", lambda: unlisted_holders(kernel, short))
    found = {address: _summed(its) for address, its in found.items()}
    return found, _left_over(kernel, wanted, refs, found)


def _summed(holders: Iterable[Holder]) -> list[Holder]:
    """Holders that differ in nothing but their count as one."""
    alike: dict[tuple[str, str], Holder] = {}
    for one in holders:
        key = one.kind, one.detail
        count = one.count + (alike[key].count if key in alike else 0)
        alike[key] = replace(one, count=count)
    return list(alike.values())


def _counted(
    kernel: OpenedKernel, memcg: Memcg, id_refs: int, refs_known: bool
) -> Iterator[Holder]:
    """What the census and the memcg itself tell of its holders."""
    charges = memcg.charges or Charges()
    cached = charges.file_folios + charges.shmem_folios + charges.anon_folios
    cached += charges.hugetlb_folios
    if cached and _folios_hold(kernel):
        yield Holder("folio", cached, "")
    # Since Linux kernel commit b4e0b68fbd9d ("mm: memcontrol: use obj_cgroup APIs to
    # charge kmem pages") (in v5.13) kernel pages hold an obj_cgroup.
    if charges.kernel_folios and has_member(kernel.prog, "struct page", "mem_cgroup"):
        yield Holder("kernel", charges.kernel_folios, "")
    online = memcg.state == "online"
    # mem_cgroup_css_online: the online state pins the id, and the id the css.
    if id_refs:
        yield Holder("swap", 1, f"{id_refs - online} entries")
    if memcg.children:
        yield Holder("child", memcg.children, "")
    # kill_css: the base reference stays until css_killed_work_fn has run.
    if online and refs_known:
        yield Holder("other", 1, "is being removed")


def _folios_hold(kernel: OpenedKernel) -> bool:
    """Whether folios hold the css, not an obj_cgroup that its parent inherits.

    Until Linux kernel commit 01b9da291c49 ("mm: memcontrol: convert objcg to be
    per-memcg per-node type") and its series (in v7.1).
    """
    return not has_member(kernel.prog, "struct mem_cgroup_per_node", "objcg_list")


def _left_over(
    kernel: OpenedKernel,
    wanted: Sequence[Memcg],
    refs: Sequence[int],
    found: dict[int, list[Holder]],
) -> Left:
    """The references that the holders found leave over, None where nobody knows."""
    uncounted = _folios_hold(kernel)
    return {
        memcg.address: None
        if count < 0 or (uncounted and memcg.charges is None)
        else count - sum(holder.count for holder in found[memcg.address])
        for memcg, count in zip(wanted, refs, strict=True)
    }


def _count_again(
    kernel: OpenedKernel, wanted: Sequence[Memcg], left: Left
) -> Sequence[Memcg]:
    """``wanted`` with new folio counts, if any did not balance and folios matter."""
    unbalanced = [memcg for memcg in wanted if left[memcg.address] and memcg.charges]
    if not unbalanced or not _folios_hold(kernel):
        return wanted
    at = addresses([memcg.address for memcg in wanted])
    # Folios of memcgs that were not asked for are no news.
    with kernel.trouble.aside():
        counts = folios.count_folios(kernel, at).folios.tolist()
    return [
        replace(
            memcg,
            charges=replace(
                memcg.charges,
                file_folios=row[folios.FILE],
                shmem_folios=row[folios.SHMEM],
                anon_folios=row[folios.ANON],
                kernel_folios=row[folios.KERNEL],
                hugetlb_folios=row[folios.HUGETLB],
            ),
        )
        if memcg.charges
        else memcg
        for memcg, row in zip(wanted, counts, strict=False)
    ]


def _zswap_holders(kernel: OpenedKernel, wanted: Collection[int]) -> Iterator[Found]:
    """The memcg whose turn it is in zswap's shrinker (``zswap_next_shrink``, 6.8+)."""
    try:
        cursor = kernel.symbol("zswap_next_shrink")
    except LookupError:
        return
    memcg = int(read_pointers(kernel, addresses([cursor]))[0])
    if memcg in wanted:
        yield memcg, Holder("other", 1, "next to be shrunk by zswap")


def _marked(first: Sequence[Holder], second: Sequence[Holder]) -> list[Holder]:
    """``second``, with what ``first`` had nothing of marked as transient."""
    known = {_who(holder) for holder in first}
    return [replace(h, transient=_who(h) not in known) for h in second]


def _who(holder: Holder) -> tuple[str, str]:
    """What does not change about a holder: its detail up to the first colon."""
    return holder.kind, holder.detail.partition(":")[0]
