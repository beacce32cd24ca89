"""Kernel lists made by hand, whole and damaged, are walked to an end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memcgctl.kernel.trouble import Topic
from memcgctl.linux.lists import list_walker, occupied
from memcgctl.linux.structs import addresses
from tests.unit.fake_kernel import FakeKernel

STRUCTS = {
    "list_head": {"next": "void *", "prev": "void *"},
    "thing": {"gap": "u64", "number": "u32", "pad": "u32", "links": "list_head[3]"},
    "box": {"lid": "u64", "list": "list_head"},
}
LINKS = 16  # offset of thing.links


def head(fake: FakeKernel, first: int = 0) -> int:
    return fake.make("list_head", {"next": first})


def link(fake: FakeKernel, at: int, things: list[int], index: int = 0) -> None:
    """Put ``things`` on the list at ``at`` by their ``index``-th link."""
    nodes = [thing + LINKS + 16 * index for thing in things]
    for before, after in zip([at, *nodes], [*nodes, at], strict=True):
        owner = next(a for a in fake.memory if a <= before < a + len(fake.memory[a]))
        place = before - owner
        fake.memory[owner][place : place + 8] = after.to_bytes(8, "little")


def walk(
    fake: FakeKernel, at: int, index: int = 0, limit: int = 1 << 20
) -> tuple[list[int], list[int], tuple[str, ...]]:
    found, rows = list_walker(
        fake.kernel,
        "struct thing",
        "links",
        {"number": "number"},
        Topic.REFERENCES,
        index=index,
        limit=limit,
    )(at)
    return found.tolist(), rows["number"].tolist(), fake.kernel.trouble.sentences()


@pytest.mark.parametrize("index", [0, 2])
def test_elements_come_in_order_by_any_of_their_links(index: int) -> None:
    """Lost: holders on a list, or the wrong css_set's where the link is in an array."""
    fake = FakeKernel(STRUCTS)
    things = [fake.make("thing", {"number": n}) for n in (7, 5, 9)]
    at = head(fake)
    link(fake, at, things, index)
    assert walk(fake, at, index) == (things, [7, 5, 9], ())


@pytest.mark.parametrize("kind", ["empty", "never set up"])
def test_a_list_without_elements_is_no_trouble(kind: str) -> None:
    """Lost: trust in the output, by a warning for each memcg after its offline."""
    fake = FakeKernel(STRUCTS)
    at = head(fake)
    if kind == "empty":
        fake.put(at, "list_head", {"next": at})
    assert walk(fake, at) == ([], [], ())
    assert occupied(fake.kernel, addresses([at, 0])).tolist() == [False, False]


@pytest.mark.parametrize("last", ["unmapped", "null", "first", "itself", "negative"])
def test_a_damaged_list_ends_with_a_warning(last: str) -> None:
    """Lost: the program, in a cycle or at a fault; or the word that there was one."""
    fake = FakeKernel(STRUCTS)
    things = [fake.make("thing", {"number": n}) for n in range(3)]
    at = head(fake)
    link(fake, at, things)
    to = {
        "unmapped": 0xFFFF900000000000,
        "null": 0,
        "first": things[0] + LINKS,
        "itself": things[2] + LINKS,
        "negative": 8,
    }[last]
    fake.memory[things[2]][LINKS : LINKS + 8] = to.to_bytes(8, "little")
    found, _, warnings = walk(fake, at)
    assert found == things
    assert warnings == ("a list of struct thing could not be followed to its end",)


def test_a_list_beyond_the_bound_is_cut_with_a_warning() -> None:
    """Lost: an answer, on memory where a list goes on and on."""
    fake = FakeKernel(STRUCTS)
    things = [fake.make("thing") for _ in range(5)]
    at = head(fake)
    link(fake, at, things)
    found, _, warnings = walk(fake, at, limit=3)
    assert found == things[:3]
    assert len(warnings) == 1


@given(st.lists(st.integers(0, 5), min_size=6, max_size=6), st.integers(0, 6))
def test_any_links_at_all_end(targets: list[int], first: int) -> None:
    """Lost: the program, for one of the ways in which links can be garbage."""
    fake = FakeKernel(STRUCTS)
    things = [fake.make("thing", {"number": n}) for n in range(6)]
    places = [thing + LINKS for thing in things] + [0]
    at = head(fake, places[first])
    for thing, target in zip(things, targets, strict=True):
        fake.memory[thing][LINKS : LINKS + 8] = places[target].to_bytes(8, "little")
    found, numbers, _ = walk(fake, at)
    assert len(found) == len(set(found)) == len(numbers) <= 6
