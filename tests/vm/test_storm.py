"""What failed in a storm once, on a running kernel, and the storm itself."""

from __future__ import annotations

from contextlib import closing

from tests.lab.storm.judge import judge
from tests.lab.storm.run import Stage, cases

SERIES = "6.12"


def test_what_failed_once_holds() -> None:
    """A promise that was broken once would be again; nor would a storm find any."""
    with closing(Stage(SERIES)) as stage:
        for scene in cases(SERIES):
            verdict = judge(scene, stage.play(scene))
            assert verdict.findings == ()
            zombies = [memcg for memcg in scene["memcgs"] if not memcg["online"]]
            assert verdict.promised == verdict.freed == len(zombies)
