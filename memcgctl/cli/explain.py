"""``memcgctl explain``: why is this memcg still there?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from memcgctl.cli.naming import shown
from memcgctl.cli.options import (
    BtfFile,
    CensusFile,
    Core,
    Schema,
    SystemMap,
    Vmcoreinfo,
    Vmlinux,
)
from memcgctl.cli.reading import (
    Paths,
    again,
    load_census,
    on_this_machine,
    opened,
    warn,
)
from memcgctl.cli.terminal import fail, shape, write

if TYPE_CHECKING:
    from memcgctl.model import Census, Frames, Memcg, Plan

    Explained = list[tuple[Memcg, Frames | None]]


Wanted = Annotated[
    list[str],
    typer.Argument(
        metavar="ID...",
        help="A cgroup id, a path (also below /sys/fs/cgroup), a pod's uid, "
        "memcg:N (the private id), or 0x… (the address of the struct mem_cgroup); "
        "else the last name of a path, a pattern ('pod*') or a part of a path.",
    ),
]
Folios = Annotated[
    bool, typer.Option("--folios", help="List the page frames charged to it, too.")
]
FirstFolios = Annotated[
    int, typer.Option(min=1, metavar="N", help="With --folios: the first N.")
]
WithOptions = Annotated[
    bool,
    typer.Option(
        "--options", help="What each option of the recharging proposal comes to."
    ),
]
Verbose = Annotated[
    bool,
    typer.Option("-v", help="Addresses, private ids and generations, too."),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Write JSON (memcgctl/explain/2).")
]


def explain_memcg(
    memcgs: Wanted,
    core: Core = None,
    vmlinux: Vmlinux = None,
    btf: BtfFile = None,
    system_map: SystemMap = None,
    vmcoreinfo: Vmcoreinfo = None,
    census: CensusFile = None,
    folios: Folios = False,
    limit: FirstFolios = 1000,
    with_options: WithOptions = False,
    verbose: Verbose = False,
    as_json: AsJson = False,
    schema: Schema = 2,
) -> None:
    """Explain why a memcg is still there: every reference, and whose memory it is.

    The verdict comes first, then what holds the memcg, what is charged to it and can
    be evicted or not, its swap, and who uses all that. Of several memcgs --json
    writes one document after the other.
    """
    paths = (core, vmlinux, btf, system_map, vmcoreinfo)
    if census:
        if folios:
            raise typer.BadParameter("--folios needs a kernel: no --census with it.")
        taken = load_census(census, paths)
        every: Explained = [(found, None) for found in _named(taken, memcgs)]
    else:
        taken, every = _read(paths, memcgs, limit if folios else 0)

    from memcgctl.policy.options import next_command, options
    from memcgctl.report.explain import screen
    from memcgctl.report.explain_json import to_json
    from memcgctl.views.explain import explain

    warn(taken)
    width, encoding = shape()
    for row, (found, frames) in enumerate(every):
        explanation = explain(taken, found)
        possible = options(taken, found)
        following = again(next_command(taken, found), paths, census)
        if as_json:
            write(to_json(explanation, frames, possible, following, schema))
            continue
        if row:
            write("\n")
        write(
            screen(
                *(explanation, frames, possible if with_options else (), following),
                plan=_way_out(taken, found),
                verbose=verbose,
                width=width,
                encoding=encoding,
            )
        )


def _named(census: Census, texts: list[str]) -> list[Memcg]:
    """Those that the texts name, each once."""
    found = {memcg.address: memcg for memcg in (shown(census, one) for one in texts)}
    return list(found.values())


def _way_out(census: Census, memcg: Memcg) -> Plan | None:
    """What would free it; nothing if it is online or was not looked at."""
    from memcgctl.policy.plan import plan
    from memcgctl.policy.policies import POLICIES

    if memcg.state == "online" or memcg.details is None:
        return None
    return plan(census, POLICIES["least-harm"], [memcg.id])


def _read(paths: Paths, texts: list[str], folios: int) -> tuple[Census, Explained]:
    """What ``texts`` name with their details, and what is below a zombie of them."""
    from memcgctl.census import take_census
    from memcgctl.census.charges.frames import read_frames
    from memcgctl.views.explain import descendants

    with opened(paths) as (kernel, progress):
        tree = take_census(kernel, scan=False, progress=progress)
        named = _named(tree, texts)
        ids = {memcg.id for memcg in named}
        for memcg in named:
            if memcg.state == "offline":
                ids |= {other.id for other in descendants(tree, memcg)}
        census = take_census(kernel, details=ids, progress=progress)
        census = on_this_machine(census)
        now = {(memcg.id, memcg.address): memcg for memcg in census.memcgs}
        every: Explained = []
        for memcg in named:
            if (found := now.get((memcg.id, memcg.address))) is None:
                fail(f"{memcg.path} (id {memcg.id}) went away while it was read", 1)
            frames = None
            if folios:
                frames = read_frames(kernel, census, found, folios, progress)
            every.append((found, frames))
        return census, every
