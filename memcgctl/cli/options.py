"""The options that say what to read, shared by all commands that read a kernel."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Core = Annotated[
    Path | None,
    typer.Option(
        "--core",
        metavar="PATH",
        help="A vmcore, also one compressed whole (.zst, .xz, .gz). "
        "Without it, the running kernel.",
        show_default=False,
    ),
]
Vmlinux = Annotated[
    Path | None,
    typer.Option(
        "--vmlinux", metavar="PATH", help="The kernel's vmlinux with debug information."
    ),
]
BtfFile = Annotated[
    Path | None,
    typer.Option(
        "--btf", metavar="PATH", help="The kernel's types, as /sys/kernel/btf/vmlinux."
    ),
]
SystemMap = Annotated[
    Path | None,
    typer.Option("--system-map", metavar="PATH", help="The kernel's System.map."),
]
Vmcoreinfo = Annotated[
    Path | None,
    typer.Option(
        "--vmcoreinfo", metavar="PATH", help="The text of the core's VMCOREINFO note."
    ),
]
CensusFile = Annotated[
    Path | None,
    typer.Option(
        "--census",
        metavar="FILE",
        help="A census that memcgctl snapshot saved, instead of a kernel.",
    ),
]
