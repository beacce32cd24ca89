"""What each policy decides in each case, cell by cell, and what it comes to."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from memcgctl.model import Limits, Process
from memcgctl.policy.cases import CASES, parts
from memcgctl.policy.effects import Effect, effect
from memcgctl.policy.headroom import Headroom
from memcgctl.policy.plan import work_out
from memcgctl.policy.policies import POLICIES, Policy
from memcgctl.policy.simulate import simulate
from tests.unit import zombies
from tests.unit.plans import (
    APP,
    HOLDER,
    PAGE,
    ROOT,
    USER,
    held_by,
    online,
    world,
    zombie,
)

# evict: dropped, the next reader is charged; swap: swapped out, which the parent is
# charged for; parent and mapper: charged at once; gone: a reference let go; stay.
# By hand from the proposal's text (a to d, its algorithm, its third question).
TABLE = """
                      proposal  evict  parent  mapper  deferred  least-harm
file-unmapped         evict     evict  parent  stay    parent    evict
file-mapped           mapper    evict  parent  mapper  parent    evict
swap-backed-unmapped  parent    swap   parent  stay    parent    swap
swap-backed-mapped    mapper    swap   parent  mapper  parent    swap
swap                  parent    stay   parent  mapper  parent    mapper
metadata              evict     evict  parent  stay    parent    evict
kernel                stay      stay   parent  stay    parent    stay
hugetlb               stay      stay   parent  mapper  parent    stay
writeback             stay      gone   gone    gone    gone      gone
stock                 stay      gone   gone    gone    gone      gone
other                 stay      stay   stay    stay    stay      stay
"""
_TITLE, *_ROWS = [line.split() for line in TABLE.strip().splitlines()]
CELLS = [
    (case, policy, expected)
    for case, *row in _ROWS
    for policy, expected in zip(_TITLE, row, strict=True)
]


def outcome(one: Effect) -> str:
    if one.why:
        assert one.left_bytes == one.part.bytes
        return "stay"
    if one.evicted_bytes:
        return "evict"
    if one.swapped_bytes:
        return "swap"
    if not one.charged:
        return "gone"
    ((memcg_id, size),) = one.charged
    assert size == one.part.bytes
    return {APP: "parent", HOLDER: "mapper"}[memcg_id]


@pytest.mark.parametrize(("case", "name", "expected"), CELLS)
def test_every_policy_in_every_case(case: str, name: str, expected: str) -> None:
    """Lost: a simulation that says what the policy's author means."""
    census, policy = world(held_by(case)), POLICIES[name]
    if name == "least-harm":
        ((one,),) = work_out(census, policy, allow=["unaimed"]).effects.values()
    else:
        (part,) = parts(census.memcgs[-1], PAGE)
        options = policy.options.get(part.case, ())
        one = effect(part, options, policy.mapper, Headroom(census))
    assert outcome(one) == expected
    if name != "least-harm":
        assert simulate(census, policy).freed == (expected != "stay")


def test_the_table_has_every_cell() -> None:
    """Lost: a case or a policy that nobody thought about."""
    assert {(case, name) for case, name, _ in CELLS} == {
        (case, name) for case in CASES for name in POLICIES
    }


def _mapped_by(*users: tuple[int, int, int], size: int = 100 * PAGE) -> Any:
    """A zombie's group that processes of memcgs map: (memcg, start time, pages)."""
    mappers = tuple(
        Process(n, "p", f"/m{memcg}", memcg, pages * PAGE, start)
        for n, (memcg, start, pages) in enumerate(users, 1)
    )
    group = zombies.group(mapped=True, mappers=mappers, bytes=size)
    return zombie(100, group)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("first", {7: 80, 6: 20}),
        ("most", {6: 90, 7: 10}),
        ("lca", {APP: 100}),
    ],
)
def test_several_mappers_share_by_the_rule(rule: Any, expected: dict[int, int]) -> None:
    """Lost: the choice of who pays for a page that several map."""
    census = world(
        online(6, "/app/a", APP),
        online(7, "/app/b", APP),
        _mapped_by((6, 20, 90), (7, 10, 80)),
    )
    (part,) = parts(census.memcgs[-1], PAGE)
    one = effect(part, ["recharge-mapper"], rule, Headroom(census))
    assert dict(one.charged) == {k: n * PAGE for k, n in expected.items()}


@pytest.mark.parametrize("rule", ["first", "most", "lca"])
def test_what_nobody_else_maps_is_its_mappers(rule: Any) -> None:
    """Lost: a memcg charged for what another alone uses."""
    census = world(online(6, "/app/a", APP), _mapped_by((6, 20, 60), (HOLDER, 10, 30)))
    (part,) = parts(census.memcgs[-1], PAGE)
    one = effect(part, ["recharge-mapper"], rule, Headroom(census))
    assert dict(one.charged) == {6: 60 * PAGE, HOLDER: 30 * PAGE}
    assert (one.left_bytes, bool(one.why)) == (10 * PAGE, True)


