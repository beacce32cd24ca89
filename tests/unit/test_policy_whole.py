"""Files that are planned in bulk, and steps that are made when they are asked for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest import mock

import pytest

from memcgctl.model import (
    Census,
    Charges,
    Limits,
    Memcg,
    Plan,
    SwapDeviceUse,
    SwapOwner,
)
from memcgctl.policy import bulk
from memcgctl.policy.plan import Worked, plan, work_out
from memcgctl.policy.policies import POLICIES
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
    USER,
    online,
    world,
    zombie,
)

LEAST = POLICIES["least-harm"]
SHMEM = {"kind": "shmem", "backing": TMPFS}
MAPPED = {"kind": "anon", "backing": None, "mapped": True, "mappers": (USER,)}
HUGE_PAGE = 2 << 20
HUGE = {**MAPPED, "mappers": (replace(USER, huge_bytes=PAGE),)}


def same(census: Census) -> Plan:
    """The plan, which has to be the same part by part."""
    worked = work_out(census, LEAST)
    assert in_bulk(worked)
    with mock.patch.object(bulk, "_CASES", ()):
        slowly = work_out(census, LEAST)
    assert worked.plan == slowly.plan
    assert worked.effects == slowly.effects
    return worked.plan


def in_bulk(worked: Worked) -> int:
    return len(worked.drafts) - worked.drafts.whole_from


def many(*groups: dict[str, Any], **changes: Any) -> Memcg:
    return zombie(100, *(zombies.group(**one) for one in groups), **changes)


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ([{}], 1),
        ([SHMEM], 1),
        ([{}, SHMEM], 2),
        ([{}, {}], 1),
        ([{}, {"obstacles": (("pinned", PAGE),)}], 0),
        ([{"mappers": (USER,)}], 0),
        ([MAPPED, {}], 1),
        ([HUGE, {}], 0),
        ([{"backing": replace(FILE, path=None)}], 0),
        ([{"backing": replace(FILE, kind="hugetlb"), "openers": (USER,)}], 0),
        ([{"backing": DISK, "openers": (USER,)}], 0),
        ([{}, {"backing": replace(FILE, path=None)}], 0),
        ([{"bytes": 0}], 0),
    ],
)
def test_a_file_is_planned_in_bulk_if_nothing_is_in_the_way(
    groups: Any, expected: int
) -> None:
    """Lost: the seconds that a plan may take; or what is in the way."""
    assert in_bulk(work_out(world(many(*groups)), LEAST)) == expected


def test_shmem_is_planned_in_bulk_if_there_is_room_in_swap() -> None:
    """Lost: room in swap, to more than there is."""
    held = many({**SHMEM, "bytes": 3 * PAGE, "evictable_bytes": 3 * PAGE})
    assert in_bulk(work_out(world(held, swap_free_bytes=3 * PAGE), LEAST)) == 1
    assert in_bulk(work_out(world(held, swap_free_bytes=2 * PAGE), LEAST)) == 0


def test_nothing_is_planned_in_bulk_that_a_policy_does_otherwise() -> None:
    """Lost: the policy."""
    assert in_bulk(work_out(world(many({})), POLICIES["parent"])) == 0
    other = work_out(world(many({})), LEAST, allow=["drop-caches"], only=["fadvise"])
    assert in_bulk(other) == 1
    unused = work_out(world(many({})), LEAST, only=["drop_caches"])
    assert in_bulk(unused) == 0


def full(memcg_id: int, path: str, pages: int) -> Memcg:
    """An online memcg that is at its limit, but for some pages."""
    limits = Limits(max_bytes=9 * HUGE_PAGE)
    usage = 9 * HUGE_PAGE - pages * PAGE
    return online(memcg_id, path, ROOT, limits=limits, usage_bytes=usage)


def test_what_goes_in_bulk_makes_room_for_what_comes_later() -> None:
    """Lost: a step that has room once the others are done."""
    inside = replace(USER, memcg="/app", memcg_id=APP)
    owner = SwapOwner(77, "user", "/app", APP, 4, 100)
    swap = (SwapDeviceUse("/dev/zram0", 4, (owner,)),)
    held = (
        many({"bytes": 3 * PAGE, "evictable_bytes": 3 * PAGE}),
        zombie(101, swap=swap),
    )
    assert len(same(world(full(APP, "/app", 1), *held)).steps) == 2
    assert len(same(world(full(APP, "/app", 0), *held)).steps) == 1
    users = (replace(inside, bytes=HUGE_PAGE, huge_bytes=HUGE_PAGE),)
    size = {"bytes": HUGE_PAGE, "evictable_bytes": HUGE_PAGE}
    locked = {"evictable_bytes": 0, "obstacles": (("locked (mlock)", HUGE_PAGE),)}
    group = {**MAPPED, **size, **locked, "mappers": users}
    huge = zombie(101, zombies.group(**group))
    shmem = many({**SHMEM, **size})
    here = (*INTERFACES, "collapse")
    for pages, fits in ((0, True), (-1, False)):
        census = world(full(APP, "/app", pages), shmem, huge, interfaces=here)
        assert ("collapse" in {step.action for step in same(census).steps}) is fits


def test_a_file_takes_no_room_in_swap() -> None:
    """Lost: a step that is left out, as swap seems to be full."""
    app = online(APP, "/app", ROOT, limits=Limits(swap_max_bytes=2 * PAGE))
    user = replace(USER, bytes=2 * PAGE)
    mapped = {**MAPPED, "bytes": 2 * PAGE, "evictable_bytes": 2 * PAGE}
    held = zombie(101, zombies.group(**{**mapped, "mappers": (user,)}))
    made = same(world(app, many({}), held))
    assert [step.action for step in made.steps] == ["fadvise", "pageout"]


def test_a_file_in_the_reach_of_several_ancestors_is_in_that_of_all() -> None:
    """Lost: what asking one of them for memory can cost."""
    here = (*INTERFACES, "memory.reclaim swappiness")
    charges = {"charges": Charges(file_bytes=1 << 30)}
    census = world(
        online(APP, "/app", ROOT, **charges),
        online(HOLDER, "/holder", ROOT, **charges),
        many(SHMEM),
        zombie(101, zombies.group(**SHMEM), ancestor="/holder"),
        interfaces=here,
        swaps_at_once=False,
    )
    (step,) = same(census).steps
    assert step.collateral_bytes == 2 << 20


def test_what_is_in_bulk_has_its_place_among_the_others() -> None:
    """Lost: the order of a plan, which is to be the same each time."""
    dirty = {"backing": replace(FILE, inode=7, path="/d"), "dirty_bytes": PAGE}
    closer = zombies.group(**dirty, obstacles=(("dirty", PAGE),))
    made = same(world(zombie(100, zombies.group()), zombie(101, closer)))
    assert [step.memcgs for step in made.steps] == [(100,), (101,)]
    made = same(world(zombie(100, zombies.group(), closer)))
    assert [step.target for step in made.steps] == [FILE.path, "/d"]


def test_two_groups_of_a_file_are_one_step_of_their_memcg() -> None:
    """Lost: the order: a memcg's structures are shared out among its steps."""
    other = {"backing": replace(FILE, inode=7, path="/other")}
    made = same(world(many({}, {}, other)))
    assert [step.bytes for step in made.steps] == [PAGE, 2 * PAGE]


def three() -> Census:
    files = [replace(FILE, inode=n, path=f"/f{n}") for n in range(3)]
    return world(many(*({"backing": file} for file in files)))


def test_steps_are_a_sequence() -> None:
    """Lost: a step to whoever reads the plan."""
    steps = plan(three(), LEAST).steps
    assert len(steps) == 3
    assert [step.target for step in steps] == ["/f0", "/f1", "/f2"]
    assert steps[-1] is steps[2]
    assert steps[1:] == tuple(steps)[1:]
    assert steps == tuple(steps)
    assert steps != ()
    assert steps == plan(three(), LEAST).steps
    assert steps[2].frees == (100,)
    with pytest.raises(IndexError):
        steps[3]
