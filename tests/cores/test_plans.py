"""Plans for the fixtures are those that a person has read and found right.

    python -m tests.cores.test_plans

writes them anew, for a person to read again. What the recharging proposal would charge
to whom is counted here once more, by its text alone.
"""

from __future__ import annotations

import json
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from memcgctl.census import take_census
from memcgctl.kernel.program import Sources, open_kernel
from memcgctl.model import Census, Process, Step
from memcgctl.policy.plan import plan
from memcgctl.policy.policies import POLICIES
from memcgctl.policy.simulate import simulate
from tests.cores.test_census import page_of, second_pages

HERE = Path(__file__).parent
CORES = sorted((HERE.parents[1] / "fixtures").glob("*.zst"))

pytestmark = pytest.mark.skipif(not CORES, reason="there are no cores in fixtures/")
each_core = pytest.mark.parametrize("core", CORES, ids=lambda core: core.stem)


@cache
def census_of(core: Path) -> Census:
    with open_kernel(Sources(core=core)) as kernel:
        return take_census(kernel, details="offline")


def planned(core: Path) -> dict[str, Any]:
    """What a person has to look at: all but commands and what stays the same."""
    census = census_of(core)
    made = plan(census, POLICIES["least-harm"])
    paths = {memcg.id: memcg.path for memcg in census.memcgs}
    return {
        "steps": [_step(step, paths) for step in made.steps],
        "left_out": [_step(step, paths) for step in made.left_out],
        "remaining": {paths[one.id]: one.why for one in made.remaining},
        "warnings": list(made.warnings),
    }


def _step(step: Step, paths: dict[int, str]) -> dict[str, Any]:
    charged = f" charged to {', '.join(step.charged_to)}" if step.charged_to else ""
    if step.charged_to and step.charged_bytes != (step.bytes,):
        charged += f" ({', '.join(map(str, step.charged_bytes))})"
    beside = f", {step.collateral_bytes} of others" if step.collateral_bytes else ""
    return {
        "do": f"{step.action} {step.target}: {step.bytes} bytes{charged}{beside}",
        "serves": [paths[one] for one in step.memcgs],
        "frees": [paths[one] for one in step.frees],
    }


def golden(core: Path) -> Path:
    return HERE / "plans" / f"{core.stem}.json"


@each_core
def test_the_plan_is_the_one_that_was_reviewed(core: Path) -> None:
    """Lost: a plan that changes its mind about a real machine, and nobody notices."""
    assert planned(core) == json.loads(golden(core).read_text())


@each_core
def test_the_proposal_charges_whom_its_text_says(core: Path) -> None:
    """Lost: the numbers that the proposal's author would bring to a discussion."""
    census = census_of(core)
    parents = {m.path: m.id for m in census.memcgs if m.state == "online"}
    evicted, left = 0, 0
    charged: Counter[int] = Counter()
    for memcg in census.memcgs:
        if memcg.state == "online" or not memcg.details or not memcg.swap:
            continue
        parent = parents[memcg.ancestor]
        charged[parent] += memcg.swap.bytes  # question 3: reparent swap entries
        for group in memcg.details.charge_groups:
            if group.kind in (
                "kernel",
                "hugetlb",
            ):  # it speaks of folios on LRU lists only
                left += group.bytes
            elif group.mapped:
                charged.update(shares := _mappers(group.mappers, group.bytes))
                left += group.bytes - sum(shares.values())
            elif group.kind == "file":
                # Written back first, but nobody evicts what is locked or referenced.
                beaten = ("dirty", "under writeback")
                stuck = sum(n for what, n in group.obstacles if what not in beaten)
                evicted += group.bytes - stuck
                left += stuck
            else:
                charged[parent] += group.bytes
    found = simulate(census, POLICIES["proposal"])
    assert found.evicted_bytes == evicted
    assert found.left_bytes == left
    paths = {number: path for path, number in parents.items()}
    wanted = {paths[number]: size for number, size in charged.items() if size}
    assert {gain.path: gain.bytes for gain in found.gains} == wanted


def _mappers(mappers: tuple[Process, ...], size: int) -> dict[int, int]:
    """Whoever maps most is charged first, until all is given away."""
    uses: Counter[int] = Counter()
    for process in mappers:
        uses[process.memcg_id] += process.bytes
    shares = {}
    for number, used in uses.most_common():
        shares[number] = min(used, size)
        size -= shares[number]
    return shares


@each_core
def test_all_that_the_guest_counted_is_spoken_of(core: Path) -> None:
    """Lost: bytes that no part of a simulation knows of; the truth is the guest's."""
    truth = json.loads(core.with_suffix(".json").read_text())
    told = [memcg for memcg in truth["memcgs"] if memcg["state"] == "offline"]
    total = sum(
        sum(memcg["charged"].values()) + (memcg["swap"] or {"bytes": 0})["bytes"]
        for memcg in told
    )
    # The guest's files do not show the second page of a page-table root.
    second = second_pages(core.with_suffix(".json"))
    total += page_of(core.with_suffix(".json")) * sum(
        second[memcg["path"]] for memcg in told
    )
    for policy in POLICIES.values():
        found = simulate(census_of(core), policy)
        assert found.offline == len(told)
        assert total == sum(
            (
                found.evicted_bytes,
                found.swapped_bytes,
                found.parent_bytes,
                found.mapper_bytes,
                found.left_bytes,
            )
        )


if __name__ == "__main__":
    for each in CORES:
        text = json.dumps(planned(each), indent=1, ensure_ascii=True)
        golden(each).write_text(f"{text}\n")
