"""Plans and simulations on a screen and in JSON."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from memcgctl.model import Census, Holder, Limits
from memcgctl.policy.plan import plan
from memcgctl.policy.policies import POLICIES, Policy
from memcgctl.policy.simulate import simulate
from memcgctl.report import plan as report
from memcgctl.report import simulation
from memcgctl.report.text import cell_count
from tests.schemas import read
from tests.unit import zombies
from tests.unit.plans import (
    CASES,
    FILE,
    HOLDER,
    PAGE,
    ROOT,
    held_by,
    online,
    swapped,
    world,
    zombie,
)

NASTY = "/\x1b[2J[bold]a"
LEAST = POLICIES["least-harm"]


def mixed() -> Census:
    file = replace(FILE, path="/\x1b[31m x'y", inode=13)
    return world(
        zombie(100, zombies.group(**CASES["file-unmapped"]), path=NASTY),
        zombie(101, zombies.group(backing=file, bytes=90 * PAGE), parent_id=100),
        zombie(102, swap=swapped(20)),
        zombie(103, holders=(Holder("socket", 1, "TCP \x1b[0m"),)),
        zombie(104, holders=(Holder("writeback", 1, ""),)),
    )


def shown(census: Census, **options: Any) -> str:
    made = plan(census, LEAST)
    return str(report.screen(made, census, **options))


def test_the_outcome_comes_first() -> None:
    """Lost: the answer, below a hundred steps."""
    text = shown(mixed())
    first, second, *_ = text.splitlines()
    assert first.startswith("4 of 5 zombies would go by 4 steps: 364 KiB of their mem")
    assert "1 would stay for this: socket reference." in text
    assert "would come back" in first + second


def test_a_path_longer_than_a_line_is_shortened() -> None:
    """Lost: the lines of a terminal, or of a ticket, to one name of 255 bytes."""
    text = shown(
        world(zombie(8, path="/app/" + "x" * 255, holders=(Holder("socket", 1, ""),)))
    )
    assert max(map(cell_count, text.splitlines())) <= 80
    assert "\u2026" in text


def test_a_simulation_says_first_what_frees_most() -> None:
    """Lost: the answer, among eighty lines of numbers."""
    found = [simulate(mixed(), policy) for policy in POLICIES.values()]
    first = " ".join(str(simulation.screen(found)).split("\n\n")[0].split())
    assert first.startswith(
        "User space can free up to 4 of 5 zombies here (least-harm)"
    )
    nothing = [simulate(world(), policy) for policy in POLICIES.values()]
    expected = "No offline memcgs, so nothing to simulate.\n"
    assert str(simulation.screen(nothing)) == expected


def test_what_nobody_is_charged_for_is_not_said_to_be_charged() -> None:
    """Lost: the agreement with simulate, for pages that are in memory already."""
    made = plan(world(zombie(90, swap=swapped(20))), LEAST)
    memcgs = {90: zombie(90)}
    assert "be charged to who uses it" in " ".join(report.headline(made, memcgs))
    cached = zombies.group(
        kind="anon",
        backing=None,
        bytes=20 * PAGE,
        evictable_bytes=20 * PAGE,
        swap_entry_bytes=20 * PAGE,
    )
    to_nobody = plan(world(zombie(90, cached, swap=swapped(20))), LEAST)
    actions = {step.action: step.charged_to for step in to_nobody.steps}
    assert actions == {"swapin": (), "pageout": ("/app",)}
    assert "be charged" not in " ".join(report.headline(to_nobody, memcgs))


def test_each_step_has_its_command_in_a_line_of_its_own() -> None:
    """Lost: a command to copy."""
    census = mixed()
    lines = shown(census).splitlines()
    for step in plan(census, LEAST).steps:
        assert f"      {step.command}" in lines


def test_all_other_lines_fit_and_all_names_are_escaped() -> None:
    """Lost: the table, or the terminal."""
    census = mixed()
    for encoding in ("utf-8", "ascii"):
        text = shown(census, width=80, encoding=encoding)
        text.encode(encoding)
        assert "\x1b" not in text
        commands = {f"      {step.command}" for step in plan(census, LEAST).steps}
        lines = [line for line in text.splitlines() if line not in commands]
        assert max(map(cell_count, lines)) <= 80


def test_what_stays_is_grouped_by_its_reason() -> None:
    """Lost: the one reason behind a thousand zombies."""
    many = [
        zombie(200 + n, holders=(Holder("socket", 1, f"TCP {n}"),)) for n in range(30)
    ]
    text = shown(world(*many, held_by("kernel")))
    assert "socket reference (30 zombies)" in text
    assert "22 more; --json shows all" in text
    assert "Nothing to do for 31 zombies" in text


def test_steps_over_a_limit_are_shown_apart() -> None:
    """Lost: what --allow over-limit is for."""
    holder = online(HOLDER, "/holder", ROOT, limits=Limits(max_bytes=PAGE))
    text = shown(world(holder, zombie(102, swap=swapped(20))))
    assert "--allow over-limit" in text
    assert "swapin: pid 77 (user) (80.0 KiB): /holder" in text


def test_only_so_many_steps() -> None:
    """Lost: the summary, scrolled away."""
    assert "3 more steps, not shown." in shown(mixed(), limit=1)


def test_nothing_to_do() -> None:
    """Lost: the good news."""
    assert shown(world()) == "No offline memcgs, so nothing to do.\n"


def test_the_json_is_the_contract() -> None:
    """Lost: every program that reads it."""
    census = mixed()
    document = read(report.to_json(plan(census, LEAST), census))
    assert document["schema"] == "memcgctl/plan/2"
    assert document["policy"] == "least-harm"
    assert [step["n"] for step in document["steps"]] == [1, 2, 3, 4]
    kinds: dict[str, Any] = {
        "n": int,
        "memcgs": list,
        "action": str,
        "target": str,
        "command": str,
        "bytes": int,
        "charged_to": (str, type(None)),
        "collateral_bytes": int,
        "risk": str,
    }
    for step in document["steps"]:
        for key, kind in kinds.items():
            assert isinstance(step[key], kind), key
    assert {s["charged_to"] for s in document["steps"]} == {None, "/holder"}
    assert set(document["predicted"]["freed"]) == {100, 101, 102, 104}
    ((left),) = document["predicted"]["remaining"]
    assert (left["id"], left["why"]) == (103, "socket reference (TCP \x1b[0m)")


@pytest.mark.parametrize("width", [80, 40, 200])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_simulation_fits_and_is_safe(width: int, encoding: str) -> None:
    """Lost: the comparison side by side, on a small terminal."""
    strange = Policy("内存\x1b[2J" * 9, {"swap": ("evict",)})
    census = mixed()
    simulations = [simulate(census, one) for one in [*POLICIES.values(), strange]]
    text = str(simulation.screen(simulations, width=width, encoding=encoding))
    text.encode(encoding)
    assert "\x1b" not in text
    if width >= 80:
        assert max(map(cell_count, text.splitlines())) <= width
    for name in POLICIES:
        assert name in text


def test_a_bar_for_each_policy() -> None:
    """Lost: the best policy at a glance; what user space can do is told apart."""
    census = world(
        held_by("file-unmapped"), replace(held_by("swap"), id=101, address=1)
    )
    found = [simulate(census, POLICIES[name]) for name in ("parent", "evict")]
    text = str(simulation.screen(found, encoding="ascii"))
    # Who has it in swap is charged instead of the parent, where user space does it.
    assert f"parent       {'#' * 30}{'+' * 30}" in text
    assert f"evict        {'#' * 30}" in text


def test_a_simulation_in_json() -> None:
    """Lost: the numbers for a talk."""
    census = mixed()
    found = [simulate(census, POLICIES["proposal"])]
    document = read(simulation.to_json(found, census))
    assert document["schema"] == "memcgctl/simulation/1"
    (policy,) = document["policies"]
    assert policy["policy"] == "proposal"
    assert policy["evicted_bytes"] == 91 * PAGE
    assert policy["gains"] == [{"path": "/app", "bytes": 20 * PAGE, "room_bytes": None}]
