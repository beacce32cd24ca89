"""The options that say what to read, shared by all commands that read a kernel.

``readable=False``: Typer does not look first. Whether a file can be opened is said by
what opens it, with its exit code.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Core = Annotated[
    Path | None,
    typer.Option(
        "--core",
        metavar="PATH",
        envvar="MEMCGCTL_CORE",
        help="A vmcore, also one compressed whole (.zst, .xz, .gz). "
        "Without it, the running kernel.",
        show_default=False,
        readable=False,
    ),
]
Vmlinux = Annotated[
    Path | None,
    typer.Option(
        "--vmlinux",
        metavar="PATH",
        help="The kernel's vmlinux with debug information.",
        readable=False,
    ),
]
BtfFile = Annotated[
    Path | None,
    typer.Option(
        "--btf",
        metavar="PATH",
        help="The kernel's types, as /sys/kernel/btf/vmlinux.",
        readable=False,
    ),
]
SystemMap = Annotated[
    Path | None,
    typer.Option(
        "--system-map",
        metavar="PATH",
        help="The kernel's System.map.",
        readable=False,
    ),
]
Vmcoreinfo = Annotated[
    Path | None,
    typer.Option(
        "--vmcoreinfo",
        metavar="PATH",
        help="The text of the core's VMCOREINFO note.",
        readable=False,
    ),
]
CensusFile = Annotated[
    Path | None,
    typer.Option(
        "--census",
        metavar="FILE",
        help="A census that memcgctl snapshot saved, instead of a kernel.",
        readable=False,
    ),
]
Schema = Annotated[
    int,
    typer.Option(
        "--schema",
        metavar="N",
        min=1,
        max=2,
        help="With --json: the version of what is written. 1 stays for one release.",
    ),
]
