"""What is an interface: what it reaches, how it is shown, what it moves of others'."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

from memcgctl.model import Target, Way
from memcgctl.policy.cases import Case, Part
from memcgctl.policy.effects import Effect, left
from memcgctl.policy.interfaces.context import PlanContext
from memcgctl.policy.policies import Option

T = TypeVar("T", bound=Target)

SWAP_BACKED: tuple[Case, ...] = ("swap-backed-unmapped", "swap-backed-mapped")
# What takes zombies' swap entries comes before what swaps out what they have in memory:
# as long as a zombie has an entry, it has an id, and is charged for new ones as well
# (``mem_cgroup_id_get_online``, mm/memcontrol.c); so is the nearest offline ancestor.
SWAPIN, AFTER_SWAPIN = 1, 2
FILES: tuple[Case, ...] = ("file-unmapped", "file-mapped")


class Move(NamedTuple):
    """What an action does to a part: moves to equal targets are one step.

    ``charged`` is the id of the memcg that is charged for these bytes afterwards, and
    for as many beside them as are ``copied`` at most.
    """

    target: Target
    bytes: int
    charged: int | None = None
    copied: int = 0


class Reach(NamedTuple):
    """What an interface does to a part: its effect, and how much by which action.

    ``untargeted``: on this kernel it cannot be kept from what is of living memcgs. Of
    entries whose folio is in the swap cache, ``used`` are the bytes that this accounts
    for: of those that stay, and of those that are mapped again (``PlanContext``).
    """

    effect: Effect
    moves: tuple[Move, ...] = ()
    untargeted: bool = False
    used: tuple[int, int] = (0, 0)


class Action(NamedTuple):
    """A step as it is shown: on what, by which command, at what risk."""

    aim: Target
    target: str
    command: str
    risk: str


Served = list[tuple[Part, int]]


def nothing_else(target: Target, served: Served, context: PlanContext) -> int:
    return 0


@dataclass(frozen=True)
class Interface(Generic[T]):
    """One way of user space to do what ``options`` say in some ``cases``.

    ``does`` says so in at most 38 columns. Those of the least ``harm`` are tried first.
    ``needs`` are names out of ``Kernel.interfaces``; ``seen`` the kernels on which it
    did what is said here; ``requires`` what else must be there (privilege, mounts,
    programs); ``effect`` whom it charges, ``touches`` what else it moves, ``cannot``
    what it leaves; ``collateral`` is the bytes of others' that a step of it can move.
    With ``whole`` it takes all of a file whose folios nothing is in the way of: this is
    the collateral beside the file's own, by the memcgs' online ancestors.

    One that is not ``targeted`` is only taken where nothing of living memcgs is in its
    reach, or if it is asked for; one with ``ask`` only if that is asked for. Those of a
    higher ``rank`` move what the others leave, so that they come later; one with
    ``after`` moves nothing unless that was done to the same process before. What
    ``disturbs`` makes a process wait for memory that it uses. ``way`` says whether
    memory leaves, comes back from swap, or neither.
    """

    name: str
    does: str
    harm: int
    options: tuple[Option, ...]
    cases: tuple[Case, ...]
    needs: tuple[str, ...]
    seen: tuple[str, ...]
    requires: str
    effect: str
    touches: str
    cannot: str
    reach: Callable[[Part, PlanContext], Reach]
    action: Callable[[T, Served, PlanContext], Action]
    collateral: Callable[[T, Served, PlanContext], int] = nothing_else
    whole: Callable[[Iterable[int], PlanContext], int] | None = None
    targeted: bool = True
    ask: str | None = None
    rank: int = 0
    after: str | None = None
    disturbs: bool = False
    way: Way = "out"


AnyInterface = Interface[Any]


def cannot(part: Part, why: str) -> Reach:
    return Reach(left(part, why))
