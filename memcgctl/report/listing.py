"""What does ``memcgctl list`` show? A headline and a table, JSON, or CSV.

Every line of the table has one width, numbers are never cut, and only paths are
shortened, so that it fits 80 columns whatever the kernel's names are.
"""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from memcgctl.model import Group, Listing, Memcg, Topic
from memcgctl.report.schemas import (
    CHARGED_CLASSES,
    FOLIO_CLASSES,
    LATEST,
    costs_json,
    dumper,
    memcg_json,
    source_json,
)
from memcgctl.report.text import (
    Styled,
    bare_words,
    cell_count,
    count,
    counted,
    escape,
    shorten,
    size,
    unread_words,
)
from memcgctl.views.overview import Row

SCHEMA = "memcgctl/list/"
ROW = "memcgctl/row/1"
# What charges and swap are counted from.
COUNTED = (Topic.MEMORY_MAP, Topic.SWAP_MAP)
HOLDERS = {
    "file": "file folios",
    "shmem": "shmem folios",
    "anon": "anon folios",
    "kernel": "kernel pages",
    "hugetlb": "hugetlb folios",
    "sock": "socket memory",
    "swap": "swap entries",
    "children": "offline children",
    "other": "references of other kinds",
}

CSV_IDENTITY = ("id", "path", "state", "ancestor", "refs", "children")
CSV_COSTS = (
    *(f"charged.{kind}" for kind in CHARGED_CLASSES),
    *(f"folios.{kind}" for kind in FOLIO_CLASSES),
    *("swap.entries", "swap.bytes"),
    *("overhead.percpu", "overhead.percpu_accounted", "overhead.structs"),
    "usage_bytes",
)


@dataclass(frozen=True)
class Column:
    """A right-aligned column; ``cell`` renders a row's value."""

    title: str
    cell: Callable[[Any], str]
    summed: bool = True


def screen(
    listing: Listing, *, width: int = 80, encoding: str = "utf-8", online: bool = False
) -> Styled:
    """The listing as a person reads it; ``online`` adds a column for the state."""
    text = Styled()
    for line in filter(None, [*headline(listing), bare_words(listing.kernel)]):
        text.append((textwrap.fill(line, width) + "\n", "bold"))
    if listing.memcgs or listing.groups:
        head, *rows, total = table(listing, width, encoding, online)
        text.append((f"\n{head}\n", "bold"))
        text.append(("".join(f"{row}\n" for row in rows), ""))
        text.append((f"{total}\n", "bold"))
    if listing.omitted:
        noun = "more memcg" if listing.groups is None else "more ancestor"
        text.append((f"{counted(listing.omitted, noun)}, not shown.\n", ""))
    return text


def headline(listing: Listing) -> list[str]:
    """How many offline memcgs, what they cost in all, what holds most of it."""
    total, unread = listing.total, listing.unread
    more = unread_words(unread, [Topic.MEMCGS])
    if not total.memcgs:
        return [f"No offline memcgs{f' found: {more}' if more else ''}."]
    who = counted(total.memcgs, "offline memcg")
    overhead = size(total.overhead.total_bytes, long=True)
    if total.charges is None:
        usage = size(total.usage_bytes, long=True)
        return [f"{who}: {overhead} overhead, {usage} on their counters, not scanned."]
    cost = size(total.cost_bytes, long=True)
    least = "at least " if unread_words(unread, COUNTED) else ""
    lines = [f"{who}: {least}{cost} in all, {overhead} of it overhead."]
    if more:
        lines.append(f"There may be more of them: {more}.")
    if total.charges.sock_bytes is None:
        lines.append("Socket memory is not known, and not in it.")
    if reason := listing.reason:
        cost = size(reason.cost_bytes, long=True)
        part = f"{reason.memcgs:,} of {who}" if reason.memcgs < total.memcgs else "all"
        lines.append(f"Largest reason: {HOLDERS[reason.kind]} ({part}, {cost}).")
    return lines


def table(listing: Listing, width: int, encoding: str, online: bool) -> list[str]:
    """Title line, one line a row, totals line; the path gets what numbers leave."""
    rows: Sequence[Memcg | Group] = listing.memcgs or listing.groups or ()
    numbers = [_cells(c, rows, listing.total) for c in _columns(listing, online)]
    paths = ["ancestor" if listing.groups else "path", *(row.path for row in rows)]
    paths.append("total offline" if online else "total")
    return aligned(numbers, paths, 0 if listing.groups else 1, width, encoding)


def aligned(
    numbers: Sequence[Sequence[str]],
    paths: Sequence[str],
    column: int,
    width: int,
    encoding: str,
) -> list[str]:
    """Lines of right-aligned columns, with the paths as column number ``column``."""
    if _width(numbers) + len(numbers) >= width:  # garbage, or a narrow terminal
        numbers = [
            [shorten(title, _width([cells]), encoding), *cells]
            for title, *cells in numbers
        ]
    left = width - _width(numbers)
    longest = max(cell_count(escape(path, encoding)) for path in paths)
    gap = 2 if longest + 2 * len(numbers) <= left else 1
    room = max(1, min(longest, left - gap * len(numbers)))
    grid = [right_aligned(cells) for cells in numbers]
    shown = [shorten(path, room, encoding) for path in paths]
    grid.insert(column, [path + " " * (room - cell_count(path)) for path in shown])
    return [(" " * gap).join(line).rstrip() for line in zip(*grid, strict=True)]


