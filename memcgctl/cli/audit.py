"""``memcgctl audit``: is every reference of every offline memcg accounted for?"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from memcgctl.cli.options import (
    BtfFile,
    CensusFile,
    Core,
    SystemMap,
    Vmcoreinfo,
    Vmlinux,
)
from memcgctl.cli.reading import read_census, warn
from memcgctl.cli.terminal import shape, write


def audit_memcgs(
    core: Core = None,
    vmlinux: Vmlinux = None,
    btf: BtfFile = None,
    system_map: SystemMap = None,
    vmcoreinfo: Vmcoreinfo = None,
    census: CensusFile = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Show the first N rows, in JSON all."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Write JSON (memcgctl/audit/1).")
    ] = False,
) -> None:
    """Account for every reference of every offline memcg; what is left is a bug.

    Exit code 4 if a reference is left that nobody holds, or a holder without one.
    """
    taken = read_census(
        (core, vmlinux, btf, system_map, vmcoreinfo), census, details="offline"
    )

    from memcgctl.report.audit import screen, to_json
    from memcgctl.views.explain import audit

    warn(taken)
    audited = audit(taken)
    if as_json:
        write(to_json(audited))
    else:
        width, encoding = shape()
        write(screen(audited, limit=limit, width=width, encoding=encoding))
    if audited.unexplained or audited.missing or audited.unknown:
        sys.exit(4)
