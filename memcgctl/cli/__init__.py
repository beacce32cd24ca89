"""The command line: parse, call, report; see ``main`` for errors and exit codes.

Commands import drgn and NumPy when they run, never when their help is asked for.
"""

from __future__ import annotations

import errno
import gc
import os
from pathlib import Path
from typing import Annotated

import typer

from memcgctl.cli.audit import audit_memcgs
from memcgctl.cli.diff import diff_censuses
from memcgctl.cli.doctor import doctor
from memcgctl.cli.explain import explain_memcg
from memcgctl.cli.help import show_help
from memcgctl.cli.journal import journal
from memcgctl.cli.list import list_memcgs
from memcgctl.cli.metrics import write_metrics
from memcgctl.cli.reclaim import reclaim
from memcgctl.cli.simulate import simulate_policies
from memcgctl.cli.snapshot import snapshot
from memcgctl.cli.systemd_units import systemd_units
from memcgctl.cli.terminal import fail
from memcgctl.cli.watch import watch
from memcgctl.kernel.errors import KernelError
from memcgctl.version import __version__

app = typer.Typer(
    name="memcgctl",
    invoke_without_command=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("list")(list_memcgs)
app.command("explain")(explain_memcg)
app.command("audit")(audit_memcgs)
app.command("reclaim")(reclaim)
app.command("simulate")(simulate_policies)
app.command("snapshot")(snapshot)
app.command("diff")(diff_censuses)
app.command("watch")(watch)
app.command("doctor")(doctor)
app.command("journal")(journal)
app.command("metrics")(write_metrics)
app.command("systemd-units")(systemd_units)
app.command("help")(show_help)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"memcgctl {__version__}")
        raise typer.Exit


FIRST = """\
memcgctl shows zombie memory cgroups, says why they are still there, frees them.

  memcgctl list                 which there are, what they cost, what holds them
  memcgctl explain ID           why one is still there, and what has to happen
  memcgctl reclaim --dry-run    what would free them, and at what price
  memcgctl reclaim              the same, asked first, then done

Of a core, without root: --core FILE with any of these, or MEMCGCTL_CORE=FILE.
memcgctl --help has all commands, memcgctl help the topics.
"""


@app.callback()
def memcgctl(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Show the version."
        ),
    ] = False,
    patterns: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            envvar="MEMCGCTL_PATTERNS",
            help="Your own patterns of cgroup names, in TOML: see memcgctl help list.",
            show_default=False,
            readable=False,
        ),
    ] = None,
) -> None:
    """Show zombie memory cgroups: removed, but still there, and why.

    Exit codes: 0 done; 1 memcgctl failed; 2 wrong usage; 3 the kernel or core could
    not be opened or understood; 4 done in part: what is left is shown.
    """
    if patterns is not None:
        from memcgctl.cli.patterns import use_patterns

        use_patterns(patterns)
    if context.invoked_subcommand is None:
        typer.echo(FIRST, nl=False)


def main() -> None:
    """Run what the command line says; every error becomes a line and an exit code."""
    # A run is short, and a census is values without cycles: to look for these would
    # take up to half of the time.
    gc.disable()
    try:
        app()
    except KernelError as error:
        fail(f"error: {error}", 3)
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            fail(f"error: cannot write the output: {error.strerror}", 1)  # --help
        if os.environ.get("MEMCGCTL_DEBUG"):
            raise
        fail(
            f"internal error: {type(error).__name__}: {error}; "
            "set MEMCGCTL_DEBUG=1 for a traceback",
            1,
        )
    finally:
        gc.freeze()  # or the interpreter looks for cycles when it ends
