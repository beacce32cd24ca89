"""Which sockets hold a memcg, and whose are they?

Each ``struct sock`` with a ``sk_memcg`` holds one css reference (mm/memcontrol.c,
``mem_cgroup_sk_alloc``). Reads the slab caches of all protocols on ``proto_list``, so
that a socket is found that has no file any more, or none yet; for protocols without a
cache of their own, the open files.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from memcgctl.kernel.trouble import Topic, reading
from memcgctl.linux.files import Opened
from memcgctl.linux.slab import slab_structs
from memcgctl.linux.structs import U64, Rows, addresses, read_structs
from memcgctl.model import Holder

if TYPE_CHECKING:
    from memcgctl.kernel.program import OpenedKernel

SOCK = "struct sock"
# Pointers to memcgs are aligned to more; 6.18 discussed flags in the low bits.
POINTER = np.uint64(2**64 - 8)

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


@reading(Topic.SOCKETS)
def socket_holders(
    kernel: OpenedKernel, wanted: U64, opened: Opened
) -> Iterator[tuple[int, Holder]]:
    """(``struct mem_cgroup *``, holder) for the sockets of one protocol and user."""
    protocols, rows = opened.protocols
    names = {
        int(at): bytes(name.astype(np.uint8))
        .partition(b"\0")[0]
        .decode(errors="replace")
        for at, name in zip(protocols, rows["name"], strict=True)
    }
    socks = _socks(kernel, addresses(rows["slab"]), protocols, opened)
    socks["memcg"] &= POINTER
    held = socks[np.isin(socks["memcg"], wanted)]
    files = read_structs(kernel, "struct socket", held["socket"], {"file": "file"})
    of_file: defaultdict[tuple[int, str], list[int]] = defaultdict(list)
    orphans: Counter[tuple[int, str]] = Counter()
    for sock, file in zip(held, files["file"].tolist(), strict=True):
        memcg, name = int(sock["memcg"]), names.get(int(sock["protocol"]), "?")
        if file:
            of_file[memcg, name].append(file)
        else:
            orphans[memcg, f"{name}, no file{_state(name, sock)}"] += 1
    for (memcg, name), its in of_file.items():
        for detail, count in opened.described(name, its):
            yield memcg, Holder("socket", count, detail)
    for (memcg, detail), count in orphans.items():
        yield memcg, Holder("socket", count, detail)


def _socks(
    kernel: OpenedKernel,
    caches: U64,
    protocols: U64,
    opened: Opened,
) -> Rows:
    """All ``struct sock`` in use, each once."""
    members = {
        "memcg": "sk_memcg",
        "socket": "sk_socket",
        "protocol": "sk_prot_creator",
        "state": "__sk_common.skc_state",
        # At least 1 until the socket is freed (sk_free, net/core/sock.c).
        "used": "sk_wmem_alloc.refs.counter",
    }
    at, rows = slab_structs(kernel, opened.slabs, caches, SOCK, members)
    # A cache that has been merged with another has other objects in it, too.
    real = (rows["used"] > 0) & np.isin(rows["protocol"], protocols)
    _, sockets = opened.of_kind("socket_file_ops")
    open_socks = read_structs(kernel, "struct socket", sockets, {"sk": "sk"})["sk"]
    others = np.setdiff1d(open_socks[open_socks != 0], at[real])
    more = read_structs(kernel, SOCK, others, members)
    return np.concatenate([rows[real], more.astype(rows.dtype)])


def _state(protocol: str, sock: NDArray[np.void]) -> str:
    """The state of a TCP connection."""
    state = int(sock["state"])
    known = "TCP" in protocol and 0 < state < len(TCP_STATES)
    return f", {TCP_STATES[state]}" if known else ""