def _cells(column: Column, rows: Sequence[Memcg | Group], total: Group) -> list[str]:
    cells = [column.title, *map(column.cell, rows)]
    return [*cells, column.cell(total) if column.summed else ""]


def right_aligned(cells: Sequence[str]) -> list[str]:
    width = _width([cells])
    return [cell.rjust(width) for cell in cells]


def _width(columns: Sequence[Sequence[str]]) -> int:
    return sum(max(map(len, cells)) for cells in columns)


def _columns(listing: Listing, online: bool) -> list[Column]:
    """All columns but the path; the id, if any, comes first.

    Kernel pages are charged to the memcg itself up to 5.10 only, hugetlb and socket
    memory are rare, so that their columns are shown where there are any.
    """
    columns = [Column("memcgs", lambda row: count(row.memcgs))]
    if listing.groups is None:
        columns = [
            Column("id", lambda row: str(row.id), summed=False),
            *(
                [Column("state", lambda row: row.state[:-4], summed=False)]
                if online
                else []
            ),
            Column("refs", lambda row: count(row.refs), summed=False),
            Column("children", lambda row: count(row.children), summed=False),
        ]
    rows: tuple[Memcg | Group, ...] = (*listing.memcgs, *(listing.groups or ()))
    rare = [
        kind
        for kind in ("kernel", "hugetlb", "sock")
        if any(row.charges and getattr(row.charges, f"{kind}_bytes") for row in rows)
    ]
    columns += map(_class_column, ["file", "shmem", "anon", *rare])
    columns.append(Column("swap", lambda row: size(row.swap and row.swap.bytes)))
    columns.append(Column("overhead", lambda row: size(row.overhead.total_bytes)))
    return columns


def _class_column(kind: str) -> Column:
    return Column(
        kind, lambda row: size(row.charges and getattr(row.charges, f"{kind}_bytes"))
    )


def to_json(
    listing: Listing, schema: int = LATEST, rows: Mapping[int, Row] | None = None
) -> str:
    """``memcgctl/list``, one memcg a line; ASCII, see ``schemas`` for its versions.

    ``rows`` are by the address of their memcg.
    """
    total, dumps = listing.total, dumper(schema)
    document: dict[str, Any] = {
        "schema": f"{SCHEMA}{schema}",
        "source": source_json(listing.kernel, schema),
        "totals": {
            "offline": total.memcgs,
            "dying_cgroups": listing.kernel.dying_cgroups,
            "dying_without_memcg": listing.kernel.bare_cgroups,
            "charged_bytes": total.charges and total.charges.total_bytes,
            "swap_bytes": total.swap and total.swap.bytes,
            "overhead_bytes": total.overhead.total_bytes,
        },
        "memcgs": [
            memcg_json(memcg, schema, (rows or {}).get(memcg.address))
            for memcg in listing.memcgs
        ],
        "warnings": listing.warnings,
    }
    if listing.groups is not None:
        document["groups"] = [_group_json(group, schema) for group in listing.groups]
    parts = (f"{dumps(key)}: {_lines(value, dumps)}" for key, value in document.items())
    return "{" + ",\n ".join(parts) + "}\n"


def to_ndjson(listing: Listing, rows: Mapping[int, Row] | None = None) -> str:
    """``memcgctl/row/1``: a document a memcg, each on a line that stands for itself."""
    dumps = dumper(LATEST)
    common = {
        "schema": ROW,
        "source": source_json(listing.kernel),
        "warnings": listing.warnings,
    }
    lines = (
        dumps(common | memcg_json(memcg, LATEST, (rows or {}).get(memcg.address)))
        for memcg in listing.memcgs
    )
    return "".join(f"{line}\n" for line in lines)


def _lines(value: object, dumps: Callable[[object], str]) -> str:
    if not value or not isinstance(value, list):
        return dumps(value)
    return "[\n  " + ",\n  ".join(map(dumps, value)) + "]"


def _group_json(group: Group, schema: int = LATEST) -> dict[str, Any]:
    return {
        "ancestor": group.path,
        "offline": group.memcgs,
        **costs_json(group, schema),
    }


def to_csv(listing: Listing) -> bytes:
    """A title row, then the numbers of the JSON; empty where these are null.

    Bytes, as those of a name that are not UTF-8 come out as they are.
    """
    rows = [memcg_json(memcg) for memcg in listing.memcgs]
    keys = [*CSV_IDENTITY, *CSV_COSTS, "parent_id", "private_id", "address"]
    if listing.groups is not None:
        rows = [_group_json(group) for group in listing.groups]
        keys = ["ancestor", "offline", *CSV_COSTS]
    lines = [_csv_line([key.replace(".", "_") for key in keys])]
    lines += [_csv_line([_field(row, key) for key in keys]) for row in rows]
    return "".join(lines).encode("utf-8", "surrogateescape")


def _csv_line(values: Sequence[object]) -> str:
    """Ends in ``\\n`` alone, but quotes a ``\\r``: Python before 3.13 would not."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\r\n").writerow(values)
    return out.getvalue()[:-2] + "\n"


def _field(row: Any, key: str) -> Any:
    """``charged.file`` of a JSON object; None where ``charged`` is null."""
    for name in key.split("."):
        row = row and row[name]
    return row
