"""Which interface carries out a policy's option for a part of a zombie here, if any?"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from memcgctl.policy.cases import CASES, Case, Part
from memcgctl.policy.effects import NO_RULE, counter_changes, left
from memcgctl.policy.interfaces import INTERFACES
from memcgctl.policy.interfaces.base import AnyInterface, Reach
from memcgctl.policy.interfaces.context import PlanContext
from memcgctl.policy.policies import Option, Policy

ALLOWED = ("over-limit", "unaimed", "drop-caches", "temp-swap")


class Chooser:
    """The interfaces that a policy may use on the kernel at hand, by case."""

    def __init__(
        self,
        context: PlanContext,
        policy: Policy,
        allow: Collection[str],
        only: Collection[str] = (),
    ):
        self._context = context
        self._allow = allow
        self._only = only
        self._usable: dict[Case, list[AnyInterface]] = {}
        self._without: dict[Case, str] = {}
        self._options: dict[tuple[Case, str], Option] = {}
        for case in CASES:
            options = policy.here(case)
            here = interfaces_for(case, options, context, policy.least_harm)
            barred = {one.name: self._bar(one) for one in here}
            self._usable[case] = [one for one in here if not barred[one.name]]
            for one in here:
                self._options[case, one.name] = options[rank_of(one, options) or 0]
            absent = self._absent(case)
            whys = [f"{name} {why}" for name, why in (absent | barred).items() if why]
            self._without[case] = "; ".join(whys) or _nothing(case, options)

    def usable(self, case: Case) -> list[AnyInterface]:
        """Those to try in a case, in this order."""
        return self._usable[case]

    def option(self, interface: AnyInterface, case: Case) -> Option:
        """Which of the policy's options it carries out in a case."""
        return self._options[case, interface.name]

    def choose(self, part: Part) -> tuple[AnyInterface | None, Reach]:
        """The first interface that leaves nothing, or else the one that leaves least.

        Without any, the effect says why there is none.
        """
        best: tuple[AnyInterface | None, Reach] | None = None
        whys = []
        for interface in self._usable[part.case]:
            reach = interface.reach(part, self._context)
            if not reach.moves:
                whys.append(reach.effect.why)
            elif (reach.untargeted or not interface.targeted) and self._hurts(part):
                name = "memory.reclaim" if interface.targeted else interface.name
                whys.append(f"{name} would take living cgroups' memory, too")
            elif best is None or reach.effect.left_bytes < best[1].effect.left_bytes:
                best = interface, reach
                if not reach.effect.why:
                    break
        if best is None:
            without = "" if any(whys) else self._without[part.case]
            why = "; ".join(dict.fromkeys(filter(None, [*whys, without])))
            best = None, Reach(left(part, why))
        return best

    def take(self, part: Part, found: AnyInterface | None, reach: Reach) -> None:
        """Keep account of what was chosen, which leaves less room to those to come."""
        effect = reach.effect
        cached, again = reach.used
        self._context.stuck[part.memcg.id] -= cached
        self._context.mapped_again[part.memcg.id] -= again
        if part.case == "swap-backed-unmapped" and part.group:
            in_cache = part.group.kind == "anon"
            self._context.stuck[part.memcg.id] += in_cache * effect.left_bytes
            if found and found.after:
                again = part.bytes - effect.left_bytes
                self._context.mapped_again[part.memcg.id] += again
        # The next one has less room in swap, or in the memcg that it is recharged to.
        if effect.swapped_bytes or (found and found.rank < 0):
            self._context.room.charge(counter_changes(effect, self._context.room))

    def _absent(self, case: Case) -> dict[str, str]:
        """What is asked for, but needs what the kernel lacks."""
        here = set(self._context.census.kernel.interfaces)
        return {
            one.name: "is not for this kernel"
            for one in INTERFACES
            if one.name in self._only and case in one.cases and not here >= {*one.needs}
        }

    def _bar(self, interface: AnyInterface) -> str:
        """Why it is not used although the kernel has it."""
        if self._only and interface.name not in self._only:
            return "is not among --only"
        if interface.ask and interface.ask not in self._allow:
            return f"is only used with --allow {interface.ask}"
        return ""

    def _hurts(self, part: Part) -> bool:
        """Whether living memcgs have anything in reach of what cannot be aimed."""
        if "unaimed" in self._allow:
            return False
        return bool(
            self._context.reclaimable_below[self._context.room.ancestor(part.memcg)]
        )


def interfaces_for(
    case: Case,
    options: Sequence[Option],
    context: PlanContext,
    least_harm: bool = False,
) -> list[AnyInterface]:
    """Those of this kernel for a case: in the order of the options, or of harm."""
    here = context.census.kernel.interfaces
    found = [
        (rank, interface)
        for interface in INTERFACES
        if case in interface.cases
        and all(name in here for name in interface.needs)
        and (rank := rank_of(interface, options)) is not None
    ]
    if not least_harm:
        found.sort(key=lambda pair: pair[0])
    return [interface for _, interface in found]


def rank_of(interface: AnyInterface, options: Sequence[Option]) -> int | None:
    """Which of the options an interface carries out: the first one's rank."""
    ranks = (n for n, option in enumerate(options) if option in interface.options)
    return next(ranks, None)


def _nothing(case: Case, options: Sequence[Option]) -> str:
    if case == "kernel" and options:
        return "page tables and stacks stay charged until their process ends"
    if case == "hugetlb":
        return "they stay until the file is truncated or the process unmaps them"
    asked = [option for option in options if option != "leave"]
    if not asked:
        return NO_RULE
    return f"user space has no way here to do this: {' or '.join(asked)}"
