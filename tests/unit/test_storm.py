"""The storm's scenes and verdicts: a failure it finds must be there to be seen."""

from __future__ import annotations

import json
from typing import Any

from tests.lab.storm.compose import ROOM, compose
from tests.lab.storm.judge import judge
from tests.lab.storm.run import without

Json = dict[str, Any]


def test_a_scene_comes_again() -> None:
    """A line of seed and number is all that is kept of a failure."""
    for number in range(20):
        again = compose(7, number, "6.12")
        assert json.loads(json.dumps(again)) == again == compose(7, number, "6.12")
    assert compose(7, 1, "6.12") != compose(7, 1, "6.1") != compose(8, 1, "6.1")


def test_a_scene_fits_the_guest() -> None:
    """One that runs out of memory or swap would be lost, or blame memcgctl."""
    for number in range(200):
        scene = compose(3, number, "6.1")
        parts = [part for memcg in scene["memcgs"] for part in memcg["parts"]]
        assert sum(part["bytes"] for part in parts) <= ROOM
        paths = [memcg["path"] for memcg in scene["memcgs"]]
        for at, path in enumerate(paths):
            above = path.rpartition("/")[0]
            assert not above or above in paths[:at]
        for part in parts:
            assert {part["user"], part.get("second", "holder")} <= {*paths}


def test_what_is_left_out() -> None:
    """A smaller scene is one that can be played: nobody uses what is not there."""
    scene = compose(3, 4, "6.12")
    living = [m["path"] for m in scene["memcgs"] if "/s" in m["path"]]
    fewer = without(json.loads(json.dumps(scene)), living)
    for memcg in fewer["memcgs"]:
        assert memcg["path"] not in living
        for part in memcg["parts"]:
            assert part["user"] not in living
            assert part.get("shared") not in living


def facts(**changes: Any) -> Json:
    """A scene in which one zombie was promised and freed, and nobody lost a thing."""
    living = {"pages": [4, 0, 2, 9], "swap": 0, "usage": 0, "events": {"oom_kill": 0}}
    look: Json = {"dying": 1, "memcgs": {"app/s0": living}}
    result = {
        "predicted": {"freed": [7], "collateral_bytes": 0},
        "measured": {"freed": [7], "remaining": []},
    }
    said = {"status": 0, "stderr": "", "json": result}
    return {
        "ids": {"app/z0": 7},
        "before": look,
        "after": {**look, "dying": 0},
        "left": {},
        "lost": {},
        "plan": {"status": 0, "stderr": "", "json": {"steps": []}},
        "ran": said,
        "rest": {"status": 0, "stderr": "", "json": {"memcgs": []}},
        "damage": [],
    } | changes


SCENE: Json = {
    "memcgs": [
        {"path": "app", "online": True},
        {"path": "app/s0", "online": True},
        {"path": "app/z0", "online": False},
    ]
}


def kinds(said: Json) -> list[str]:
    return [kind for kind, _ in judge(SCENE, said).findings]


def living(pages: list[int], **more: int) -> Json:
    one = {"pages": pages, "swap": 0, "usage": 0, "events": {"oom_kill": 0}, **more}
    return {"dying": 0, "memcgs": {"app/s0": one}}


def test_verdicts() -> None:
    """A broken promise or harm that passes for none would never be found."""
    good = judge(SCENE, facts())
    assert (good.promised, good.freed, good.holds) == (1, 1, True)
    assert kinds(facts(damage=["/mnt/ext4/a has changed"])) == ["damage"]
    assert kinds(facts(left={"swaps": ["/dev/zram1"]})) == ["left behind"]
    assert kinds(facts(after=living([3, 0, 2, 9]))) == ["harm"]
    assert kinds(facts(after=living([4, 0, 0, 9]))) == ["harm"]
    assert kinds(facts(after=living([4, 0, 2, 0]))) == []  # the kernel's own
    assert kinds(facts(after=living([40, 0, 2, 9]))) == ["charged"]
    assert kinds(facts(error="Traceback\nOSError: no")) == ["scene"]
    still = {"memcgs": [{"id": 7, "state": "offline"}]}
    rest = {"status": 0, "stderr": "", "json": still}
    # It is there, it says that it freed it, and exits with 0.
    said = facts(rest=rest, after=living([4, 0, 2, 9]) | {"dying": 1})
    assert kinds(said) == ["promise"] * 3
