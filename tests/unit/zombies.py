"""Memcgs made by hand, for tests of what is said about them."""

from __future__ import annotations

from typing import Any

from memcgctl.model import (
    Backing,
    Census,
    ChargeGroup,
    Charges,
    Coldness,
    Details,
    Holder,
    Kernel,
    Memcg,
    Overhead,
    Process,
    SwapDeviceUse,
    SwapUse,
)

KERNEL = Kernel("vmcore", "/tmp/core", "6.12.1", "btf", 2, 4096, 2, 1)
FILE = Backing("file", "ext4", "254:0", 12, 1, "/var/log/x", None, False, 8192)
METADATA = Backing("bdev", "bdev", "vda", 266338304, 0, None, None, False, 1 << 30)
SLEEP = Process(77, "sleep", "/holder", 9, 4096, 100)


def memcg(number: int = 7, path: str = "/app/zombie", **changes: Any) -> Memcg:
    """An offline memcg that nothing is known to hold."""
    values: dict[str, Any] = {
        "state": "offline",
        "ancestor": "/app",
        "refs": 0,
        "children": 0,
        "usage_bytes": 0,
        "overhead": Overhead(115 << 10, 100 << 10, 4096),
        "address": 0xFFFF888000000000 + number * 4096,
        "private_id": 0,
        "charges": Charges(),
        "swap": SwapUse(),
        "parent_id": 5,
    }
    return Memcg(number, path, **(values | changes))


def census(*memcgs: Memcg, **changes: Any) -> Census:
    values: dict[str, Any] = {"kernel": KERNEL, "warnings": ()}
    return Census(memcgs=memcgs, **(values | changes))


def group(**changes: Any) -> ChargeGroup:
    """One clean, unmapped file folio of /var/log/x."""
    values: dict[str, Any] = {
        "kind": "file",
        "mapped": False,
        "folios": 1,
        "bytes": 4096,
        "evictable_bytes": 4096,
        "obstacles": (),
        "dirty_bytes": 0,
        "backing": FILE,
        "mappers": (),
        "openers": (),
        "coldness": Coldness(),
    }
    return ChargeGroup(**(values | changes))


def details(
    *holders: tuple[Any, int, str],
    unexplained: int | None = 0,
    groups: tuple[ChargeGroup, ...] = (),
    swap: tuple[SwapDeviceUse, ...] = (),
) -> Details:
    return Details(
        tuple(Holder(*holder) for holder in holders), unexplained, groups, swap
    )


def held(*holders: tuple[Any, int, str], **rest: Any) -> dict[str, Any]:
    """What ``memcg()`` takes for a memcg held by ``holders``."""
    found = details(*holders, **rest)
    explained = sum(holder.count for holder in found.holders)
    return {"refs": explained + (found.unexplained or 0), "details": found}
