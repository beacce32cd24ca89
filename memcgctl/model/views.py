"""What is shown of a census: lists, explanations, audits, single folios."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from memcgctl.model.census import Charges, Kernel, Memcg, Overhead, SwapUse, cost_bytes


@dataclass(frozen=True)
class Group:
    """What several offline memcgs cost together; ``path`` names their ancestor.

    ``charges`` and ``swap`` are None where nothing was scanned.
    """

    path: str
    memcgs: int
    usage_bytes: int
    overhead: Overhead
    charges: Charges | None
    swap: SwapUse | None

    @property
    def cost_bytes(self) -> int:
        return cost_bytes(self.charges, self.swap, self.overhead)


@dataclass(frozen=True)
class Reason:
    """What holds ``memcgs`` offline memcgs above all, and what these cost.

    ``children`` and ``other`` stand for memcgs without a charged folio or swap entry.
    """

    kind: Literal[
        "file",
        "shmem",
        "anon",
        "kernel",
        "hugetlb",
        "sock",
        "swap",
        "children",
        "other",
    ]
    memcgs: int
    cost_bytes: int


@dataclass(frozen=True)
class Listing:
    """The part of a census that was asked for, in the order that was asked for.

    ``total`` and ``reason`` are of all offline memcgs that match, the ``omitted``
    (memcgs, or groups where ``groups`` is not None) included. ``reason`` is None
    where nothing was scanned or nothing is offline.
    """

    kernel: Kernel
    memcgs: tuple[Memcg, ...]
    groups: tuple[Group, ...] | None
    omitted: int
    total: Group
    reason: Reason | None
    warnings: tuple[str, ...]
    unread: tuple[str, ...] = ()


@dataclass(frozen=True)
class User:
    """What the processes of one memcg use of another one's memory.

    ``kept_bytes`` they have otherwise than mapped or open (``Keeper``). A byte that
    several processes of the memcg share counts once; where it is not known how much
    they share, it is the largest process's part, and ``exact`` is False: it is at least
    that.
    """

    memcg: str
    memcg_id: int
    processes: int
    mapped_bytes: int
    open_bytes: int
    swap_entries: int
    exact: bool
    kept_bytes: int = 0


@dataclass(frozen=True)
class Explanation:
    """Why one memcg is there: what holds it and who uses it, largest first.

    ``explained`` is the css references that the holders of ``memcg.details`` account
    for. ``keeper`` is the memcg below it that really holds it, where only children
    do; ``unused_bytes`` is what nobody maps, has open or keeps otherwise; of these,
    ``unfound_bytes`` are of files that somebody must have, as they have no name.
    """

    kernel: Kernel
    memcg: Memcg
    explained: int
    children: tuple[Memcg, ...]
    keeper: Memcg | None
    users: tuple[User, ...]
    unused_bytes: int
    warnings: tuple[str, ...]
    unfound_bytes: int = 0
    unread: tuple[str, ...] = ()


@dataclass(frozen=True)
class Account:
    """The css references of one offline memcg, counted by kind of holder."""

    memcg: Memcg
    held: dict[str, int]
    unexplained: int | None


@dataclass(frozen=True)
class Audit:
    """The accounts of all offline memcgs, those that do not balance first.

    ``unexplained`` counts references without a holder, ``missing`` holders without a
    reference, ``unknown`` the memcgs whose references could not be counted. ``root``
    shows what has piled up at the root.
    """

    kernel: Kernel
    accounts: tuple[Account, ...]
    held: dict[str, int]
    unexplained: int
    missing: int
    unknown: int
    root: Memcg | None
    warnings: tuple[str, ...]
    unread: tuple[str, ...] = ()


@dataclass(frozen=True)
class Frame:
    """One charged folio; ``pfn`` is its first page frame, ``inode`` None without one.

    ``mapcount`` counts the page-table entries that map any part of it, ``pins`` what
    ``pin_user_pages`` holds, which ``refcount`` includes.
    """

    pfn: int
    pages: int
    kind: Literal["file", "shmem", "anon", "kernel", "hugetlb"]
    inode: int | None
    mapcount: int
    refcount: int
    pins: int
    flags: tuple[str, ...]


@dataclass(frozen=True)
class Frames:
    """The first folios of a memcg by page frame, and how many there are in all."""

    total: int
    frames: tuple[Frame, ...]
