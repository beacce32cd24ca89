"""Which sockets hold a memcg, and whose are they?

Each ``struct sock`` with a ``sk_memcg`` holds one css reference (mm/memcontrol.c,
``mem_cgroup_sk_alloc``), the kernel's own sockets as well: those of a network namespace
hold the memcg of the process that made it. Reads the slab caches of all protocols on
``proto_list``, so that a socket is found that has no file any more, or none yet; for
protocols without a cache of their own, the open files, and then the caches of
``kmalloc``, which ``sk_prot_alloc`` (net/core/sock.c) takes those sockets from.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import drgn
import numpy as np
from numpy.typing import NDArray

from memcgctl.kernel.layout import value_of
from memcgctl.kernel.trouble import Topic, reading
from memcgctl.linux.files import Opened
from memcgctl.linux.namespaces import Namespaces
from memcgctl.linux.slab import find_slabs, slab_structs
from memcgctl.linux.structs import U64, Rows, addresses, read_structs
from memcgctl.model import Holder

if TYPE_CHECKING:
    from memcgctl.kernel.program import OpenedKernel

SOCK = "struct sock"
# Pointers to memcgs are aligned to more; 6.18 discussed flags in the low bits.
POINTER = np.uint64(2**64 - 8)
# sk_wmem_alloc is no larger than a socket's buffers; slub_debug's poison is.
MOST_BYTES = 0x6B6B6B6B

# include/net/tcp_states.h; what an orphan can be in.
TCP_STATES = (
    "",
    "ESTABLISHED",
    "SYN_SENT",
    "SYN_RECV",
    "FIN_WAIT1",
    "FIN_WAIT2",
    "TIME_WAIT",
    "CLOSE",
    "CLOSE_WAIT",
    "LAST_ACK",
    "LISTEN",
    "CLOSING",
    "NEW_SYN_RECV",
)
MEMBERS = {
    "memcg": "sk_memcg",
    "socket": "sk_socket",
    "protocol": "sk_prot_creator",
    "net": "__sk_common.skc_net.net",
    "state": "__sk_common.skc_state",
    # At least 1 until the socket is freed (sk_free, net/core/sock.c).
    "used": "sk_wmem_alloc.refs.counter",
}


@reading(Topic.SOCKETS)
def socket_holders(
    kernel: OpenedKernel, wanted: U64, sockets: Sockets
) -> Iterator[tuple[int, Holder]]:
    """(``struct mem_cgroup *``, holder) for the sockets of one protocol and user.

    Those in caches of their own, and those that are open.
    """
    yield from sockets.described(wanted, *sockets.listed())


@reading(Topic.SOCKETS)
def kmalloc_holders(
    kernel: OpenedKernel, wanted: U64, sockets: Sockets
) -> Iterator[tuple[int, Holder]]:
    """The same for sockets of protocols without a cache, open nowhere.

    Netlink's kernel sockets are such, and those of /dev/net/tun, whose protocol is not
    even registered.
    """
    yield from sockets.described(wanted, *sockets.unlisted(wanted))


@dataclass
class Sockets:
    """The sockets of the kernel; what was found once is not found again."""

    kernel: OpenedKernel
    opened: Opened
    namespaces: Namespaces
    seen: U64 = field(default_factory=lambda: addresses([]))

    def unlisted(self, wanted: U64) -> tuple[U64, Rows]:
        """Sockets in the caches of ``kmalloc`` that ``listed`` has not found.

        A socket is what has a protocol with a name, is in use and has one of the memcgs
        ``wanted``.
        """
        kernel = self.kernel
        size = kernel.prog.type(SOCK).size or 0
        caches = self.opened.kmalloc_caches(size)
        slabs = find_slabs(kernel, caches)
        at, rows = slab_structs(kernel, slabs, caches, SOCK, MEMBERS)
        rows["memcg"] &= POINTER
        real = np.isin(rows["memcg"], wanted) & _in_use(rows)
        real &= (rows["protocol"] >> np.uint64(63) != 0) & ~np.isin(at, self.seen)
        at, rows = at[real], rows[real]
        protocols = read_structs(
            kernel, "struct proto", addresses(rows["protocol"]), {"size": "obj_size"}
        )
        real = protocols["size"] >= size
        real &= np.array([n != "?" for n in self._names(rows["protocol"])], np.bool_)
        return at[real], rows[real]

    def listed(self) -> tuple[U64, Rows]:
        """Addresses and members of all sockets that are listed anywhere, each once."""
        kernel, opened = self.kernel, self.opened
        protocols, known = opened.protocols
        caches = addresses(known["slab"])
        at, rows = slab_structs(kernel, opened.slabs, caches, SOCK, MEMBERS)
        # A cache that has been merged with another has other objects in it, too.
        real = _in_use(rows) & np.isin(rows["protocol"], protocols)
        _, sockets = opened.of_kind("socket_file_ops")
        open_socks = read_structs(kernel, "struct socket", sockets, {"sk": "sk"})["sk"]
        others = np.setdiff1d(open_socks[open_socks != 0], at[real])
        more = read_structs(kernel, SOCK, others, MEMBERS)
        self.seen = np.concatenate([at[real], others])
        return self.seen, np.concatenate([rows[real], more.astype(rows.dtype)])

    def described(
        self, wanted: U64, at: U64, rows: Rows
    ) -> Iterator[tuple[int, Holder]]:
        """The holders among some sockets, in words."""
        memcgs = rows["memcg"] & POINTER
        held = np.isin(memcgs, wanted)
        at, rows, memcgs = at[held], rows[held], memcgs[held]
        files = read_structs(
            self.kernel, "struct socket", addresses(rows["socket"]), {"file": "file"}
        )["file"]
        of_file: defaultdict[tuple[int, str], list[int]] = defaultdict(list)
        kernels: Counter[tuple[int, int]] = Counter()
        orphans: Counter[tuple[int, str]] = Counter()
        for sock, row, memcg, name, file in zip(
            at.tolist(),
            rows,
            memcgs.tolist(),
            self._names(rows["protocol"]),
            files.tolist(),
            strict=True,
        ):
            if file:
                of_file[memcg, name].append(file)
            elif (kernels_own := self._is_kernels(sock)) is None:
                orphans[memcg, f"{name}, whose cannot be read"] += 1
            elif kernels_own:
                kernels[memcg, int(row["net"])] += 1
            else:
                orphans[memcg, f"{name}, no file{_state(name, row)}"] += 1
        for (memcg, name), its in of_file.items():
            for detail, count in self.opened.described(name, its):
                yield memcg, Holder("socket", count, detail)
        for (memcg, net), count in kernels.items():
            number, kept = self.namespaces.network(net)
            detail = f"the kernel's own, of network namespace {number}: {kept}"
            yield memcg, Holder("socket", count, detail)
        for (memcg, detail), count in orphans.items():
            yield memcg, Holder("socket", count, detail)

    def _names(self, protocols: U64) -> list[str]:
        """The name of each ``struct proto *``; "?" for what is none."""
        rows = read_structs(
            self.kernel, "struct proto", addresses(protocols), {"name": "name"}
        )["name"]
        texts = [bytes(row.astype(np.uint8)).partition(b"\0")[0] for row in rows]
        return [
            text.decode() if text.isascii() and text.decode().isprintable() else "?"
            for text in (text or b"?" for text in texts)
        ]

    def _is_kernels(self, sock: int) -> bool | None:
        """Whether the kernel made it (``sock_create_kern``); None: not readable."""
        try:
            found = drgn.Object(self.kernel.prog, f"{SOCK} *", sock)
            return bool(value_of(found, "sk_kern_sock"))
        except drgn.FaultError:
            self.kernel.trouble.fault()
            return None


def _in_use(rows: Rows) -> NDArray[np.bool_]:
    used: NDArray[np.bool_] = (rows["used"] > 0) & (rows["used"] != MOST_BYTES)
    return used


def _state(protocol: str, sock: NDArray[np.void]) -> str:
    """The state of a TCP connection."""
    state = int(sock["state"])
    known = "TCP" in protocol and 0 < state < len(TCP_STATES)
    return f", {TCP_STATES[state]}" if known else ""
