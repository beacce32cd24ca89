"""``memcgctl list``: which memcgs are offline, and what do they cost?"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from enum import Enum
from typing import TYPE_CHECKING, Annotated

import typer

from memcgctl.cli.naming import below
from memcgctl.cli.options import (
    BtfFile,
    CensusFile,
    Core,
    Schema,
    SystemMap,
    Vmcoreinfo,
    Vmlinux,
)
from memcgctl.cli.policy import parse_size
from memcgctl.cli.reading import read_census, warn
from memcgctl.cli.terminal import shape, write

if TYPE_CHECKING:
    from memcgctl.model import Census, Listing, Plan
    from memcgctl.views.overview import Overview, Row


class Sort(str, Enum):
    """The keys of ``--sort``; the same as in ``memcgctl.views.listing``."""

    cost = "cost"
    age = "age"
    who = "who"
    id = "id"
    path = "path"
    memcgs = "memcgs"
    refs = "refs"
    children = "children"
    file = "file"
    shmem = "shmem"
    anon = "anon"
    kernel = "kernel"
    hugetlb = "hugetlb"
    sock = "sock"
    swap = "swap"
    overhead = "overhead"
    usage = "usage"


class GroupBy(str, Enum):
    """What ``--group-by`` can group by."""

    ancestor = "ancestor"
    who = "who"
    unit = "unit"
    pod = "pod"
    holder = "holder"
    file = "file"
    family = "family"


class Output(str, Enum):
    """Forms for a person, ``-o``."""

    wide = "wide"
    name = "name"
    id = "id"


_AGES = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604_800}


def parse_age(text: str) -> float:
    """``90s``, ``15m``, ``6h``, ``2d`` in seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw]?)", text)
    if not match:
        raise typer.BadParameter(f"'{text}' is no age: 90s, 15m, 6h, 2d.")
    return float(match[1]) * _AGES[match[2] or "s"]


