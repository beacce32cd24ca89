"""What could be done with what one memcg holds: each option, here and in principle?"""

from __future__ import annotations

from collections.abc import Iterable

from memcgctl.model import Census, Memcg, Prospect
from memcgctl.policy.cases import CASES, Part, parts
from memcgctl.policy.choice import Chooser
from memcgctl.policy.effects import effect, likely_bytes
from memcgctl.policy.headroom import Headroom
from memcgctl.policy.interfaces.base import AnyInterface
from memcgctl.policy.interfaces.context import PlanContext
from memcgctl.policy.outcome import WORDS, offline
from memcgctl.policy.plan import TRANSIT, plan
from memcgctl.policy.policies import OPTIONS, POLICIES, Option, Policy


def options(census: Census, memcg: Memcg) -> tuple[Prospect, ...]:
    """All four for an offline memcg; none for an online one, or one not looked at.

    ``bytes`` of an option is what user space can move by it here, or what a kernel
    could where user space cannot.
    """
    if memcg.state == "online" or memcg.details is None:
        return ()
    held = list(parts(memcg, census.kernel.page_size))
    return tuple(
        _here(census, held, option) or _in_principle(census, held, option)
        for option in OPTIONS[:-1]
    )


def _here(census: Census, held: list[Part], option: Option) -> Prospect | None:
    """By which interfaces user space can do it, and what of it; None: by none."""
    policy = Policy(option, {case: (option,) for case in CASES if case != "other"})
    context = PlanContext(census, offline(census), policy.mapper)
    chooser = Chooser(context, policy, (TRANSIT,))
    found = []
    for part in held:
        found.append(chosen := chooser.choose(part))
        chooser.take(part, *chosen)
    used = {one.name: one for one, _ in found if one}
    if not used:
        return None
    rest = (_rest(reach.effect.part, reach.effect.why) for _, reach in found)
    return Prospect(
        option=option,
        bytes=sum(move.bytes for _, reach in found for move in reach.moves),
        supported=True,
        how=_listed([", ".join(map(_named, used.values())), *rest]),
        effect=_listed(one.effect for one in used.values()),
    )


def _named(interface: AnyInterface) -> str:
    """An interface, and what has to be said so that it is used."""
    asked = f" (with --allow {interface.ask})" if interface.ask else ""
    return f"{interface.name}{asked}"


def _in_principle(census: Census, held: list[Part], option: Option) -> Prospect:
    """What a kernel could do that had the option."""
    if not held:
        how = "it holds nothing itself: what is below it has to go"
        return Prospect(option=option, bytes=0, supported=False, how=how, effect="")
    room = Headroom(census)
    found = [effect(part, (option,), "most", room) for part in held]
    charged = {room.path(who) for one in found for who, _ in one.charged}
    moved = sum(one.part.bytes - one.left_bytes for one in found)
    said = ""
    if charged:
        said = f"{', '.join(sorted(charged))} would be charged"
        if likely := sum(map(likely_bytes, found)):
            said += f" until somebody touches it: {likely:,} bytes are likely touched"
    return Prospect(
        option=option,
        bytes=moved,
        supported=False,
        how=_listed(
            ["user space has no way", *(_rest(one.part, one.why) for one in found)]
        ),
        effect=said,
    )


def _rest(part: Part, why: str) -> str:
    return f"{WORDS[part.case]}: {why}" if why else ""


def _listed(sentences: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(filter(None, sentences)))


def next_command(census: Census, memcg: Memcg) -> str:
    """What memcgctl is to be asked next: a subcommand and its arguments."""
    if memcg.state == "online":
        below = any(one.parent_id == memcg.id for one in offline(census))
        return f"reclaim --dry-run {memcg.id}" if below else "list"
    if memcg.details and memcg.details.unexplained:
        return "audit"
    made = plan(census, POLICIES["least-harm"], [memcg.id])
    if not made.steps and made.more_by_transit:
        return f"reclaim --dry-run --allow {TRANSIT} {memcg.id}"
    # Where there are none, the plan says who has to do what.
    return f"reclaim --dry-run {memcg.id}"
