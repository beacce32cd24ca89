"""What is asked before ``memcgctl reclaim`` acts? The outcome, the bill, the actions.

It fits a screen however many steps there are; these are listed when asked for.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping

from memcgctl.model import Census, Memcg, Plan, Remaining
from memcgctl.report.overview import brief, source_line
from memcgctl.report.text import Styled, counted, escape, filled, shorten, size
from memcgctl.report.way_out import way_out
from memcgctl.views.bill import Bill, bill

# What is done where user space has no way to do what a policy has a kernel do.
INSTEAD = {
    "recharge-parent": "the parent is charged, and stays so whoever touches it next",
    "recharge-mapper": "who has it in swap is charged, in memory",
    "evict": "it leaves memory, and whoever touches it next is charged",
    "deferred": "the parent is charged",
}
_REASONS = 6
_PAYERS = 3


def summary(
    plan: Plan, census: Census, *, width: int = 80, encoding: str = "utf-8"
) -> Styled:
    """The plan as a person agrees to it; how to see more ends it."""
    sums = bill(plan)
    memcgs = {memcg.id: memcg for memcg in census.memcgs if memcg.state == "offline"}
    text = Styled([(f"{shorten(source_line(plan.kernel), width, encoding)}\n", "dim")])
    text.append((f"{textwrap.fill(headline(plan, sums), width)}\n", "bold"))
    limited = all(m.limits for m in census.memcgs if m.state == "online")
    if plan.more_by_transit:
        more = f"{plan.more_by_transit:,} more with --allow temp-swap."
        text.append((f"{more}\n", "bold"))
    for line in _bill(plan, sums, memcgs, limited=limited):
        text.append((f"{filled(escape(line, encoding), width, 2, 4)}\n", ""))
    for short in plan.falls_short:
        line = f"{short.asked} falls short in {counted(short.steps, 'step')}: "
        text.append((f"{filled(line + INSTEAD[short.done], width, 2, 4)}\n", ""))
    if sums.actions:
        text.append(("\n", ""))
        for number, line in enumerate(_actions(sums)):
            text.append((f"{line[:width].rstrip()}\n", "bold" if not number else ""))
    for line in _stays(plan, memcgs):
        text.append((f"{filled(escape(line, encoding), width, 0, 2)}\n", ""))
    if plan.steps:
        text.append(("Steps: --steps.  A script of them: --commands FILE.\n", "dim"))
    return text


def headline(plan: Plan, sums: Bill) -> str:
    """How many go by how many steps in about what time, and how many stay."""
    freed, stay = len(plan.freed), len(plan.remaining)
    if not freed + stay:
        return "No zombie cgroups, so nothing to do."
    if not plan.steps:
        words = f"Nothing to do for {counted(freed + stay, 'zombie')}"
        words += f" with the policy {plan.policy}."
        return f"{words} {freed:,} of them go by themselves." if freed else words
    steps = counted(len(plan.steps), "step")
    words = f"{freed:,} of {counted(freed + stay, 'zombie')} can be freed in {steps}"
    words += f" (about {sums.seconds:.0f} s)."
    return f"{words} {stay:,} {'stays' if stay == 1 else 'stay'}." if stay else words


def _bill(
    plan: Plan, sums: Bill, memcgs: Mapping[int, Memcg], *, limited: bool
) -> Iterator[str]:
    if not plan.steps:
        return
    if leaves := sums.leaves_memory_bytes:
        parts = [
            f"{size(part)} {what}"
            for part, what in (
                (sums.to_swap_bytes, "is written to swap"),
                (leaves - sums.to_swap_bytes, "is clean or on disk and dropped"),
            )
            if part
        ]
        yield f"{size(leaves)} leaves memory: {', '.join(parts)}"
    if sums.comes_back_bytes:
        yield f"{size(sums.comes_back_bytes)} comes back from swap into memory"
    if sums.payers:
        named = [f"{path} {size(part)}" for path, part in sums.payers[:_PAYERS]]
        if more := len(sums.payers) - _PAYERS:
            named += [f"{more:,} more"] if more > 0 else []
        yield f"charged afterwards: {', '.join(named)}"
    overhead = sum(memcgs[one].overhead.total_bytes for one in plan.freed)
    yield f"{size(overhead)} of kernel structures comes back"
    reach = sums.others_at_most_bytes
    yield (
        f"others' memory in reach: at most {size(reach)}"
        if reach
        else "nothing of living cgroups is in reach"
    )
    over = [step for step in plan.left_out if step.over_limit]
    if sums.over_limit:
        yield f"could be pushed over a limit: {', '.join(sums.over_limit)}"
    elif over:
        yield (
            f"{counted(len(over), 'step')} left out, as a limit could be exceeded "
            "(--allow over-limit lets them in)"
        )
    elif limited:
        yield "no limit is exceeded"
    else:
        yield "limits are not known: an older memcgctl saved this census"


def _actions(sums: Bill) -> list[str]:
    lines = [("ACTION", "STEPS", "BYTES", "FREES", "WHAT IT DOES")]
    lines += [
        (
            one.action,
            f"{one.steps:,}",
            size(one.bytes),
            f"{one.frees:,}",
            one.does,
        )
        for one in sums.actions
    ]
    name, *numbers = (max(len(line[n]) for line in lines) for n in range(4))
    return [
        "  ".join(
            [
                line[0].ljust(name),
                *(cell.rjust(w) for cell, w in zip(line[1:4], numbers, strict=True)),
                line[4],
            ]
        )
        for line in lines
    ]


def _stays(plan: Plan, memcgs: Mapping[int, Memcg]) -> Iterator[str]:
    """What stays, by its first reason, the most frequent first, each with one.

    And what somebody has to do so that this one goes.
    """
    remaining = plan.remaining
    kinds: Counter[str] = Counter()
    first: dict[str, Remaining] = {}
    for one in remaining:
        kind = one.kinds[0] if one.kinds else one.why
        kinds[kind] += 1
        first.setdefault(kind, one)
    if kinds:
        yield ""
    for kind, number in kinds.most_common(_REASONS):
        memcg = memcgs.get(first[kind].id)
        name = f"{memcg.path} (id {memcg.id})" if memcg else f"id {first[kind].id}"
        verb = "stays" if number == 1 else "stay"
        what = f": {first[kind].why}" if number == 1 else f", such as {name}"
        ways = way_out(memcg, plan)[:1] if memcg else []
        what += "".join(f": {way}" for way in ways)
        yield (
            f"{number:,} {verb}, {name}{what}"
            if number == 1
            else f"{number:,} {verb}: {brief(kind)}{what}"
        )
    if more := sum(kinds.values()) - sum(n for _, n in kinds.most_common(_REASONS)):
        yield f"{more:,} more stay for other reasons; --steps names them all."


def script(plan: Plan) -> str:
    """All steps as commands of a shell, each with what it is for in a comment."""
    lines = ["#!/bin/sh", "# As root, on the machine that this plan was made for.", ""]
    known: set[str] = set()
    for number, step in enumerate(plan.steps, 1):
        lines.append(f"# {number}. {step.action}: {escape(step.target, 'ascii')}")
        if step.command in known:  # memcgctl's own, which takes all steps of a zombie
            lines[-1] += " (as above)"
        else:
            lines += [step.command, ""]
        known.add(step.command)
    return "\n".join(lines)
