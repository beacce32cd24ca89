"""What would become of a part of a zombie if a kernel did what an option says?

This is the proposal taken at its word, whether user space can bring it about or not:
all bytes of a part are evicted, swapped out, charged to somebody else, or left.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from memcgctl.model import Process
from memcgctl.policy.cases import (
    REFERENCES,
    Part,
    charged_already,
    movable,
    nobody,
    users,
    warm_bytes,
)
from memcgctl.policy.headroom import Change, Headroom
from memcgctl.policy.policies import MapperRule, Option

WRITTEN = ("dirty", "under writeback")
ONLY_ITS_HOLDER = "only its holder can let go of it"
NO_RULE = "the policy has no option for it"


class Effect(NamedTuple):
    """What becomes of ``part``; the bytes add up to the part's.

    ``written_bytes`` (of the evicted ones) are written to a file first,
    ``swapped_bytes`` to swap, which is charged to the nearest online ancestor then;
    what is charged there already is just evicted.
    ``charged`` has the memcgs that get the rest, and ``why`` says why something is
    left, or why a reference stays.
    """

    part: Part
    option: Option
    evicted_bytes: int = 0
    written_bytes: int = 0
    swapped_bytes: int = 0
    charged: tuple[tuple[int, int], ...] = ()
    left_bytes: int = 0
    why: str = ""


def effect(
    part: Part, options: Sequence[Option], rule: MapperRule, room: Headroom
) -> Effect:
    """The effect of the first option that leaves nothing, or else of the best one.

    ``room`` is asked for free swap.
    """
    tried = [_EFFECTS[option](part, rule, room) for option in options]
    if not tried:
        return left(part, NO_RULE)
    return min(tried, key=lambda one: (bool(one.why), one.left_bytes))


def counter_changes(one: Effect, room: Headroom) -> list[Change]:
    """What an effect changes in the counters of online memcgs."""
    gone = one.part.bytes - one.left_bytes
    origin = room.ancestor(one.part.memcg)
    in_swap = one.part.case == "swap"
    found = [(origin, 0 if in_swap else -gone, one.swapped_bytes)]
    if in_swap:
        found.append((origin, 0, -gone))
    # An entry that is recharged without being read stays in swap.
    stays = in_swap and one.option in ("recharge-parent", "deferred")
    for memcg_id, size in one.charged:
        found.append((memcg_id, 0, size) if stays else (memcg_id, size, 0))
    return found


def left(part: Part, why: str, option: Option = "leave") -> Effect:
    return Effect(part, option, left_bytes=part.bytes, why=why)


def _evict(part: Part, _: MapperRule, room: Headroom) -> Effect:
    if part.case == "swap":
        return left(part, "it is in swap already", "evict")
    if part.case == "other":
        return left(part, ONLY_ITS_HOLDER, "evict")
    if part.group is None:  # writeback is done, a stock is given back
        return Effect(part, "evict")
    size, why = movable(part.group, WRITTEN)
    if part.case in ("swap-backed-unmapped", "swap-backed-mapped"):
        free = room.swap_room(room.ancestor(part.memcg))
        had = charged_already(part.group, size)
        if free < size - had:
            size, why = had + free, ", ".join(filter(None, [why, "no room in swap"]))
        return Effect(
            part,
            "evict",
            evicted_bytes=had,
            swapped_bytes=size - had,
            left_bytes=part.bytes - size,
            why=why,
        )
    return Effect(
        part,
        "evict",
        evicted_bytes=size,
        written_bytes=min(size, part.group.dirty_bytes),
        left_bytes=part.bytes - size,
        why=why,
    )


def _recharge_parent(part: Part, _: MapperRule, room: Headroom) -> Effect:
    if part.case == "other":
        return left(part, ONLY_ITS_HOLDER, "recharge-parent")
    if not part.bytes:
        return Effect(part, "recharge-parent")
    charged = ((room.ancestor(part.memcg), part.bytes),)
    return Effect(part, "recharge-parent", charged=charged)


def _deferred(part: Part, rule: MapperRule, room: Headroom) -> Effect:
    """To the parent now; to whoever touches it next, if anybody does."""
    now = _recharge_parent(part, rule, room)
    return now._replace(option="deferred")


def _recharge_mapper(part: Part, rule: MapperRule, room: Headroom) -> Effect:
    if part.case == "other":
        return left(part, ONLY_ITS_HOLDER, "recharge-mapper")
    if part.case in REFERENCES:
        return left(part, "a reference is no charge", "recharge-mapper")
    found = [u for u in users(part, room.page_size) if u.memcg_id in room.memcgs]
    if not found:
        return left(part, nobody(part), "recharge-mapper")
    charged = share(found, part.bytes, rule, room)
    rest = part.bytes - sum(size for _, size in charged)
    why = "nobody was found who uses all of it" if rest else ""
    return Effect(part, "recharge-mapper", charged=charged, left_bytes=rest, why=why)


_EFFECTS = {
    "evict": _evict,
    "recharge-parent": _recharge_parent,
    "recharge-mapper": _recharge_mapper,
    "deferred": _deferred,
    "leave": lambda part, *_: left(part, "the policy leaves it"),
}


def share(
    found: Sequence[Process], size: int, rule: MapperRule, room: Headroom
) -> tuple[tuple[int, int], ...]:
    """Who is charged how much of ``size`` bytes that these processes use.

    Who uses what nobody else does is charged for it; the rule is for the rest. Which
    pages overlap is not known, only how many: with ``first`` and ``most`` each gets
    its own in that order until all is given away, with ``lca`` all goes to the common
    ancestor.
    """
    if rule == "first":
        found = sorted(found, key=lambda process: process.start_ticks)
    parts: Counter[int] = Counter()
    for process in found:
        parts[process.memcg_id] += process.bytes
    if sum(parts.values()) > size:
        if rule == "lca":
            return ((room.common(parts), size),)
        if rule == "most":
            parts = Counter(dict(parts.most_common()))
    charged = []
    for memcg_id, used in parts.items():
        used = min(used, size)
        size -= used
        if used:
            charged.append((memcg_id, used))
    return tuple(charged)


def likely_bytes(one: Effect) -> int:
    """Of what is charged to the parent for the time being: what is likely touched."""
    if one.option != "deferred" or one.part.group is None:
        return 0
    return warm_bytes(one.part.group)
