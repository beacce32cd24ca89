"""What a person and a program are told when reclaim has acted."""

from __future__ import annotations

from dataclasses import replace

from memcgctl.model import Harm, Plan, Remaining, Result, StepResult, Usage
from memcgctl.report.result import headline, screen, to_json
from tests.schemas import read
from tests.unit.plans import step, world, zombie

STEP = step(
    "fadvise",
    memcgs=(100, 101),
    target="/var/log/x\x1b[31m",
    command="dd if=/var/log/x",
    bytes=8192,
    charged_to=("/app",),
    collateral_bytes=4096,
    risk="none",
    frees=(100, 101),
)
CENSUS = world(zombie(100), zombie(101), zombie(102))
PLAN = Plan(
    CENSUS.kernel,
    "least-harm",
    (STEP,),
    (),
    (100, 101),
    (Remaining(102, "locked"),),
    (),
    returned_bytes=8192,
    recharged_bytes=0,
)
RESULT = Result(
    plan=PLAN,
    steps=(StepResult(1, STEP, "part", "4096 bytes stay", 4096, 0.5, (100,)),),
    freed=(100,),
    remaining=(Remaining(101, "step 1: 4096 bytes stay"), Remaining(102, "locked")),
    usages=(Usage("/app", 1 << 20, 512 << 10, 0, 4096),),
    harm=Harm(3, 2, 10 << 10, 6 << 10),
    dying_before=3,
    dying_after=2,
    moved_bytes=4096,
    seconds=1.25,
    stopped="",
    journal="/var/lib/memcgctl/journal",
)


def test_what_is_gone_comes_first_and_what_stays_has_its_reason() -> None:
    """A person would believe that all is gone, or not learn why it is not."""
    text = screen(RESULT, CENSUS, {101: "Held by 1 folio."}).plain
    assert text.lstrip().startswith("1 of 2 zombies that were to go are gone")
    words = " ".join(text.split())
    assert "done in part: 4096 bytes stay" in words
    assert "(id 101) is still there: step 1: 4096 bytes stay. Held by 1 folio." in words
    assert "1 zombie stayed as the plan said." in words
    assert "-512K +4.0K" in words
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text


def test_the_harm_is_measured_beside_what_was_predicted() -> None:
    """A person would have to trust the prediction."""
    rows = {
        line[:40].split("  ")[0]: line.split()[-2:]
        for line in screen(RESULT, CENSUS, {}).plain.splitlines()
    }
    assert rows["zombies gone"] == ["2", "1"]
    assert rows["the kernel's count of dying cgroups"] == ["1", "2"]
    lost = [key for key in rows if key.startswith("file cache of living memcgs")]
    assert rows[lost[0]] == ["4.0K", "4.0K"]


def test_what_could_not_be_read_is_said() -> None:
    """A person would read "+0 +0" where megabytes were moved."""
    unread = replace(
        RESULT,
        usages=(Usage("/app", None, None, None, None),),
        harm=Harm(None, None, None, None),
        warnings=("limits could not be read",),
    )
    text = screen(unread, CENSUS, {}).plain
    assert text.count("not readable here") == 2
    assert "came back meanwhile could not be read" in text
    assert "Warning: limits could not be read" in text
    assert read(to_json(unread, CENSUS, {}))["warnings"] == [*unread.warnings]


def test_json_has_predicted_and_measured_apart() -> None:
    """A program would take what was promised for what was done."""
    document = read(to_json(RESULT, CENSUS, {101: "Held."}))
    assert document["schema"] == "memcgctl/result/1"
    assert not document["complete"]
    assert document["predicted"]["freed"] == [100, 101]
    assert document["measured"]["freed"] == [100]
    assert document["measured"]["remaining"][0]["verdict"] == "Held."
    assert document["measured"]["remaining"][1]["verdict"] is None
    assert document["steps"][0]["moved_bytes"] == 4096
    assert document["steps"][0]["bytes"] == 8192


def test_a_run_that_was_stopped_says_so_first() -> None:
    """A person would take a run that Ctrl-C ended for a whole one."""
    stopped = replace(RESULT, stopped="stopped by SIGINT")
    assert headline(stopped, CENSUS).endswith("; stopped by SIGINT.")
    assert read(to_json(stopped, CENSUS, {}))["stopped"] == "stopped by SIGINT"