def test_the_common_ancestor_of_distant_memcgs_is_the_root() -> None:
    """Lost: a charge that leaks out of, or into, the wrong subtree."""
    census = world(online(6, "/app/a", APP), _mapped_by((6, 1, 90), (HOLDER, 2, 90)))
    (part,) = parts(census.memcgs[-1], PAGE)
    one = effect(part, ["recharge-mapper"], "lca", Headroom(census))
    assert one.charged == ((ROOT, 100 * PAGE),)


def test_eviction_writes_what_is_dirty_first() -> None:
    """Lost: the I/O that a policy costs."""
    group = zombies.group(
        bytes=10 * PAGE,
        evictable_bytes=7 * PAGE,
        dirty_bytes=3 * PAGE,
        obstacles=(("dirty", 3 * PAGE),),
    )
    found = simulate(world(zombie(100, group)), POLICIES["evict"])
    assert (found.evicted_bytes, found.written_bytes) == (10 * PAGE, 3 * PAGE)


@pytest.mark.parametrize("short", ["free", "limit"])
def test_swapping_out_needs_room(short: str) -> None:
    """Lost: a policy that looks good on paper and fails without swap."""
    limits = Limits(swap_max_bytes=4 * PAGE, swap_usage_bytes=PAGE)
    case = {"kind": "anon", "backing": None, "mapped": True, "mappers": (USER,)}
    group = zombies.group(**case, bytes=8 * PAGE, evictable_bytes=8 * PAGE)
    held = zombie(100, group)
    if short == "free":
        census = world(held, swap_free_bytes=3 * PAGE)
    else:
        census = world(online(APP, "/app", ROOT, limits=limits), held)
    found = simulate(census, POLICIES["evict"])
    assert (found.swapped_bytes, found.left_bytes) == (3 * PAGE, 5 * PAGE)
    assert "no room in swap" in found.leftovers[0].why
    assert not found.freed
    # Six have an entry, which is charged: for the other two there is room.
    cached = zombie(100, replace(group, swap_entry_bytes=6 * PAGE))
    census = replace(census, memcgs=(*census.memcgs[:-1], cached))
    found = simulate(census, POLICIES["evict"])
    assert (found.evicted_bytes, found.swapped_bytes) == (6 * PAGE, 2 * PAGE)
    assert found.freed == 1


def test_locked_and_pinned_memory_can_be_charged_but_not_evicted() -> None:
    """Lost: the proposal's whole point, memory that no reclaim can take."""
    group = zombies.group(
        kind="anon",
        backing=None,
        mapped=True,
        mappers=(replace(USER, bytes=8 * PAGE),),
        bytes=8 * PAGE,
        evictable_bytes=2 * PAGE,
        obstacles=(("locked (mlock)", 4 * PAGE), ("pinned", 4 * PAGE)),
    )
    census = world(zombie(100, group))
    evicted = simulate(census, POLICIES["evict"])
    assert (evicted.swapped_bytes, evicted.left_bytes) == (2 * PAGE, 6 * PAGE)
    charged = simulate(census, POLICIES["mapper"])
    assert (charged.mapper_bytes, charged.left_bytes) == (8 * PAGE, 0)


def test_deferred_says_how_much_is_likely_touched() -> None:
    """Lost: whether deferring ends at a user or taxes the parent for ever."""
    warm = replace(zombies.group().coldness, active_bytes=3 * PAGE)
    group = zombies.group(bytes=10 * PAGE, coldness=warm)
    found = simulate(world(zombie(100, group)), POLICIES["deferred"])
    assert (found.deferred_bytes, found.likely_bytes) == (10 * PAGE, 3 * PAGE)


def test_who_gains_and_who_is_pushed_over_a_limit() -> None:
    """Lost: an OOM kill that nobody can correlate with anything."""
    limits = Limits(max_bytes=40 * PAGE)
    big = {"bytes": 50 * PAGE, "mappers": (replace(USER, bytes=50 * PAGE),)}
    group = zombies.group(mapped=True, **big)
    census = world(online(HOLDER, "/holder", ROOT, limits=limits), zombie(100, group))
    found = simulate(census, POLICIES["mapper"])
    assert found.over_limit == ("/holder",)
    ((gain),) = found.gains
    assert (gain.path, gain.bytes, gain.room_bytes) == (
        "/holder",
        50 * PAGE,
        -10 * PAGE,
    )


def test_a_charge_below_its_own_ancestor_changes_nothing_above() -> None:
    """Lost: headroom that is counted twice, as a zombie's memory is there already."""
    limits = Limits(max_bytes=10 * PAGE)
    app = online(APP, "/app", ROOT, limits=limits, usage_bytes=10 * PAGE)
    census = world(app, held_by("file-unmapped"))
    assert simulate(census, POLICIES["parent"]).over_limit == ()


def test_a_policy_of_ones_own_leaves_what_it_does_not_name() -> None:
    """Lost: a policy under test that does more than is written in it."""
    policy = Policy("mine", {"file-unmapped": ("leave",)})
    census = world(held_by("file-unmapped"))
    assert simulate(census, policy).leftovers[0].why.endswith("the policy leaves it")
    census = world(held_by("swap"))
    assert "no option" in simulate(census, policy).leftovers[0].why
