"""``memcgctl doctor``: what does this machine allow, and what stands in the way?"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from memcgctl.cli.reading import opened, warn
from memcgctl.cli.terminal import shape, write

if TYPE_CHECKING:
    from memcgctl.actions.run.checkup import Wanted
    from memcgctl.model import Census, Checkup

EXIT_CODES = {"works": 0, "part": 4, "unread": 3}


def doctor(
    as_json: Annotated[
        bool, typer.Option("--json", help="Write JSON (memcgctl/doctor/1).")
    ] = False,
) -> None:
    """Say what this machine allows: how its kernel is read, which actions work.

    Changes nothing. Exit code 0 if reclaim can work here, 4 if only in part, 3 if the
    kernel cannot be read.
    """
    checkup = _check()

    from memcgctl.report.doctor import screen, to_json

    if as_json:
        write(to_json(checkup))
    else:
        width, encoding = shape()
        write(screen(checkup, width=width, encoding=encoding))
    sys.exit(EXIT_CODES[checkup.verdict])


def _check() -> Checkup:
    """The machine first: it can be looked at where its kernel cannot."""
    from memcgctl.actions.host.machine import read_machine
    from memcgctl.actions.run.checkup import check
    from memcgctl.kernel.errors import KernelError
    from memcgctl.model import ids_used

    machine, wanted = read_machine(), _wanted()
    try:
        census = _read()
    except KernelError as error:
        return check(machine, wanted, None, str(error))
    warn(census)
    offline = sum(memcg.state == "offline" for memcg in census.memcgs)
    used = ids_used(census)
    return check(machine, wanted, census.kernel, offline=offline, ids_used=used)


def _read() -> Census:
    """The running kernel's memcgs, and which interfaces it was built with."""
    from memcgctl.census import take_census
    from memcgctl.census.traits import interfaces

    with opened((None, None, None, None, None)) as (kernel, _):
        census = take_census(kernel, scan=False)
        found = interfaces(kernel, census.kernel.cgroup_version)
    return replace(census, kernel=replace(census.kernel, interfaces=found))


def _wanted() -> list[Wanted]:
    """The actions that policies know, and what has to be asked for."""
    from memcgctl.actions.run.checkup import Wanted
    from memcgctl.policy.interfaces import INTERFACES

    rows: dict[str, Wanted] = {}
    for one in INTERFACES:
        ask = one.ask or (None if one.targeted else "unaimed")
        rows.setdefault(one.name, Wanted(one.name, one.needs, ask))
    return list(rows.values())
