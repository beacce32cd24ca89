"""What does ``memcgctl watch`` show? How many, how fast they come, which families."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone

from memcgctl.report.overview import duration, source_line
from memcgctl.report.text import Styled, cell_count, counted, escape, shorten, size
from memcgctl.views.watch import Watched

# Lines that are not rows of a table: the head, two titles, blanks, the last line.
_OTHER_LINES = 10
_LEAST_ROWS = 3


def rows_of(height: int) -> int:
    """How many rows each table has on a screen of ``height`` lines."""
    return max((height - _OTHER_LINES) // 2, _LEAST_ROWS)


def screen(
    seen: Watched,
    interval: float,
    *,
    width: int = 80,
    height: int = 24,
    encoding: str = "utf-8",
) -> Styled:
    """All of it, in at most ``height`` lines from 16 on."""
    rows = rows_of(height)
    text = Styled([(shorten(source_line(seen.kernel), width, encoding) + "\n", "dim")])
    text += [(shorten(line, width, encoding) + "\n", "bold") for line in _head(seen)]
    families = [
        [one.name, f"{one.now:,}", f"{one.more:+,}"] for one in seen.families[:rows]
    ]
    if families:
        text.append(("\n", ""))
        title = ["FAMILY", "NOW", "SINCE FIRST"]
        text += _table([title, *families], width, encoding)
    oldest = [
        [memcg.path, str(memcg.id), duration(seconds)]
        for memcg, seconds in seen.oldest[:rows]
    ]
    if oldest:
        text.append(("\n", ""))
        text += _table([["OLDEST", "ID", "REMOVED"], *oldest], width, encoding)
    elif seen.offline:
        text.append(("\nWhen they were removed is not known.\n", ""))
    if seen.warnings:
        more = len(seen.warnings) - 1
        rest = f" ({counted(more, 'more warning')})" if more else ""
        line = f"warning: {escape(seen.warnings[0], encoding)}{rest}"
        text.append((shorten(line, width, encoding) + "\n", "yellow"))
    words = f"A look every {interval:g} s; Ctrl-C ends. memcgctl list has their memory."
    text.append((shorten(words, width, encoding) + "\n", "dim"))
    return text


def line(seen: Watched) -> str:
    """One look as one line, for a pipe or a log."""
    when = seen.kernel.taken_at
    moment = "-"
    if when is not None:
        moment = datetime.fromtimestamp(when, timezone.utc).strftime("%FT%TZ")
    parts = [
        f"{moment} zombies={seen.offline} born={seen.born} gone={seen.gone}",
        f"overhead_bytes={seen.overhead_bytes} usage_bytes={seen.usage_bytes}",
        f"whole={'yes' if seen.whole else 'no'} warnings={len(seen.warnings)}",
    ]
    return " ".join(parts) + "\n"


def _head(seen: Watched) -> list[str]:
    how_many = "" if seen.whole else "at least "
    how_many += (
        f"{counted(seen.offline, 'zombie cgroup')}, {size(seen.overhead_bytes)} of "
        f"kernel overhead, {size(seen.usage_bytes)} on their counters."
    )
    counted_by_kernel = seen.kernel.dying_cgroups
    lines = [how_many]
    born, gone = seen.per_minute(seen.born), seen.per_minute(seen.gone)
    if not seen.whole:
        lines.append("The cgroup tree could not be read in full this time.")
    elif born is None or gone is None:
        lines.append("The next look tells how fast they come and go.")
    else:
        lines.append(
            f"In {duration(seen.seconds)}: {seen.offline - seen.first:+,}; "
            f"{_rate(seen.born, born)} seen to come, {_rate(seen.gone, gone)} to go."
        )
    if counted_by_kernel is not None and counted_by_kernel != seen.offline:
        lines.append(f"The kernel counts {counted(counted_by_kernel, 'dying cgroup')}.")
    return lines


def _rate(events: int, per_minute: float) -> str:
    return f"{events:,} ({per_minute:.1f} a minute)" if events else "none"


def _table(lines: Sequence[Sequence[str]], width: int, encoding: str) -> Styled:
    """A name to the left, numbers to the right."""
    widths = [max(len(line[n]) for line in lines) for n in range(1, len(lines[0]))]
    room = width - sum(widths) - 2 * len(widths)
    names = [shorten(line[0], room, encoding) for line in lines]
    most = max(map(cell_count, names))
    text = Styled()
    for n, (name, line) in enumerate(zip(names, lines, strict=True)):
        cells = [name + " " * (most - cell_count(name))]
        cells += [cell.rjust(w) for cell, w in zip(line[1:], widths, strict=True)]
        text.append(("  ".join(cells) + "\n", "" if n else "bold"))
    return text
