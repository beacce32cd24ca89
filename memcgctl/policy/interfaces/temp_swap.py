"""A swap device for the transit: paged out to it, memory comes back as the ancestor's.

What is swapped out of an offline memcg is charged to the nearest online ancestor, and
comes back charged to whom its entry is. So nothing leaves memory for longer than the
run, nothing waits in the swap cache, and no swap of the machine's own is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from memcgctl.model import FileTarget, ProcessTarget
from memcgctl.policy.cases import Part
from memcgctl.policy.interfaces import pageout, pageout_file
from memcgctl.policy.interfaces.base import (
    AFTER_SWAPIN,
    Action,
    Interface,
    Reach,
    Served,
    cannot,
)
from memcgctl.policy.interfaces.common import only, rest_of_file
from memcgctl.policy.interfaces.context import PlanContext
from memcgctl.policy.policies import Option

# What is paged out at once before it is brought back, if there is no room for more.
WINDOW = 16 << 20
_OPTIONS: tuple[Option, ...] = ("recharge-parent", "deferred")
_NEEDS = ("pageout",)
_EFFECT = "the nearest online ancestor is charged, in memory as before"
_REQUIRES = "root, zram, memory for what does not compress"
_RISK = "it waits in compressed memory for a moment, with a swap device switched on"


def _reached(
    part: Part, context: PlanContext, by: Callable[[Part, PlanContext], Reach]
) -> Reach:
    """What can be paged out to it, and is back then."""
    if why := context.no_transit:
        return cannot(part, why)
    ancestor = context.room.ancestor(part.memcg)
    size = min(part.bytes, WINDOW)
    swap, memory = context.room.swap_limit(ancestor), context.room.room(ancestor)
    if swap is not None and swap < size:
        return cannot(part, "memory.swap.max leaves no room for the transit")
    if memory is not None and memory < size:
        return cannot(part, "memory.max leaves no room for it to come back")
    reach = by(part, context.transit)
    done = reach.effect
    if not done.swapped_bytes:
        return reach
    done = done._replace(
        option="recharge-parent",
        swapped_bytes=0,
        charged=((ancestor, done.swapped_bytes),),
    )
    return reach._replace(effect=done)


def _file(part: Part, context: PlanContext) -> Reach:
    return _reached(part, context, pageout_file.reach)


def _mapped(part: Part, context: PlanContext) -> Reach:
    return _reached(part, context, pageout.reach)


def _again(part: Part, context: PlanContext) -> Reach:
    return _reached(part, context, pageout.reach_cached)


def _file_action(target: FileTarget, served: Served, context: PlanContext) -> Action:
    shown = pageout_file.action(target, served, context.transit)
    return _as_ours(shown, served)


def _mapped_action(
    target: ProcessTarget, served: Served, context: PlanContext
) -> Action:
    return _as_ours(pageout.action(target, served, context.transit), served)


def _again_action(
    target: ProcessTarget, served: Served, context: PlanContext
) -> Action:
    return _as_ours(pageout.action_again(target, served, context.transit), served)


def _as_ours(shown: Action, served: Served) -> Action:
    command = f"{only('temp-swap', served)} --allow temp-swap"
    return shown._replace(command=command, risk=_RISK)


def _nothing(target: ProcessTarget, served: Served, context: PlanContext) -> int:
    """What the process has of the ancestor's own comes back as well."""
    return 0


INTERFACE = Interface(
    name="temp-swap",
    does="moves it to the parent by way of zram",
    harm=30,
    way="neither",
    options=_OPTIONS,
    cases=("swap-backed-unmapped",),
    needs=_NEEDS,
    seen=("5.10", "6.1", "6.12", "7.0"),
    requires=_REQUIRES,
    effect=_EFFECT,
    touches="what others are charged for of the same file, for that moment",
    cannot="locked and pinned pages, a tmpfs mounted with noswap",
    reach=_file,
    action=_file_action,
    collateral=rest_of_file,
    ask="temp-swap",
    rank=AFTER_SWAPIN,
)
MAPPED = Interface(
    name="temp-swap",
    does="moves it to the parent by way of zram",
    harm=40,
    way="neither",
    options=_OPTIONS,
    cases=("swap-backed-mapped",),
    needs=(*_NEEDS, "process_madvise", "pagemap", "kpagecgroup"),
    seen=("5.10", "6.1", "6.12", "7.0"),
    requires=_REQUIRES,
    effect=_EFFECT,
    touches="what the process maps that is charged to the ancestor itself, for that "
    "moment",
    cannot="locked and pinned pages, pages that several map",
    reach=_mapped,
    action=_mapped_action,
    collateral=_nothing,
    ask="temp-swap",
    rank=AFTER_SWAPIN,
    disturbs=True,
)
# After swapin, which maps them.
AGAIN = replace(
    MAPPED,
    harm=50,
    cases=("swap-backed-unmapped",),
    reach=_again,
    action=_again_action,
    after="swapin",
)
