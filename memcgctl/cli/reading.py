"""How does a command get its census: from a kernel, or from a file?"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from memcgctl.cli.terminal import progress_bar, say

if TYPE_CHECKING:
    from memcgctl.kernel.program import OpenedKernel
    from memcgctl.model import Census, Plan

Paths = tuple[Path | None, Path | None, Path | None, Path | None, Path | None]
Progress = Callable[[str, int, int], None]


@contextmanager
def opened(paths: Paths) -> Iterator[tuple[OpenedKernel, Progress]]:
    """The kernel that the five shared options name, and a bar for what takes time.

    A type, symbol or piece of memory that a command cannot do without and that the
    kernel or core does not have becomes a KernelError.
    """
    from memcgctl.kernel.errors import understood
    from memcgctl.kernel.program import Sources, open_kernel

    with (
        understood(),
        progress_bar() as progress,
        open_kernel(Sources(*paths), progress=progress, notify=say) as kernel,
    ):
        yield kernel, progress


def load_census(path: Path, paths: Paths) -> Census:
    """The census in the file ``path``, which leaves no room for a kernel's options."""
    from memcgctl.snapshot import load

    core, *others = paths
    by_habit = core is not None and str(core) == os.environ.get("MEMCGCTL_CORE")
    if any(others) or (core and not by_habit):
        raise typer.BadParameter(
            "--census takes the place of a kernel: no --core, --vmlinux, --btf, "
            "--system-map or --vmcoreinfo with it."
        )
    return load(str(path))


def read_census(
    paths: Paths,
    census: Path | None,
    *,
    scan: bool = True,
    details: Literal["offline"] | None = None,
) -> Census:
    """All that a command needs which asks for no memcg by name."""
    if census:
        from memcgctl.views.listing import unscanned

        loaded = load_census(census, paths)
        return loaded if scan else unscanned(loaded)

    from memcgctl.census import take_census

    with opened(paths) as (kernel, progress):
        return take_census(kernel, scan=scan, details=details, progress=progress)


def again(command: str, paths: Paths, census: Path | None) -> str:
    """A whole command line that reads what this one has read."""
    names = ("core", "vmlinux", "btf", "system-map", "vmcoreinfo", "census")
    words = [
        f"--{name} {shlex.quote(str(path))}"
        for name, path in zip(names, (*paths, census), strict=True)
        if path
    ]
    return " ".join(["memcgctl", command, *words])


def warn(census: Census | Plan) -> None:
    """Each warning of a census or a plan, on stderr."""
    for warning in census.warnings:
        say(f"warning: {warning}")
