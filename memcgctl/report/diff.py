"""What does ``memcgctl diff`` show? How many more, which families, which holders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from memcgctl import utf8
from memcgctl.report import documents
from memcgctl.report.overview import HELD_BY, duration, source_line
from memcgctl.report.schemas import memcg_json, source_json
from memcgctl.report.text import Styled, cell_count, shorten, size
from memcgctl.views.diff import Change, Difference

SCHEMA = "memcgctl/diff/1"
_SHOWN = 20


def screen(found: Difference, *, width: int = 80, encoding: str = "utf-8") -> Styled:
    """The difference as a person reads it; of long tables the first rows."""
    text = Styled()
    for when, kernel in (("then", found.before), ("now ", found.after)):
        line = shorten(source_line(kernel), width - 6, encoding)
        text.append((f"{when}: {line}\n", "dim"))
    text.append((f"{headline(found)}\n", "bold"))
    if found.same_boot is None:
        text.append(("Whether both are of one boot is not told.\n", ""))
    for title, changes in (("FAMILY", found.families), ("HELD BY", found.holders)):
        if changes:
            text.append(("\n", ""))
            text += _table(title, changes, width, encoding)
    return text


def headline(found: Difference) -> str:
    """How many more or fewer, and of these how many came and went."""
    more = found.offline_after - found.offline_before
    words = f"{found.offline_after:,} zombie cgroups, {more:+,}"
    if found.seconds is not None:
        words += f" in {duration(abs(found.seconds))}"
        words += " (the second is the older one)" if found.seconds < 0 else ""
    if found.same_boot is False:
        return f"{words}; of two boots or kernels, so only names are compared."
    return (
        f"{words}: {len(found.new):,} new, {len(found.gone):,} gone, "
        f"{len(found.grown):,} grown."
    )


def _table(title: str, changes: Sequence[Change], width: int, encoding: str) -> Styled:
    lines = [[title, "THEN", "NOW", "NEW", "GONE", "COST", "WAS"]]
    for one in changes[:_SHOWN]:
        name = HELD_BY.get(one.name, one.name) if title == "HELD BY" else one.name
        lines.append(
            [
                name,
                f"{one.before:,}",
                f"{one.after:,}",
                "-" if one.new is None else f"{one.new:,}",
                "-" if one.gone is None else f"{one.gone:,}",
                size(one.cost_after_bytes),
                size(one.cost_before_bytes),
            ]
        )
    numbers = [max(len(line[n]) for line in lines) for n in range(1, 7)]
    room = width - sum(numbers) - 2 * len(numbers)
    names = [shorten(line[0], room, encoding) for line in lines]
    most = max(map(cell_count, names))
    text = Styled()
    for n, (name, line) in enumerate(zip(names, lines, strict=True)):
        cells = [name + " " * (most - cell_count(name))]
        cells += [c.rjust(w) for c, w in zip(line[1:], numbers, strict=True)]
        text.append(("  ".join(cells) + "\n", "" if n else "bold"))
    if more := len(changes) - _SHOWN:
        text.append((f"... {more:,} more; --json has all.\n" if more > 0 else "", ""))
    return text


def to_json(found: Difference) -> str:
    """``memcgctl/diff/1``: sources, counts, zombies and tables."""
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "before": source_json(found.before),
        "after": source_json(found.after),
        "same_boot": found.same_boot,
        "seconds": found.seconds,
        "offline": {"before": found.offline_before, "after": found.offline_after},
        "new": [memcg_json(memcg) for memcg in found.new],
        "gone": [memcg_json(memcg) for memcg in found.gone],
        "grown": [
            {"memcg": memcg_json(memcg), "bytes": more} for memcg, more in found.grown
        ],
        "families": [*map(_change_json, found.families)],
        "holders": [*map(_change_json, found.holders)],
        "warnings": found.warnings,
    }
    return utf8.dumps(document, indent=1) + "\n"


def _change_json(one: Change) -> documents.Change:
    return {
        "name": one.name,
        "before": one.before,
        "after": one.after,
        "new": one.new,
        "gone": one.gone,
        "cost_before_bytes": one.cost_before_bytes,
        "cost_after_bytes": one.cost_after_bytes,
    }
