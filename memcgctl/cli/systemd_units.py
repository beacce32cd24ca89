"""``memcgctl systemd-units``: what runs ``memcgctl reclaim`` unattended, and safely?

The units are files in ``memcgctl/units``; only the program's path is filled in.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from memcgctl.cli.terminal import fail, write

UNITS = ("memcgctl.service", "memcgctl.timer", "memcgctl.slice")
SHIPPED = "ExecStart=/usr/bin/memcgctl "


def systemd_units(
    directory: Annotated[
        Path | None,
        typer.Option(
            "--directory",
            metavar="DIR",
            help="Write them there, as /etc/systemd/system, instead of to stdout.",
        ),
    ] = None,
) -> None:
    """Print a hardened systemd service that reclaims, its timer and its slice.

    The service does nothing below the thresholds in its ExecStart line.
    """
    texts = units(program())
    if directory is None:
        write("\n".join(f"# {name}\n{text}" for name, text in texts.items()))
        return
    for name, text in texts.items():
        try:
            (directory / name).write_text(text, errors="surrogateescape")
        except OSError as error:
            fail(f"error: cannot write {directory / name}: {error.strerror}", 1)
    written = "".join(f"{directory / name}\n" for name in texts)
    write(written + "To start: systemctl daemon-reload, then\n")
    write("systemctl enable --now memcgctl.timer\n")


def units(memcgctl: str) -> dict[str, str]:
    """The text of each unit, with the path of the program to run."""
    from importlib import resources

    shipped = resources.files("memcgctl.units")
    texts = {name: (shipped / name).read_text() for name in UNITS}
    command = f"ExecStart={quoted(memcgctl)} "
    texts["memcgctl.service"] = texts["memcgctl.service"].replace(SHIPPED, command)
    return texts


def program() -> str:
    """The absolute path of the console script that runs, or of one on PATH.

    ``python -m`` has a module's path in its place. Links are kept: one in /usr/bin
    outlives an upgrade of what it leads to.
    """
    here = sys.argv[0]
    if Path(here).name != "memcgctl":
        here = "memcgctl"
    found = shutil.which(here)
    return os.path.abspath(found) if found else "/usr/bin/memcgctl"


def quoted(path: str) -> str:
    """A path as a word of systemd's, see systemd.syntax(7)."""
    if set(path) & set("'\"\\") or not path.isprintable():
        fail(f"error: systemd starts no program of such a name: {path}", 1)
    escaped = path.replace("%", "%%")
    return f'"{escaped}"' if set(path) & set(" ;$") else escaped
