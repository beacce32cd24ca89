"""What holds for every plan of every census: bytes, order, headroom, and an end."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st

from memcgctl.model import Census, ChargeGroup, Holder, Limits, Memcg, Process
from memcgctl.policy import bulk
from memcgctl.policy.cases import parts
from memcgctl.policy.choice import ALLOWED
from memcgctl.policy.effects import Effect, effect
from memcgctl.policy.headroom import Headroom
from memcgctl.policy.interfaces import INTERFACES as TABLE
from memcgctl.policy.plan import plan, work_out
from memcgctl.policy.policies import OPTIONS, POLICIES, RULES, Policy
from memcgctl.policy.simulate import simulate
from tests.unit import zombies
from tests.unit.plans import (
    APP,
    DISK,
    FILE,
    HOLDER,
    INTERFACES,
    PAGE,
    ROOT,
    TMPFS,
    done,
    online,
    swapped,
    world,
    zombie,
)

NEEDED = sorted({name for one in TABLE for name in one.needs})
ONLINE = {APP: "/app", HOLDER: "/holder", 6: "/app/in"}
BACKINGS: dict[Any, Any] = {
    "file": [
        FILE,
        replace(FILE, inode=13, path=None),
        replace(FILE, inode=14, path="/x", cached_bytes=400 * PAGE),
        DISK,
    ],
    "shmem": [TMPFS, replace(TMPFS, inode=6, kind="memfd", path=None)],
    "anon": [None],
    "kernel": [None],
    "hugetlb": [None, replace(TMPFS, kind="hugetlb", inode=7)],
}
# What nobody can evict.
FIXED = {
    "kernel": "kernel memory",
    "hugetlb": "hugetlb (until truncated or unmapped)",
}
OBSTACLES = ("dirty", "locked (mlock)", "pinned", "under writeback", "no swap")

pages = st.integers(1, 40).map(lambda n: n * PAGE)


@st.composite
def processes(draw: Any) -> Process:
    memcg_id = draw(st.sampled_from([*ONLINE, 4711]))
    pid = draw(st.integers(50, 53))
    return Process(pid, "p", ONLINE.get(memcg_id, "?"), memcg_id, draw(pages), pid)


@st.composite
def groups(draw: Any) -> ChargeGroup:
    kind = draw(st.sampled_from(sorted(BACKINGS)))
    size = draw(pages)
    # Most often there is nothing in the way, and nobody maps it.
    simple = draw(st.booleans())
    names = draw(
        st.lists(st.sampled_from(OBSTACLES), unique=True, max_size=0 if simple else 2)
    )
    obstacles = tuple(
        (name, draw(st.integers(1, size // PAGE)) * PAGE) for name in names
    )
    if kind in FIXED:
        obstacles = ((FIXED[kind], size),)
    most = max((n for _, n in obstacles), default=0)
    least = max(0, size - sum(n for _, n in obstacles))
    free = draw(st.integers(least // PAGE, (size - most) // PAGE)) * PAGE
    mapped = not simple and draw(st.booleans())
    users = st.lists(processes(), max_size=3, unique_by=lambda p: p.pid).map(tuple)
    return zombies.group(
        kind=kind,
        mapped=mapped,
        bytes=size,
        evictable_bytes=free,
        obstacles=obstacles,
        dirty_bytes=dict(obstacles).get("dirty", 0),
        backing=draw(st.sampled_from(BACKINGS[kind])),
        mappers=draw(users) if mapped else (),
        openers=draw(users),
        swap_entry_bytes=draw(st.integers(0, size // PAGE)) * PAGE
        if kind in ("anon", "shmem")
        else 0,
    )


@st.composite
def offline(draw: Any, number: int) -> Memcg:
    holders: list[Holder] = []
    if draw(st.booleans()):
        kind = draw(st.sampled_from(["writeback", "stock", "socket", "folio"]))
        holders.append(Holder(kind, 1, "CPU 1: 2 pages"))
    devices = ()
    if draw(st.booleans()):
        file = draw(st.sampled_from([None, TMPFS]))
        devices = swapped(draw(st.integers(1, 20)), draw(st.booleans()), file=file)
    parent = draw(st.sampled_from([APP, 6, *range(100, number)]))
    held = zombie(
        number,
        *draw(st.lists(groups(), max_size=3)),
        swap=devices,
        holders=tuple(holders),
        private_id=draw(st.sampled_from([0, 7])),
        parent_id=parent,
        ancestor=draw(st.sampled_from(["/app", "/app/in", "/"])),
    )
    return replace(held, details=None) if draw(st.integers(0, 9)) == 9 else held


@st.composite
def censuses(draw: Any, limited: bool = True) -> Census:
    limit = st.none() | st.integers(0, 100).map(lambda n: n * PAGE)
    above = []
    for number, path in ONLINE.items():
        limits = Limits()
        if limited:
            limits = Limits(
                max_bytes=draw(limit),
                high_bytes=draw(limit),
                swap_max_bytes=draw(limit),
            )
        parent = APP if number == 6 else ROOT
        above.append(online(number, path, parent, limits=limits, usage_bytes=20 * PAGE))
    count = draw(st.integers(0, 5))
    held = [draw(offline(100 + n)) for n in range(count)]
    interfaces = draw(
        st.just(INTERFACES) | st.lists(st.sampled_from(NEEDED)).map(tuple)
    )
    free = draw(st.integers(0, 50)) * PAGE if limited else 1 << 40
    return world(
        *(*above, *held),
        interfaces=interfaces,
        swap_free_bytes=free,
        at_once_bytes=draw(st.none() | pages) if limited else None,
    )


policies = st.sampled_from([*POLICIES.values()]) | st.builds(
    Policy,
    st.just("random"),
    st.dictionaries(
        st.sampled_from(list(POLICIES["least-harm"].options)),
        st.lists(st.sampled_from(OPTIONS), min_size=1, max_size=3).map(tuple),
    ),
    st.sampled_from(RULES),
    st.booleans(),
)
allowed = st.lists(st.sampled_from(ALLOWED), unique=True)
budgets = st.none() | pages
wanted_ids = st.none() | st.sets(st.integers(100, 104))


def _adds_up(one: Effect) -> None:
    assert min(one.evicted_bytes, one.swapped_bytes, one.left_bytes) >= 0
    assert all(size > 0 for _, size in one.charged)
    charged = sum(size for _, size in one.charged)
    moved = one.evicted_bytes + one.swapped_bytes + charged
    assert moved + one.left_bytes == one.part.bytes
    assert 0 <= one.written_bytes <= one.evicted_bytes
    assert one.why or not one.left_bytes


@settings(deadline=None)
@given(censuses(), policies)
def test_a_policy_loses_no_byte(census: Census, policy: Policy) -> None:
    """Lost: memory that a simulation makes up or makes disappear."""
    room = Headroom(census)
    before = 0
    for memcg in census.memcgs:
        for part in parts(memcg, PAGE):
            options = policy.options.get(part.case, ())
            _adds_up(effect(part, options, policy.mapper, room))
            before += part.bytes
    found = simulate(census, policy)
    assert before == sum(
        (
            found.evicted_bytes,
            found.swapped_bytes,
            found.parent_bytes,
            found.mapper_bytes,
            found.left_bytes,
        )
    )


@settings(deadline=None)
@given(censuses(), policies, allowed, budgets)
def test_a_plan_loses_no_byte(census: Any, policy: Any, allow: Any, most: Any) -> None:
    """Lost: what a step really moves, and of what the rest consists."""
    worked = work_out(census, policy, allow=allow, max_bytes=most)
    effects = [one for of_memcg in worked.effects.values() for one in of_memcg]
    for one in effects:
        _adds_up(one)
    moved = sum(one.part.bytes - one.left_bytes for one in effects)
    assert moved == sum(step.bytes for step in worked.plan.steps)
    if most is not None:
        disturbed = [s.bytes + s.collateral_bytes for s in worked.plan.steps]
        assert sum(disturbed) <= most


@settings(deadline=None, max_examples=300)
@given(censuses() | censuses(limited=False), policies, allowed, budgets, wanted_ids)
def test_files_that_go_whole_go_as_they_would_part_by_part(
    census: Any, policy: Any, allow: Any, most: Any, wanted: Any
) -> None:
    """Lost: a plan that depends on how many zombies there are."""
    worked = work_out(census, policy, wanted, allow=allow, max_bytes=most)
    with mock.patch.object(bulk, "_CASES", ()):
        slowly = work_out(census, policy, wanted, allow=allow, max_bytes=most)
    assert worked.plan == slowly.plan
    assert worked.effects == slowly.effects


@settings(deadline=None)
@given(censuses(), policies, allowed)
def test_steps_are_for_zombies_children_first(
    census: Any, policy: Any, allow: Any
) -> None:
    """Lost: a living memcg treated as a dead one; a parent before what holds it.

    What swaps out comes after what swaps in, whose memory either is.
    """
    made = plan(census, policy, allow=allow)
    state = {memcg.id: memcg.state for memcg in census.memcgs}
    parent = {memcg.id: memcg.parent_id for memcg in census.memcgs}
    for step in (*made.steps, *made.left_out):
        assert step.memcgs
        assert {state[one] for one in step.memcgs} == {"offline"}
        assert set(step.frees) <= set(made.freed)

    def height(number: int) -> int:
        below = [one for one, above in parent.items() if above == number]
        return 1 + max((height(one) for one in below), default=0)

    ranks = {one.name: one.rank for one in TABLE}
    untargeted = {one.name for one in TABLE if not one.targeted}
    order = [
        (ranks[step.action], step.action in untargeted, max(map(height, step.memcgs)))
        for step in made.steps
        if ranks[step.action] <= 0  # others come earlier where there are swap entries
    ]
    assert order == sorted(order)
    gone = [one for step in made.steps for one in step.frees]
    assert len(gone) == len(set(gone))
    for ids in (gone, list(made.freed)):
        place = {one: n for n, one in enumerate(ids)}
        assert all(place[one] < place.get(parent[one], len(place)) for one in ids)
    stay = {one.id for one in made.remaining}
    assert stay.isdisjoint(made.freed)
    assert stay | set(made.freed) == {n for n, is_ in state.items() if is_ == "offline"}
    assert all(one.why and one.kinds for one in made.remaining)


@settings(deadline=None)
@given(censuses(), policies)
def test_no_step_exceeds_a_limit(census: Census, policy: Policy) -> None:
    """Lost: an OOM kill somewhere else, hard to correlate with anything."""
    worked = work_out(census, policy)
    memcgs = {memcg.id: memcg for memcg in census.memcgs if memcg.state == "online"}
    paths = {memcg.path: memcg.id for memcg in memcgs.values()}
    memory, swap = Counter[int](), Counter[int]()

    def charge(counter: Counter[int], number: int, size: int) -> None:
        while number in memcgs:
            counter[number] += size
            number = memcgs[number].parent_id

    for one in (one for of_memcg in worked.effects.values() for one in of_memcg):
        origin = paths[one.part.memcg.ancestor]
        moved = one.part.bytes - one.left_bytes
        charge(swap if one.part.case == "swap" else memory, origin, -moved)
        charge(swap, origin, one.swapped_bytes)
        for number, size in one.charged:
            charge(memory, number, size)
    for number, memcg in memcgs.items():
        limits = memcg.limits or Limits()
        bounds = [b for b in (limits.max_bytes, limits.high_bytes) if b is not None]
        if memory[number] > 0 and bounds:
            assert memcg.usage_bytes + memory[number] <= min(bounds)
        if swap[number] > 0 and limits.swap_max_bytes is not None:
            assert swap[number] <= limits.swap_max_bytes
    assert sum(swap[n] for n in (ROOT,)) <= (census.kernel.swap_free_bytes or 0)


@given(censuses(limited=False), policies, allowed)
@settings(max_examples=200, deadline=None)
def test_a_plan_of_a_plans_result_is_empty(
    census: Any, policy: Any, allow: Any
) -> None:
    """Lost: a plan that promises the same again and again, or does half of it."""
    worked = work_out(census, policy, allow=allow)
    after = done(census, worked)
    again = plan(after, policy, allow=allow)
    assert again.steps == ()
    assert again.freed == ()
    assert {one.id for one in again.remaining} == {
        one.id for one in worked.plan.remaining
    }
