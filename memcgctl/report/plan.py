"""What does ``memcgctl reclaim --dry-run`` show? The outcome, the steps, the rest.

A command stands alone in its line, whole, for a person to copy; all other lines are
wrapped to the width at hand. What stays is grouped by its main reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.text import Text

from memcgctl.model import (
    Census,
    FileTarget,
    Memcg,
    Plan,
    Process,
    ProcessTarget,
    Remaining,
    Step,
    Target,
)
from memcgctl.report.parts import backing_json, process_json, remaining_json
from memcgctl.report.schemas import LATEST, dumper, source_json
from memcgctl.report.text import counted, escape, filled, shorten, size
from memcgctl.report.way_out import way_out
from memcgctl.views.bill import bill

SCHEMA = "memcgctl/plan/"
SHOWN = 8
NAMED = 3

Memcgs = Mapping[int, Memcg]
# What is said, and how many columns it is indented by.
Line = tuple[str, int]


def screen(
    plan: Plan,
    census: Census,
    *,
    limit: int | None = None,
    width: int = 80,
    encoding: str = "utf-8",
) -> Text:
    """The plan as a person reads it, at most ``limit`` steps of it."""
    memcgs = {memcg.id: memcg for memcg in census.memcgs if memcg.state == "offline"}
    text = Text()
    for sentence in headline(plan, memcgs):
        text.append(f"{_wrapped((sentence, 0), width, encoding)}\n", "bold")
    told: set[str] = set()
    for number, step in enumerate(plan.steps[:limit], 1):
        text.append(f"\n{number:>3}. ")
        title = _wrapped((_title(step), 3), width, encoding)
        text.append(f"{title.lstrip()}\n")
        for line in _about(step, memcgs, told):
            text.append(f"{_wrapped(line, width, encoding)}\n")
        text.append(f"      {escape(step.command, encoding)}\n", "bold")
    if limit is not None and len(plan.steps) > limit:
        text.append(f"\n{counted(len(plan.steps) - limit, 'more step')}, not shown.\n")
    for line in (*_left_out(plan.left_out), *_stays(plan, memcgs)):
        text.append(f"{_wrapped(line, width, encoding)}\n" if line[0] else "\n")
    return text


def headline(plan: Plan, memcgs: Memcgs) -> list[str]:
    """How many go and what comes back; how many stay and mostly why."""
    freed, stay = len(plan.freed), len(plan.remaining)
    if not freed + stay:
        return ["No offline memcgs, so nothing to do."]
    zombies = counted(freed + stay, "zombie")
    if not plan.steps:
        lines = [f"Nothing to do for {zombies} with the policy {plan.policy}."]
        if freed:  # nothing holds these any more
            lines.append(f"{freed:,} of them go by themselves.")
    else:
        steps = counted(len(plan.steps), "step")
        back = _back(plan, memcgs)
        lines = [f"{freed:,} of {zombies} would go by {steps}: {back}."]
    if stay:
        kinds = Counter(one.kinds[0] for one in plan.remaining if one.kinds)
        (kind, number), *_ = kinds.most_common(1) or [("no reason known", stay)]
        part = f", {number:,} of them" if number < stay else ""
        lines.append(f"{stay:,} would stay{part} for this: {kind}.")
    return lines


def _back(plan: Plan, memcgs: Memcgs) -> str:
    """What comes back, and what goes to somebody else."""
    returned, recharged = plan.returned_bytes, plan.recharged_bytes
    overhead = sum(memcgs[one].overhead.total_bytes for one in plan.freed)
    words = [
        f"{_sized(returned)} of their memory" if returned else "",
        f"{_sized(overhead)} of structures" if overhead else "",
    ]
    back = f"{' and '.join(filter(None, words)) or 'nothing'} would come back"
    if recharged:
        return f"{back}, {_sized(recharged)} be charged to who uses it"
    return back


def _title(step: Step) -> str:
    parts = [f"{_sized(step.bytes)}"] if step.bytes else []
    if step.charged_to:
        parts.append(f"charged to {', '.join(step.charged_to)}")
    about = f" ({', '.join(parts)})" if parts else ""
    return f"{step.action}: {step.target}{about}"


def _about(step: Step, memcgs: Memcgs, told: set[str]) -> Iterator[Line]:
    """Who is served and freed, who else is touched; a risk is ``told`` once."""
    others = [one for one in step.memcgs if one not in step.frees]
    if step.frees:
        yield f"frees {_named(step.frees, memcgs)}", 5
    if others:
        yield f"serves {_named(others, memcgs)}", 5
    if step.over_limit:
        yield f"could push over a limit: {', '.join(step.over_limit)}", 5
    if step.collateral_bytes:
        yield f"in its reach of others: up to {_sized(step.collateral_bytes)}", 5
    if step.action not in told:
        told.add(step.action)
        yield f"risk: {step.risk}", 5


def _named(ids: Sequence[int], memcgs: Memcgs) -> str:
    """``/a (id 7), /b (id 9) and 3 more``."""
    names = [f"{memcgs[one].path} (id {one})" for one in ids[:NAMED] if one in memcgs]
    more = f" and {len(ids) - NAMED:,} more" if len(ids) > NAMED else ""
    return f"{', '.join(names)}{more}"


def _left_out(steps: Sequence[Step]) -> Iterator[Line]:
    over = [step for step in steps if step.over_limit]
    if not over:
        return
    yield "", 0
    yield "Left out, as a limit could be exceeded (--allow over-limit lets them in):", 0
    for step in over[:SHOWN]:
        who = ", ".join(step.over_limit)
        yield f"{step.action}: {step.target} ({_sized(step.bytes)}): {who}", 2
    if (more := len(over) - SHOWN) > 0:
        yield f"{more:,} more; --json shows all", 2


def _stays(plan: Plan, memcgs: Memcgs) -> Iterator[Line]:
    """What stays: reasons with most memcgs first, and the memcgs below each."""
    groups: dict[str, list[Remaining]] = {}
    for one in plan.remaining:
        groups.setdefault(one.kinds[0] if one.kinds else one.why, []).append(one)
    if groups:
        yield "", 0
        yield "What would stay, and why:", 0
    for kind, members in sorted(groups.items(), key=lambda pair: -len(pair[1])):
        yield f"{kind} ({counted(len(members), 'zombie')})", 2
        for one in members[:SHOWN]:
            detail = "" if one.why == kind else f": {one.why}"
            yield f"{_named([one.id], memcgs)}{detail}", 4
            for way in way_out(memcgs[one.id], plan) if one.id in memcgs else ():
                yield way, 6
        if (more := len(members) - SHOWN) > 0:
            yield f"{more:,} more; --json shows all", 4


def _wrapped(line: Line, width: int, encoding: str) -> str:
    """Paths that are longer than a line are shortened: only commands are not."""
    words, indent = line
    room = max(width - indent - 2, 8)
    short = " ".join(shorten(word, room, encoding) for word in words.split(" "))
    return filled(short, width, indent, indent and indent + 2)


def _sized(number_bytes: int) -> str:
    return size(number_bytes, long=True)


def to_json(plan: Plan, census: Census, schema: int = LATEST) -> str:
    """``memcgctl/plan``; ASCII, see ``schemas`` for its versions.

    ``charged_to`` joins the paths of all that are charged, ``charged`` lists them, and
    ``charged_bytes`` has each one's part.
    """
    offline = {m.id: m for m in census.memcgs if m.state == "offline"}
    document = {
        "schema": f"{SCHEMA}{schema}",
        "source": source_json(plan.kernel, schema),
        "policy": plan.policy,
        "steps": [_step_json(n, step) for n, step in enumerate(plan.steps, 1)],
        "left_out": [_step_json(None, step) for step in plan.left_out],
        "predicted": {
            "freed": plan.freed,
            "remaining": [*map(remaining_json, plan.remaining)],
        },
        **({} if schema == 1 else {"bill": _bill_json(plan)}),
        "totals": {
            "offline": len(plan.freed) + len(plan.remaining),
            "freed": len(plan.freed),
            "freed_overhead_bytes": sum(
                offline[one].overhead.total_bytes for one in plan.freed
            ),
            "bytes": plan.returned_bytes + plan.recharged_bytes,
            "collateral_bytes": sum(step.collateral_bytes for step in plan.steps),
        },
        "warnings": plan.warnings,
    }
    return dumper(schema)(document, indent=1) + "\n"


def _bill_json(plan: Plan) -> dict[str, Any]:
    sums = bill(plan)
    return {
        "leaves_memory": sums.leaves_memory_bytes,
        "to_swap": sums.to_swap_bytes,
        "comes_back": sums.comes_back_bytes,
        "others_at_most": sums.others_at_most_bytes,
        "seconds": round(sums.seconds, 1),
    }


def _step_json(number: int | None, step: Step) -> dict[str, Any]:
    return {
        "n": number,
        "memcgs": step.memcgs,
        "action": step.action,
        "target": step.target,
        "command": step.command,
        "bytes": step.bytes,
        "charged_to": ", ".join(step.charged_to) or None,
        "collateral_bytes": step.collateral_bytes,
        "risk": step.risk,
        "option": step.option,
        "charged": step.charged_to,
        "charged_bytes": step.charged_bytes,
        "frees": step.frees,
        "over_limit": step.over_limit,
        "aim": _aim_json(step.aim),
    }


def _aim_json(target: Target) -> dict[str, Any]:
    """What it aims at, without what doesn't matter to it."""
    file = getattr(target, "file", None)
    processes: tuple[Process, ...] = ()
    if isinstance(target, FileTarget):
        processes = target.users
    elif isinstance(target, ProcessTarget):
        processes = (target.process,)
    found = {
        "file": file and backing_json(file),
        "processes": [*map(process_json, processes)],
        "memcg_id": getattr(target, "memcg_id", None),
        "memcg_path": getattr(target, "memcg_path", None),
        "shown_ids": getattr(target, "shown_ids", ()),
        "cpu": getattr(target, "cpu", None),
        "device": getattr(target, "device", None),
        "private_id": getattr(target, "private_id", None),
        "swappiness": getattr(target, "swappiness", None),
        "page_out": getattr(target, "page_out", False),
        "unaimed": getattr(target, "untargeted", False),
    }
    return {key: value for key, value in found.items() if value not in (None, (), [])}
