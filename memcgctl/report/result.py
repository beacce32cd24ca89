"""What does ``memcgctl reclaim`` show when it has acted? What it came to, and the harm.

Each number that the plan predicted stands beside the one that was measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.text import Text

from memcgctl import utf8
from memcgctl.model import Census, Harm, Result, StepResult, Usage
from memcgctl.report import documents
from memcgctl.report.listing import aligned
from memcgctl.report.parts import remaining_json
from memcgctl.report.schemas import source_json
from memcgctl.report.text import counted, escape, filled, size

SCHEMA = "memcgctl/result/1"
SHOWN = 8
STATUS = {
    "done": "done",
    "part": "done in part",
    "failed": "failed",
    "skipped": "skipped",
}

UNREAD = "not readable here"

Verdicts = Mapping[int, str]


def screen(
    result: Result,
    census: Census,
    verdicts: Verdicts,
    *,
    width: int = 80,
    encoding: str = "utf-8",
) -> Text:
    """The result as a person reads it; ``census`` was taken before."""
    text = Text()
    text.append(f"\n{_wrapped(headline(result, census), 0, width, encoding)}\n", "bold")
    for step in result.steps:
        if step.status != "done":
            text.append(f"{_wrapped(_trouble(step), 2, width, encoding)}\n")
    text.append("\n")
    for line in _compared(result, width, encoding):
        text.append(f"{line}\n")
    if result.usages:
        text.append("\n")
        for line in _charged(result, width, encoding):
            text.append(f"{line}\n")
    text.append("\n")
    for sentence in _harm(result):
        text.append(f"{_wrapped(sentence, 0, width, encoding)}\n")
    for warning in result.warnings:
        text.append(f"{_wrapped(f'Warning: {warning}', 0, width, encoding)}\n")
    for sentence in _left(result, census, verdicts):
        text.append(f"{_wrapped(sentence, 2, width, encoding)}\n")
    text.append(f"{_wrapped(f'Journal: {result.journal}', 0, width, encoding)}\n")
    return text


def headline(result: Result, census: Census) -> str:
    """How many are gone of those promised, what came back, and why it ended early."""
    promised = len(result.plan.freed)
    gone = len(set(result.plan.freed) & set(result.freed))
    back = size(_overhead(result, census), long=True)
    least = "" if _is_exact(result) else "at least "
    moved = f"{least}{size(result.moved_bytes, long=True)}"
    words = (
        f"{gone:,} of {counted(promised, 'zombie')} that were to go are gone: {back} "
        f"of structures came back, {moved} of memory moved, in {result.seconds:.1f} s"
    )
    return f"{words}; {result.stopped}." if result.stopped else f"{words}."


def brief(result: Result, census: Census) -> str:
    """The headline, and the names of those that are gone: one line, for a log."""
    names = [m.path for m in census.memcgs if m.id in set(result.freed)]
    more = len(names) - SHOWN
    listed = ", ".join(names[:SHOWN]) + (f" and {more:,} more" if more > 0 else "")
    return headline(result, census) + (f" Freed: {listed}." if names else "")


def _is_exact(result: Result) -> bool:
    """Some actions cannot tell what they moved, or only that it was no less."""
    return not any(
        step.status in ("done", "part")
        and step.step.bytes
        and (step.moved_bytes is None or step.step.action == "memory.reclaim")
        for step in result.steps
    )


def _overhead(result: Result, census: Census) -> int:
    gone = set(result.freed)
    return sum(m.overhead.total_bytes for m in census.memcgs if m.id in gone)


def _trouble(step: StepResult) -> str:
    what = f"step {step.n}, {step.step.action} {step.step.target}"
    return f"{what}: {STATUS[step.status]}{f': {step.why}' if step.why else ''}"


def _compared(result: Result, width: int, encoding: str) -> list[str]:
    """A table: what was predicted, what was measured."""
    plan = result.plan
    predicted, measured = ["predicted"], ["measured"]
    least = "" if _is_exact(result) else ", at least"
    names = ["", "zombies gone", f"memory moved{least}"]
    predicted += [f"{len(plan.freed):,}", size(sum(s.bytes for s in plan.steps))]
    measured += [f"{len(result.freed):,}", size(result.moved_bytes)]
    if result.dying_before is not None and result.dying_after is not None:
        names.append("the kernel's count of dying cgroups")
        predicted.append(f"{result.dying_before - len(plan.freed):,}")
        measured.append(f"{result.dying_after:,}")
    names.append("file cache of living memcgs, at most lost")
    predicted.append(size(sum(step.collateral_bytes for step in plan.steps)))
    lost = _difference(result.harm.file_after_bytes, result.harm.file_before_bytes)
    measured.append(UNREAD if lost is None else size(max(0, lost)))
    return aligned([predicted, measured], names, 0, width, encoding)


def _charged(result: Result, width: int, encoding: str) -> list[str]:
    """A table: who is charged for more or less than before."""
    names, memory, swap = ["who pays now"], ["memory"], ["swap"]
    for usage in result.usages:
        names.append(usage.path)
        more = _difference(usage.before_bytes, usage.after_bytes)
        memory.append(UNREAD if more is None else _signed(more))
        more = _difference(usage.swap_before_bytes, usage.swap_after_bytes)
        # There is such a counter only with CONFIG_SWAP.
        swap.append("-" if more is None else _signed(more))
    return aligned([memory, swap], names, 0, width, encoding)


def _difference(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else after - before


def _signed(number_bytes: int) -> str:
    return f"{'-' if number_bytes < 0 else '+'}{size(abs(number_bytes))}"


def _harm(result: Result) -> Iterator[str]:
    harm = result.harm
    file, anon = harm.refaulted_file_pages, harm.refaulted_anon_pages
    if file is None or anon is None:
        yield "How many evicted pages came back meanwhile could not be read."
        return
    pages = file + anon
    yield (
        f"Meanwhile {counted(pages, 'evicted page')} came back on the whole machine "
        f"(refaults: {file:,} file, {anon:,} anon)."
    )


def _left(result: Result, census: Census, verdicts: Verdicts) -> Iterator[str]:
    paths = {memcg.id: memcg.path for memcg in census.memcgs}
    promised = set(result.plan.freed)
    late = [one for one in result.remaining if one.id in promised]
    for one in late[:SHOWN]:
        why = verdicts.get(one.id, "")
        name = paths.get(one.id, "?")
        yield f"{name} (id {one.id}) is still there: {one.why}. {why}".rstrip()
    if (more := len(late) - SHOWN) > 0:
        yield f"{more:,} more are still there; --json shows all"
    if stay := len(result.remaining) - len(late):
        yield f"{counted(stay, 'zombie')} stayed as the plan said."


def _wrapped(words: str, indent: int, width: int, encoding: str) -> str:
    return filled(escape(words, encoding), width, indent, indent and indent + 2)


def to_json(result: Result, census: Census, verdicts: Verdicts) -> str:
    """``memcgctl/result/1``; ASCII, names as ``utf8`` has them."""
    plan = result.plan
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "source": source_json(plan.kernel),
        "policy": plan.policy,
        "complete": result.complete,
        "stopped": result.stopped or None,
        "steps": [_step_json(step) for step in result.steps],
        "predicted": {
            "freed": plan.freed,
            "remaining": [*map(remaining_json, plan.remaining)],
            "bytes": sum(step.bytes for step in plan.steps),
            "collateral_bytes": sum(step.collateral_bytes for step in plan.steps),
        },
        "measured": {
            "freed": result.freed,
            "remaining": [
                {**remaining_json(one), "verdict": verdicts.get(one.id)}
                for one in result.remaining
            ],
            "bytes": result.moved_bytes,
            "freed_overhead_bytes": _overhead(result, census),
            "dying_before": result.dying_before,
            "dying_after": result.dying_after,
            "seconds": round(result.seconds, 3),
        },
        "charged": [*map(_usage_json, result.usages)],
        "harm": _harm_json(result.harm),
        "journal": result.journal,
        "warnings": [*plan.warnings, *result.warnings],
    }
    return utf8.dumps(document, indent=1) + "\n"


def _step_json(result: StepResult) -> dict[str, Any]:
    return {
        "n": result.n,
        "action": result.step.action,
        "target": result.step.target,
        "memcgs": result.step.memcgs,
        "status": result.status,
        "why": result.why or None,
        "bytes": result.step.bytes,
        "moved_bytes": result.moved_bytes,
        "freed": result.freed,
        "seconds": round(result.seconds, 3),
    }


def _usage_json(usage: Usage) -> documents.Usage:
    return {
        "path": usage.path,
        "before_bytes": usage.before_bytes,
        "after_bytes": usage.after_bytes,
        "swap_before_bytes": usage.swap_before_bytes,
        "swap_after_bytes": usage.swap_after_bytes,
    }


def _harm_json(harm: Harm) -> documents.Harm:
    return {
        "refaulted_file_pages": harm.refaulted_file_pages,
        "refaulted_anon_pages": harm.refaulted_anon_pages,
        "file_before_bytes": harm.file_before_bytes,
        "file_after_bytes": harm.file_after_bytes,
    }
