"""The memcg that a person names is the one that is explained."""

from __future__ import annotations

import pytest

from memcgctl.model import Memcg
from memcgctl.views.find import find, match, near, tell_apart, under
from tests.unit.zombies import census, memcg

ROOT = memcg(1, "/", state="online", address=0xFFFF888000001000)
POD = memcg(20012, "/pods/7", address=0xFFFF8880000ABC00)
MADE_AGAIN = memcg(30, "/pods/7", state="online")
CHILD = memcg(31, "/pods/7/c", private_id=12)
NUMBER = memcg(40, "/20012")
BYTES = memcg(41, "/pods/\udcff")
UID = "0f1e2d3c-1111-2222-3333-444455556666"
SLICE = memcg(50, f"/k/k-pod{UID.replace('-', '_')}.slice", state="online")
CONTAINER = memcg(51, f"{SLICE.path}/crio-1.scope", parent_id=50)
ALL = census(ROOT, POD, MADE_AGAIN, CHILD, NUMBER, BYTES, SLICE, CONTAINER)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("20012", [POD]),
        ("/20012", [NUMBER]),
        ("memcg:12", [CHILD]),
        ("0xffff8880000abc00", [POD]),
        ("0xFFFF8880000ABC00", [POD]),
        ("/pods/7", [POD, MADE_AGAIN]),
        ("/pods/7/", [POD, MADE_AGAIN]),
        ("/sys/fs/cgroup/pods/7/c", [CHILD]),
        ("/sys/fs/cgroup/memory/pods/7/c", [CHILD]),
        ("/sys/fs/cgroup/", [ROOT]),
        ("/pods/7/c", [CHILD]),
        ("/", [ROOT]),
        (UID, [SLICE]),
        (f"pod{UID}", [SLICE]),
        (UID.replace("-", "_"), [SLICE]),
        *[(text, []) for text in ("99", "7", "memcg:0", "0x12", "c", "pods", "/p", "")],
    ],
)
def test_what_names_a_memcg(text: str, expected: list[Memcg]) -> None:
    """reclaim would act on what nobody named, or not on what somebody did."""
    assert list(find(ALL, text)) == expected


@pytest.mark.parametrize(
    ("text", "how", "expected"),
    [
        ("7/c", "name", [CHILD]),
        ("pods/7", "name", [POD, MADE_AGAIN]),
        ("pods", "part", [POD, MADE_AGAIN, CHILD, BYTES]),
        ("\udcff", "name", [BYTES]),
        ("c", "name", [CHILD]),
        ("po*", "part", None),
        ("po*/7", "glob", [POD, MADE_AGAIN]),
        ("/pods/?", "glob", [POD, MADE_AGAIN, BYTES]),
        (UID[:13], "part", [SLICE, CONTAINER]),
        ("20012", "exact", [POD]),
        ("7", None, None),
        ("2001", None, None),
        ("/pods/", None, None),
        ("0xffff", None, None),
        ("nothing", None, None),
        ("", None, None),
    ],
)
def test_what_matches_a_memcg(
    text: str, how: str | None, expected: list[Memcg] | None
) -> None:
    """The wrong memcg is explained, or a clear name is called ambiguous."""
    found = match(ALL, text)
    if expected is None:
        assert found is None
    else:
        assert found is not None
        assert (found.how, list(found.memcgs)) == (how, expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/pods/7", [POD, MADE_AGAIN, CHILD]),
        ("/sys/fs/cgroup/pods/7", [POD, MADE_AGAIN, CHILD]),
        ("7", []),
        ("20012", [POD]),
        (UID, [SLICE, CONTAINER]),
        ("po*/7", [POD, MADE_AGAIN, CHILD]),
        ("c", [CHILD]),
        ("od", []),
    ],
)
def test_what_is_below(text: str, expected: list[Memcg]) -> None:
    """A list of one pod would show others, or none of its own."""
    assert [*filter(under(ALL, text), ALL.memcgs)] == expected


def test_memcgs_of_one_cgroup_are_told_apart() -> None:
    """Controllers that come and go leave several; a person could name none of them."""
    again = memcg(20012, "/pods/7", address=0xFFFF8880000DEF00)
    assert tell_apart((POD, CHILD)) == "id"
    assert tell_apart((POD, again)) == "address"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/pod/7", POD),
        ("20021", POD),
        ("memcg:13", CHILD),
        ("0xffff8880000abc10", POD),
    ],
)
def test_a_typing_error_is_answered_with_what_was_meant(
    text: str, expected: Memcg
) -> None:
    """Else a person with one wrong digit starts again from the list."""
    assert find(ALL, text) == ()
    assert near(ALL, text)[0] == expected


def test_few_are_proposed() -> None:
    """Else a typing error on a host with 3,000 zombies fills the terminal."""
    many = census(*(memcg(n, f"/pods/{n}") for n in range(1000, 1100)))
    assert len(near(many, "/pods/11")) == 8
    assert near(many, "\x1b nothing like it") == ()
