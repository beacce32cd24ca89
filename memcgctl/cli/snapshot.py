"""``memcgctl snapshot``: keep the whole census of a kernel in a file."""

from __future__ import annotations

from typing import Annotated

import typer

from memcgctl.cli.options import BtfFile, Core, SystemMap, Vmcoreinfo, Vmlinux
from memcgctl.cli.reading import read_census, warn
from memcgctl.cli.terminal import fail, write


def snapshot(
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Where to; compressed if it ends in .zst, - for stdout. Replaces "
            "what is there.",
        ),
    ],
    core: Core = None,
    vmlinux: Vmlinux = None,
    btf: BtfFile = None,
    system_map: SystemMap = None,
    vmcoreinfo: Vmcoreinfo = None,
) -> None:
    """Save the whole census, for the other commands to read with --census FILE.

    Only you can read a new file: it names processes, files and cgroups.
    """
    taken = read_census(
        (core, vmlinux, btf, system_map, vmcoreinfo), None, details="offline"
    )

    from memcgctl.snapshot import CensusError, dumps, save

    warn(taken)
    if output == "-":
        write(dumps(taken))
        return
    try:
        save(taken, output)
    except CensusError as error:
        fail(f"error: this census cannot be saved: {error}", 3)
    except OSError as error:
        fail(f"error: cannot write {output}: {error.strerror}", 1)
