"""The steps of a plan, each made when it is asked for.

There can be hundreds of thousands of them, of which a person is shown a few.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import overload

from memcgctl.model import Step
from memcgctl.policy.drafts import Draft, Drafts
from memcgctl.policy.interfaces.context import PlanContext


class Steps(Sequence[Step]):
    """Some of the drafts as steps, in the order of ``numbers``.

    ``frees`` has the memcgs that go with a draft, ``over_limit`` the paths of those
    that it would push over a limit, both by the draft's number.
    """

    def __init__(
        self,
        drafts: Drafts,
        numbers: Sequence[int],
        frees: Mapping[int, tuple[int, ...]],
        over_limit: Mapping[int, tuple[str, ...]],
    ) -> None:
        self._drafts = drafts
        self._numbers = numbers
        self._frees = frees
        self._over_limit = over_limit
        self._made: list[Step | None] = [None] * len(numbers)

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> Step: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Step, ...]: ...

    def __getitem__(self, index: int | slice) -> Step | tuple[Step, ...]:
        if isinstance(index, slice):
            return tuple(map(self._step, range(len(self))[index]))
        return self._step(range(len(self))[index])

    def __iter__(self) -> Iterator[Step]:
        return map(self._step, range(len(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, (Steps, tuple)) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return repr(tuple(self))

    def _step(self, index: int) -> Step:
        known = self._made[index]
        if known is None:
            number = self._numbers[index]
            known = self._made[index] = _step(
                self._drafts.draft(number),
                self._drafts.collateral[number],
                self._frees.get(number, ()),
                self._over_limit.get(number, ()),
                self._drafts.context,
            )
        return known


def _step(
    draft: Draft,
    collateral_bytes: int,
    frees: tuple[int, ...],
    over_limit: tuple[str, ...],
    context: PlanContext,
) -> Step:
    memcgs: dict[int, None] = {}
    charged: dict[str, int] = {}
    for _, part, move in draft.shares:
        memcgs[part.memcg.id] = None
        if move.charged is not None:
            path = context.room.path(move.charged)
            charged[path] = charged.get(path, 0) + move.bytes + move.copied
    action = draft.interface.action(draft.target, draft.served, context)
    charged_to = tuple(sorted(charged))
    return Step(
        memcgs=tuple(memcgs),
        action=draft.interface.name,
        does=draft.interface.does,
        way=draft.interface.way,
        option=draft.option,
        target=action.target,
        command=action.command,
        bytes=draft.bytes,
        charged_to=charged_to,
        collateral_bytes=collateral_bytes,
        risk=action.risk,
        aim=action.aim,
        frees=frees,
        over_limit=over_limit,
        charged_bytes=tuple(map(charged.__getitem__, charged_to)),
    )
