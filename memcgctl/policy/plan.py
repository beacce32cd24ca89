"""What is to be done, in which order, so that zombies go; and which would stay?

For each part of each zombie the policy's options are tried with the interfaces that
the kernel has. Equal actions for several zombies are one step. Steps for children come
before those for their parents, and among these the ones that give back most for what
they disturb.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from memcgctl.model import Census, Memcg, Plan, Step
from memcgctl.policy.cases import parts
from memcgctl.policy.choice import Chooser
from memcgctl.policy.effects import Effect
from memcgctl.policy.headroom import Headroom, Move
from memcgctl.policy.interfaces import Action, Deed, Interface, World
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


@dataclass
class _Draft:
    """A step in the making; a share is what becomes of a memcg, which of it, the deed.

    ``memcgs`` has the ids of those whom it serves as its keys.
    """

    interface: Interface
    key: Hashable
    option: str
    shares: list[tuple[list[Effect], int, Deed]] = field(default_factory=list)
    memcgs: dict[int, None] = field(default_factory=dict)
    bytes: int = 0


# A step that is decided, and the memcgs that it could push over a limit.
_Made = tuple[_Draft, Action, list[int]]


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
    pairs = [(draft, _action(draft, world)) for draft in drafts]
    steps: list[_Made] = []
    left_out: list[_Made] = []
    room, budget = Headroom(census), max_bytes
    done: set[tuple[str, Hashable]] = set()
    for draft, action in _ordered(pairs, hopeful, memcgs, children):
        moves = _moves(draft, room)
        over = room.charge(moves)
        disturbed = draft.bytes + action.collateral_bytes
        why = ""
        if over and "over-limit" not in allow:
            why = f"{room.path(over[0])} would be pushed over a limit"
        elif draft.interface.after and _first(draft) not in done:
            why = "it has to be read from swap first"
        elif policy.least_harm and _in_vain(draft, hopeful):
            why = IN_VAIN
        elif budget is not None and disturbed > budget:
            why = "it takes more than --max-bytes leaves"
        if why:
            left_out.append((draft, action, over))
            _leave(draft, why)
            room.charge([(memcg, -memory, -swap) for memcg, memory, swap in moves])
        else:
            steps.append((draft, action, over))
            done.add((draft.interface.name, draft.key))
            budget = None if budget is None else budget - disturbed
    freed, remaining = fates(memcgs, effects, children) if left_out else before
    frees = _frees(steps, freed, children)
    made = Plan(
        kernel=census.kernel,
        policy=policy.name,
        steps=tuple(_step(*one, room, frees.get(n)) for n, one in enumerate(steps)),
        left_out=tuple(_step(*one, room) for one in left_out),
        freed=freed,
        remaining=remaining,
        warnings=(*census.warnings, *_unknown(census)),
    )
    return Worked(made, effects)


def _in_vain(draft: _Draft, hopeful: set[int]) -> bool:
    """Whether processes would be disturbed, and no memcg would go."""
    return draft.interface.disturbs and hopeful.isdisjoint(draft.memcgs)


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
                draft = drafts.get((interface.name, deed.key))
                if draft is None:
                    option = chooser.option(interface, part.case)
                    draft = _Draft(interface, deed.key, option)
                    drafts[interface.name, deed.key] = draft
                draft.shares.append((mine, len(mine), deed))
                draft.memcgs[memcg.id] = None
                draft.bytes += deed.bytes
            mine.append(reach.effect)
    return effects, list(drafts.values())


def _ordered(
    pairs: Collection[tuple[_Draft, Action]],
    hopeful: set[int],
    memcgs: Sequence[Memcg],
    children: Children,
) -> list[tuple[_Draft, Action]]:
    """Children first; among these by rank, what is aimed, and what it gives back.

    That is the bytes and structures that a step gives back for each byte it disturbs;
    a memcg's own structures are shared out among all its steps.
    """
    heights: dict[int, int] = {}
    for memcg in reversed(memcgs):
        below = (heights.get(child.id, 0) for child in children.get(memcg.id, ()))
        heights[memcg.id] = max(below, default=-1) + 1
    steps = Counter(memcg_id for draft, _ in pairs for memcg_id in draft.memcgs)
    structures = {
        memcg.id: memcg.overhead.total_bytes / steps[memcg.id]
        if memcg.id in hopeful
        else 0
        for memcg in memcgs
        if memcg.id in steps
    }

    def place(pair: tuple[_Draft, Action]) -> tuple[int, int, bool, float]:
        draft, action = pair
        given_back = draft.bytes + sum(map(structures.__getitem__, draft.memcgs))
        disturbed = max(draft.bytes + action.collateral_bytes, 1)
        height = max(map(heights.__getitem__, draft.memcgs))
        interface = draft.interface
        return height, interface.rank, not interface.aimed, -given_back / disturbed

    return sorted(pairs, key=place)


def _action(draft: _Draft, world: World) -> Action:
    served = [(mine[place].part, deed.bytes) for mine, place, deed in draft.shares]
    return draft.interface.action(draft.key, served, world)


def _step(
    draft: _Draft,
    action: Action,
    over: Iterable[int],
    room: Headroom,
    frees: Iterable[int] | None = None,
) -> Step:
    charged: dict[str, int] = {}
    for _, _, deed in draft.shares:
        if deed.charged is not None:
            path = room.path(deed.charged)
            charged[path] = charged.get(path, 0) + deed.bytes
    charged_to = tuple(sorted(charged))
    return Step(
        memcgs=tuple(draft.memcgs),
        action=draft.interface.name,
        option=draft.option,
        target=action.target,
        command=action.command,
        bytes=draft.bytes,
        charged_to=charged_to,
        collateral_bytes=action.collateral_bytes,
        risk=action.risk,
        aim=action.aim,
        frees=tuple(frees or ()),
        over_limit=tuple(map(room.path, over)),
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


def _frees(
    steps: Sequence[_Made], freed: Sequence[int], children: Children
) -> dict[int, list[int]]:
    """The memcgs that go with each step: with their last one, or their children's.

    ``freed`` has children before their parents.
    """
    last = {one: n for n, made in enumerate(steps) for one in made[0].memcgs}
    gone: dict[int, list[int]] = {}
    for memcg_id in freed:
        below = (last.get(child.id, -1) for child in children.get(memcg_id, ()))
        last[memcg_id] = max([last.get(memcg_id, -1), *below])
        gone.setdefault(last[memcg_id], []).append(memcg_id)
    return gone
