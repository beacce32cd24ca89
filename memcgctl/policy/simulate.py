"""What would each policy do to the zombies of a census if a kernel followed it?

A policy is taken at its word, whether user space can carry it out or not; how many
zombies it can free here is told beside it. ``least-harm`` is what user space can do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from memcgctl.model import Census, Gain, Leftover, Memcg, Simulation
from memcgctl.policy.cases import parts
from memcgctl.policy.effects import Effect, counter_changes, effect, likely_bytes
from memcgctl.policy.headroom import Headroom
from memcgctl.policy.outcome import (
    children_of,
    fates,
    leftover,
    offline,
    reasons,
    with_descendants,
)
from memcgctl.policy.plan import TRANSIT, work_out
from memcgctl.policy.policies import Policy

GAINS = 10

Effects = dict[int, list[Effect]]


def simulate(
    census: Census, policy: Policy, wanted: Iterable[int] | None = None
) -> Simulation:
    """The policy applied to the offline memcgs, or the wanted ones and those below.

    Bytes are moved regardless of the limits of whoever gets them, but swap cannot hold
    more than there is room for.
    """
    wanted = None if wanted is None else set(wanted)
    every = offline(census)
    memcgs = with_descendants(census, wanted)
    here = work_out(census, policy, wanted, allow=["over-limit"])
    transit = work_out(census, policy, wanted, allow=["over-limit", TRANSIT])
    room = Headroom(census)
    if policy.least_harm:
        effects = here.effects
    else:
        effects = {memcg.id: _effects(memcg, policy, room) for memcg in memcgs}
    one_by_one = [one for of_memcg in effects.values() for one in of_memcg]
    gainers = _charge(one_by_one, room, swapped=policy.least_harm)
    freed = set(fates(memcgs, effects, children_of(every))[0])
    charged = [(one, size) for one in one_by_one for _, size in one.charged]
    return Simulation(
        policy=policy.name,
        offline=len(memcgs),
        freed=len(freed),
        freed_here=len(here.plan.freed),
        freed_by_transit=len(transit.plan.freed),
        freed_overhead_bytes=sum(
            memcg.overhead.total_bytes for memcg in memcgs if memcg.id in freed
        ),
        evicted_bytes=sum(one.evicted_bytes for one in one_by_one),
        written_bytes=sum(one.written_bytes for one in one_by_one),
        swapped_bytes=sum(one.swapped_bytes for one in one_by_one),
        parent_bytes=sum(n for one, n in charged if one.option != "recharge-mapper"),
        mapper_bytes=sum(n for one, n in charged if one.option == "recharge-mapper"),
        deferred_bytes=sum(n for one, n in charged if one.option == "deferred"),
        likely_bytes=sum(map(likely_bytes, one_by_one)),
        left_bytes=sum(one.left_bytes for one in one_by_one),
        leftovers=_leftovers(memcgs, effects),
        over_limit=tuple(room.path(one) for one in gainers if room.is_over(one)),
        gains=_gains(one_by_one, room),
    )


def _effects(memcg: Memcg, policy: Policy, room: Headroom) -> list[Effect]:
    """The effects on one memcg; what is swapped out leaves less room for the next."""
    found = []
    for part in parts(memcg, room.page_size):
        one = effect(part, policy.options.get(part.case, ()), policy.mapper, room)
        if one.swapped_bytes:
            room.charge(counter_changes(one, room))
        found.append(one)
    return found


def _charge(effects: Iterable[Effect], room: Headroom, *, swapped: bool) -> list[int]:
    """Charge the effects, those with ``swapped`` bytes only if asked; who gains."""
    memory, swap = Counter[int](), Counter[int]()  # what is below a memcg included
    for one in effects:
        changes = counter_changes(one, room)
        if swapped or not one.swapped_bytes:
            room.charge(changes)
        for memcg_id, in_memory, in_swap in changes:
            for above in room.chain(memcg_id):
                memory[above] += in_memory
                swap[above] += in_swap
    return [one for one in room.memcgs if memory[one] > 0 or swap[one] > 0]


def _leftovers(memcgs: Sequence[Memcg], effects: Effects) -> tuple[Leftover, ...]:
    """What is left by reason, most bytes first; references count their memcgs."""
    sizes: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for memcg in memcgs:
        whys: set[str] = set()
        for one in effects.get(memcg.id, ()):
            if one.why:
                whys.add(name := leftover(one))
                sizes[name] += one.left_bytes
        whys.update(reasons(memcg, ()))
        counts.update(whys)
    names = sorted(counts, key=lambda name: (-sizes[name], -counts[name], name))
    return tuple(Leftover(name, counts[name], sizes[name]) for name in names)


def _gains(effects: Iterable[Effect], room: Headroom) -> tuple[Gain, ...]:
    """The memcgs that are charged most themselves, and the room they have then."""
    gained: Counter[int] = Counter()
    for one in effects:
        for memcg_id, size in one.charged:
            gained[memcg_id] += size
        if one.swapped_bytes:
            gained[room.ancestor(one.part.memcg)] += one.swapped_bytes
    return tuple(
        Gain(room.path(memcg_id), size, room.room(memcg_id))
        for memcg_id, size in gained.most_common(GAINS)
    )
