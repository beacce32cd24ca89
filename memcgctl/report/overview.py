"""What does ``memcgctl list`` show a person? The verdict, who holds what, the rows.

On a terminal lines fit it, and a screenful is shown; in a pipe all lines are whole.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timezone

from memcgctl.model import ChargeGroup, Holder, Kernel, Memcg, Process, SwapUse
from memcgctl.report.text import (
    Styled,
    bare_words,
    cell_count,
    count,
    counted,
    escape,
    shorten,
    size,
)
from memcgctl.views.overview import CLASSES, Overview, Row, Sum, whose

HELD_BY = {
    "file": "file cache",
    "shmem": "tmpfs, shared memory",
    "anon": "anonymous memory",
    "kernel": "kernel memory",
    "sock": "socket buffers",
    "hugetlb": "hugetlb pages",
    "swap": "swap",
    "socket": "sockets",
    "fsnotify": "inotify, fanotify",
    "event": "eventfds",
    "other": "processes, namespaces",
    "writeback": "cgroup writeback",
    "stock": "per-CPU charge stock",
    "objcg": "kernel objects",
    "child": "child cgroups",
    "unknown": "not looked at",
}
# The row's words are cut before these are.
_LEAST = 12
# So much longer than others a name may be: a pod and its container.
_NAME = 8
_WAITS = 3
_STYLES = {"yes": "green", "no": "yellow", "unknown": ""}


def screen(
    found: Overview,
    rows: Sequence[Row],
    *,
    limit: int | None = None,
    width: int | None = None,
    encoding: str = "utf-8",
    columns: Sequence[str] | None = None,
    groups: Sequence[Sum] | None = None,
    group: str = "",
) -> Styled:
    """The overview, with the first ``limit`` rows, or groups of them.

    ``width`` None is a pipe: nothing is cut. ``columns`` are names out of ``COLUMNS``.
    """
    source = source_line(found.kernel)
    source = shorten(source, width, encoding) if width else source
    text = Styled([(f"{source}\n", "dim")])
    for line in filter(None, [*verdict(found), bare_words(found.kernel)]):
        text.append((f"{textwrap.fill(line, width) if width else line}\n", "bold"))
    if not found.rows:
        return text
    if groups is not None:
        shown = groups[:limit]
        text += _table(_group_cells(shown, group), width, encoding)
        left = len(groups) - len(shown)
        hint = "--limit 0 shows all."
    else:
        text += _table(_holder_cells(found), width, encoding)
        shown_rows = rows[:limit]
        names = columns or default_columns(found)
        text += _table(_row_cells(shown_rows, names), width, encoding)
        left = len(rows) - len(shown_rows)
        hint = "--limit 0 shows all. "
    if left:
        text.append((f"... {left:,} more: {hint.strip()}\n", ""))
    if groups is None:
        text.append(("memcgctl explain ID says why.\n", "dim"))
    return text


def source_line(kernel: Kernel) -> str:
    """Of what this is, and when: one line."""
    what = "live" if kernel.kind == "live" else escape(kernel.path or kernel.kind)
    parts = [escape(kernel.host)] if kernel.host else []
    parts += [what, escape(kernel.release), counted(kernel.possible_cpus, "CPU")]
    if kernel.taken_at is not None:
        moment = datetime.fromtimestamp(kernel.taken_at, timezone.utc)
        parts.append(moment.strftime("%Y-%m-%d %H:%M:%S UTC"))
    return ", ".join(parts)


def verdict(found: Overview) -> list[str]:
    """How many, what they cost, what can be freed."""
    rows = found.rows
    if not found.offline:
        return ["No zombie cgroups."]
    if not rows:
        return [f"None of {counted(found.offline, 'zombie cgroup')} matches."]
    of = f" of {found.offline:,}" if len(rows) < found.offline else ""
    who = f"{len(rows):,}{of} zombie cgroup{'' if len(rows) == 1 else 's'}"
    overhead = sum(row.memcg.overhead.total_bytes for row in rows)
    if any(row.memcg.charges is None or row.memcg.swap is None for row in rows):
        usage = size(sum(row.memcg.usage_bytes for row in rows))
        return [
            f"{who} take {size(overhead)} of kernel overhead; {usage} on their "
            "counters, not scanned."
        ]
    memory = sum(row.memcg.charges.total_bytes for row in rows if row.memcg.charges)
    swap = sum(row.memcg.swap.bytes for row in rows if row.memcg.swap)
    lines = [
        f"{who} cost {size(memory + swap + overhead)}: {size(memory)} memory, "
        f"{size(swap)} swap, {size(overhead)} kernel overhead."
    ]
    if any(row.memcg.charges and row.memcg.charges.sock_bytes is None for row in rows):
        lines.append("Socket memory is not known, and not in it.")
    lines += _in_zswap([row.memcg.swap for row in rows if row.memcg.swap])
    if found.planned:
        free = sum(row.freeable == "yes" for row in rows)
        wait = len(rows) - free
        line = f"{free:,} can be freed here (memcgctl reclaim)" if free else ""
        if wait:
            line += f"{', ' if line else ''}{wait:,} wait for what holds them"
        lines.append(f"{line}.")
    return lines


# --- tables -----------------------------------------------------------------------


Cells = tuple[list[list[str]], list[str], list[str]]


def _in_zswap(swaps: Sequence[SwapUse]) -> Iterator[str]:
    """Swap that is in memory all the same, for which others are charged."""
    if any(swap.zswap_bytes is None for swap in swaps):
        yield "What of the swap is in zswap, and so in memory, is not known."
    elif inside := sum(
        swap.bytes * (swap.zswap_entries or 0) // swap.entries
        for swap in swaps
        if swap.entries
    ):
        taken = size(sum(swap.zswap_bytes or 0 for swap in swaps))
        yield (
            f"Of the swap {size(inside)} are in zswap: {taken} of memory, which "
            "ancestors are charged for."
        )


def _holder_cells(found: Overview) -> Cells:
    head = ["HELD BY", "ZOMBIES", "COST"]
    head += ["FREEABLE", ""] if found.planned else []
    lines = [head]
    for one in found.holders:
        line = [HELD_BY.get(one.name, one.name), f"{len(one.rows):,}"]
        line.append(size(one.cost_bytes))
        if found.planned:
            line += [f"{one.freeable:,}", waits(one)]
        lines.append(line)
    return lines, [*"<>>><"], ["", *[""] * len(found.holders)]


def waits(one: Sum) -> str:
    """What those wait for that cannot go: ``1 locked (mlock), 1 pinned``."""
    words = [f"{number:,} {brief(kind)}" for kind, number in one.waits[:_WAITS]]
    more = sum(number for _, number in one.waits[_WAITS:])
    return ", ".join([*words, *([f"{more:,} others"] if more else [])])


def brief(kind: str) -> str:
    """A reason without what it is about and what was tried."""
    words = kind.partition(": ")[2] or kind
    return words.partition(" to do this: ")[0]


def _group_cells(groups: Sequence[Sum], group: str) -> Cells:
    lines = [[group.upper(), "ZOMBIES", "COST", "FREEABLE"]]
    for one in groups:
        name = HELD_BY.get(one.name, one.name) if group == "holder" else one.name
        free = "-" if one.unknown == len(one.rows) else f"{one.freeable:,}"
        lines.append([name, f"{len(one.rows):,}", size(one.cost_bytes), free])
    return lines, [*"<>>>"], [""] * len(lines)


def _row_cells(rows: Sequence[Row], columns: Sequence[str]) -> Cells:
    chosen = [COLUMNS[name] for name in columns]
    lines = [[name.upper().replace("-", " ") for name in columns]]
    lines += [[cell(row) for _, cell in chosen] for row in rows]
    return (
        lines,
        [align for align, _ in chosen],
        ["", *(_STYLES[r.freeable] for r in rows)],
    )


def default_columns(found: Overview) -> list[str]:
    """Those that tell something of these rows."""
    aged = any(row.age_seconds is not None for row in found.rows)
    return [
        *("id", "cost"),
        *(["age"] if aged else []),
        *("held-by", "who"),
        *(["free"] if found.planned else []),
    ]


def _table(cells: Cells, width: int | None, encoding: str) -> Styled:
    """Lines of cells, aligned; where they are too wide, cells of text are shortened."""
    lines, aligns, styles = cells
    safe = [[escape(cell, encoding) for cell in line] for line in lines]
    widths = [max(map(cell_count, column)) for column in zip(*safe, strict=True)]
    if width is not None:
        _fit(widths, width, aligns, lines[0])
        safe = [
            [
                shorten(cell, room, encoding)
                for cell, room in zip(line, widths, strict=True)
            ]
            for line in lines
        ]
    text = Styled([("\n", "")])
    for number, (line, style) in enumerate(zip(safe, styles, strict=True)):
        padded = [
            f"{' ' * (room - cell_count(cell))}{cell}"
            if align == ">"
            else f"{cell}{' ' * (room - cell_count(cell))}"
            for cell, room, align in zip(line, widths, aligns, strict=False)
        ]
        words = "  ".join(padded).rstrip()
        text.append((f"{words}\n", style if number else "bold"))
    return text


def _fit(
    widths: list[int], width: int, aligns: Sequence[str], titles: Sequence[str]
) -> None:
    """Take from the widest columns of text until a line fits, from names last."""
    texts = [n for n, align in enumerate(aligns[: len(widths)]) if align == "<"]
    while sum(widths) + 2 * (len(widths) - 1) > width:
        widest = max(texts, key=lambda n: widths[n] - _NAME * (titles[n] == "WHO"))
        if widths[widest] <= _LEAST:
            return
        widths[widest] -= 1


def duration(seconds: float | None) -> str:
    """An age in at most four characters: ``35s``, ``4m``, ``11h``, ``3d``."""
    if seconds is None:
        return "-"
    for unit, length, most in (("s", 1, 120), ("m", 60, 7200), ("h", 3600, 172_800)):
        if seconds < most:
            return f"{int(seconds / length)}{unit}"
    return f"{int(seconds / 86400):,}d"


# --- what holds one ----------------------------------------------------------------


def held_words(row: Row) -> str:
    """What holds it above all, by the name of the file, process or thing."""
    memcg, kind = row.memcg, row.held_by
    if memcg.details is None:
        return HELD_BY.get(kind, kind)
    if kind in CLASSES:
        groups = [group for group in memcg.details.charge_groups if group.kind == kind]
        words = _group_words(groups[0]) if groups else HELD_BY[kind]
        more = len({group.backing for group in groups}) - 1
        return f"{words} and {counted(more, 'more file')}" if more > 0 else words
    if kind == "swap":
        return _swap_words(memcg)
    if kind == "child":
        return counted(memcg.children, "child cgroup")
    holders = [holder for holder in memcg.details.holders if holder.kind == kind]
    return _holder_words(holders[0]) if holders else HELD_BY.get(kind, kind)


def _group_words(group: ChargeGroup) -> str:
    backing = group.backing
    obstacle = f", {group.obstacles[0][0]}" if group.obstacles else ""
    if backing and backing.path:
        return f"{backing.path}{' (deleted)' if backing.deleted else ''}"
    if backing:
        return f"{backing.kind} {backing.fs} inode {backing.inode}{obstacle}"
    what = "memory" if group.kind == "anon" else HELD_BY[group.kind]
    return f"{what} of {_process(group.mappers)}{obstacle}" if group.mappers else what


def _swap_words(memcg: Memcg) -> str:
    assert memcg.details
    owners = [owner for device in memcg.details.swap_devices for owner in device.owners]
    if not owners:
        return "swap entries of nobody that was found"
    most = max(owners, key=lambda owner: owner.entries)
    if most.file and most.file.path:
        return f"swap of {most.file.path}"
    if most.pid is not None:
        return f"swap of {most.comm}({most.pid})"
    return "swap"


def _holder_words(holder: Holder) -> str:
    """``inotify, lab (pid 384): fd 5``; the kind where nothing more is known."""
    return holder.detail or HELD_BY.get(holder.kind, holder.kind)


def _process(processes: Sequence[Process]) -> str:
    first = processes[0]
    more = f" and {len(processes) - 1} more" if len(processes) > 1 else ""
    return f"{first.comm}({first.pid}){more}"


# --- columns -----------------------------------------------------------------------


def _class(kind: str) -> Callable[[Row], str]:
    """A class's bytes; ``-`` where it is not known, as sockets in an older census."""
    return lambda row: size(
        row.memcg.charges and getattr(row.memcg.charges, f"{kind}_bytes")
    )


