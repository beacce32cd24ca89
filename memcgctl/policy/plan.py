"""What is to be done, in which order, so that zombies go; and which would stay?

For each part of each zombie the policy's options are tried with the interfaces that
the kernel has. Equal actions for several zombies are one step. Steps for children come
before those for their parents, and among these the ones that give back most for what
they disturb.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from memcgctl.model import Census, Memcg, Plan, Step
from memcgctl.policy.cases import Part, parts
from memcgctl.policy.choice import Chooser
from memcgctl.policy.effects import Effect
from memcgctl.policy.headroom import Headroom, Move
from memcgctl.policy.interfaces import Deed, Interface, World
from memcgctl.policy.outcome import (
    IN_VAIN,
    children_of,
    fates,
    offline,
    with_descendants,
)
from memcgctl.policy.policies import Policy

Effects = dict[int, list[Effect]]
Children = dict[int, list[Memcg]]


@dataclass(frozen=True)
class Worked:
    """A plan, and what it does to each part of each memcg (by id)."""

    plan: Plan
    effects: Effects


class _Draft(NamedTuple):
    """A step in the making; a share is a memcg's effects, which of them, the deed."""

    interface: Interface
    key: Hashable
    option: str
    shares: list[tuple[list[Effect], int, Deed]]


def plan(
    census: Census,
    policy: Policy,
    wanted: Iterable[int] | None = None,
    *,
    allow: Collection[str] = (),
    only: Collection[str] = (),
    max_bytes: int | None = None,
) -> Plan:
    """The steps that carry out ``policy`` for all offline memcgs, or wanted ones.

    ``wanted`` are cgroup ids; the offline memcgs below them count as wanted too.
    Steps that could push a memcg over a limit, or that move more than is left of
    ``max_bytes``, are left out; with ``least-harm`` also those that disturb processes
    for nothing. ``allow`` lets in what is barred otherwise (``choice.ALLOWED``);
    ``only``, unless it is empty, names the interfaces that may be used.
    """
    worked = work_out(
        census, policy, wanted, allow=allow, only=only, max_bytes=max_bytes
    )
    return worked.plan


def work_out(
    census: Census,
    policy: Policy,
    wanted: Iterable[int] | None = None,
    *,
    allow: Collection[str] = (),
    only: Collection[str] = (),
    max_bytes: int | None = None,
) -> Worked:
    """As ``plan``, with what becomes of each part."""
    every = offline(census)
    children = children_of(every)
    memcgs = with_descendants(census, wanted)
    world = World(census, every, policy.mapper)
    chooser = Chooser(world, policy, allow, only)
    effects, drafts = _drafts(memcgs, chooser, world)
    before = fates(memcgs, effects, children)
    hopeful = set(before[0])
    pairs = [(draft, _step(draft, world)) for draft in drafts]
    steps, left_out = [], []
    room, budget = Headroom(census), max_bytes
    done: set[tuple[str, Hashable]] = set()
    for draft, step in _ordered(pairs, hopeful, memcgs, children):
        moves = _moves(draft, room)
        over = room.charge(moves)
        if over:
            step = replace(step, over_limit=tuple(map(room.path, over)))
        disturbed = step.bytes + step.collateral_bytes
        why = ""
        if over and "over-limit" not in allow:
            why = f"{room.path(over[0])} would be pushed over a limit"
        elif draft.interface.after and _first(draft) not in done:
            why = "it has to be read from swap first"
        elif policy.least_harm and _in_vain(draft, step, hopeful):
            why = IN_VAIN
        elif budget is not None and disturbed > budget:
            why = "it takes more than --max-bytes leaves"
        if why:
            left_out.append(step)
            _leave(draft, why)
            room.charge([(memcg, -memory, -swap) for memcg, memory, swap in moves])
        else:
            steps.append(step)
            done.add((draft.interface.name, draft.key))
            budget = None if budget is None else budget - disturbed
    freed, remaining = fates(memcgs, effects, children) if left_out else before
    made = Plan(
        kernel=census.kernel,
        policy=policy.name,
        steps=_with_frees(steps, freed, children),
        left_out=tuple(left_out),
        freed=freed,
        remaining=remaining,
        warnings=(*census.warnings, *_unknown(census)),
    )
    return Worked(made, effects)


def _in_vain(draft: _Draft, step: Step, hopeful: set[int]) -> bool:
    """Whether processes would be disturbed, and no memcg would go."""
    return draft.interface.disturbs and hopeful.isdisjoint(step.memcgs)


def _first(draft: _Draft) -> tuple[str | None, Hashable]:
    """The step that has to be done before; its key is the process."""
    process = draft.key[0] if isinstance(draft.key, tuple) else None
    return draft.interface.after, process


def _unknown(census: Census) -> Iterator[str]:
    """What a census that was taken without it does not tell."""
    if not census.kernel.interfaces:
        yield "the census does not tell which interfaces the kernel has: no steps"
    if any(m.state == "online" and m.limits is None for m in census.memcgs):
        yield "the census does not tell all limits: some steps may exceed one"


