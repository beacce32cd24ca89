"""Which traits has this kernel, and where is its cgroup hierarchy mounted?

``model.traits`` has the table. Looks for functions among the symbols, and at members of
types, so that a core tells as well as the running kernel. Whether an interface is
mounted, allowed or switched on where it is needed, only a try can tell.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import drgn

from memcgctl.kernel.layout import has_member, offset_of
from memcgctl.kernel.trouble import Topic, reading
from memcgctl.linux.lists import list_structs
from memcgctl.linux.paths import mount_point
from memcgctl.linux.structs import addresses, read_structs
from memcgctl.model.traits import TRAITS, Trait

if TYPE_CHECKING:
    from memcgctl.census.tree import Tree
    from memcgctl.kernel.program import OpenedKernel


def interfaces(kernel: OpenedKernel, cgroup_version: int) -> tuple[str, ...]:
    """The names of the traits that this kernel has, for memcgs of a cgroup version."""
    return tuple(
        trait.name
        for trait in TRAITS
        if trait.cgroup_version in (None, cgroup_version) and _has(kernel, trait)
    )


def _has(kernel: OpenedKernel, trait: Trait) -> bool:
    if trait.name == "lru_gen by private id" and not _lru_gen_on(kernel):
        return False
    return (
        (not trait.symbols or _any_symbol(kernel, trait.symbols))
        and all(has_member(kernel.prog, *member) for member in trait.members)
        and not any(has_member(kernel.prog, *member) for member in trait.without)
    )


def _any_symbol(kernel: OpenedKernel, names: tuple[str, ...]) -> bool:
    for name in names:
        try:
            kernel.symbol(name)
        except LookupError:
            continue
        return True
    return False


def _lru_gen_on(kernel: OpenedKernel) -> bool:
    """Whether the multi-generational LRU is there, and the first key of its caps on.

    d6c3af7d8a2b ("mm: multi-gen LRU: debugfs interface") (in v6.1) added
    ``lru_gen_seq_write``.
    """
    try:
        kernel.symbol("lru_gen_seq_write")
        at = kernel.symbol("lru_gen_caps")
        at += offset_of(kernel.prog, "struct static_key", "enabled")
        return int.from_bytes(kernel.memory.read(at, 4), "little", signed=True) > 0
    except LookupError:
        return False
    except drgn.FaultError:
        kernel.trouble.fault()
        return False


@reading(Topic.FILES)
def cgroup_mount(kernel: OpenedKernel, tree: Tree) -> str | None:
    """Where the host has mounted the hierarchy of the tree; None: not known."""
    try:
        return _mount_of(kernel, int(tree.cgroup["kn"][0]))
    except LookupError:
        return None
    except drgn.FaultError:
        kernel.trouble.fault()
        return None


def _mount_of(kernel: OpenedKernel, node: int) -> str | None:
    """The mount of the cgroup file system with this ``struct kernfs_node *`` as root.

    A cgroup namespace's mount has another root, but the same super block.
    """
    supers, rows = list_structs(
        kernel,
        kernel.symbol("super_blocks"),
        "struct super_block",
        "s_list",
        {"root": "s_root"},
        Topic.FILES,
    )
    inodes = read_structs(
        kernel, "struct dentry", addresses(rows["root"]), {"inode": "d_inode"}
    )
    # kernfs keeps the node of an inode there; others keep other things.
    private = read_structs(
        kernel, "struct inode", addresses(inodes["inode"]), {"node": "i_private"}
    )
    for row in (private["node"] == node).nonzero()[0].tolist():
        return mount_point(kernel, int(supers[row]), int(rows["root"][row]))
    return None
