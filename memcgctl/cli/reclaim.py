"""``memcgctl reclaim``: what is to be done so that zombies go?"""

from __future__ import annotations

import gc
import shutil
import sys
from typing import Annotated

import typer

from memcgctl.cli.options import (
    BtfFile,
    CensusFile,
    Core,
    SystemMap,
    Vmcoreinfo,
    Vmlinux,
)
from memcgctl.cli.policy import Allow, Mapper, load_policy, parse_size
from memcgctl.cli.reading import one_memcg, read_census, warn
from memcgctl.cli.terminal import fail, write


def reclaim(
    memcgs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[ID]...",
            help="Only these and the offline ones below them: a cgroup id, a path or "
            "a unique part of one, memcg:N, or 0x…. An online one stands for all "
            "below it. Without any, all.",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, do nothing.")
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
    mapper: Mapper = None,
    allow: Annotated[
        list[Allow] | None,
        typer.Option(
            metavar="WHAT",
            help="over-limit: steps that could push a memcg over a limit. unaimed: "
            "actions that also take living cgroups' memory. drop-caches: everybody's "
            "page cache. unverified: interfaces that nobody has yet seen to work.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Show the first N steps.")
    ] = None,
    core: Core = None,
    vmlinux: Vmlinux = None,
    btf: BtfFile = None,
    system_map: SystemMap = None,
    vmcoreinfo: Vmcoreinfo = None,
    census: CensusFile = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Write JSON (memcgctl/plan/1).")
    ] = False,
) -> None:
    """Plan how to free zombies, least harm first: each step with its command.

    What each policy decides is carried out by what user space can do on this kernel;
    what cannot be done is said. Exit code 0 with --dry-run, whatever the plan leaves.
    """
    if not dry_run:
        fail("acting is not built yet; use --dry-run", 2)
    chosen = load_policy(policy, mapper)
    paths = (core, vmlinux, btf, system_map, vmcoreinfo)
    taken = read_census(paths, census, details="offline")
    wanted = [one_memcg(taken, text).id for text in memcgs] if memcgs else None

    gc.disable()  # values alone, no cycles: it would take half of the time
    from memcgctl.policy.plan import plan
    from memcgctl.report.plan import screen, to_json

    allowed = [one.value for one in allow or ()]
    made = plan(taken, chosen, wanted, allow=allowed, max_bytes=max_bytes)
    warn(made)
    if as_json:
        write(to_json(made, taken))
        return
    width = shutil.get_terminal_size().columns
    encoding = sys.stdout.encoding if sys.stdout else "ascii"
    write(screen(made, taken, limit=limit, width=width, encoding=encoding))
