"""What do steps leave in the swap cache, and does it leave memory after the last one?

Living memcgs lose pages with each call of memory.reclaim, which passes by them: so it
is asked once for what all steps left (``host.swapcache``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from memcgctl.actions.host import pages, swapcache
from memcgctl.actions.host.machine import Machine
from memcgctl.actions.host.pages import U64
from memcgctl.model import StepResult


@dataclass(frozen=True)
class Waiting:
    """Page frames in the swap cache, and the memcgs that they were shown for then.

    ``left`` is what the step could not do anyway; ``reclaim`` says in which way
    memory.reclaim may be asked: unaimed (as in the step's aim), and among zombies.
    """

    frames: U64
    memcg_ids: U64
    left: str
    reclaim: tuple[bool, bool]


class Stay(NamedTuple):
    """The frames that stay in the swap cache, and which are being written still."""

    frames: U64
    unwritten: U64


def drain(waiting: Mapping[int, Waiting], machine: Machine) -> Stay:
    """Reclaim what the steps left, by their numbers."""
    frames = np.concatenate([one.frames for one in waiting.values()])
    ids = np.concatenate([one.memcg_ids for one in waiting.values()])
    ways = np.repeat(
        [one.reclaim for one in waiting.values()],
        [len(one.frames) for one in waiting.values()],
        0,
    )
    # Some may be another memcg's by now, which is not to be reclaimed from.
    same = pages.shown(frames, machine) == ids
    others = frames[~same]
    stay: U64 = others[pages.flagged(others, pages.SWAPCACHE, machine)]
    for way in {one.reclaim for one in waiting.values()}:
        some = frames[same & (ways == way).all(axis=1)]
        untargeted, among_zombies = way
        left = swapcache.drain(
            some, machine, untargeted=untargeted, among_zombies=among_zombies
        )
        stay = np.append(stay, left)
    return Stay(stay, stay[pages.flagged(stay, pages.WRITEBACK, machine)])


def failed(result: StepResult, why: str) -> StepResult:
    """A step whose pages are still in the swap cache, as far as anybody knows."""
    return replace(
        result,
        status="part",
        why=f"{result.why}, which failed: {why}",
    )


def finished(
    result: StepResult, mine: Waiting, stay: Stay, page_size: int
) -> StepResult:
    """A step of which some frames may stay in the swap cache."""
    rest = int(np.isin(mine.frames, stay.frames).sum()) * page_size
    unwritten = int(np.isin(mine.frames, stay.unwritten).sum()) * page_size
    moved = len(mine.frames) * page_size - rest
    late = f"{rest} bytes stay in the swap cache until memory is short" if rest else ""
    if unwritten:
        late += f"; {unwritten} of them are still being written to swap"
    why = mine.left or late
    return replace(
        result,
        status="part" if why else "done",
        why=why,
        moved_bytes=(result.moved_bytes or 0) + moved,
    )
