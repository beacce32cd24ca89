"""To ask what would be done with a part changes nothing; to take it does."""

from __future__ import annotations

from memcgctl.policy.cases import parts
from memcgctl.policy.choice import Chooser
from memcgctl.policy.interfaces.context import PlanContext
from memcgctl.policy.outcome import offline
from memcgctl.policy.policies import POLICIES
from tests.unit.plans import PAGE, swapped, world, zombie
from tests.unit.zombies import group


def test_asking_twice_gives_the_same_answer() -> None:
    """Lost: a plan that depends on who asked before."""
    census = world(
        zombie(
            100,
            group(kind="anon", backing=None, bytes=2 * PAGE, swap_entry_bytes=2 * PAGE),
            swap=swapped(2),
        ),
        swap_free_bytes=3 * PAGE,
    )
    policy = POLICIES["least-harm"]
    room = PlanContext(census, offline(census), policy.mapper)
    chooser = Chooser(room, policy, ())
    (memcg,) = offline(census)
    for part in parts(memcg, PAGE):
        before = dict(room.stuck), room.room.free_swap
        first = chooser.choose(part)
        assert chooser.choose(part) == first
        assert (dict(room.stuck), room.room.free_swap) == before
        chooser.take(part, *first)
