"""What does a plan cost and whom, all steps together? Pure functions of a plan."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from memcgctl.model import Plan

# A guess for a machine of today: finding a process's or file's pages, moving them, and
# the wait for the kernel's own workers in the end.
_SECONDS_A_STEP, _BYTES_A_SECOND, _SECONDS_TO_SETTLE = 0.1, 100 << 20, 1.0


@dataclass(frozen=True)
class ActionSum:
    """All steps of one action, which ``does`` tells in a few words.

    ``frees`` are the zombies that go with their last.
    """

    action: str
    does: str
    steps: int
    bytes: int
    frees: int


@dataclass(frozen=True)
class Bill:
    """What a plan does in all, in bytes.

    Of what leaves memory, ``to_swap_bytes`` are written to swap; ``comes_back_bytes``
    come from there. ``others_at_most_bytes`` is what living memcgs can lose.
    ``payers`` are the memcgs that are charged afterwards, with how much. ``seconds``
    is an estimate.
    """

    leaves_memory_bytes: int
    to_swap_bytes: int
    comes_back_bytes: int
    recharged_bytes: int
    others_at_most_bytes: int
    payers: tuple[tuple[str, int], ...]
    over_limit: tuple[str, ...]
    seconds: float
    actions: tuple[ActionSum, ...]


def bill(plan: Plan) -> Bill:
    """The sums over all steps of a plan; actions in the order of their first step."""
    steps: Counter[str] = Counter()
    does: dict[str, str] = {}
    moved: Counter[str] = Counter()
    frees: Counter[str] = Counter()
    payers: Counter[str] = Counter()
    leaves = to_swap = back = others = 0
    over: dict[str, None] = {}
    for step in plan.steps:
        steps[step.action] += 1
        does.setdefault(step.action, step.does)
        moved[step.action] += step.bytes
        frees[step.action] += len(step.frees)
        others += step.collateral_bytes
        over.update(dict.fromkeys(step.over_limit))
        charged = dict(zip(step.charged_to, step.charged_bytes, strict=True))
        payers.update(charged)
        if step.way == "back":
            back += step.bytes
        elif step.way == "out":
            leaves += step.bytes
            to_swap += sum(charged.values())
    return Bill(
        leaves_memory_bytes=leaves,
        to_swap_bytes=to_swap,
        comes_back_bytes=back,
        recharged_bytes=plan.recharged_bytes,
        others_at_most_bytes=others,
        payers=tuple(payers.most_common()),
        over_limit=tuple(over),
        seconds=_SECONDS_TO_SETTLE
        + _SECONDS_A_STEP * steps.total()
        + moved.total() / _BYTES_A_SECOND,
        actions=tuple(
            ActionSum(action, does[action], number, moved[action], frees[action])
            for action, number in steps.items()
        ),
    )