def list_memcgs(
    core: Core = None,
    vmlinux: Vmlinux = None,
    btf: BtfFile = None,
    system_map: SystemMap = None,
    vmcoreinfo: Vmcoreinfo = None,
    census: CensusFile = None,
    online: Annotated[
        bool, typer.Option("--all", help="List online memcgs, too (as -o wide).")
    ] = False,
    under: Annotated[
        str | None,
        typer.Option(
            metavar="GLOB|ID",
            help="Only memcgs at or below a path that matches: '/kubepods*' from the "
            "root, 'pod*' at any depth; * stays within one name. Or at or below the "
            "memcg that has this id.",
        ),
    ] = None,
    held_by: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND",
            help="Only those held by this: file, shmem, anon, kernel, sock, swap, "
            "socket, fsnotify, other, writeback, stock, child; repeatable.",
        ),
    ] = None,
    freeable: Annotated[
        bool | None,
        typer.Option(
            "--freeable/--stuck", help="Only those that reclaim can free, or cannot."
        ),
    ] = None,
    older: Annotated[
        float | None,
        typer.Option(
            metavar="AGE", parser=parse_age, help="Only those removed so long ago: 6h."
        ),
    ] = None,
    min_size: Annotated[
        int | None,
        typer.Option(
            metavar="SIZE", parser=parse_size, help="Only those that cost this."
        ),
    ] = None,
    who: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT", help="Only of this pod, container, unit or session."
        ),
    ] = None,
    match: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Only those whose path has TEXT in it."),
    ] = None,
    sort: Annotated[
        Sort,
        typer.Option(
            help="Largest first; id and path ascending. cost: memory and swap in all; "
            "usage: the counter of memory.usage; memcgs: with --group-by only."
        ),
    ] = Sort.cost,
    reverse: Annotated[
        bool, typer.Option("--reverse", "-r", help="The other way round.")
    ] = False,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit",
            "-n",
            min=0,
            metavar="N",
            help="Show the first N rows; 0: all. Else, on a terminal, a screenful.",
        ),
    ] = None,
    group_by: Annotated[
        GroupBy | None,
        typer.Option(
            help="One row for all that have this in common. family: a name "
            "without its digits and hashes."
        ),
    ] = None,
    output: Annotated[
        Output | None,
        typer.Option(
            "-o",
            "--output",
            help="wide: paths, references and bytes by class; name, id: nothing else, "
            "one a line.",
        ),
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(metavar="A,B,…", help="These columns, in this order."),
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
    """List offline (zombie) memcgs: what they cost, what holds them, what can go.

    Of a vmcore or of the running kernel.
    """
    grouped = group_by is not None
    if as_json and as_csv:
        raise typer.BadParameter("--json and --csv exclude each other.")
    if online and grouped:
        raise typer.BadParameter("--group-by groups offline memcgs; --all adds none.")
    if grouped and group_by is not GroupBy.ancestor and (as_json or as_csv):
        raise typer.BadParameter("--json and --csv group by ancestor only.")

    from memcgctl.report.overview import COLUMNS
    from memcgctl.views import overview
    from memcgctl.views.listing import select, sort_keys

    names = columns.split(",") if columns else None
    for name in names or ():
        if name not in COLUMNS:
            raise typer.BadParameter(
                f"--columns: no column is '{name}'; there are {', '.join(COLUMNS)}."
            )
    for kind in held_by or ():
        if kind not in overview.KINDS:
            raise typer.BadParameter(
                f"--held-by: no kind is '{kind}'; there are "
                f"{', '.join(overview.KINDS)}."
            )
    filters = overview.Filters(
        tuple(held_by or ()), freeable, older, min_size, who, match
    )
    filtered = filters != overview.Filters()
    plain = online or as_csv or as_json or output is Output.wide or no_scan
    if grouped and not plain:
        keys = ["cost", "memcgs"]
    elif plain:
        keys = sort_keys(by_ancestor=grouped)
    else:
        keys = ["age", "who", *sort_keys(by_ancestor=False)]
    if sort.value not in keys:
        raise typer.BadParameter(f"--sort takes here one of {', '.join(keys)}.")
    detailed = not no_scan and (filtered or not plain or (as_json and schema > 1))
    paths = (core, vmlinux, btf, system_map, vmcoreinfo)
    taken = read_census(
        paths, census, scan=not no_scan, details="offline" if detailed else None
    )
    warn(taken)
    within = below(taken, under)
    of_rows = sort in (Sort.age, Sort.who) or (grouped and not plain)
    key = "cost" if of_rows else sort.value
    found = overview.overview(
        taken, within, planned(taken) if detailed else None, filters
    )
    if filtered:
        kept = {row.memcg.address for row in found.rows}
        within = [m for m in within if m.address in kept]
    several = None if limit == 0 else limit
    listing = select(
        replace(taken, memcgs=tuple(within)),
        online=online,
        sort=key,
        limit=several if plain else None,
        by_ancestor=grouped and plain,
    )
    if reverse:
        listing = replace(listing, memcgs=listing.memcgs[::-1])
    rows = {row.memcg.address: row for row in found.rows}
    if not plain:
        ordered = [rows[memcg.address] for memcg in listing.memcgs]
        if sort in (Sort.age, Sort.who):
            ordered = overview.ordered(ordered, sort.value, reverse=reverse)
        _short(found, ordered, output, names, group_by, limit, sort)
        return
    if as_json:
        from memcgctl.report.listing import to_json

        write(to_json(listing, schema, rows))
        return
    _plain(listing, online=online, as_csv=as_csv)


def planned(taken: Census) -> Plan:
    """What reclaim would do by default: that says what can go."""
    from memcgctl.policy.plan import plan
    from memcgctl.policy.policies import POLICIES

    return plan(taken, POLICIES["least-harm"])


def _short(
    found: Overview,
    rows: Sequence[Row],
    output: Output | None,
    columns: list[str] | None,
    group_by: GroupBy | None,
    limit: int | None,
    sort: Sort,
) -> None:
    """Names alone, or the overview: on a terminal a screenful that fits it."""
    from memcgctl.report.overview import screen
    from memcgctl.views.overview import group_key, sums

    if output in (Output.name, Output.id):
        shown = rows[: limit or None]
        names = (
            r.memcg.path if output is Output.name else str(r.memcg.id) for r in shown
        )
        text = "".join(f"{name}\n" for name in names)
        write(text.encode("utf-8", "surrogateescape"))
        return
    groups = sums(rows, group_key(group_by.value)) if group_by else None
    if groups and sort is Sort.memcgs:
        groups = tuple(sorted(groups, key=lambda one: -len(one.rows)))
    width, encoding = shape()
    terminal = sys.stdout is not None and sys.stdout.isatty()
    if limit is None and terminal:
        limit = max(3, shutil.get_terminal_size().lines - 10 - len(found.holders))
    write(
        screen(
            found,
            rows,
            limit=limit or None,
            width=width if terminal else None,
            encoding=encoding,
            columns=columns,
            groups=groups,
            group=group_by.value if group_by else "",
        )
    )


def _plain(listing: Listing, *, online: bool, as_csv: bool) -> None:
    """Numbers and paths: CSV, or the wide table."""
    from memcgctl.report.listing import screen, to_csv

    if as_csv:
        write(to_csv(listing))
        return
    width, encoding = shape()
    write(screen(listing, width=width, encoding=encoding, online=online))
