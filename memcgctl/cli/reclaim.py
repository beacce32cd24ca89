"""``memcgctl reclaim``: what is to be done so that zombies go, and the doing of it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from memcgctl.cli.acting import (
    act,
    finish_transit,
    must_act_here,
    must_be_the_host,
    must_have_the_lock,
    too_few,
    verdicts,
)
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
from memcgctl.cli.reading import Paths, on_this_machine, opened, read_census, warn
from memcgctl.cli.terminal import fail, say, shape, write

if TYPE_CHECKING:
    from rich.text import Text

    from memcgctl.kernel.program import OpenedKernel
    from memcgctl.model import Census, Plan, Result
    from memcgctl.policy.policies import Policy
    from memcgctl.report.text import Styled

    Planner = Callable[[Census], Plan]


Wanted = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="ID",
        help="Only these and the offline ones below them: a cgroup id, a whole "
        "path, a pod's uid, memcg:N, or 0x…. An online one stands for all below "
        "it. Without any, all.",
        show_default=False,
    ),
]
Match = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TEXT",
        help="Only those whose path has this name, matches this pattern or, if "
        "none does, has this in it; they are listed. Repeatable.",
        show_default=False,
    ),
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", "-n", help="Say what would be done, do nothing."),
]
Yes = Annotated[
    bool, typer.Option("--yes", "-y", help="Act without asking: needed by cron.")
]
PolicyName = Annotated[
    str,
    typer.Option(
        metavar="NAME|FILE",
        help="least-harm, proposal, evict, parent, mapper or deferred; or a TOML "
        "file with a policy.",
    ),
]
MaxBytes = Annotated[
    int | None,
    typer.Option(
        metavar="SIZE",
        parser=parse_size,
        help="Move no more than this in all, that of others which an action can "
        "reach included: 500M, 2G.",
        show_default=False,
    ),
]
MaxSeconds = Annotated[
    float | None,
    typer.Option(
        min=0, metavar="S", help="Begin no step after this.", show_default=False
    ),
]
Only = Annotated[
    list[str] | None,
    typer.Option(
        metavar="ACTION",
        help="Only this action, by the name that a plan has for it; repeatable.",
        show_default=False,
    ),
]
Allowed = Annotated[
    list[Allow] | None,
    typer.Option(
        metavar="WHAT",
        help="over-limit: steps that could push a memcg over a limit. unaimed: "
        "actions that also take living cgroups' memory. drop-caches: everybody's "
        "page cache. temp-swap: a swap device in compressed memory (zram) for the "
        "run, by way of which shmem and anonymous memory goes to the parent.",
        show_default=False,
    ),
]
Finish = Annotated[
    bool,
    typer.Option(
        "--finish",
        help="Only bring back what a killed run left in its temporary swap device, and "
        "remove that.",
    ),
]
MinZombies = Annotated[
    int, typer.Option(min=0, metavar="N", help="Do nothing if there are fewer.")
]
MinOverhead = Annotated[
    int,
    typer.Option(
        metavar="SIZE",
        parser=parse_size,
        help="Do nothing if they take less (estimated, without a scan).",
    ),
]
EachStep = Annotated[
    bool, typer.Option("--steps", help="Show each step, not only their sums.")
]
Script = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Write the steps as a shell script to FILE; nothing is done.",
        show_default=False,
        dir_okay=False,
    ),
]
Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", help="One line if anything was done, else nothing."),
]
JournalFile = Annotated[
    Path | None,
    typer.Option(
        metavar="PATH",
        help="Where to write what is done; see memcgctl journal.",
        show_default=False,
        readable=False,
    ),
]
FirstSteps = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Show the first N steps, in JSON all."),
]
AsJson = Annotated[
    bool,
    typer.Option(
        "--json", help="Write JSON (memcgctl/plan/2; after acting, result/1)."
    ),
]


def reclaim(
    memcgs: Wanted = None,
    match: Match = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    policy: PolicyName = "least-harm",
    max_bytes: MaxBytes = None,
    max_seconds: MaxSeconds = None,
    mapper: Mapper = None,
    only: Only = None,
    allow: Allowed = None,
    finish: Finish = False,
    min_zombies: MinZombies = 0,
    min_overhead: MinOverhead = 0,
    steps: EachStep = False,
    commands: Script = None,
    quiet: Quiet = False,
    journal: JournalFile = None,
    limit: FirstSteps = None,
    core: Core = None,
    vmlinux: Vmlinux = None,
    btf: BtfFile = None,
    system_map: SystemMap = None,
    vmcoreinfo: Vmcoreinfo = None,
    census: CensusFile = None,
    as_json: AsJson = False,
    schema: Schema = 2,
) -> None:
    """Free zombies, least harm first, or with --dry-run say how.

    Shows the plan, asks, acts step by step and measures what came of it. Exit code 0:
    all that the plan promised is gone (or with --dry-run: it is shown); 4: in part.
    """
    _known_actions(only or [])
    paths = (core, vmlinux, btf, system_map, vmcoreinfo)
    planned = partial(
        _planned,
        policy=load_policy(policy, mapper),
        ids=memcgs or (),
        match=match or (),
        allow=[one.value for one in allow or ()],
        only=only or (),
        max_bytes=max_bytes,
    )
    screens = _Screens(limit, steps, as_json, quiet, schema)
    if dry_run or commands:
        taken = read_census(paths, census, details="offline")
        made = planned(taken)
        _write_script(made, commands) if commands else screens.would(made, taken)
        return
    must_act_here(core or census, yes or finish)
    if finish:
        must_have_the_lock()
        finish_transit(journal, only=True)
        return
    few = partial(too_few, min_zombies, min_overhead)
    do = partial(act, max_seconds=max_seconds, max_bytes=max_bytes, journal=journal)
    if not _acted(paths, planned, few, do, screens, yes):
        sys.exit(4)


def _planned(
    taken: Census,
    policy: Policy,
    ids: Sequence[str],
    match: Sequence[str],
    allow: Sequence[str],
    only: Sequence[str],
    max_bytes: int | None,
) -> Plan:
    from memcgctl.policy.plan import plan

    wanted = None
    if ids or match:
        wanted = [one.id for one in meant(taken, ids, match)]
    made = plan(taken, policy, wanted, allow=allow, only=only, max_bytes=max_bytes)
    warn(made)
    return made


class _Screens(NamedTuple):
    """How the plan and what came of it are shown."""

    limit: int | None
    steps: bool
    as_json: bool
    quiet: bool
    schema: int

    def would(self, made: Plan, taken: Census) -> None:
        """The plan, nothing of which is done."""
        if self.as_json:
            from memcgctl.report.plan import to_json

            write(to_json(made, taken, self.schema))
        elif not self.quiet:
            write(_plan_screen(made, taken, self.limit, self.steps))

    def before(self, made: Plan, taken: Census) -> None:
        """The plan, before it is asked whether to carry it out."""
        if not self.quiet and not self.as_json:
            write(_plan_screen(made, taken, self.limit, self.steps))

    def nothing(self, why: str) -> None:
        if not self.quiet:
            say(f"nothing done: {why}")

    def done(self, result: Result, taken: Census, verdicts: dict[int, str]) -> None:
        """What came of it."""
        from memcgctl.report.result import brief, screen, to_json
        from memcgctl.report.text import escape

        width, encoding = shape()
        if self.as_json:
            write(to_json(result, taken, verdicts))
        elif self.quiet:
            write(f"{escape(brief(result, taken), encoding)}\n")
        else:
            write(screen(result, taken, verdicts, width=width, encoding=encoding))


def _acted(
    paths: Paths,
    planned: Planner,
    too_few: Callable[..., str | None],
    act: Callable[[OpenedKernel, Census, Plan], Result],
    screens: _Screens,
    yes: bool,
) -> bool:
    """Plan, ask, act, report; whether all that was promised is gone."""
    if why := too_few():
        screens.nothing(why)
        return True
    must_have_the_lock()
    finish_transit(None)
    with opened(paths) as (kernel, progress):
        from memcgctl.census import take_census

        tree = take_census(kernel, scan=False)
        offline = sum(memcg.state == "offline" for memcg in tree.memcgs)
        if why := too_few(offline):
            screens.nothing(why)
            return True
        taken = take_census(kernel, details="offline", progress=progress)
        taken = on_this_machine(taken)
        progress("", 0, 0)
        made = planned(taken)
        must_be_the_host()
        screens.before(made, taken)
        if made.steps and not yes and not typer.confirm(_question(made), err=True):
            say("nothing done")
            return True
        if not made.steps and not screens.as_json:
            return True
        result = act(kernel, taken, made)
        found = verdicts(kernel, result)
    screens.done(result, taken, found)
    return result.complete


def _known_actions(names: list[str]) -> None:
    from memcgctl.policy.interfaces import INTERFACES

    known = dict.fromkeys(interface.name for interface in INTERFACES)
    for name in names:
        if name not in known:
            raise typer.BadParameter(
                f"--only: no action is '{name}'; there are {', '.join(known)}."
            )


def _question(plan: Plan) -> str:
    """Says what it is about: with --json or --quiet the plan was not shown."""
    from memcgctl.report.text import counted

    steps, freed = len(plan.steps), len(plan.freed)
    return f"Take {counted(steps, 'step')} to free {counted(freed, 'zombie')}?"


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
