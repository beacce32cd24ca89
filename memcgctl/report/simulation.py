"""What does ``memcgctl simulate`` show? Policies side by side, then each one's story.

A table with a column for each policy, a bar for the zombies that each frees, and below
them who gains most by it and what it leaves; or JSON.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Sequence

from rich.text import Text

from memcgctl import utf8
from memcgctl.model import Census, Gain, Simulation
from memcgctl.report import documents
from memcgctl.report.schemas import source_json
from memcgctl.report.text import cell_count, counted, escape, filled, shorten, size

SCHEMA = "memcgctl/simulation/1"
NAME = 12
GROUP = 6  # policies that fit 80 columns beside each other

ROWS: tuple[tuple[str, Callable[[Simulation], str]], ...] = (
    ("zombies freed", lambda s: f"{s.freed:,}"),
    ("  here, by user space", lambda s: f"{s.freed_here:,}"),
    ("  with temp-swap", lambda s: f"{s.freed_by_transit:,}"),
    ("structures freed", lambda s: size(s.freed_overhead_bytes)),
    ("evicted", lambda s: size(s.evicted_bytes)),
    ("  written back first", lambda s: size(s.written_bytes)),
    ("swapped out", lambda s: size(s.swapped_bytes)),
    ("charged to parents", lambda s: size(s.parent_bytes)),
    ("  deferred", lambda s: size(s.deferred_bytes)),
    ("  likely touched again", lambda s: size(s.likely_bytes)),
    ("charged to mappers", lambda s: size(s.mapper_bytes)),
    ("left", lambda s: size(s.left_bytes)),
    ("memcgs over a limit", lambda s: f"{len(s.over_limit):,}"),
)


def screen(
    simulations: Sequence[Simulation],
    *,
    width: int = 80,
    encoding: str = "utf-8",
) -> Text:
    """The simulations as a person reads them."""
    text = Text()
    for sentence in headline(simulations, encoding):
        text.append(textwrap.fill(sentence, width) + "\n", "bold")
    if not any(one.offline for one in simulations):
        return text
    for first in range(0, len(simulations), GROUP):
        head, *rows = _table(simulations[first : first + GROUP], encoding)
        text.append(f"\n{head}\n", "bold")
        text.append("".join(f"{row}\n" for row in rows))
    text.append("\n")
    for simulation in simulations:
        text.append(f"{_bar(simulation, width, encoding)}\n")
    for simulation in simulations:
        name = shorten(simulation.policy, width, encoding)
        text.append(f"\n{name}\n", "bold")
        for line in _story(simulation):
            text.append(_wrapped(line, width, encoding) + "\n")
    return text


def headline(simulations: Sequence[Simulation], encoding: str = "utf-8") -> list[str]:
    """What frees most, here and in principle; here the last of equals: least-harm."""
    zombies = max((one.offline for one in simulations), default=0)
    if not zombies:
        return ["No offline memcgs, so nothing to simulate."]
    here = max(reversed(simulations), key=lambda one: one.freed_here)
    best = max(simulations, key=lambda one: one.freed)
    who = counted(zombies, "zombie")
    names = [shorten(one.policy, 24, encoding) for one in (here, best)]
    return [
        f"User space can free up to {here.freed_here:,} of {who} here "
        f"({names[0]}), a kernel up to {best.freed:,} ({names[1]}).",
        "What would become of them if a kernel followed each policy:",
    ]


def _table(simulations: Sequence[Simulation], encoding: str) -> list[str]:
    labels = ["", *(label for label, _ in ROWS)]
    longest = max(map(len, labels))
    columns = [[label.ljust(longest) for label in labels]]
    for simulation in simulations:
        name = shorten(simulation.policy, NAME, encoding)
        cells = [name, *(cell(simulation) for _, cell in ROWS)]
        widest = max(map(cell_count, cells))
        columns.append([" " * (widest - cell_count(cell)) + cell for cell in cells])
    return [" ".join(cells).rstrip() for cells in zip(*columns, strict=True)]


def _bar(simulation: Simulation, width: int, encoding: str) -> str:
    """Freed here by user space, freed by a kernel that follows the policy, and left."""
    here, kernel, left = _blocks(encoding)
    name = shorten(simulation.policy, NAME, encoding)
    words = f" {simulation.freed:,} of {simulation.offline:,}"
    room = max(10, width - NAME - 1 - len(words))
    total = max(simulation.offline, simulation.freed, simulation.freed_here, 1)
    done = room * simulation.freed_here // total
    more = max(0, room * simulation.freed // total - done)
    bar = here * done + kernel * more + left * (room - done - more)
    return f"{name}{' ' * (NAME - cell_count(name))} {bar}{words}"


def _blocks(encoding: str) -> tuple[str, str, str]:
    try:
        "█▒·".encode(encoding)
    except UnicodeEncodeError:
        return "#", "+", "."
    return "█", "▒", "·"


def _story(simulation: Simulation) -> Iterator[str]:
    for gain in simulation.gains:
        yield f"  {_gain(gain)}"
    if simulation.over_limit:
        yield f"  over a limit: {', '.join(simulation.over_limit)}"
    for leftover in simulation.leftovers:
        held = size(leftover.bytes, long=True) if leftover.bytes else ""
        of = counted(leftover.memcgs, "zombie")
        yield f"  left: {leftover.why} ({', '.join(filter(None, [held, of]))})"
    if not (simulation.gains or simulation.leftovers):
        yield "  nobody is charged more, nothing is left"


def _gain(gain: Gain) -> str:
    if gain.room_bytes is None:
        room = "no limit"
    elif gain.room_bytes < 0:
        room = f"{size(-gain.room_bytes, long=True)} over its limit"
    else:
        room = f"{size(gain.room_bytes, long=True)} of room left"
    return f"{gain.path} gains {size(gain.bytes, long=True)}, {room}"


def _wrapped(line: str, width: int, encoding: str) -> str:
    return filled(escape(line.strip(), encoding), width, 2, 4)


def to_json(simulations: Sequence[Simulation], census: Census) -> str:
    """``memcgctl/simulation/1``; ASCII, names as ``utf8`` has them.

    ``room_bytes`` is null where a memcg has no limit.
    """
    document = {
        "schema": SCHEMA,
        "source": source_json(census.kernel),
        "policies": [*map(_simulated_json, simulations)],
        "warnings": census.warnings,
    }
    return utf8.dumps(document, indent=1) + "\n"


def _simulated_json(one: Simulation) -> documents.Simulated:
    return {
        "policy": one.policy,
        "offline": one.offline,
        "freed": one.freed,
        "freed_here": one.freed_here,
        "freed_by_transit": one.freed_by_transit,
        "freed_overhead_bytes": one.freed_overhead_bytes,
        "evicted_bytes": one.evicted_bytes,
        "written_bytes": one.written_bytes,
        "swapped_bytes": one.swapped_bytes,
        "parent_bytes": one.parent_bytes,
        "mapper_bytes": one.mapper_bytes,
        "deferred_bytes": one.deferred_bytes,
        "likely_bytes": one.likely_bytes,
        "left_bytes": one.left_bytes,
        "leftovers": [
            {"why": left.why, "memcgs": left.memcgs, "bytes": left.bytes}
            for left in one.leftovers
        ],
        "over_limit": [*one.over_limit],
        "gains": [
            {"path": gain.path, "bytes": gain.bytes, "room_bytes": gain.room_bytes}
            for gain in one.gains
        ],
    }
