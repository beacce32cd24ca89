"""What does a kernfs node tell beyond its name: when it changed, and its attributes?

Reads ``struct kernfs_iattrs``, which a node gets with its first chown, chmod or
extended attribute, and which outlives its removal, in bulk. Times are wall clock.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from memcgctl.kernel.layout import has_member, offset_of
from memcgctl.linux.structs import U64, read_pointers, read_strings, read_structs

if TYPE_CHECKING:
    from memcgctl.kernel.program import OpenedKernel

# fs/kernfs/inode.c: KERNFS_MAX_XATTRS is 128 user attributes; others are root's.
_MOST = 1 << 10
_LONGEST = 4096


@dataclass(frozen=True)
class Attributes:
    """One node's attributes; times are seconds since the epoch.

    ``set_at`` is when the first one was set (``ia_atime``, which nothing changes then),
    ``changed_at`` when something below the node was last made or removed
    (``ia_mtime``). ``xattrs`` are by name; values of over 4,096 bytes are cut off.
    ``whole`` is False where the list of them could not be read to its end.
    """

    set_at: float
    changed_at: float
    xattrs: dict[str, bytes]
    whole: bool = True


def attributes(kernel: OpenedKernel, nodes: U64) -> list[Attributes | None]:
    """Those of the ``struct kernfs_node`` at each address; None: none was ever set.

    An unreadable ``struct kernfs_iattrs`` is None as well, and counted as a fault by
    ``Memory``. Raises LookupError where the kernel has no such structures.
    """
    members = {"iattr": "iattr"}
    iattr = read_structs(kernel, "struct kernfs_node", nodes, members)["iattr"]
    found = read_structs(
        kernel,
        "struct kernfs_iattrs",
        iattr,
        {
            "set": "ia_atime.tv_sec",
            "set_ns": "ia_atime.tv_nsec",
            "changed": "ia_mtime.tv_sec",
            "changed_ns": "ia_mtime.tv_nsec",
        },
    )
    named: list[dict[str, bytes]] = [{} for _ in iattr]
    whole = [True] * len(iattr)
    for row, name, value in _read_xattrs(kernel, iattr):
        if name is None:
            whole[row] = False
        else:
            named[row][name] = value
    return [
        Attributes(int(s) + int(sn) / 1e9, int(c) + int(cn) / 1e9, xattrs, complete)
        if address and s
        else None
        for address, (s, sn, c, cn), xattrs, complete in zip(
            iattr.tolist(),
            found[["set", "set_ns", "changed", "changed_ns"]].tolist(),
            named,
            whole,
            strict=True,
        )
    ]


def _read_xattrs(
    kernel: OpenedKernel, iattr: U64
) -> Iterator[tuple[int, str | None, bytes]]:
    """Position of the node, name and value of each extended attribute.

    The name is None once for each node whose attributes could not all be read.
    """
    collection, links = _shape(kernel)
    head = np.where(
        iattr != 0,
        iattr + np.uint64(offset_of(kernel.prog, "struct kernfs_iattrs", collection)),
        np.uint64(0),
    )
    link = offset_of(kernel.prog, "struct simple_xattr", links[0].partition(".")[0])
    value = offset_of(kernel.prog, "struct simple_xattr", "value")
    fields = {"name": "name", "size": "size", **{path: path for path in links}}
    (owner,) = head.nonzero()
    at = read_pointers(kernel, head[owner])
    seen: dict[int, int] = {}
    while len(at):
        more = (at != 0) & (at != head[owner])
        owner, at = owner[more], at[more]
        fresh = np.array([seen.get(one, -1) < 0 for one in at.tolist()], np.bool_)
        seen.update(zip(at.tolist(), owner.tolist(), strict=True))
        broken = ~fresh
        xattr = at - np.uint64(link)
        rows = read_structs(kernel, "struct simple_xattr", xattr, fields)
        broken |= rows["name"] == 0
        yield from ((row, None, b"") for row in owner[broken].tolist())
        if len(seen) > _MOST * len(iattr):
            yield from ((row, None, b"") for row in owner[~broken].tolist())
            return
        owner, xattr, rows = owner[~broken], xattr[~broken], rows[~broken]
        names = read_strings(kernel, rows["name"])
        sizes = np.minimum(rows["size"], _LONGEST).tolist()
        for row, name, start, size in zip(
            owner.tolist(),
            names,
            (xattr + np.uint64(value)).tolist(),
            sizes,
            strict=True,
        ):
            raw = kernel.memory.try_read(start, size) if size else b""
            yield (row, None, b"") if raw is None or not name else (row, name, raw)
        at = np.concatenate([rows[path] for path in links])
        owner = np.tile(owner, len(links))


def _shape(kernel: OpenedKernel) -> tuple[str, tuple[str, ...]]:
    """Where the collection of attributes begins, and an attribute's links to others."""
    prog = kernel.prog
    # An rb_root since Linux kernel commit 3b4c7bc01727 ("xattr: use rbtree for
    # simple_xattrs") (in v6.2), the list of 5.10 and 6.1 before.
    if has_member(prog, "struct simple_xattrs", "rb_root"):
        root = "xattrs.rb_root.rb_node"
        return root, ("rb_node.rb_left", "rb_node.rb_right")
    if has_member(prog, "struct simple_xattrs", "head"):
        return "xattrs.head.next", ("list.next",)
    # A list in the node's own attributes beside a hash table of the file system's
    # (seen in 7.3; struct simple_xattrs is there up to 7.0 at least).
    return "xattrs.next", ("node.next",)
