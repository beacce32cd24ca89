"""Numbers and hostile names on a screen."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from memcgctl.report.text import count, escape, shorten, size

NAMES = st.text(st.characters(exclude_categories=())) | st.binary().map(
    lambda name: name.decode("utf-8", "surrogateescape")
)
ENCODINGS = st.sampled_from(["utf-8", "ascii", "latin-1", "euc_jp"])


@pytest.mark.parametrize(
    ("count_bytes", "short", "long"),
    [
        (None, "-", "-"),
        (0, "0", "0 B"),
        (1023, "1023B", "1023 B"),
        (1024, "1.0K", "1.0 KiB"),
        (115632, "113K", "113 KiB"),
        ((1 << 20) - 1, "1.0M", "1.0 MiB"),
        (99 << 20, "99.0M", "99.0 MiB"),
        ((100 << 20) - 1, "100M", "100 MiB"),
        (1023 << 30, "1023G", "1023 GiB"),
        ((1 << 64) - 1, "16.0E", "16.0 EiB"),
        (-4096, "-4.0K", "-4.0 KiB"),
    ],
)
def test_sizes_are_binary(count_bytes: int | None, short: str, long: str) -> None:
    """A person would plan with sizes that are wrong by a unit."""
    if count_bytes is not None:
        assert size(count_bytes, long=True) == long
    assert size(count_bytes) == short


@given(st.integers(0, 1 << 70))
def test_numbers_keep_their_room(number: int) -> None:
    """A garbage counter would push the table over the edge of the screen."""
    assert len(size(number)) <= 5
    assert len(count(number)) <= 7


def test_an_unknown_count_is_not_zero() -> None:
    """An online memcg would seem to have no references."""
    assert count(None) == "-"


@given(NAMES, ENCODINGS)
def test_a_name_cannot_act_on_the_terminal(name: str, encoding: str) -> None:
    """A cgroup's name could clear the screen, forge lines or crash the output."""
    shown = escape(name, encoding)
    shown.encode(encoding)
    categories = {unicodedata.category(char) for char in shown} - {"Zs"}
    assert not {c for c in categories if c[0] in "CMZ"}
    assert not {char for char in shown if unicodedata.category(char) == "Zs"} - {" "}
    assert not {unicodedata.bidirectional(char) for char in shown} & {"R", "AL", "AN"}


@given(NAMES, st.integers(1, 100), ENCODINGS)
def test_shortened_names_fit(name: str, width: int, encoding: str) -> None:
    """A long or wide name would push its numbers out of their columns."""
    shown = shorten(name, width, encoding)
    shown.encode(encoding)
    assert cell_len(shown) <= width
    if cell_len(escape(name, encoding)) <= width:
        assert shown == escape(name, encoding)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("/a b", "/a b"),
        ("/[red]x[/red]", "/[red]x[/red]"),
        ("/a\x1b[2J\n", r"/a\x1b[2J\x0a"),
        ("/\udcff\udc80", r"/\xff\x80"),
        ("/漢字é", "/漢字é"),
        ("/\u202e\u200b\u0301", r"/\u202e\u200b\u0301"),
        ("/\u05d0\U0001f1e6", r"/\u05d0\U0001f1e6"),
        ("/\u3164\ud7b0", r"/\u3164\ud7b0"),
    ],
)
def test_escapes(name: str, shown: str) -> None:
    """A person could not tell which cgroup it is."""
    assert escape(name) == shown


@pytest.mark.parametrize(
    ("width", "shown"),
    [
        (13, "/system/a/b/c"),
        (12, "/syst…/a/b/c"),
        (5, "/s…/c"),
        (2, "…c"),
        (1, "…"),
    ],
)
def test_the_middle_goes_first(width: int, shown: str) -> None:
    """Where a path begins and what it names last tell most about it."""
    assert shorten("/system/a/b/c", width) == shown


def test_escapes_are_not_cut() -> None:
    """Half an escape would read as another name."""
    assert shorten("\x1b\x1b\x1b\x1b", 10) == r"\x1b…\x1b"
    assert shorten("ab\x1b\x1bcd", 8, "ascii") == "ab...cd"
