"""First contact: what ``memcgctl`` alone and ``memcgctl help`` say."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from memcgctl.cli import app
from memcgctl.cli.help import topics
from memcgctl.policy.interfaces import INTERFACES

RUN = CliRunner()


def test_alone_it_names_the_three_steps() -> None:
    """A newcomer would get an alphabet of commands, and no order."""
    done = RUN.invoke(app, [])
    assert done.exit_code == 0
    places = [done.output.index(f"memcgctl {word}") for word in ("list", "explain")]
    assert places == sorted(places)
    assert all(len(line) <= 80 for line in done.output.splitlines())


@pytest.mark.parametrize("topic", [*topics(), "list", "reclaim"])
def test_each_topic_is_shown(topic: str) -> None:
    """Lost: what the README leaves to it."""
    done = RUN.invoke(app, ["help", topic])
    assert (done.exit_code, bool(done.output.strip())) == (0, True)


def test_what_the_readme_names_is_there() -> None:
    """The README sends a person to these."""
    assert {"json", "policies", "actions", "cores", "numbers", "glossary"} <= {
        *topics()
    }


def test_no_such_topic() -> None:
    """Wrong usage is told by its exit code, with what there is."""
    done = RUN.invoke(app, ["help", "colour"])
    assert done.exit_code == 2


def test_every_action_is_explained() -> None:
    """A plan would name what nobody can look up before saying yes to it."""
    for one in INTERFACES:
        done = CliRunner().invoke(app, ["help", one.name])
        assert done.exit_code == 0
        assert one.does in done.stdout
        assert all(text in done.stdout for text in (one.requires, one.cannot))
