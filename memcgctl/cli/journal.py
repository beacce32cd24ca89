"""``memcgctl journal``: what did reclaim do on this machine, and where did it stop?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from memcgctl.cli.terminal import fail, shape, write


def journal(
    number: Annotated[
        int | None,
        typer.Argument(
            metavar="N", help="One run with its steps.", min=1, show_default=False
        ),
    ] = None,
    path: Annotated[
        Path | None,
        typer.Option(
            "--journal",
            metavar="PATH",
            help="The journal to read, if not the one that reclaim keeps by itself.",
            show_default=False,
            readable=False,
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Show the last N runs.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Write JSON (memcgctl/runs/1).")
    ] = False,
) -> None:
    """Show what reclaim has done: a line a run, or one run with its steps."""
    from memcgctl.actions.run.history import read_history
    from memcgctl.actions.run.journal import default_path
    from memcgctl.model import History
    from memcgctl.report.journal import screen, to_json

    journal_path = path or default_path()
    try:
        history = read_history(journal_path)
    except OSError as error:
        if path or not isinstance(error, FileNotFoundError):
            fail(
                f"error: the journal {journal_path} cannot be read: {error.strerror}", 1
            )
        history = History(str(journal_path), (), 0)  # reclaim has never run here
    if number and number > len(history.runs):
        fail(f"no run {number}: {journal_path} has {len(history.runs):,}", 2)
    if as_json:
        write(to_json(history, limit))
        return
    width, encoding = shape()
    write(screen(history, number, limit=limit, width=width, encoding=encoding))
