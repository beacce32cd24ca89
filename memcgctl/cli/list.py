"""``memcgctl list``: which memcgs are offline, and what do they cost?"""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

from memcgctl.cli.options import (
    BtfFile,
    CensusFile,
    Core,
    Schema,
    SystemMap,
    Vmcoreinfo,
    Vmlinux,
)
from memcgctl.cli.reading import read_census, warn
from memcgctl.cli.terminal import shape, write


class Sort(str, Enum):
    """The keys of ``--sort``; the same as in ``memcgctl.views.listing``."""

    cost = "cost"
    id = "id"
    path = "path"
    memcgs = "memcgs"
    refs = "refs"
    children = "children"
    file = "file"
    shmem = "shmem"
    anon = "anon"
    kernel = "kernel"
    swap = "swap"
    overhead = "overhead"
    usage = "usage"


class GroupBy(str, Enum):
    """What ``--group-by`` can group by."""

    ancestor = "ancestor"


def list_memcgs(
    core: Core = None,
    vmlinux: Vmlinux = None,
    btf: BtfFile = None,
    system_map: SystemMap = None,
    vmcoreinfo: Vmcoreinfo = None,
    census: CensusFile = None,
    online: Annotated[
        bool, typer.Option("--all", help="List online memcgs, too.")
    ] = False,
    under: Annotated[
        str | None,
        typer.Option(
            metavar="GLOB",
            help="Only memcgs at or below a path that matches: '/kubepods*' from the "
            "root, 'pod*' at any depth; * stays within one name.",
        ),
    ] = None,
    sort: Annotated[
        Sort,
        typer.Option(
            help="Largest first; id and path ascending. cost: memory and swap in all; "
            "usage: the counter of memory.usage; memcgs: with --group-by only."
        ),
    ] = Sort.cost,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Show the first N rows.")
    ] = None,
    group_by: Annotated[
        GroupBy | None,
        typer.Option(help="One row for each nearest online ancestor."),
    ] = None,
    no_scan: Annotated[
        bool,
        typer.Option(
            "--no-scan",
            help="Only the tree and its counters: no walk over memory, hence no "
            "charges and no swap.",
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Write JSON (memcgctl/list/2).")
    ] = False,
    schema: Schema = 2,
    as_csv: Annotated[bool, typer.Option("--csv", help="Write CSV.")] = False,
) -> None:
    """List offline (zombie) memcgs and what they cost.

    Of a vmcore or of the running kernel, with the folios and swap entries that are
    still charged to each, its references and what the kernel allocates for it.
    """
    if as_json and as_csv:
        raise typer.BadParameter("--json and --csv exclude each other.")
    if online and group_by:
        raise typer.BadParameter("--group-by groups offline memcgs; --all adds none.")

    from memcgctl.report.listing import screen, to_csv, to_json
    from memcgctl.views.listing import select, sort_keys

    if sort.value not in (keys := sort_keys(by_ancestor=group_by is not None)):
        raise typer.BadParameter(f"--sort takes here one of {', '.join(keys)}.")
    paths = (core, vmlinux, btf, system_map, vmcoreinfo)
    taken = read_census(paths, census, scan=not no_scan)
    listing = select(
        taken,
        online=online,
        under=under,
        sort=sort.value,
        limit=limit,
        by_ancestor=group_by is not None,
    )
    warn(taken)
    if as_json:
        write(to_json(listing, schema))
    elif as_csv:
        write(to_csv(listing))
    else:
        width, encoding = shape()
        write(screen(listing, width=width, encoding=encoding, online=online))
