"""Policies in TOML files: what they can say, and what is said of their errors."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer

from memcgctl.cli.policy import load_policy, parse_size
from memcgctl.policy.policies import POLICIES, PolicyError, parse_policy

GOOD = """
name = "mine"
mapper = "lca"

[cases]
file-unmapped = "evict"
swap-backed-mapped = ["recharge-mapper", "deferred"]
swap = "leave"
"""


def test_a_policy_in_a_file() -> None:
    """Lost: a kernel developer's own idea, tried on a real census."""
    policy = parse_policy(GOOD, "file")
    assert (policy.name, policy.mapper, policy.least_harm) == ("mine", "lca", False)
    assert policy.options == {
        "file-unmapped": ("evict",),
        "swap-backed-mapped": ("recharge-mapper", "deferred"),
        "swap": ("leave",),
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cases = ", "not TOML"),
        ("", "no table [cases]"),
        ("cases = 7", "no table [cases]"),
        ("[cases]", "no table [cases]"),
        ("[cases]\nfile = 'evict'", "unknown case 'file', not one of file-unmapped"),
        ("[cases]\nother = 'evict'", "unknown case 'other'"),
        ("[cases]\nswap = 'evct'", "swap is 'evct', not one of evict, recharge-par"),
        ("[cases]\nswap = ['evict', 3]", "swap is 3, not one of"),
        ("[cases]\nswap = [['evict']]", "swap is ['evict'], not one of"),
        ("[cases]\nswap = {}", "swap is {}, not one of"),
        ("[cases]\nswap = []", "swap has an empty list"),
        (
            "mapper = 'all'\n[cases]\nswap = 'evict'",
            "mapper is 'all', not one of first",
        ),
        ("mapper = ['lca']\n[cases]\nswap = 'evict'", "mapper is ['lca']"),
        ("name = 7\n[cases]\nswap = 'evict'", "name is not a line of text"),
        ('name = "a\\u001b[2J"\n[cases]\nswap = "evict"', "name is not a line"),
        ("least_harm = true\n[cases]\nswap = 'evict'", "unknown key 'least_harm'"),
        ("[cases]\n'a\\u001b' = 'evict'", "unknown case"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(text: str, said: str) -> None:
    """Lost: the line to correct, or the terminal to a file's escape sequences."""
    with pytest.raises(PolicyError) as caught:
        parse_policy(text, "file")
    assert said in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_name_or_a_file(tmp_path: Path) -> None:
    """Lost: ``--policy FILE``, and what there is instead of a misspelt name."""
    path = tmp_path / "my policy.toml"
    path.write_text("[cases]\nswap = 'leave'\n")
    assert load_policy(str(path)).name == "my policy"
    assert load_policy("proposal") is POLICIES["proposal"]
    with pytest.raises(
        typer.BadParameter, match=r"neither a policy \(proposal, .* nor"
    ):
        load_policy("propsal")
    for wrong in (b"\xff", b"#" * ((1 << 20) + 1), b"[cases]\nx = 1"):
        path.write_bytes(wrong)
        with pytest.raises(typer.BadParameter, match="my policy"):
            load_policy(str(path))


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0", 0), ("4096", 4096), ("64K", 65536), ("1mib", 1 << 20), ("2 GB", 2 << 30)],
)
def test_sizes_as_people_write_them(text: str, expected: int) -> None:
    """Lost: a budget a thousand times too large."""
    assert parse_size(text) == expected


@pytest.mark.parametrize("text", ["", "-1", "1.5G", "1X", "K", "1 000", "0x10"])
def test_what_is_no_size_is_refused(text: str) -> None:
    """Lost: a budget that was not meant."""
    with pytest.raises(typer.BadParameter):
        parse_size(text)
