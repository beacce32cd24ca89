"""``memcgctl diff``: what became of the zombies between two looks?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from memcgctl.cli.reading import load_census, read_census, warn
from memcgctl.cli.terminal import shape, write
from memcgctl.kernel.errors import KernelError
from memcgctl.model import Census

_NOTHING = (None, None, None, None, None)


def diff_censuses(
    before: Annotated[
        Path,
        typer.Argument(metavar="A", help="A saved census, or a core.", readable=False),
    ],
    after: Annotated[
        Path | None,
        typer.Argument(
            metavar="B",
            help="Another one; without it, the running kernel.",
            readable=False,
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Write JSON (memcgctl/diff/1).")
    ] = False,
) -> None:
    """Compare two censuses: new, gone and grown zombies, by family and by holder.

    Example: memcgctl snapshot -o a.json; sleep 3600; memcgctl diff a.json
    """
    from memcgctl.report.diff import screen, to_json
    from memcgctl.views.diff import diff

    old, new = _read(before), _read(after)
    warn(old)
    warn(new)
    found = diff(old, new)
    if as_json:
        write(to_json(found))
        return
    width, encoding = shape()
    write(screen(found, width=width, encoding=encoding))


def _read(path: Path | None) -> Census:
    """A census from a file that is one, or else from a core, or from here."""
    if path is None:
        return read_census(_NOTHING, None, details="offline")
    try:
        return load_census(path, _NOTHING)
    except KernelError as error:
        if "not a saved census" not in str(error) and "larger than" not in str(error):
            raise
    return read_census((path, None, None, None, None), None, details="offline")
