"""Carry out a plan, step by step, and see what came of it.

Before each step: is it still wanted, is there room where it charges, is memory not
short, is there time? A signal ends the run after the step in hand, a second one in it,
between two of its windows. All that is done is in the journal first.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from memcgctl.actions.host import helper, measure, pages
from memcgctl.actions.host.machine import (
    ActionError,
    Guard,
    Machine,
    Outcome,
    read_machine,
)
from memcgctl.actions.run import account, transit, waiting
from memcgctl.actions.run.journal import Journal, default_path
from memcgctl.actions.run.lock import locked
from memcgctl.actions.run.pace import Limits, Pace
from memcgctl.actions.run.signals import Signals, noted
from memcgctl.actions.run.table import ACTIONS, Action
from memcgctl.actions.run.waiting import Stay, Waiting
from memcgctl.actions.run.worker import (
    Hangs,
    Here,
    Left,
    Runner,
    Worker,
    left_behind,
    words_of,
)
from memcgctl.model import (
    FileTarget,
    HostTarget,
    Memcg,
    Plan,
    ProcessTarget,
    Remaining,
    Result,
    Step,
    StepResult,
)

# Returns the cgroup ids of the memcgs that are offline now.
Looker = Callable[[], set[int]]
Progress = Callable[[int, Step, StepResult | None], None]


class Unreadable(ActionError):
    """The kernel's memory makes no sense any more: nobody knows who is offline."""


def carry_out(
    plan: Plan,
    look: Looker,
    *,
    limits: Limits | None = None,
    journal: Path | None = None,
    lock: Path | None = None,
    progress: Progress = lambda n, step, result: None,
    machine: Callable[[], Machine] = read_machine,
    actions: Mapping[str, Action] = ACTIONS,
    offline: Sequence[Memcg] = (),
    apart: bool = True,
) -> Result:
    """Do the plan's steps in order and report.

    ``look`` is asked at most every ``look_seconds``, and may raise Unreadable, which
    ends the run. Raises Locked if another run is at work, ActionError if the journal
    cannot be written; whatever goes wrong with a step is in its result. ``offline`` are
    the zombies of the census, without which nobody knows what others lost. Steps are
    done by a process of their own, unless they are not to be ``apart``.
    """
    limits = limits or Limits()
    seconds = limits.max_seconds
    deadline = None if seconds is None else time.monotonic() + seconds
    with (
        locked(lock) as notes,
        Journal(journal or default_path()) as book,
        noted() as signals,
    ):
        pace = Pace(limits, deadline, machine().proc)
        worker: Runner = (
            Worker(pace.guard, signals, deadline, notes, patience=limits.hang_seconds)
            if apart
            else Here(pace.guard(lambda: len(signals.came), lambda: None))
        )
        with closing(worker):
            run = _Run(plan, pace, look, machine, actions, book, signals, worker)
            run.offline = offline
            run.avoid = _avoided(left_behind(notes))
            run.transit = transit.Transit(notes, book, worker, signals, machine())
            try:
                return run.run(progress)
            finally:
                run.transit.end()


def _asked(step: Step) -> str:
    """The one device or process that has to answer, as ``_Run.avoid`` has it."""
    if isinstance(step.aim, FileTarget):
        return step.aim.file.device
    if isinstance(step.aim, ProcessTarget):
        return f"pid {step.aim.process.pid}"
    return ""


def _avoided(left: Iterable[Left]) -> dict[str, str]:
    return {
        one.device: f"{one.doing} hangs since an earlier run (pid {one.pid})"
        for one in left
        if one.device
    }


