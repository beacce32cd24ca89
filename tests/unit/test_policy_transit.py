"""A swap device for the transit: when a plan takes it, and what it says without."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from memcgctl.model import Census, Limits, Memcg
from memcgctl.policy.plan import plan
from memcgctl.policy.policies import POLICIES
from tests.unit import zombies
from tests.unit.plans import APP, CASES, PAGE, online, world, zombie

NO_SWAP: dict[str, Any] = {"evictable_bytes": 0, "obstacles": (("no swap", PAGE),)}
LEAST = POLICIES["least-harm"]


def stuck(case: str = "swap-backed-unmapped", **more: Any) -> Memcg:
    return zombie(100, zombies.group(**{**CASES[case], **NO_SWAP, **more}))


def without_swap(*memcgs: Memcg, why: str | None = "") -> Census:
    census = world(*memcgs, swap_free_bytes=0)
    return replace(census, kernel=replace(census.kernel, temp_swap=why))


@pytest.mark.parametrize("case", ["swap-backed-unmapped", "swap-backed-mapped"])
def test_it_frees_what_has_no_swap_to_go_to(case: str) -> None:
    """Lost: all tmpfs and anonymous zombies of a machine without swap."""
    census = without_swap(stuck(case))
    assert not plan(census, LEAST).steps
    made = plan(census, LEAST, allow=["temp-swap"])
    (step,) = made.steps
    assert (step.action, step.option) == ("temp-swap", "recharge-parent")
    assert (step.charged_to, step.charged_bytes) == (("/app",), (PAGE,))
    assert made.freed == (100,)


def test_a_plan_without_it_says_how_many_more_would_go() -> None:
    """Lost: the word that frees them."""
    other = replace(stuck(), id=101, address=1)
    assert plan(without_swap(stuck(), other), LEAST).more_by_transit == 2
    assert plan(without_swap(stuck(), why=None), LEAST).more_by_transit == 1


def test_nothing_is_offered_that_the_machine_cannot() -> None:
    """Lost: a plan that fails at its first step."""
    census = without_swap(stuck(), why="this kernel has no zram")
    assert plan(census, LEAST).more_by_transit == 0
    made = plan(census, LEAST, allow=["temp-swap"])
    assert not made.steps
    assert "this kernel has no zram" in made.remaining[0].why


@pytest.mark.parametrize(
    ("limits", "why"),
    [
        (Limits(swap_max_bytes=0), "memory.swap.max leaves no room"),
        (Limits(max_bytes=20 * PAGE), "memory.max leaves no room"),
        (Limits(high_bytes=20 * PAGE), "memory.max leaves no room"),
    ],
)
def test_limits_of_ancestors_are_kept(limits: Limits, why: str) -> None:
    """Lost: a living cgroup that is reclaimed from when it all comes back."""
    app = online(APP, "/app", 1, limits=limits, usage_bytes=20 * PAGE)
    made = plan(without_swap(app, stuck()), LEAST, allow=["temp-swap"])
    assert not made.steps
    assert why in made.remaining[0].why


def test_what_is_locked_stays() -> None:
    """Lost: the reason why a zombie is there still."""
    locked = (("no swap", PAGE), ("locked (mlock)", PAGE))
    census = without_swap(stuck("swap-backed-mapped", obstacles=locked))
    made = plan(census, LEAST, allow=["temp-swap"])
    assert not made.steps
    assert "locked (mlock)" in made.remaining[0].why


def test_the_proposal_says_where_user_space_falls_short() -> None:
    """Lost: that the next accessor is not charged, as the proposal would have it."""
    made = plan(without_swap(stuck()), POLICIES["proposal"], allow=["temp-swap"])
    (short,) = made.falls_short
    assert (short.asked, short.done, short.steps) == ("deferred", "recharge-parent", 1)