def _drafts(
    memcgs: Iterable[Memcg], chooser: Chooser, world: World
) -> tuple[Effects, list[_Draft]]:
    """What becomes of each part, and the steps by which, equal ones merged."""
    effects: Effects = {}
    drafts: dict[tuple[str, Hashable], _Draft] = {}
    for memcg in memcgs:
        mine = effects[memcg.id] = []
        for part in parts(memcg, world.page_size):
            interface, reach = chooser.choose(part)
            for deed in reach.deeds if interface else ():
                assert interface
                key = interface.name, deed.key
                draft = drafts.get(key)
                if draft is None:
                    option = chooser.option(interface, part.case)
                    draft = drafts[key] = _Draft(interface, deed.key, option, [])
                draft.shares.append((mine, len(mine), deed))
            mine.append(reach.effect)
    return effects, list(drafts.values())


def _ordered(
    pairs: Sequence[tuple[_Draft, Step]],
    hopeful: set[int],
    memcgs: Sequence[Memcg],
    children: Children,
) -> list[tuple[_Draft, Step]]:
    """Children first; among these by rank, what is aimed, and what it gives back.

    That is the bytes and structures that a step gives back for each byte it disturbs;
    a memcg's own structures are shared out among all its steps.
    """
    heights: dict[int, int] = {}
    for memcg in reversed(memcgs):
        below = (heights.get(child.id, 0) for child in children.get(memcg.id, ()))
        heights[memcg.id] = max(below, default=-1) + 1
    steps = Counter(memcg_id for _, step in pairs for memcg_id in step.memcgs)
    structures = {
        memcg.id: memcg.overhead.total_bytes / steps[memcg.id]
        if memcg.id in hopeful
        else 0
        for memcg in memcgs
        if memcg.id in steps
    }

    def place(pair: tuple[_Draft, Step]) -> tuple[int, int, bool, float]:
        draft, step = pair
        given_back = step.bytes + sum(map(structures.__getitem__, step.memcgs))
        disturbed = max(step.bytes + step.collateral_bytes, 1)
        height = max(map(heights.__getitem__, step.memcgs))
        interface = draft.interface
        return height, interface.rank, not interface.aimed, -given_back / disturbed

    return sorted(pairs, key=place)


def _step(draft: _Draft, world: World) -> Step:
    served: list[tuple[Part, int]] = []
    memcgs: dict[int, None] = {}
    charged: dict[str, int] = {}
    size = 0
    for mine, place, (_, moved, payer) in draft.shares:
        part = mine[place].part
        served.append((part, moved))
        memcgs[part.memcg.id] = None
        size += moved
        if payer is not None:
            path = world.room.path(payer)
            charged[path] = charged.get(path, 0) + moved
    action = draft.interface.action(draft.key, served, world)
    charged_to = tuple(sorted(charged))
    return Step(
        memcgs=tuple(memcgs),
        action=draft.interface.name,
        option=draft.option,
        target=action.target,
        command=action.command,
        bytes=size,
        charged_to=charged_to,
        collateral_bytes=action.collateral_bytes,
        risk=action.risk,
        aim=action.aim,
        charged_bytes=tuple(map(charged.__getitem__, charged_to)),
    )


def _moves(draft: _Draft, room: Headroom) -> list[Move]:
    """What a step changes in the counters of online memcgs."""
    moves: list[Move] = []
    for mine, place, deed in draft.shares:
        one, size = mine[place], deed.bytes
        origin = room.ancestor(one.part.memcg)
        in_swap = one.part.case == "swap"
        moves.append((origin, 0, -size) if in_swap else (origin, -size, 0))
        if (payer := deed.charged) is not None:
            moves.append((payer, 0, size) if one.swapped_bytes else (payer, size, 0))
    return moves


def _leave(draft: _Draft, why: str) -> None:
    """Take back what a step that is left out would have done."""
    for mine, place, deed in draft.shares:
        effect = mine[place]
        charged = tuple(
            (one, size - deed.bytes if one == deed.charged else size)
            for one, size in effect.charged
        )
        whys = [one for one in (effect.why, why) if one]
        if IN_VAIN in whys:
            whys = whys[:1]
        evicted = effect.evicted_bytes - (deed.bytes if deed.charged is None else 0)
        mine[place] = effect._replace(
            evicted_bytes=evicted,
            written_bytes=min(effect.written_bytes, evicted),
            swapped_bytes=effect.swapped_bytes
            - (deed.bytes if effect.swapped_bytes and deed.charged is not None else 0),
            charged=tuple((one, size) for one, size in charged if size),
            left_bytes=effect.left_bytes + deed.bytes,
            why="; ".join(dict.fromkeys(whys)),
        )


def _with_frees(
    steps: list[Step], freed: Sequence[int], children: Children
) -> tuple[Step, ...]:
    """Each step with the memcgs that go with it: their last one, or their children's.

    ``freed`` has children before their parents.
    """
    last = {memcg_id: n for n, step in enumerate(steps) for memcg_id in step.memcgs}
    gone: dict[int, list[int]] = {}
    for memcg_id in freed:
        below = (last.get(child.id, -1) for child in children.get(memcg_id, ()))
        last[memcg_id] = max([last.get(memcg_id, -1), *below])
        gone.setdefault(last[memcg_id], []).append(memcg_id)
    gone.pop(-1, None)  # nothing is to be done for them
    for n, memcg_ids in gone.items():
        steps[n] = replace(steps[n], frees=tuple(memcg_ids))
    return tuple(steps)