def _moment(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    moment = datetime.fromtimestamp(seconds, timezone.utc)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


# Name: alignment, and a row's cell.
COLUMNS: dict[str, tuple[str, Callable[[Row], str]]] = {
    "id": (">", lambda row: str(row.memcg.id)),
    "cost": (">", lambda row: size(row.cost_bytes)),
    "age": (">", lambda row: duration(row.age_seconds)),
    "held-by": ("<", held_words),
    "who": ("<", lambda row: whose(row.workload) or row.memcg.path),
    "free": ("<", lambda row: row.freeable),
    "why": ("<", lambda row: row.why_not),
    "path": ("<", lambda row: row.memcg.path),
    "ancestor": ("<", lambda row: row.memcg.ancestor),
    "refs": (">", lambda row: count(row.memcg.refs)),
    "children": (">", lambda row: count(row.memcg.children)),
    **{kind: (">", _class(kind)) for kind in ("file", "shmem", "anon", "kernel")},
    "hugetlb": (">", _class("hugetlb")),
    "sock": (">", lambda row: size(row.memcg.charges and row.memcg.charges.sock_bytes)),
    "swap": (">", lambda row: size(row.memcg.swap and row.memcg.swap.bytes)),
    "overhead": (">", lambda row: size(row.memcg.overhead.total_bytes)),
    "created": ("<", lambda row: _moment(row.memcg.created_at)),
    "removed": ("<", lambda row: _moment(row.memcg.removed_at)),
    "runtime": ("<", lambda row: row.workload.runtime or "-"),
    "pod": ("<", lambda row: row.workload.pod_uid or "-"),
    "container": ("<", lambda row: row.workload.container_id or "-"),
    "unit": ("<", lambda row: row.workload.unit or "-"),
    "session": ("<", lambda row: row.workload.session or "-"),
    "family": ("<", lambda row: row.workload.family or "-"),
}
