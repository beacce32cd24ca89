"""Which devices' writeback holds a memcg, and because of which inodes?

Each ``struct bdi_writeback`` of a memcg holds one css reference (``cgwb_create``,
mm/backing-dev.c) and lives as long as an inode is attached to it. Reads the devices on
``bdi_list`` with their ``wb_list``, and ``offline_cgwbs``; the inodes on each wb's own
lists, and on 5.10, which does not list clean ones, those of the super blocks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import drgn
import numpy as np

from memcgctl.kernel.layout import (
    LayoutError,
    has_member,
    offset_of,
)
from memcgctl.kernel.trouble import (
    Topic,
    reading,
)
from memcgctl.linux.backing import read_backings
from memcgctl.linux.lists import list_structs, list_walker, occupied
from memcgctl.linux.structs import (
    U64,
    Rows,
    addresses,
    read_strings,
    read_structs,
    unique,
)
from memcgctl.linux.tasks import read_tasks
from memcgctl.model import Holder

if TYPE_CHECKING:
    from memcgctl.kernel.program import OpenedKernel

WB = "struct bdi_writeback"
BDI = "struct backing_dev_info"

# The lists of a wb that an inode is on by its ``i_io_list``, and what it means.
LISTS = {
    "b_dirty": "dirty",
    "b_io": "dirty",
    "b_more_io": "dirty",
    "b_dirty_time": "with dirty time stamps",
    # Since Linux kernel commit f3b6a6df38aa ("writeback, cgroup: keep list of inodes
    # attached to bdi_writeback") (in v5.14).
    "b_attached": "attached",
}

_MINOR_BITS = 20  # include/linux/kdev_t.h

# So many inodes are named; the rest are counted.
NAMED = 6
NAME_MAX = 64

# ``struct inode *`` to its number and state.
Inodes = dict[int, tuple[int, str]]


@reading(Topic.WRITEBACK)
def writeback_holders(
    kernel: OpenedKernel, wanted: frozenset[int]
) -> Iterator[tuple[int, Holder]]:
    """(``struct mem_cgroup *``, holder) for each listed ``struct bdi_writeback``."""
    if has_member(kernel.prog, WB, "memcg_css"):  # CONFIG_CGROUP_WRITEBACK
        yield from _described(kernel, wanted, _writebacks(kernel))


@reading(Topic.WRITEBACK)
def unlisted_holders(kernel: OpenedKernel, wanted: U64) -> Iterator[tuple[int, Holder]]:
    """The same for those of a device that is gone, up to 5.13.

    From Linux kernel commit c22d70a162d3 ("writeback, cgroup: release dying cgwbs by
    switching attached inodes") (in v5.14) on they are listed. ``bdi_unregister``
    (mm/backing-dev.c) takes them off all lists; the inodes that are attached to them
    stay until their file system is unmounted. Reads all inodes.
    """
    if not has_member(kernel.prog, WB, "memcg_css") or has_member(
        kernel.prog, WB, "offline_node"
    ):
        return
    walked = [rows["wb"] for _, rows in _inodes_of_all(kernel)]
    wbs = unique(np.concatenate([addresses([]), *walked]))
    rows = read_structs(kernel, WB, wbs, {"css": "memcg_css", "bdi": "bdi"})
    listed = _writebacks(kernel)
    unlisted = {
        wb: (css, bdi)
        for wb, (css, bdi) in zip(wbs.tolist(), rows.tolist(), strict=True)
        if css and wb not in listed
    }
    here = frozenset(wanted.tolist())
    for memcg, holder in _described(kernel, here, unlisted):
        yield memcg, replace(holder, detail=f"{holder.detail}; the device is gone")


def _described(
    kernel: OpenedKernel,
    wanted: frozenset[int],
    writebacks: Mapping[int, tuple[int, int]],
) -> Iterator[tuple[int, Holder]]:
    """The holders among some ``struct bdi_writeback *``, with their inodes."""
    css = offset_of(kernel.prog, "struct mem_cgroup", "css")
    found = [
        (wb, memcg - css, bdi)
        for wb, (memcg, bdi) in writebacks.items()
        if memcg - css in wanted
    ]
    inodes = _listed_inodes(kernel, [wb for wb, _, _ in found])
    # Listed since Linux kernel commit f3b6a6df38aa ("writeback, cgroup: keep list of
    # inodes attached to bdi_writeback") (in v5.14).
    if inodes and not has_member(kernel.prog, WB, "b_attached"):
        _add_attached_inodes(kernel, inodes)
    paths = _paths(kernel, [at for its in inodes.values() for at, *_ in _named(its)])
    devices = {bdi: _device(kernel, bdi) for bdi in {bdi for _, _, bdi in found}}
    supers = _supers(kernel, [at for its in inodes.values() for at in its])
    for wb, memcg, bdi in found:
        detail = f"{devices[bdi]}: {_summary(inodes[wb], paths)}"
        its = tuple(sorted({supers[inode] for inode in inodes[wb]}))
        yield memcg, Holder("writeback", 1, detail, devices=its)


def _supers(kernel: OpenedKernel, inodes: list[int]) -> dict[int, str]:
    """Each inode's file system by its device number (``s_dev``)."""
    if not inodes:
        return {}
    at = read_structs(kernel, "struct inode", addresses(inodes), {"sb": "i_sb"})["sb"]
    numbers = read_structs(kernel, "struct super_block", at, {"dev": "s_dev"})["dev"]
    return {
        inode: f"{number >> _MINOR_BITS}:{number & (1 << _MINOR_BITS) - 1}"
        for inode, number in zip(inodes, numbers.tolist(), strict=True)
    }


def _writebacks(kernel: OpenedKernel) -> dict[int, tuple[int, int]]:
    """(memcg's css, device) of each ``struct bdi_writeback *`` of the kernel."""
    members = {"memcg_css": "memcg_css", "bdi": "bdi"}
    lists = [
        (int(bdi) + offset_of(kernel.prog, BDI, "wb_list"), "bdi_node")
        for bdi in list_structs(
            kernel,
            kernel.symbol("bdi_list"),
            BDI,
            "bdi_list",
            {"id": "id"},
            Topic.WRITEBACK,
        )[0]
    ]
    # Those that have left their device's list because it is gone, since Linux kernel
    # commit c22d70a162d3 ("writeback, cgroup: release dying cgwbs by switching attached
    # inodes") (in v5.14).
    if has_member(kernel.prog, WB, "offline_node"):
        lists.append((kernel.symbol("offline_cgwbs"), "offline_node"))
    found: dict[int, tuple[int, int]] = {}
    for head, link in lists:
        at, rows = list_structs(kernel, head, WB, link, members, Topic.WRITEBACK)
        found.update(zip(at.tolist(), rows.tolist(), strict=True))
    return found


def _listed_inodes(kernel: OpenedKernel, wbs: Sequence[int]) -> dict[int, Inodes]:
    """The inodes on the lists of each wb."""
    found: dict[int, Inodes] = {wb: {} for wb in wbs}
    walk = list_walker(
        kernel, "struct inode", "i_io_list", {"ino": "i_ino"}, Topic.WRITEBACK
    )
    for name, state in LISTS.items():
        # b_attached: f3b6a6df38aa ("writeback, cgroup: keep list of inodes attached to
        # bdi_writeback") (in v5.14).
        if not has_member(kernel.prog, WB, name):
            continue
        heads = addresses(wbs) + np.uint64(offset_of(kernel.prog, WB, name))
        for index in occupied(kernel, heads).nonzero()[0].tolist():
            at, rows = walk(int(heads[index]))
            numbers = rows["ino"].tolist()
            states = {i: (n, state) for i, n in zip(at.tolist(), numbers, strict=True)}
            found[wbs[index]].update(states)
    return found


def _add_attached_inodes(kernel: OpenedKernel, found: dict[int, Inodes]) -> None:
    """Add the inodes of all super blocks whose ``i_wb`` is one of the wbs ``found``."""
    for at, rows in _inodes_of_all(kernel):
        for row in np.isin(rows["wb"], addresses(list(found))).nonzero()[0].tolist():
            inode = int(rows["ino"][row]), LISTS["b_attached"]
            found[int(rows["wb"][row])].setdefault(int(at[row]), inode)


def _inodes_of_all(kernel: OpenedKernel) -> Iterator[tuple[U64, Rows]]:
    """The ``struct inode *`` of each super block, their numbers and ``i_wb``."""
    offset = offset_of(kernel.prog, "struct super_block", "s_inodes")
    supers, _ = list_structs(
        kernel,
        kernel.symbol("super_blocks"),
        "struct super_block",
        "s_list",
        {"dev": "s_dev"},
        Topic.WRITEBACK,
    )
    members = {"ino": "i_ino", "wb": "i_wb"}
    walk = list_walker(kernel, "struct inode", "i_sb_list", members, Topic.WRITEBACK)
    for head in (supers + np.uint64(offset)).tolist():
        yield walk(head)


def _named(inodes: Inodes) -> list[tuple[int, int, str]]:
    """The first few inodes of each state: address, number, state; by number."""
    ordered = sorted((number, at, state) for at, (number, state) in inodes.items())
    return [
        (at, number, state)
        for wanted in dict.fromkeys(LISTS.values())
        for number, at, state in [row for row in ordered if row[2] == wanted][:NAMED]
    ]


def _summary(inodes: Inodes, paths: dict[int, str]) -> str:
    """Which inodes are in which state: the first few by number and path."""
    parts = []
    for state, total in Counter(state for _, state in inodes.values()).items():
        named = [
            f"{number} ({paths[at]})" if at in paths else str(number)
            for at, number, its in _named(inodes)
            if its == state
        ]
        more = f" and {total - len(named)} more" if total > len(named) else ""
        noun = "inode" if total == 1 else "inodes"
        parts.append(f"{noun} {', '.join(named)}{more} {state}")
    return "; ".join(parts) or "no inode listed"


def _paths(kernel: OpenedKernel, inodes: list[int]) -> dict[int, str]:
    """Paths, as the host sees them, of those ``struct inode *`` that have one."""
    if not inodes:
        return {}
    try:
        offset = offset_of(kernel.prog, "struct inode", "i_data")
        mappings = addresses(inodes) + np.uint64(offset)
        nobody: list[tuple[int, ...]] = [()] * len(inodes)
        backings = read_backings(kernel, mappings, read_tasks(kernel), nobody, {})
    except LookupError:
        return {}
    except (LayoutError, drgn.FaultError) as error:
        kernel.trouble.note(Topic.FILES, f"paths of inodes cannot be read: {error}")
        return {}
    return {
        inode: backing.path
        for inode, backing in zip(inodes, backings, strict=True)
        if backing and backing.path
    }


def _device(kernel: OpenedKernel, bdi: int) -> str:
    """The name of a ``struct backing_dev_info *``: its disk's, else its own."""
    # bdi_set_owner: the disk's device, which other device numbers have not.
    owner = read_structs(kernel, BDI, addresses([bdi]), {"owner": "owner"})["owner"]
    if owner[0]:
        name = read_structs(kernel, "struct device", owner, {"name": "kobj.name"})
        (text,) = read_strings(kernel, name["name"])
    else:
        at = addresses([bdi + offset_of(kernel.prog, BDI, "dev_name")])
        (text,) = read_strings(kernel, at)
    return text or "?"
