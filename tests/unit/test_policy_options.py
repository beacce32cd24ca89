"""What ``explain`` says of each option for one memcg, and of what to do next."""

from __future__ import annotations

from dataclasses import replace

import pytest

from memcgctl.model import Prospect
from memcgctl.policy.options import next_command, options
from tests.unit.plans import APP, PAGE, held_by, online, world, zombie

OPTIONS = ["evict", "recharge-parent", "recharge-mapper", "deferred"]


def prospects(case: str) -> dict[str, Prospect]:
    census = world(held_by(case))
    found = options(census, census.memcgs[-1])
    assert [one.option for one in found] == OPTIONS
    return {one.option: one for one in found}


@pytest.mark.parametrize(
    ("case", "supported"),
    [
        ("file-unmapped", {"evict", "deferred"}),
        ("file-mapped", {"evict"}),
        # By way of a temporary swap device, which is asked for.
        ("swap-backed-mapped", {"evict", "recharge-parent", "deferred"}),
        ("swap", {"recharge-mapper"}),
        ("writeback", {"evict", "recharge-parent"}),
        ("other", set()),
    ],
)
def test_which_options_user_space_has(case: str, supported: set[str]) -> None:
    """Lost: which of the four can be had without a new kernel."""
    found = prospects(case)
    assert {name for name, one in found.items() if one.supported} == supported


def test_an_option_says_how_much_how_and_who_pays() -> None:
    """Lost: the way from an option to a command, and the price."""
    found = prospects("swap")["recharge-mapper"]
    assert (found.bytes, found.how) == (PAGE, "swapin")
    assert "is charged" in found.effect


def test_what_only_a_kernel_could_do_says_who_would_pay() -> None:
    """Lost: what the missing interface would be worth."""
    found = prospects("file-mapped")
    assert found["recharge-parent"].bytes == PAGE
    assert found["recharge-parent"].effect == "/app would be charged"
    assert found["recharge-mapper"].effect == "/holder would be charged"
    assert "nobody maps it" in prospects("file-unmapped")["recharge-mapper"].how


def test_an_option_says_what_it_has_to_be_asked_by() -> None:
    """Lost: the word without which nothing of it is done."""
    found = prospects("swap-backed-mapped")["recharge-parent"]
    assert (found.bytes, found.supported) == (PAGE, True)
    assert found.how == "temp-swap (with --allow temp-swap)"


def test_an_online_memcg_has_none() -> None:
    """Lost: the thought that there is something to be done about a living one."""
    census = world(held_by("swap"))
    app = next(memcg for memcg in census.memcgs if memcg.id == APP)
    assert options(census, app) == ()


def test_the_next_command_leads_on() -> None:
    """Lost: what to type at 3 a.m."""
    census = world(held_by("swap"), online(6, "/b", 1))
    by_id = {memcg.id: memcg for memcg in census.memcgs}
    assert next_command(census, by_id[100]) == "reclaim --dry-run 100"
    assert next_command(census, by_id[APP]) == f"reclaim --dry-run {APP}"
    assert next_command(census, by_id[6]) == "list"
    stuck = held_by("other")
    assert next_command(world(stuck), stuck) == f"reclaim --dry-run {stuck.id}"
    assert stuck.details
    leak = replace(stuck, details=replace(stuck.details, unexplained=2))
    assert next_command(world(leak), leak) == "audit"


def test_nothing_of_its_own() -> None:
    """Lost: a parent's explanation, or a traceback for an empty one."""
    empty = zombie(100)
    bare = replace(empty, details=None)
    for memcg in (empty, bare):
        found = options(world(memcg), memcg)
        assert not any(one.supported for one in found)
        assert all(one.how for one in found)
