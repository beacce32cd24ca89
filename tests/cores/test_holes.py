"""What could not be read is named where it was needed: cores with holes in them.

Each hole is made in a real core; a census of the whole one is the truth.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from memcgctl.census import take_census
from memcgctl.kernel.program import Sources, open_kernel
from memcgctl.linux.memmap import page_ranges
from memcgctl.model import Census, Memcg, Plan, Topic
from memcgctl.policy.plan import plan
from memcgctl.policy.policies import POLICIES
from memcgctl.report import audit as report_audit
from memcgctl.report import explain as report_explain
from memcgctl.report import explain_json
from memcgctl.report import listing as report_listing
from memcgctl.snapshot import dumps, loads
from memcgctl.views.explain import audit, explain
from memcgctl.views.listing import select
from tests.cores.holes import frames_at, frames_of, without
from tests.cores.variants import PAGE, read_elf, write_kdump
from tests.schemas import read

FIXTURES = Path(__file__).parents[2] / "fixtures"
USERS = FIXTURES / "6.12-users.zst"
CORES = [core for core in (USERS, FIXTURES / "5.10-users.zst") if core.exists()]

pytestmark = pytest.mark.skipif(not CORES, reason="there are no cores in fixtures/")

# What no answer can do without: a core without it is refused in one line.
VITAL = {Topic.MEMCGS, Topic.MEMORY_MAP, Topic.OTHER}


@cache
def whole(core: Path) -> Census:
    with open_kernel(Sources(core=core)) as kernel:
        return take_census(kernel, details="offline")


@pytest.fixture
def punched(tmp_path: Path) -> Callable[..., Census]:
    """Takes a census of a core without some frames."""

    def take(core: Path, frames: Collection[int]) -> Census:
        assert frames
        with open_kernel(Sources(without(core, frames, tmp_path / "core"))) as kernel:
            census = take_census(kernel, details="offline")
        # What was not read stays so in a file.
        assert loads(dumps(census)) == census
        return census

    return take


def of(census: Census, path: str) -> Memcg:
    (memcg,) = (memcg for memcg in census.memcgs if memcg.path == path)
    return memcg


def explained(census: Census, path: str) -> tuple[str, dict[str, Any]]:
    """What a person sees, as one line, and the JSON."""
    shown = explain(census, of(census, path))
    text = report_explain.screen(shown, width=200).plain
    return " ".join(text.split()), read(explain_json.to_json(shown))


def whys(made: Plan, census: Census) -> dict[str, str]:
    paths = {memcg.id: memcg.path for memcg in census.memcgs}
    return {paths[one.id]: one.why for one in made.remaining}


TOPICS = [topic for topic in Topic if topic not in VITAL]


@pytest.mark.parametrize("core", CORES, ids=lambda core: core.stem)
def test_most_topics_can_be_taken_away(core: Path) -> None:
    """Lost: the test below, which has nothing to say of a topic without pages."""
    assert sum(bool(frames_of(core).get(topic)) for topic in TOPICS) > len(TOPICS) // 2


@pytest.mark.parametrize("core", CORES, ids=lambda core: core.stem)
@pytest.mark.parametrize("topic", TOPICS, ids=lambda topic: topic.name.lower())
def test_a_topic_is_named_where_a_part_of_it_is_missing(
    core: Path, topic: Topic, punched: Callable[..., Census]
) -> None:
    """Lost: "nobody" and "none" in an incomplete dump, which somebody then acts on."""
    frames = frames_of(core).get(topic)
    if not frames:
        return  # this core has no page for it alone
    census = punched(core, frames[len(frames) // 2 :])
    assert topic.value in census.unread
    assert any(topic.value in warning for warning in census.warnings)
    assert whole(core).unread == ()


@pytest.mark.parametrize("level", [0, 31])
def test_a_makedumpfile_that_is_too_old_is_named(tmp_path: Path, level: int) -> None:
    """2 of 4 zombies, and "the cgroup tree is not read in full": by whose fault?"""
    with open_kernel(Sources(core=USERS)) as kernel:
        gone = of(whole(USERS), "/app/anon").address
        (frame,) = frames_at(kernel, gone & -PAGE, PAGE)
    holey = without(USERS, [frame], tmp_path / "elf")
    write_kdump(read_elf(holey), tmp_path / "core", dump_level=level)
    with open_kernel(Sources(tmp_path / "core")) as kernel:
        census = take_census(kernel)
    assert "/app/anon" not in {memcg.path for memcg in census.memcgs}
    assert any("the cgroup tree" in warning for warning in census.warnings)
    told = "makedumpfile left pages out of this dump (level 31)"
    assert sum(told in warning for warning in census.warnings) == (level == 31)


def test_without_page_tables_nobody_is_not_said(punched: Callable[..., Census]) -> None:
    """Lost: "nobody maps it" of memory that a process uses; a plan without a reason."""
    census = punched(USERS, frames_of(USERS)[Topic.PAGE_TABLES])
    text, document = explained(census, "/app/anon")
    assert "users: none" not in text
    assert "mapped by somebody who was not found: 704 KiB; the page tables" in text
    assert "users may be missing: the page tables could not be read in full" in text
    assert document["unread"] == ["page tables"]
    assert [group["mapper_missing_bytes"] for group in document["charges"]] == [720896]
    made = plan(census, POLICIES["least-harm"])
    assert "who maps it could not be read" in whys(made, census)["/app/anon"]
    assert "nobody maps it" not in whys(made, census).values()
    assert any("the page tables could not be read" in one for one in made.warnings)
    # What does not rest on them is as before.
    charges = [(memcg.path, memcg.charges, memcg.swap) for memcg in census.memcgs]
    assert charges == [(m.path, m.charges, m.swap) for m in whole(USERS).memcgs]


def test_some_page_tables_are_missing(punched: Callable[..., Census]) -> None:
    """Lost: one process of two that map it, and a pageout that moves nothing.

    MADV_PAGEOUT passes by what another process maps as well.
    """
    frames = frames_of(USERS)[Topic.PAGE_TABLES]
    census = punched(USERS, frames[::2])
    found = {memcg.path: memcg for memcg in whole(USERS).memcgs}
    for memcg in census.memcgs:
        for group in memcg.details.charge_groups if memcg.details else ():
            details = found[memcg.path].details
            assert details
            (same,) = (
                one
                for one in details.charge_groups
                if (one.kind, one.mapped, one.bytes)
                == (group.kind, group.mapped, group.bytes)
                and (one.backing and one.backing.inode)
                == (group.backing and group.backing.inode)
            )
            mapped = sum(process.bytes for process in group.mappers)
            lost = sum(process.bytes for process in same.mappers) - mapped
            assert (lost > 0) == (group.mapper_missing_bytes > 0)
    before = plan(whole(USERS), POLICIES["least-harm"])
    made = plan(census, POLICIES["least-harm"])
    steps = {(step.action, step.target) for step in before.steps}
    assert {(step.action, step.target) for step in made.steps} <= steps


def test_struct_pages_are_missing(punched: Callable[..., Census]) -> None:
    """Lost: charges that are too small, taken for all there is."""
    with open_kernel(Sources(core=USERS)) as kernel:
        ranges = page_ranges(kernel)
        middle = ranges[-1].address + ranges[-1].pages * 64 // 2
        census = punched(USERS, frames_at(kernel, middle, 1 << 18))
    bound = "charged and folios are lower bounds: the memory map could not be read"
    (warning,) = (one for one in census.warnings if one.startswith(bound))
    listing = select(census)
    assert "at least" in report_listing.headline(listing)[0]
    document = read(report_listing.to_json(listing))
    assert warning in document["warnings"]
    before = select(whole(USERS)).total.charges
    assert before
    assert listing.total.charges
    assert listing.total.charges.total_bytes < before.total_bytes
    missing = audit(census)
    assert missing.unexplained
    headline = " ".join(report_audit.headline(missing))
    assert "the memory map and the slab caches could not be read" in headline
    assert "bug" not in headline
    (short, *_) = (one for one in missing.accounts if one.unexplained)
    text, _ = explained(census, short.memcg.path)
    assert "holder was not found: the memory map and the slab" in text
    assert "folios may be missing: the memory map could not be read in full" in text
    assert (
        "holders of all its references could not be read"
        in whys(plan(census, POLICIES["least-harm"]), census)[short.memcg.path]
    )


def test_the_swap_map_is_missing(punched: Callable[..., Census]) -> None:
    """Lost: zombies that hold nothing but swap are promised to go at once."""
    census = punched(USERS, frames_of(USERS)[Topic.SWAP_MAP])
    assert (
        "swap is a lower bound: the swap map could not be read" in census.warnings[-1]
    )
    swapped = [m for m in whole(USERS).memcgs if m.swap and m.swap.entries]
    (path, *_) = (m.path for m in swapped if m.state == "offline")
    text, _ = explained(census, path)
    assert "swap: none found; the swap map could not be read in full" in text
    made = plan(census, POLICIES["least-harm"])
    assert "swap entries it has could not be read" in whys(made, census)[path]


def test_processes_are_missing(punched: Callable[..., Census]) -> None:
    """Lost: the process whose memory it is, or who has the file open."""
    census = punched(USERS, frames_of(USERS)[Topic.PROCESSES])
    text, document = explained(census, "/app/anon")
    assert "mapped by somebody who was not found: 704 KiB; the process list" in text
    assert "users may be missing: the process list could not be read in full" in text
    assert document["unread"][0] == "process list"
    # Nothing that was read makes a process that there is not.
    pids = {
        process.pid
        for memcg in whole(USERS).memcgs
        for group in (memcg.details.charge_groups if memcg.details else ())
        for process in (*group.mappers, *group.openers)
    }
    for memcg in census.memcgs:
        for group in memcg.details.charge_groups if memcg.details else ():
            assert pids >= {p.pid for p in (*group.mappers, *group.openers)}


def test_file_tables_are_missing(punched: Callable[..., Census]) -> None:
    """Lost: "neither mapped nor open" of a file that is open."""
    census = punched(USERS, frames_of(USERS)[Topic.FILE_TABLES])
    text, _ = explained(census, "/app/opened")
    assert "nobody: " not in text
    assert (
        "users may be missing: the file tables of processes could not be read" in text
    )