@dataclass
class _Run:
    """One run of a plan."""

    plan: Plan
    pace: Pace
    look: Looker
    machine: Callable[[], Machine]
    actions: Mapping[str, Action]
    journal: Journal
    signals: Signals
    worker: Runner
    offline: Sequence[Memcg] = ()
    # By device (major:minor) or process: why nothing is to be asked of it.
    avoid: dict[str, str] = field(default_factory=dict)
    # What guards could not see, in the order that it came up.
    unread: dict[str, None] = field(default_factory=dict)
    transit: transit.Transit | None = None
    moved: int = 0
    # What counts for --max-bytes: where an action cannot tell, what the plan says.
    spent: int = 0
    stopped: str = ""
    # By the step's number: what waits in the swap cache.
    _waiting: dict[int, Waiting] = field(default_factory=dict)
    _seen: set[int] = field(default_factory=set)
    _seen_at: float | None = None

    def run(self, progress: Progress) -> Result:
        began = time.monotonic()
        machine = self.machine()
        helper.remove_stale(machine)
        before = account.begin(self.plan, self.offline, machine)
        self.journal.write(
            "begin",
            pid=os.getpid(),
            policy=self.plan.policy,
            release=machine.release,
            steps=len(self.plan.steps),
        )
        self._seen = {*self.plan.freed, *(left.id for left in self.plan.remaining)}
        results: list[StepResult] = []
        for n, step in enumerate(self.plan.steps, 1):
            self.stopped = self._must_stop() or ""
            if self.stopped:
                break
            progress(n, step, None)
            try:
                results.append(self._step(n, step))
            except Unreadable as error:
                self.stopped = str(error)
                break
            progress(n, step, results[-1])
            if n == self._last_transit:
                self._end_transit()
        self._end_transit()
        if self._waiting and not self.stopped:
            results = self._let_go(results)
        there = self._settled(results)
        self._end(there)
        wanted = [*self.plan.freed, *(left.id for left in self.plan.remaining)]
        return Result(
            plan=self.plan,
            steps=tuple(_with_freed(result, there) for result in results),
            freed=tuple(one for one in wanted if one not in there),
            remaining=self._remaining(there, results),
            usages=before.usages(machine),
            harm=before.harm(there, machine),
            dying_before=before.look.dying,
            dying_after=measure.look(machine).dying,
            moved_bytes=self.moved,
            seconds=time.monotonic() - began,
            stopped=self.stopped,
            journal=str(self.journal.path),
            warnings=(*self.unread, *_unread(machine, self.avoid)),
        )

    @cached_property
    def _last_transit(self) -> int:
        ours = [s.action == transit.ACTION for s in self.plan.steps]
        return len(ours) - ours[::-1].index(True) if any(ours) else 0

    def _end_transit(self) -> None:
        if self.transit and (why := self.transit.end()):
            self.stopped = self.stopped or why

    def _in_transit(self, machine: Machine) -> Machine:
        """The machine with the run's own swap device, which is made if need be."""
        assert self.transit
        steps = self.plan.steps
        self.transit.begin(sum(s.bytes for s in steps if s.action == transit.ACTION))
        return replace(machine, transit=self.transit.device)

    def _let_go(self, results: list[StepResult]) -> list[StepResult]:
        """Let go of what steps left in the swap cache, all at once.

        The steps are done: their report is worth more than an error of the last one,
        which is in it.
        """
        machine = self.machine()
        pages_left = sum(len(one.frames) for one in self._waiting.values())
        try:
            self.journal.write("swap-cache", pages=pages_left)
            stay = self.worker.run(partial(_let_go, self._waiting, machine))
        except Exception as error:
            why = words_of(error)
            with suppress(ActionError):
                self.journal.write("swap-cache", pages=pages_left, why=why)
            return [
                waiting.failed(one, why) if one.n in self._waiting else one
                for one in results
            ]
        found = []
        for result in results:
            if mine := self._waiting.get(result.n):
                before = result.moved_bytes or 0
                result = waiting.finished(result, mine, stay, machine.page_size)
                self.moved += (result.moved_bytes or 0) - before
            found.append(result)
        return found

    def _must_stop(self) -> str | None:
        if self.signals.came:
            return f"stopped by {self.signals.came[0]}"
        if self.pace.late():
            return "--max-seconds are over"
        if self.pace.calm(lambda: len(self.signals.came)):
            return None
        came = self.signals.came
        return f"stopped by {came[0]}" if came else "memory stayed short"

    def _step(self, n: int, step: Step) -> StepResult:
        """One step, with a line in the journal before and one after it."""
        machine = self.machine()
        began = time.monotonic()
        why = self._reason_to_skip(step, machine)
        if why:
            self.journal.write("skipped", **_facts(n, step), why=why)
            return StepResult(n, step, "skipped", why, None, 0.0)
        self.journal.write("before", **_facts(n, step))
        outcome, failure = Outcome(None), ""
        try:
            outcome = self._apply(n, step, machine)
        except ActionError as error:
            failure = str(error)
        except Exception as error:  # one odd process is not to end all the rest
            failure = f"{step.target}: {words_of(error)}"
        planned = step.bytes + step.collateral_bytes
        self.moved += outcome.bytes or 0
        self.spent += planned if outcome.bytes is None else outcome.bytes
        left = outcome.left
        if outcome.waiting:
            frames = np.array(outcome.waiting, np.uint64)
            wait = f"{len(frames) * machine.page_size} bytes wait in the swap cache"
            try:
                ids = pages.shown(frames, machine)
            except ActionError as error:
                left = left or f"{wait}: {error}"
            else:
                way = step.untargeted, not step.collateral_bytes
                self._waiting[n] = Waiting(frames, ids, left, way)
                left = left or f"{wait} for the last step"
        result = StepResult(
            n=n,
            step=step,
            status="failed" if failure else "part" if left else "done",
            why=failure or left,
            moved_bytes=outcome.bytes,
            seconds=time.monotonic() - began,
        )
        self.journal.write(
            "after",
            **_facts(n, step),
            status=result.status,
            why=result.why,
            moved_bytes=result.moved_bytes,
            seconds=round(result.seconds, 3),
        )
        return result

    def _apply(self, n: int, step: Step, machine: Machine) -> Outcome:
        """Have it done; of several devices once more without one that hangs.

        Other steps do not ask that device, or process, again.
        """
        if step.action == transit.ACTION:
            machine = self._in_transit(machine)
        most = self.pace.limits.max_bytes
        left = None if most is None else most - self.spent
        work = partial(self.actions[step.action].apply, step, machine)
        while True:
            try:
                outcome: Outcome = self.worker.run(work, left, self.avoid)
                return outcome
            except Hangs as error:
                known = error.device in self.avoid
                since = f"it has not answered since step {n}"
                if error.device:
                    self.avoid[error.device] = since
                elif isinstance(step.aim, ProcessTarget):
                    self.avoid[_asked(step)] = since
                several = error.device and isinstance(step.aim, HostTarget)
                if known or not several or self._must_stop():
                    raise

    def _reason_to_skip(self, step: Step, machine: Machine) -> str | None:
        """Why a step is not done after all."""
        action = self.actions.get(step.action)
        if action is None:
            return f"there is no action {step.action}"
        if step.memcgs and not self._offline() & {*step.memcgs}:
            return "what it serves is gone already"
        if (asked := _asked(step)) in self.avoid:
            return f"hangs: {self.avoid[asked]}"
        most = self.pace.limits.max_bytes
        if most is not None and self.spent + step.bytes + step.collateral_bytes > most:
            return "it takes more than --max-bytes leaves"
        return action.probe(machine) or self._no_room(step, machine)

    def _no_room(self, step: Step, machine: Machine) -> str | None:
        """Whom the step would push over a limit now, unless the plan allowed that."""
        if step.action == transit.ACTION:
            return None  # it is asked for before each window
        swap = step.option == "evict"
        # Not all of it is charged: some may have a swap entry already.
        sizes = dict(zip(step.charged_to, step.charged_bytes, strict=True))
        free = machine.swap_free_bytes
        if swap and (free is None or free < sum(sizes.values())):
            return "no room in swap" if free is not None else "swap cannot be read"
        for path, size in () if step.over_limit else sizes.items():
            room = measure.room(path, machine, swap=swap)
            if why := room.lacks(size):
                return why
            if room.unread:  # the plan's own look at the limits stands
                self.unread[room.unread] = None
        return None

    def _offline(self) -> set[int]:
        """Who is offline, by a look that is not older than ``look_seconds``."""
        now = time.monotonic()
        age = None if self._seen_at is None else now - self._seen_at
        if age is None or age >= self.pace.limits.look_seconds:
            self._seen, self._seen_at = self.look(), now
        return self._seen

    def _settled(self, results: list[StepResult]) -> set[int]:
        """Who is offline when all that is to go had time to: RCU, then a work item.

        That is when all are gone that steps were to free, and no other goes any more.
        """
        acted = [result.step for result in results if result.status in ("done", "part")]
        due = {memcg_id for step in acted for memcg_id in step.frees}
        wanted = {*self.plan.freed, *(left.id for left in self.plan.remaining)}
        deadline = time.monotonic() + self.pace.limits.settle_seconds
        last, there = None, self._there()
        while (left := there & wanted) and time.monotonic() < deadline:
            if left == last and not left & due:
                break
            time.sleep(self.pace.limits.look_seconds)
            last, there = left, self._there()
        return there

    def _there(self) -> set[int]:
        """Who is offline; of a kernel that cannot be read any more, who last was."""
        try:
            self._seen = self.look()
        except Unreadable as error:
            self.stopped = self.stopped or str(error)
        return self._seen

    def _end(self, there: set[int]) -> None:
        with suppress(ActionError):  # all is done: the report is worth more
            self.journal.write(
                "end",
                stopped=self.stopped,
                moved_bytes=self.moved,
                freed=[one for one in self.plan.freed if one not in there],
                left=[one for one in self.plan.freed if one in there],
            )

    def _remaining(
        self, there: set[int], results: list[StepResult]
    ) -> tuple[Remaining, ...]:
        """Who is still there, with the plan's reason or the steps' that came short."""
        whys = {left.id: [left.why] for left in self.plan.remaining}
        for memcg_id in self.plan.freed:
            whys[memcg_id] = [
                f"step {result.n}: {result.why}"
                for result in results
                if memcg_id in result.step.memcgs and result.why
            ] or [self.stopped or "something holds it still"]
        return tuple(
            Remaining(memcg_id, "; ".join(why))
            for memcg_id, why in whys.items()
            if memcg_id in there
        )


def _let_go(left: Mapping[int, Waiting], machine: Machine, guard: Guard) -> Stay:
    return waiting.drain(left, machine)


def _with_freed(result: StepResult, there: set[int]) -> StepResult:
    gone = tuple(one for one in result.step.frees if one not in there)
    return replace(result, freed=gone if result.status in ("done", "part") else ())


def _unread(machine: Machine, avoid: Mapping[str, str]) -> Iterator[str]:
    """What guards could not see, and what did not answer."""
    if measure.pressure(machine.proc) is None:
        yield "whether memory was short could not be read (CONFIG_PSI)"
    for what, since in avoid.items():
        yield f"{what} hangs: {since}"


def _facts(n: int, step: Step) -> dict[str, object]:
    return {
        "n": n,
        "action": step.action,
        "target": step.target,
        "command": step.command,
        "memcgs": step.memcgs,
        "bytes": step.bytes,
    }
