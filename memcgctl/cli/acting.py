"""May this plan be carried out here and now, and what came of it?"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from memcgctl.cli.terminal import fail, progress_bar, say

if TYPE_CHECKING:
    from memcgctl.kernel.program import OpenedKernel
    from memcgctl.model import Census, Plan, Result, Step, StepResult

# include/linux/proc_ns.h: PROC_PID_INIT_INO, PROC_CGROUP_INIT_INO
_INITIAL_NAMESPACES = {"pid": 0xEFFFFFFC, "cgroup": 0xEFFFFFFB}


def must_act_here(elsewhere: Path | None, yes: bool) -> None:
    """Only a running kernel can be acted on, and only if somebody said so."""
    if elsewhere:
        fail(f"{elsewhere} is not the running kernel: only --dry-run works on it", 2)
    if not yes and not (sys.stdin and sys.stdin.isatty()):
        fail("there is no terminal to ask on: --yes acts without, --dry-run shows", 2)


def must_have_the_lock() -> None:
    """Fail before the question if another run holds the lock."""
    from memcgctl.actions.host.machine import ActionError
    from memcgctl.actions.run.lock import must_be_alone

    try:
        must_be_alone()
    except ActionError as error:
        fail(f"error: {error}", 1)


def must_be_the_host() -> None:
    """The kernel's pids and cgroups are the host's; in a container others have them."""
    for name, initial in _INITIAL_NAMESPACES.items():
        try:
            number = os.stat(f"/proc/self/ns/{name}").st_ino
        except FileNotFoundError:  # a kernel without such namespaces
            continue
        except OSError as error:
            why = f"whether this is a container cannot be told: {error.strerror}"
            fail(f"error: {why}; only --dry-run works here", 1)
        if number != initial:
            fail(
                f"error: this is a container, with a {name} namespace of its own: "
                "only --dry-run works in it; run memcgctl on the host",
                1,
            )


def too_few(
    min_zombies: int, min_overhead_bytes: int, offline: int | None = None
) -> str | None:
    """Why there is nothing to do, None if there is.

    By the kernel's own counters, or by how many were found ``offline``: the counters
    can have cgroups that no memcg belongs to.
    """
    if not min_zombies and not min_overhead_bytes:
        return None
    from memcgctl.actions.host.machine import read_machine
    from memcgctl.actions.host.thresholds import below, count_zombies, recount

    zombies = count_zombies(read_machine())
    if offline is not None:
        zombies = recount(zombies, offline)
    return below(zombies, min_zombies, min_overhead_bytes)


def act(
    kernel: OpenedKernel,
    census: Census,
    plan: Plan,
    max_seconds: float | None,
    max_bytes: int | None,
    journal: Path | None,
) -> Result:
    from memcgctl.actions.host.machine import ActionError
    from memcgctl.actions.run.executor import Unreadable, carry_out
    from memcgctl.actions.run.pace import Limits
    from memcgctl.census import take_census

    def look() -> set[int]:
        try:
            tree = take_census(kernel, scan=False)
        except _unreadable() as error:
            raise Unreadable(f"the kernel cannot be read: {error}") from error
        return {memcg.id for memcg in tree.memcgs if memcg.state == "offline"}

    limits = Limits(max_seconds=max_seconds, max_bytes=max_bytes)
    try:
        with progress_bar() as report:

            def progress(n: int, step: Step, done: StepResult | None) -> None:
                what = f"step {n} of {len(plan.steps)}: {step.action}"
                report(what, n if done else n - 1, len(plan.steps))

            return carry_out(
                plan,
                look,
                limits=limits,
                journal=journal,
                progress=progress,
                offline=[one for one in census.memcgs if one.state == "offline"],
            )
    except ActionError as error:
        fail(f"error: {error}", 1)


def _unreadable() -> tuple[type[Exception], ...]:
    """What reading a live kernel raises when it changes too fast."""
    import drgn

    from memcgctl.kernel.errors import KernelError

    return KernelError, LookupError, drgn.FaultError


def verdicts(kernel: OpenedKernel, result: Result) -> dict[int, str]:
    """Why what should be gone is still there, by a new census of these.

    All is done: without them (Ctrl-C once more, a fault) there still is a report.
    """
    left = {one.id for one in result.remaining} & set(result.plan.freed)
    if not left:
        return {}
    from memcgctl.census import take_census
    from memcgctl.report.verdict import verdict
    from memcgctl.views.explain import explain

    lost: tuple[type[BaseException], ...] = (SystemExit, *_unreadable())
    try:
        census = take_census(kernel, details=left)
        return {
            memcg.id: verdict(explain(census, memcg))
            for memcg in census.memcgs
            if memcg.id in left and memcg.details
        }
    except lost:
        return {}


def finish_transit(journal: Path | None, *, only: bool = False) -> None:
    """Bring back what a killed run left in its swap device."""
    from memcgctl.actions.host.machine import ActionError, read_machine
    from memcgctl.actions.run import transit
    from memcgctl.actions.run.journal import default_path
    from memcgctl.report.text import size

    machine = read_machine()
    if machine.euid and not only:
        return  # only root makes one; why nobody else can act is told by what comes
    try:
        if transit.found(machine) is None:
            if only:
                say("no run left a swap device")
            return
        done = transit.finish_alone(journal or default_path(), machine)
    except ActionError as error:
        fail(f"error: {error}", 1)
    if done.why:
        fail(f"error: {done.why}", 4)
    say(f"{done.name}, left by an earlier run, is gone: {size(done.bytes)} came back")
