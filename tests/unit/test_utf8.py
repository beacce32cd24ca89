"""Names that are not UTF-8 come out as JSON that every program reads, to the byte."""

from __future__ import annotations

import base64
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memcgctl import utf8
from memcgctl.actions.run.history import read_history
from memcgctl.actions.run.journal import Journal
from memcgctl.model import (
    Harm,
    History,
    PastRun,
    PastStep,
    Result,
    StepResult,
    SwapDeviceUse,
    SwapOwner,
    Usage,
)
from memcgctl.policy.plan import plan
from memcgctl.policy.policies import POLICIES
from memcgctl.policy.simulate import simulate
from memcgctl.report import audit, explain_json, journal, listing, result, simulation
from memcgctl.report import plan as report_plan
from memcgctl.views.explain import audit as audited
from memcgctl.views.explain import explain as explained
from memcgctl.views.listing import select
from tests.schemas import read
from tests.unit.strict import strict
from tests.unit.zombies import FILE, KERNEL, SLEEP, census, details, group, memcg

NAME = os.fsdecode(b"/caf\xe9/\xf0\x9f\x92\xa5")
ENCODED = base64.b64encode(b"/caf\xe9/\xf0\x9f\x92\xa5").decode()


@given(st.binary(max_size=40))
def test_every_byte_of_a_name_comes_back(name: bytes) -> None:
    """Else the path in JSON names a cgroup that never was."""
    text = os.fsdecode(name)
    found = strict(utf8.dumps({"path": text, "all": [text, {text: 1}]}))
    assert os.fsencode(str(utf8.value(found, "path"))) == name
    try:
        plain = name.decode("utf-8", "strict")
        assert found == {"path": plain, "all": [plain, {plain: 1}]}
    except UnicodeDecodeError:
        assert base64.b64decode(found["path_base64"]) == name


@given(st.text(st.characters(exclude_categories=())))
def test_what_no_kernel_can_hold_is_valid_too(text: str) -> None:
    """Else a journal that somebody has written into makes JSON that jq refuses."""
    strict(utf8.dumps({"path": text}))


def test_numbers_that_are_none() -> None:
    """Else a rate of nothing by nothing makes the document one that jq refuses."""
    assert strict(utf8.dumps([float("nan"), {"a": float("inf")}])) == [
        None,
        {"a": None},
    ]


def hostile() -> tuple[Any, Any]:
    """A census in which no name is UTF-8, and one memcg of it."""
    process = replace(SLEEP, comm=NAME, memcg=NAME)
    backing = replace(FILE, path=NAME, device=NAME, fs=NAME)
    owner = SwapOwner(9, NAME, NAME, 9, 3, 1, backing)
    zombie = memcg(
        path=NAME,
        ancestor=NAME,
        details=details(
            ("folio", 1, NAME),
            groups=(group(backing=backing, mappers=(process,), openers=(process,)),),
            swap=(SwapDeviceUse(NAME, 3, (owner,)),),
        ),
    )
    online = memcg(5, NAME, state="online", ancestor="/")
    kernel = replace(KERNEL, path=NAME, release=NAME)
    taken = census(zombie, online, kernel=kernel, warnings=(NAME,))
    return taken, zombie


def documents() -> dict[str, str]:
    taken, zombie = hostile()
    made = plan(taken, POLICIES["least-harm"])
    steps = [StepResult(1, step, "failed", NAME, None, 0.0) for step in made.steps]
    done = Result(
        plan=made,
        steps=tuple(steps),
        freed=(),
        remaining=(),
        usages=(Usage(NAME, 1, 1, 1, 1),),
        harm=Harm(0, 0, 0, 0),
        dying_before=None,
        dying_after=None,
        moved_bytes=0,
        seconds=0.0,
        stopped=NAME,
        journal=NAME,
    )
    past = PastStep(1, NAME, NAME, "done", NAME, 1, 0.1)
    run = PastRun("r", NAME, 1, NAME, NAME, 1, (past,), True, "", 1, 1, 1)
    return {
        "list": listing.to_json(select(taken)),
        "groups": listing.to_json(select(taken, by_ancestor=True)),
        "explain": explain_json.to_json(explained(taken, zombie), None, (), NAME),
        "audit": audit.to_json(audited(taken)),
        "plan": report_plan.to_json(made, taken),
        "result": result.to_json(done, taken, {}),
        "runs": journal.to_json(History(NAME, (run,), 0)),
        "simulation": simulation.to_json(
            [simulate(taken, one) for one in POLICIES.values()], taken
        ),
    }


@pytest.mark.parametrize("name", documents())
def test_all_json_is_valid_whatever_the_names_are(name: str) -> None:
    """Else one container with an odd name costs a fleet's whole report."""
    text = documents()[name]
    read(text)
    assert "caf\\\\xe9" in text
    assert ENCODED in text


def test_version_1_stays_as_it_was() -> None:
    """Else a script that was written for the last release reads other names."""
    taken, zombie = hostile()
    for text, schema in (
        (listing.to_json(select(taken), 1), "memcgctl/list/1"),
        (
            explain_json.to_json(explained(taken, zombie), schema=1),
            "memcgctl/explain/1",
        ),
        (
            report_plan.to_json(plan(taken, POLICIES["evict"]), taken, 1),
            "memcgctl/plan/1",
        ),
    ):
        document = read(text)
        assert document["schema"] == schema
        assert document["source"]["path"] == NAME
        assert "_base64" not in text


def test_a_journal_keeps_every_byte(tmp_path: Path) -> None:
    """Else the one record of what was done names another file."""
    path = tmp_path / "journal"
    with Journal(path) as opened:
        opened.write("before", n=1, action="fadvise", target=NAME)
    read(path.read_bytes())
    (run,) = read_history(path).runs
    assert run.steps[0].target == NAME
