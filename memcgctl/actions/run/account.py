"""What did a run cost, and whom? The kernel's counters before and after it.

Only memcgs in reach of the steps are asked, the topmost of them, once: to read
memory.stat of tens of thousands takes minutes. What zombies have of it is known from
the census; who still is there is taken to have all of that, so that what living memcgs
lost is not told as less than it is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from memcgctl.actions.host import measure
from memcgctl.actions.host.machine import Machine
from memcgctl.model import (
    CgroupTarget,
    Harm,
    HostTarget,
    Memcg,
    Plan,
    ProcessTarget,
    Step,
    SwappedFileTarget,
    Usage,
)


@dataclass(frozen=True)
class Account:
    """Counters of before; ``offline`` are the zombies of the census."""

    look: measure.Look
    charged: dict[str, measure.Charged]
    reach: tuple[str, ...]
    offline: tuple[Memcg, ...]
    page_cache: int | None

    def usages(self, machine: Machine) -> tuple[Usage, ...]:
        found = []
        for path, before in self.charged.items():
            after = measure.charged(path, machine)
            found.append(
                Usage(path, before.memory, after.memory, before.swap, after.swap)
            )
        return tuple(found)

    def harm(self, there: Collection[int], machine: Machine) -> Harm:
        """What others lost; ``there`` are the ids of the zombies that still are."""
        after = measure.look(machine)
        left = [one for one in self.offline if one.id in there]
        return Harm(
            _difference(self.look.refaulted_file, after.refaulted_file),
            _difference(self.look.refaulted_anon, after.refaulted_anon),
            self._living(self.page_cache, self.offline),
            self._living(measure.page_cache(self.reach, machine), left),
        )

    def _living(self, page_cache: int | None, zombies: Iterable[Memcg]) -> int | None:
        """What living memcgs have of it; without a census nobody knows."""
        if page_cache is None or not self.offline:
            return None
        below = [f"{path.rstrip('/')}/" for path in self.reach]
        for one in zombies:
            if any(one.path.startswith(path) for path in below):
                if one.charges is None:
                    return None
                page_cache -= one.charges.file_bytes
        return max(0, page_cache)


def begin(plan: Plan, offline: Iterable[Memcg], machine: Machine) -> Account:
    zombies = tuple(offline)
    ancestors = {one.id: one.ancestor for one in zombies}
    reach = {path for step in plan.steps for path in _reach(step)}
    reach |= {ancestors[n] for s in plan.steps for n in s.memcgs if n in ancestors}
    paths = sorted({path for step in plan.steps for path in step.charged_to})
    return Account(
        look=measure.look(machine),
        charged={path: measure.charged(path, machine) for path in paths},
        reach=measure.topmost(reach),
        offline=zombies,
        page_cache=measure.page_cache(reach, machine) if reach else None,
    )


def _reach(step: Step) -> Iterable[str]:
    """The memcgs that a step can take from, or that it charges."""
    yield from step.charged_to
    if isinstance(step.aim, (CgroupTarget, SwappedFileTarget)):
        yield step.aim.memcg_path
    elif isinstance(step.aim, ProcessTarget):
        yield step.aim.process.memcg
    elif isinstance(step.aim, HostTarget) and step.action == "drop_caches":
        yield "/"


def _difference(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else after - before
