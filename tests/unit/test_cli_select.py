"""Which memcgs ``memcgctl list`` chooses, in which order, and their sums."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memcgctl.cli.choices import Sort
from memcgctl.model import Charges, Listing, Overhead, SwapUse
from memcgctl.views.find import is_under
from memcgctl.views.listing import largest_reason, select, sort_keys
from tests.unit.zombies import census, memcg


def ids(listing: Listing) -> list[int]:
    return [memcg.id for memcg in listing.memcgs]


@pytest.mark.parametrize(
    ("glob", "path", "expected"),
    [
        ("/app", "/app", True),
        ("/app", "/app/pod/leaf", True),
        ("/app", "/apple", False),
        ("/app", "/x/app", False),
        ("/app/", "/app/pod", True),
        ("/app*", "/apple/pod", True),
        ("/*/pod", "/app/pod/leaf", True),
        ("/*/pod", "/pod", False),
        ("/*/pod", "/a/b/pod", False),
        ("pod*", "/app/pod7/leaf", True),
        ("app/pod*", "/x/app/pod7", True),
        ("leaf", "/app", False),
        ("/", "/anything", True),
        ("/", "/", True),
        ("/App", "/app", False),
        ("/[ab]", "/b", True),
        ("/\udcff*", "/\udcff\udcfe", True),
        ("/a?b", "/a\nb/c", True),
    ],
)
def test_under(glob: str, path: str, expected: bool) -> None:
    """``--under`` would hide zombies, or show those of others."""
    assert is_under(path, glob) is expected


def test_online_memcgs_only_when_asked_for() -> None:
    """Living cgroups would be taken for zombies; totals are of the dead always."""
    both = census(memcg(1), memcg(2, state="online"))
    assert ids(select(both)) == [1]
    listing = select(both, online=True, sort="id")
    assert ids(listing) == [1, 2]
    assert listing.total.memcgs == 1


@pytest.mark.parametrize(
    ("sort", "small", "large"),
    [
        ("refs", {"refs": 1}, {"refs": 2}),
        ("children", {"children": 1}, {"children": 2}),
        ("usage", {"usage_bytes": 1}, {"usage_bytes": 2}),
        ("swap", {"swap": SwapUse(1, 1)}, {"swap": SwapUse(1, 2)}),
        ("overhead", {"overhead": Overhead(1, 1, 1)}, {"overhead": Overhead(1, 1, 2)}),
        ("file", {}, {"charges": Charges(file_bytes=1)}),
        ("shmem", {}, {"charges": Charges(shmem_bytes=1)}),
        ("anon", {}, {"charges": Charges(anon_bytes=1)}),
        ("kernel", {}, {"charges": Charges(kernel_bytes=1)}),
        ("sock", {}, {"charges": Charges(sock_bytes=1)}),
        ("cost", {"charges": Charges(anon_bytes=1)}, {"swap": SwapUse(1, 2)}),
        ("refs", {"refs": None}, {"refs": 0}),
        ("file", {"charges": None}, {}),
        ("swap", {"swap": None}, {}),
    ],
)
def test_largest_first_unknown_last(
    sort: str, small: dict[str, Any], large: dict[str, Any]
) -> None:
    """``--sort KEY --limit 10`` would not show the ten worst."""
    listing = select(census(memcg(1, **small), memcg(2, **large)), sort=sort)
    assert ids(listing) == [2, 1]


def test_ids_and_paths_ascend_and_ties_go_by_path() -> None:
    """Two runs over one core would differ."""
    memcgs = census(memcg(3, "/a"), memcg(1, "/c"), memcg(2, "/b"))
    assert ids(select(memcgs, sort="id")) == [1, 2, 3]
    assert ids(select(memcgs, sort="path")) == [3, 2, 1]
    assert ids(select(memcgs)) == [3, 2, 1]


def test_every_documented_key_sorts() -> None:
    """A key that the help names would end in an error."""
    rows = census(memcg(1), memcg(2, charges=None, swap=None, refs=None))
    for by_ancestor in (False, True):
        for sort in sort_keys(by_ancestor):
            select(rows, sort=sort, by_ancestor=by_ancestor)
    assert {key.value for key in Sort} == {
        *sort_keys(False),
        *sort_keys(True),
        *("age", "who"),
    }


CHARGES = st.builds(Charges, *[st.integers(0, 99)] * 8)
SWAP = st.builds(SwapUse, st.integers(0, 99), st.integers(0, 99))
ZOMBIES = st.lists(
    st.builds(
        memcg,
        ancestor=st.sampled_from(["/", "/a", "/b"]),
        state=st.sampled_from(["offline", "online"]),
        charges=CHARGES,
        swap=SWAP,
    )
)


@given(ZOMBIES, st.integers(1, 3))
def test_groups_add_up_to_the_total(zombies: list[Any], limit: int) -> None:
    """Bytes would be lost between the ancestors' rows and the headline."""
    listing = select(census(*zombies), by_ancestor=True)
    assert listing.groups is not None
    offline = [zombie for zombie in zombies if zombie.state == "offline"]
    assert sum(g.memcgs for g in listing.groups) == listing.total.memcgs == len(offline)
    assert (
        sum(g.cost_bytes for g in listing.groups)
        == listing.total.cost_bytes
        == sum(z.charges.total_bytes + z.swap.bytes + (119 << 10) for z in offline)
    )
    limited = select(census(*zombies), by_ancestor=True, limit=limit)
    assert limited.groups == listing.groups[:limit]
    assert limited.omitted == max(0, len(listing.groups) - limit)
    assert limited.total == listing.total


def test_the_reason_is_what_each_holds_most_of() -> None:
    """One large exception would hide what makes most zombies."""
    file = memcg(1, charges=Charges(file_bytes=8192, anon_bytes=4096))
    big = memcg(2, charges=Charges(shmem_bytes=1 << 20))
    few, many = largest_reason([file, big]), largest_reason([file] * 20 + [big])
    assert few is not None
    assert (few.kind, few.memcgs) == ("shmem", 1)
    assert many is not None
    assert (many.kind, many.memcgs) == ("file", 20)
    assert largest_reason([memcg(1, charges=None, swap=None)]) is None
    assert largest_reason([]) is None


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"charges": Charges(kernel_bytes=1)}, "kernel"),
        ({"charges": Charges(sock_bytes=1)}, "sock"),
        ({"swap": SwapUse(1, 1), "children": 1}, "swap"),
        ({"children": 1}, "children"),
        ({}, "other"),
    ],
)
def test_a_reason_without_folios(changes: dict[str, Any], kind: str) -> None:
    """A memcg that a child or writeback holds would seem to hold itself."""
    reason = largest_reason([memcg(1, **changes)])
    assert reason is not None
    assert reason.kind == kind
