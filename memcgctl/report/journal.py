"""What does ``memcgctl journal`` show? A line a run, or one run with its steps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.text import Text

from memcgctl import utf8
from memcgctl.model import History, PastRun, PastStep
from memcgctl.report import documents
from memcgctl.report.text import counted, escape, filled, size

SCHEMA = "memcgctl/runs/1"
STATUS = {
    "done": "done",
    "part": "done in part",
    "failed": "failed",
    "skipped": "skipped",
    "unfinished": "no end: killed in it, or still at work",
}


def screen(
    history: History,
    number: int | None = None,
    *,
    limit: int | None = None,
    width: int = 80,
    encoding: str = "utf-8",
) -> Text:
    """The last ``limit`` runs, the last one last, or the run with this number, whole.

    Runs are counted from 1, the oldest that the journal has.
    """
    text = Text()
    for sentence in headline(history):
        text.append(_wrapped(sentence, 0, width, encoding), "bold")
    if number is not None:
        return _whole(text, history.runs[number - 1], width, encoding)
    shown = history.runs[-limit:] if limit else history.runs
    if omitted := len(history.runs) - len(shown):
        text.append(f"{counted(omitted, 'earlier run')}, not shown.\n")
    for nth, run in enumerate(shown, omitted + 1):
        line = f"{nth}. {_title(run)}: {' '.join(_ending(run))}"
        text.append("\n" + _wrapped(line, 0, width, encoding))
    if shown:
        text.append("\nOne run with its steps: memcgctl journal N.\n")
    return text


def _whole(text: Text, run: PastRun, width: int, encoding: str) -> Text:
    text.append("\n" + _wrapped(_title(run), 0, width, encoding), "bold")
    for step in run.steps:
        text.append(_wrapped(_step(step), 4, width, encoding))
    for line in _ending(run):
        text.append(_wrapped(line, 4, width, encoding))
    return text


def headline(history: History) -> Iterator[str]:
    """How many runs, how many without an end, and what could not be read."""
    unended = sum(not run.ended for run in history.runs)
    lines = counted(len(history.runs), "run")
    without = f", without an end: {unended:,}" if unended else ""
    yield f"{lines} in {history.path}{without}."
    if history.damaged:
        damaged = counted(history.damaged, "damaged line")
        yield f"{damaged} of it passed over, not shown here."
    if history.unread_bytes:
        yield f"It is too large: {history.unread_bytes:,} bytes before were not read."


def _title(run: PastRun) -> str:
    time = run.time.partition(".")[0].replace("T", " ")
    parts = [
        f"{time} UTC" if time else "at an unknown time",
        f"policy {run.policy}" if run.policy else "",
        run.release,
        "" if run.pid is None else f"pid {run.pid}",
    ]
    return ", ".join(filter(None, parts))


def _step(step: PastStep) -> str:
    number = "?" if step.n is None else step.n
    words = [STATUS.get(step.status, step.status or "unknown")]
    if step.moved_bytes is not None:
        words.append(f"{size(step.moved_bytes, long=True)} moved")
    if step.seconds is not None and step.seconds >= 0.1:
        words.append(f"{step.seconds:,.1f} s")
    why = f": {step.why}" if step.why else ""
    return f"{number}. {step.action} {step.target}: {', '.join(words)}{why}"


def _ending(run: PastRun) -> Iterator[str]:
    if not run.ended:
        yield "This run has no end: it was killed, or is still at work."
        return
    steps = counted(len(run.steps), "step")
    planned = len(run.steps) if run.planned is None else run.planned
    of_all = f" of {planned:,}" if planned != len(run.steps) else ""
    moved = size(run.moved_bytes, long=True)
    line = f"{steps}{of_all}, {moved} moved"
    if run.freed is not None:
        line += f"; {counted(run.freed, 'zombie')} freed"
    if run.left:
        line += f", {run.left:,} left of those that were to go"
    yield f"{line}."
    if run.stopped:
        yield f"Stopped before the end: {run.stopped}."


def _wrapped(line: str, indent: int, width: int, encoding: str) -> str:
    """A paragraph that is never cut: a path stays whole."""
    first, rest = max(0, indent - 2), indent and indent + 2
    return filled(escape(line, encoding), width, first, rest) + "\n"


def to_json(history: History, limit: int | None = None) -> str:
    """``memcgctl/runs/1``; ASCII, names as the journal has them."""
    shown = history.runs[-limit:] if limit else history.runs
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "path": history.path,
        "runs": [*map(_run_json, shown)],
        "omitted": len(history.runs) - len(shown),
        "damaged": history.damaged,
        "unread_bytes": history.unread_bytes,
    }
    return utf8.dumps(document, indent=1) + "\n"


def _run_json(run: PastRun) -> documents.PastRun:
    return {
        "run": run.run,
        "time": run.time,
        "pid": run.pid,
        "policy": run.policy,
        "release": run.release,
        "planned": run.planned,
        "steps": [*map(_step_json, run.steps)],
        "ended": run.ended,
        "stopped": run.stopped,
        "moved_bytes": run.moved_bytes,
        "freed": run.freed,
        "left": run.left,
    }


def _step_json(step: PastStep) -> documents.PastStep:
    return {
        "n": step.n,
        "action": step.action,
        "target": step.target,
        "status": step.status,
        "why": step.why,
        "moved_bytes": step.moved_bytes,
        "seconds": step.seconds,
    }
