"""``memcgctl list``: which memcgs are offline, and what do they cost?"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from memcgctl.cli.choices import GroupBy, Output, Sort, parse_age
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
    from memcgctl.model import Census, Listing, Memcg, Plan
    from memcgctl.views.overview import Filters, Overview, Row


Online = Annotated[
    bool, typer.Option("--all", help="List online memcgs, too (as -o wide).")
]
Under = Annotated[
    str | None,
    typer.Option(
        metavar="GLOB|ID",
        help="Only memcgs at or below a path that matches: '/kubepods*' from the "
        "root, 'pod*' at any depth; * stays within one name. Or at or below the "
        "memcg that has this id.",
    ),
]
HeldBy = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KIND",
        help="Only those held by this: file, shmem, anon, kernel, sock, swap, "
        "socket, fsnotify, other, writeback, stock, child; repeatable.",
    ),
]
Freeable = Annotated[
    bool | None,
    typer.Option(
        "--freeable/--stuck", help="Only those that reclaim can free, or cannot."
    ),
]
Older = Annotated[
    float | None,
    typer.Option(
        metavar="AGE", parser=parse_age, help="Only those removed so long ago: 6h."
    ),
]
MinSize = Annotated[
    int | None,
    typer.Option(metavar="SIZE", parser=parse_size, help="Only those that cost this."),
]
Who = Annotated[
    str | None,
    typer.Option(metavar="TEXT", help="Only of this pod, container, unit or session."),
]
Match = Annotated[
    str | None,
    typer.Option(metavar="TEXT", help="Only those whose path has TEXT in it."),
]
SortKey = Annotated[
    Sort,
    typer.Option(
        help="Largest first; id and path ascending. cost: memory and swap in all; "
        "usage: the counter of memory.usage; memcgs: with --group-by only."
    ),
]
Reverse = Annotated[bool, typer.Option("--reverse", "-r", help="The other way round.")]
Limit = Annotated[
    int | None,
    typer.Option(
        "--limit",
        "-n",
        min=0,
        metavar="N",
        help="Show the first N rows; 0: all. Else, on a terminal, a screenful.",
    ),
]
GroupKey = Annotated[
    GroupBy | None,
    typer.Option(
        help="One row for all that have this in common. family: a name "
        "without its digits and hashes."
    ),
]
OutputForm = Annotated[
    Output | None,
    typer.Option(
        "-o",
        "--output",
        help="wide: paths, references and bytes by class; name, id: nothing else, "
        "one a line.",
    ),
]
Columns = Annotated[
    str | None,
    typer.Option(metavar="A,B,…", help="These columns, in this order."),
]
NoScan = Annotated[
    bool,
    typer.Option(
        "--no-scan",
        help="Only the tree and its counters: no walk over memory, hence no "
        "charges and no swap.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Write JSON (memcgctl/list/2).")]
AsNdjson = Annotated[
    bool,
    typer.Option(
        "--ndjson",
        help="Write a JSON document a memcg, each on its line (memcgctl/row/1).",
    ),
]
AsCsv = Annotated[bool, typer.Option("--csv", help="Write CSV.")]


def list_memcgs(
    core: Core = None,
    vmlinux: Vmlinux = None,
    btf: BtfFile = None,
    system_map: SystemMap = None,
    vmcoreinfo: Vmcoreinfo = None,
    census: CensusFile = None,
    online: Online = False,
    under: Under = None,
    held_by: HeldBy = None,
    freeable: Freeable = None,
    older: Older = None,
    min_size: MinSize = None,
    who: Who = None,
    match: Match = None,
    sort: SortKey = Sort.cost,
    reverse: Reverse = False,
    limit: Limit = None,
    group_by: GroupKey = None,
    output: OutputForm = None,
    columns: Columns = None,
    no_scan: NoScan = False,
    as_json: AsJson = False,
    schema: Schema = 2,
    as_csv: AsCsv = False,
    as_ndjson: AsNdjson = False,
) -> None:
    """List offline (zombie) memcgs: what they cost, what holds them, what can go.

    Of a vmcore or of the running kernel.
    """
    from memcgctl.views.overview import Filters

    request = _Request(
        sort=sort,
        reverse=reverse,
        limit=limit,
        group_by=group_by,
        output=output,
        columns=columns.split(",") if columns else None,
        filters=Filters(tuple(held_by or ()), freeable, older, min_size, who, match),
        online=online,
        scan=not no_scan,
        json=schema if as_json else None,
        csv=as_csv,
        ndjson=as_ndjson,
    )
    request.check()
    taken = read_census(
        (core, vmlinux, btf, system_map, vmcoreinfo),
        census,
        scan=request.scan,
        details="offline" if request.detailed else None,
    )
    warn(taken)
    _show(request, taken, below(taken, under))


class _Request(NamedTuple):
    """What was asked for; ``json`` is the version of its schema."""

    sort: Sort
    reverse: bool
    limit: int | None
    group_by: GroupBy | None
    output: Output | None
    columns: list[str] | None
    filters: Filters
    online: bool
    scan: bool
    json: int | None
    csv: bool
    ndjson: bool

    @property
    def plain(self) -> bool:
        """Whether memcgs are listed as they are, not as rows of the overview."""
        wide = self.output is Output.wide or not self.scan
        return self.online or wide or self.machine > 0

    @property
    def machine(self) -> int:
        """How many forms for programs were asked for."""
        return self.csv + self.ndjson + (self.json is not None)

    @property
    def grouped(self) -> bool:
        return self.group_by is not None

    @property
    def filtered(self) -> bool:
        return self.filters != type(self.filters)()

    @property
    def detailed(self) -> bool:
        """Whether it needs to be known what holds each."""
        shown = self.filtered or not self.plain or (self.json or 0) > 1 or self.ndjson
        return self.scan and shown

    def check(self) -> None:
        """BadParameter for what does not go together, and words that nothing has."""
        if self.machine > 1:
            raise typer.BadParameter("--json, --ndjson and --csv exclude each other.")
        if self.online and self.grouped:
            raise typer.BadParameter(
                "--group-by groups offline memcgs; --all adds none."
            )
        if self.grouped and self.ndjson:
            raise typer.BadParameter("--ndjson has a memcg a line: no --group-by.")
        other = self.grouped and self.group_by is not GroupBy.ancestor
        if other and self.machine:
            raise typer.BadParameter("--json and --csv group by ancestor only.")

        from memcgctl.report.overview import COLUMNS
        from memcgctl.views.overview import KINDS

        _known("--columns", "column", self.columns or (), COLUMNS)
        _known("--held-by", "kind", self.filters.held_by, KINDS)
        if self.sort.value not in (keys := self._sort_keys()):
            raise typer.BadParameter(f"--sort takes here one of {', '.join(keys)}.")

    def _sort_keys(self) -> list[str]:
        from memcgctl.views.listing import sort_keys

        if self.plain:
            return [*sort_keys(by_ancestor=self.grouped)]
        if self.grouped:
            return ["cost", "memcgs"]
        return ["age", "who", *sort_keys(by_ancestor=False)]


def _known(option: str, what: str, names: Iterable[str], known: Iterable[str]) -> None:
    for name in names:
        if name not in known:
            raise typer.BadParameter(
                f"{option}: no {what} is '{name}'; there are {', '.join(known)}."
            )


def _show(request: _Request, taken: Census, within: Sequence[Memcg]) -> None:
    """What of the memcgs ``within`` is asked for, in its order and form."""
    from memcgctl.views import overview
    from memcgctl.views.listing import select

    plan = planned(taken) if request.detailed else None
    found = overview.overview(taken, within, plan, request.filters)
    if request.filtered:
        kept = {row.memcg.address for row in found.rows}
        within = [m for m in within if m.address in kept]
    by_row = request.sort in (Sort.age, Sort.who)
    of_rows = by_row or (request.grouped and not request.plain)
    listing = select(
        replace(taken, memcgs=tuple(within)),
        online=request.online,
        sort="cost" if of_rows else request.sort.value,
        limit=(request.limit or None) if request.plain else None,
        by_ancestor=request.grouped and request.plain,
    )
    if request.reverse:
        listing = replace(listing, memcgs=listing.memcgs[::-1])
    rows = {row.memcg.address: row for row in found.rows}
    if request.plain:
        _plain(request, listing, rows)
        return
    ordered = [rows[memcg.address] for memcg in listing.memcgs]
    if by_row:
        key = request.sort.value
        ordered = overview.ordered(ordered, key, reverse=request.reverse)
    _short(request, found, ordered)


def planned(taken: Census) -> Plan:
    """What reclaim would do by default: that says what can go."""
    from memcgctl.policy.plan import plan
    from memcgctl.policy.policies import POLICIES

    return plan(taken, POLICIES["least-harm"])


def _short(request: _Request, found: Overview, rows: Sequence[Row]) -> None:
    """Names alone, or the overview: on a terminal a screenful that fits it."""
    from memcgctl.report.overview import screen
    from memcgctl.views.overview import group_key, sums

    limit, group_by = request.limit, request.group_by
    if request.output in (Output.name, Output.id):
        by_name = request.output is Output.name
        shown = rows[: limit or None]
        names = (r.memcg.path if by_name else str(r.memcg.id) for r in shown)
        text = "".join(f"{name}\n" for name in names)
        write(text.encode("utf-8", "surrogateescape"))
        return
    groups = sums(rows, group_key(group_by.value)) if group_by else None
    if groups and request.sort is Sort.memcgs:
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
            columns=request.columns,
            groups=groups,
            group=group_by.value if group_by else "",
        )
    )


def _plain(request: _Request, listing: Listing, rows: Mapping[int, Row]) -> None:
    """JSON, CSV, or the wide table."""
    from memcgctl.report.listing import screen, to_csv, to_json, to_ndjson

    if request.json is not None:
        write(to_json(listing, request.json, rows))
    elif request.ndjson:
        write(to_ndjson(listing, rows))
    elif request.csv:
        write(to_csv(listing))
    else:
        width, encoding = shape()
        write(screen(listing, width=width, encoding=encoding, online=request.online))
