"""The memcg that a person names is the one that is explained."""

from __future__ import annotations

import pytest

from memcgctl.model import Memcg
from memcgctl.views.find import find, near
from tests.unit.zombies import census, memcg

ROOT = memcg(1, "/", state="online", address=0xFFFF888000001000)
POD = memcg(20012, "/pods/7", address=0xFFFF8880000ABC00)
MADE_AGAIN = memcg(30, "/pods/7", state="online")
CHILD = memcg(31, "/pods/7/c", private_id=12)
NUMBER = memcg(40, "/20012")
BYTES = memcg(41, "/pods/\udcff")
ALL = census(ROOT, POD, MADE_AGAIN, CHILD, NUMBER, BYTES)


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
        ("/pods/7/c", [CHILD]),
        ("7/c", [CHILD]),
        ("pods/7", [POD, MADE_AGAIN, CHILD]),
        ("pods", [POD, MADE_AGAIN, CHILD, BYTES]),
        ("\udcff", [BYTES]),
        ("c", [CHILD]),
        ("7", [POD, MADE_AGAIN, CHILD]),
        ("/", [ROOT]),
        ("99", []),
        ("memcg:0", []),
        ("0x12", []),
        ("nothing", []),
        ("", []),
    ],
)
def test_an_id_names_what_it_says(text: str, expected: list[Memcg]) -> None:
    """Else the wrong memcg is explained, or a clear name is called ambiguous."""
    assert list(find(ALL, text)) == expected


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
