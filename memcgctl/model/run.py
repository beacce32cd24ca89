"""What became of it: what a machine allows, each step's result, and past runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from memcgctl.model.census import Kernel
from memcgctl.model.plan import Plan, Remaining, Step


@dataclass(frozen=True)
class Ability:
    """An action, and why it cannot be carried out on this machine; None: it can.

    ``lack`` says what that is due to: the kernel's build or its cgroup version, the
    machine as it is set up, or that nothing here needs the action. ``ask`` is the word
    for ``--allow`` without which it is not carried out.
    """

    action: str
    why: str | None
    lack: Literal["kernel", "machine", "needless"] | None
    ask: str | None


@dataclass(frozen=True)
class Checkup:
    """What the running machine allows, as far as this user may see.

    ``kernel`` is None where the kernel cannot be read, for the reason ``unread``, and
    ``offline`` with it: the zombies in its memory, and ``ids_used``, of the
    ``MEMCG_IDS`` that memcgs can have. ``zombies`` is how many the kernel
    counts by ``zombies_source``, None where it does not tell; ``overhead_bytes`` is an
    estimate, of the least that these take. ``memory_controller`` and swap are None
    where they cannot be read. ``cgroups`` are version and mount point,
    those of the memory controller first; ``missing`` the capabilities that some action
    needs. ``transit_room_bytes`` may be in a temporary swap device at once, None where
    that cannot be read; ``transit_left`` is one that a run left behind, None
    where that cannot be told.
    """

    release: str
    kernel: Kernel | None
    unread: str | None
    lockdown: str | None
    cgroups: tuple[tuple[Literal[1, 2], str], ...]
    memory_controller: bool | None
    swap_total_bytes: int | None
    swap_free_bytes: int | None
    euid: int
    missing: tuple[str, ...]
    abilities: tuple[Ability, ...]
    zombies: int | None
    zombies_source: str
    overhead_bytes: int | None
    offline: int | None
    ids_used: int | None = None
    transit_room_bytes: int | None = None
    transit_left: str | None = ""

    @property
    def refused(self) -> tuple[Ability, ...]:
        """Actions that would be taken unasked, and that the machine does not allow."""
        return tuple(
            one for one in self.abilities if one.lack == "machine" and not one.ask
        )

    @property
    def verdict(self) -> Literal["works", "part", "unread"]:
        if self.kernel is None:
            return "unread"
        return "part" if self.refused or not self.memory_controller else "works"


@dataclass(frozen=True)
class StepResult:
    """What became of the ``n``-th step of a plan, counted from 1.

    ``moved_bytes`` is None where the action cannot tell; ``why`` says why it was
    skipped, failed or done in part. ``freed`` are those of ``step.frees`` that went.
    """

    n: int
    step: Step
    status: Literal["done", "part", "failed", "skipped"]
    why: str
    moved_bytes: int | None
    seconds: float
    freed: tuple[int, ...] = ()


@dataclass(frozen=True)
class Usage:
    """What an online memcg was charged for before and after, swap apart.

    None where it could not be read: nothing is mounted here, or it is the root of v2.
    """

    path: str
    before_bytes: int | None
    after_bytes: int | None
    swap_before_bytes: int | None
    swap_after_bytes: int | None


@dataclass(frozen=True)
class Harm:
    """What others lost: refaulted pages meanwhile, and page cache of living memcgs.

    ``file`` is what the kernel's statistics have of the memcgs in reach of the steps,
    with all below them, less what zombies had of it; who is still there counts as if it
    had lost nothing. None where it could not be read.
    """

    refaulted_file_pages: int | None
    refaulted_anon_pages: int | None
    file_before_bytes: int | None
    file_after_bytes: int | None


@dataclass(frozen=True)
class Result:
    """What carrying out a plan came to; ``stopped`` says why it ended early, if so.

    ``freed`` are the wanted memcgs that are gone, ``remaining`` those still there.
    ``dying_before`` and ``dying_after`` are the kernel's own counts, None where it has
    none. ``usages`` are of the memcgs that steps charge. ``warnings`` are of what could
    not be read or did not answer.
    """

    plan: Plan
    steps: tuple[StepResult, ...]
    freed: tuple[int, ...]
    remaining: tuple[Remaining, ...]
    usages: tuple[Usage, ...]
    harm: Harm
    dying_before: int | None
    dying_after: int | None
    moved_bytes: int
    seconds: float
    stopped: str
    journal: str
    warnings: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether all that the plan promised is gone."""
        return not self.stopped and set(self.plan.freed) <= set(self.freed)


@dataclass(frozen=True)
class PastStep:
    """What the journal says of one step; None where the line does not tell.

    ``status`` is that of ``StepResult``, or ``unfinished``: it began and the journal
    does not say how it ended.
    """

    n: int | None
    action: str
    target: str
    status: str
    why: str
    moved_bytes: int | None
    seconds: float | None


@dataclass(frozen=True)
class PastRun:
    """One run of reclaim by its journal; ``time`` is its first line's, ISO 8601.

    ``planned`` is how many steps it was to take, ``ended`` whether it came to its end;
    ``freed`` and ``left`` count memcgs, None where it did not.
    """

    run: str
    time: str
    pid: int | None
    policy: str
    release: str
    planned: int | None
    steps: tuple[PastStep, ...]
    ended: bool
    stopped: str
    moved_bytes: int
    freed: int | None
    left: int | None


@dataclass(frozen=True)
class History:
    """A journal's runs, oldest first; ``damaged`` lines of it could not be read.

    Nor were ``unread_bytes`` at the begin of files that are too large.
    """

    path: str
    runs: tuple[PastRun, ...]
    damaged: int
    unread_bytes: int = 0
