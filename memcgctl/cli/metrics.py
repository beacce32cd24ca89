"""``memcgctl metrics``: what do zombies cost on this machine, for Prometheus?"""

from __future__ import annotations

import os
import time
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memcgctl.cli.choices import parse_age
from memcgctl.cli.options import (
    BtfFile,
    CensusFile,
    Core,
    SystemMap,
    Vmcoreinfo,
    Vmlinux,
)
from memcgctl.cli.reading import Paths, read_census, warn
from memcgctl.cli.terminal import fail, say, write

if TYPE_CHECKING:
    from memcgctl.model import Census, History
    from memcgctl.report.metrics import Families

LOOPBACK = "127.0.0.1"


def parse_address(text: str) -> tuple[str, int]:
    """``ADDRESS:PORT``, ``[::1]:PORT``; without an address, this machine's own."""
    host, _, port = text.rpartition(":")
    if not port.isdecimal() or int(port) > 65535:
        raise typer.BadParameter(f"'{text}' is not ADDRESS:PORT, as {LOOPBACK}:9811.")
    return host.strip("[]") or LOOPBACK, int(port)


Textfile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Write this file, whole or not at all, for node_exporter's textfile "
        "collector, in the older format that it reads.",
    ),
]
Listen = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS:PORT",
        help="Serve /metrics there until stopped; without an address, on loopback.",
    ),
]
Interval = Annotated[
    float,
    typer.Option(
        metavar="AGE",
        parser=parse_age,
        help="With --listen: answer from the last census until it is so old.",
    ),
]
Rules = Annotated[
    bool,
    typer.Option("--rules", help="Print alert rules for Prometheus, no metrics."),
]


def write_metrics(
    core: Core = None,
    vmlinux: Vmlinux = None,
    btf: BtfFile = None,
    system_map: SystemMap = None,
    vmcoreinfo: Vmcoreinfo = None,
    census: CensusFile = None,
    textfile: Textfile = None,
    listen: Listen = None,
    interval: Interval = "5m",  # type: ignore[assignment]  # as typed, for the parser
    rules: Rules = False,
) -> None:
    """Write what zombies cost as metrics: OpenMetrics, on stdout.

    Where the kernel's memory cannot be read, what the kernel counts by itself, with
    memcgctl_census_success 0. Needs the extra [metrics]. See memcgctl help metrics.
    """
    if rules:
        write(resources.files("memcgctl").joinpath("deploy/alerts.yml").read_bytes())
        return
    try:
        import prometheus_client  # noqa: F401
    except ImportError:
        fail(
            "error: metrics needs prometheus_client: pip install 'memcgctl[metrics]'", 2
        )
    if textfile is not None and listen is not None:
        raise typer.BadParameter("--textfile and --listen exclude each other.")
    paths = (core, vmlinux, btf, system_map, vmcoreinfo)
    if listen is not None:
        from memcgctl.cli.metrics_server import serve

        serve(parse_address(listen), interval, paths, census)
        return
    found = measured(paths, census)
    if textfile is None:
        write(found.openmetrics())
        return

    from memcgctl.snapshot import write_whole

    try:
        write_whole(str(textfile), found.text(), 0o644)
    except OSError as error:
        fail(f"error: cannot write {textfile}: {error.strerror}", 1)


def measured(paths: Paths, file: Path | None) -> Families:
    """One reading. Of a core or a file it must succeed, of this machine it need not."""
    from memcgctl.kernel.errors import KernelError
    from memcgctl.report.metrics import Measured, families

    here = not any((*paths, file))
    begin, clock = time.monotonic(), time.time()
    census: Census | None = None
    dying: int | None = None
    try:
        census = read_census(paths, file, details="offline")
    except KernelError as error:
        if not here:
            raise
        say(f"warning: {error}")
        dying = _counted()
    seconds = time.monotonic() - begin
    taken_at: float | None = None
    if census:
        warn(census)
        dying = census.kernel.dying_cgroups
        taken_at = census.kernel.taken_at or (clock if here else None)
    history = _history() if here else None
    return families(Measured(census, dying, history, seconds, taken_at))


def _counted() -> int | None:
    from memcgctl.actions.host.machine import read_machine
    from memcgctl.actions.host.thresholds import count_dying

    return count_dying(read_machine())


def _history() -> History | None:
    """The journal of this machine; one that is not there has no runs.

    But that is root's: who cannot look there knows of no runs, not that there are none.
    """
    from memcgctl.actions.run.history import read_history
    from memcgctl.actions.run.journal import default_path
    from memcgctl.model import History

    journal_path = default_path()
    try:
        return read_history(journal_path)
    except FileNotFoundError:
        return None if os.geteuid() else History(str(journal_path), (), 0)
    except OSError as error:
        say(f"warning: the journal {journal_path} cannot be read: {error.strerror}")
        return None
