"""``memcgctl reclaim``: what is to be done so that zombies go, and the doing of it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memcgctl.cli.naming import meant
from memcgctl.cli.options import (
    BtfFile,
    CensusFile,
    Core,
    Schema,
    SystemMap,
    Vmcoreinfo,
    Vmlinux,
)
from memcgctl.cli.policy import Allow, Mapper, load_policy, parse_size
from memcgctl.cli.reading import opened, read_census, warn
from memcgctl.cli.terminal import fail, progress_bar, say, shape, write

if TYPE_CHECKING:
    from rich.text import Text

    from memcgctl.kernel.program import OpenedKernel
    from memcgctl.model import Census, Plan, Result, Step, StepResult
    from memcgctl.report.text import Styled

    Planner = Callable[[Census], Plan]

# include/linux/proc_ns.h: PROC_PID_INIT_INO, PROC_CGROUP_INIT_INO
_INITIAL_NAMESPACES = {"pid": 0xEFFFFFFC, "cgroup": 0xEFFFFFFB}


def reclaim(
    memcgs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="ID",
            help="Only these and the offline ones below them: a cgroup id, a whole "
            "path, a pod's uid, memcg:N, or 0x…. An online one stands for all below "
            "it. Without any, all.",
            show_default=False,
        ),
    ] = None,
    match: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT",
            help="Only those whose path has this name, matches this pattern or, if "
            "none does, has this in it; they are listed. Repeatable.",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", "-n", help="Say what would be done, do nothing."),
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Act without asking: needed by cron.")
    ] = False,
    policy: Annotated[
        str,
        typer.Option(
            metavar="NAME|FILE",
            help="least-harm, proposal, evict, parent, mapper or deferred; or a TOML "
            "file with a policy.",
        ),
    ] = "least-harm",
    max_bytes: Annotated[
        int | None,
        typer.Option(
            metavar="SIZE",
            parser=parse_size,
            help="Move no more than this in all, that of others which an action can "
            "reach included: 500M, 2G.",
            show_default=False,
        ),
    ] = None,
    max_seconds: Annotated[
        float | None,
        typer.Option(
            min=0, metavar="S", help="Begin no step after this.", show_default=False
        ),
    ] = None,
    mapper: Mapper = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ACTION",
            help="Only this action, by the name that a plan has for it; repeatable.",
            show_default=False,
        ),
    ] = None,
    allow: Annotated[
        list[Allow] | None,
        typer.Option(
            metavar="WHAT",
            help="over-limit: steps that could push a memcg over a limit. unaimed: "
            "actions that also take living cgroups' memory. drop-caches: everybody's "
            "page cache.",
            show_default=False,
        ),
    ] = None,
    min_zombies: Annotated[
        int, typer.Option(min=0, metavar="N", help="Do nothing if there are fewer.")
    ] = 0,
    min_overhead: Annotated[
        int,
        typer.Option(
            metavar="SIZE",
            parser=parse_size,
            help="Do nothing if they take less (estimated, without a scan).",
        ),
    ] = 0,
    steps: Annotated[
        bool, typer.Option("--steps", help="Show each step, not only their sums.")
    ] = False,
    commands: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the steps as a shell script to FILE; nothing is done.",
            show_default=False,
            dir_okay=False,
        ),
    ] = None,
    quiet: Annotated[
        bool,
        typer.Option(
            "--quiet", "-q", help="One line if anything was done, else nothing."
        ),
    ] = False,
    journal: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Where to write what is done; see memcgctl journal.",
            show_default=False,
            readable=False,
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Show the first N steps, in JSON all."),
    ] = None,
    core: Core = None,
    vmlinux: Vmlinux = None,
    btf: BtfFile = None,
    system_map: SystemMap = None,
    vmcoreinfo: Vmcoreinfo = None,
    census: CensusFile = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help="Write JSON (memcgctl/plan/2; after acting, result/1)."
        ),
    ] = False,
    schema: Schema = 2,
) -> None:
    """Free zombies, least harm first, or with --dry-run say how.

    Shows the plan, asks, acts step by step and measures what came of it. Exit code 0:
    all that the plan promised is gone (or with --dry-run: it is shown); 4: in part.
    """
    chosen = load_policy(policy, mapper)
    paths = (core, vmlinux, btf, system_map, vmcoreinfo)
    _known_actions(only or [])

    def planned(taken: Census) -> Plan:
        from memcgctl.policy.plan import plan

        wanted = None
        if memcgs or match:
            wanted = [one.id for one in meant(taken, memcgs or (), match or ())]
        made = plan(
            taken,
            chosen,
            wanted,
            allow=[one.value for one in allow or ()],
            only=only or (),
            max_bytes=max_bytes,
        )
        warn(made)
        return made

    if dry_run or commands:
        taken = read_census(paths, census, details="offline")
        made = planned(taken)
        if commands:
            _write_script(made, commands)
        elif as_json:
            from memcgctl.report.plan import to_json

            write(to_json(made, taken, schema))
        elif not quiet:
            write(_plan_screen(made, taken, limit, steps))
        return

    _must_act_here(core or census, yes)
    if why := _too_few(min_zombies, min_overhead):
        if not quiet:
            say(f"nothing done: {why}")
        return
    _must_be_alone()
    with opened(paths) as (kernel, progress):
        from memcgctl.census import take_census

        taken = take_census(kernel, details="offline", progress=progress)
        progress("", 0, 0)
        offline = sum(memcg.state == "offline" for memcg in taken.memcgs)
        if why := _too_few(min_zombies, min_overhead, offline):
            if not quiet:
                say(f"nothing done: {why}")
            return
        made = planned(taken)
        _must_be_the_host()
        if not quiet and not as_json:
            write(_plan_screen(made, taken, limit, steps))
        if made.steps and not yes and not typer.confirm(_question(made), err=True):
            say("nothing done")
            return
        if not made.steps and not as_json:
            return
        result = _act(kernel, taken, made, max_seconds, max_bytes, journal)
        verdicts = _verdicts(kernel, result)
    _report(result, taken, verdicts, as_json=as_json, quiet=quiet)
    if not result.complete:
        sys.exit(4)


def _known_actions(names: list[str]) -> None:
    from memcgctl.policy.interfaces import INTERFACES

    known = dict.fromkeys(interface.name for interface in INTERFACES)
    for name in names:
        if name not in known:
            raise typer.BadParameter(
                f"--only: no action is '{name}'; there are {', '.join(known)}."
            )


def _must_act_here(elsewhere: Path | None, yes: bool) -> None:
    """Only a running kernel can be acted on, and only if somebody said so."""
    if elsewhere:
        fail(f"{elsewhere} is not the running kernel: only --dry-run works on it", 2)
    if not yes and not (sys.stdin and sys.stdin.isatty()):
        fail("there is no terminal to ask on: --yes acts without, --dry-run shows", 2)


def _must_be_alone() -> None:
    """Nobody is to read a plan, and say yes to it, that another run stands before."""
    from memcgctl.actions.host.machine import ActionError
    from memcgctl.actions.run.lock import must_be_alone

    try:
        must_be_alone()
    except ActionError as error:
        fail(f"error: {error}", 1)


def _must_be_the_host() -> None:
    """The kernel's pids and cgroups are the host's; in a container others have them."""
    for name, initial in _INITIAL_NAMESPACES.items():
        with suppress(OSError):
            if os.stat(f"/proc/self/ns/{name}").st_ino != initial:
                fail(
                    f"error: this is a container, with a {name} namespace of its own: "
                    "only --dry-run works in it; run memcgctl on the host",
                    1,
                )


def _question(plan: Plan) -> str:
    """Says what it is about: with --json or --quiet the plan was not shown."""
    from memcgctl.report.text import counted

    steps, freed = len(plan.steps), len(plan.freed)
    return f"Take {counted(steps, 'step')} to free {counted(freed, 'zombie')}?"


def _too_few(
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


def _act(
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


def _verdicts(kernel: OpenedKernel, result: Result) -> dict[int, str]:
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


def _plan_screen(
    plan: Plan, census: Census, limit: int | None, steps: bool
) -> Text | Styled:
    width, encoding = shape()
    if steps or limit:
        from memcgctl.report.plan import screen

        return screen(plan, census, limit=limit, width=width, encoding=encoding)
    from memcgctl.report.summary import summary

    return summary(plan, census, width=width, encoding=encoding)


def _write_script(plan: Plan, path: Path) -> None:
    """A file that only its owner can run, whole or not at all."""
    from memcgctl.report.summary import script

    try:
        with open(path, "x", encoding="utf-8", errors="surrogateescape") as file:
            os.fchmod(file.fileno(), 0o700)
            file.write(script(plan))
    except OSError as error:
        fail(f"error: {path}: {error.strerror}", 1)
    say(f"{len(plan.steps):,} commands written to {path}; nothing was done")


def _report(
    result: Result,
    census: Census,
    verdicts: dict[int, str],
    *,
    as_json: bool,
    quiet: bool,
) -> None:
    from memcgctl.report.result import brief, screen, to_json
    from memcgctl.report.text import escape

    if as_json:
        write(to_json(result, census, verdicts))
    elif quiet:
        write(f"{escape(brief(result, census), shape()[1])}\n")
    else:
        width, encoding = shape()
        write(screen(result, census, verdicts, width=width, encoding=encoding))
