"""How does a command get its census: from a kernel, or from a file?"""

from __future__ import annotations

import os
import shlex
import signal
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn

import typer

from memcgctl.cli.terminal import progress_bar, say

if TYPE_CHECKING:
    from memcgctl.kernel.program import OpenedKernel
    from memcgctl.model import Census, Plan

Paths = tuple[Path | None, Path | None, Path | None, Path | None, Path | None]
Progress = Callable[[str, int, int], None]
MAX_TOML_BYTES = 1 << 20

# Within drgn: the kernel that its program has open, which the options do not name.
ADOPTED: ContextVar[OpenedKernel | None] = ContextVar("ADOPTED", default=None)


@contextmanager
def opened(paths: Paths) -> Iterator[tuple[OpenedKernel, Progress]]:
    """The kernel that the five shared options name, and a bar for what takes time.

    A type, symbol or piece of memory that a command cannot do without and that the
    kernel or core does not have becomes a KernelError.
    """
    from memcgctl.kernel.errors import KernelError, understood
    from memcgctl.kernel.program import Sources, open_kernel

    adopted = ADOPTED.get()
    with (
        understood(),
        _bounded(paths[0]),
        progress_bar() as progress,
        adopted
        or open_kernel(Sources(*paths), progress=progress, notify=say) as kernel,
    ):
        try:
            yield kernel, progress
        except KernelError as error:
            if kernel.trouble.hint and kernel.trouble.unread:
                raise KernelError(f"{error}; {kernel.trouble.hint}") from error
            raise


# CPU seconds that a damaged core can cost, and bytes of a core that take one more: a
# tenth of what the slowest machine at hand reads in a second.
LEAST_SECONDS = 40.0
BYTES_A_SECOND = 8 << 20


@contextmanager
def _bounded(core: Path | None) -> Iterator[None]:
    """Give up a core on which a walk, because of damage, comes to no end.

    By CPU time, since what the machine does besides is not the core's fault. A live
    kernel is not bounded: its walks are read again, and it is not hostile.
    """
    from memcgctl.kernel.errors import KernelError

    size = _size_of(core) if core else 0
    if not size:
        yield
        return
    seconds = LEAST_SECONDS + size / BYTES_A_SECOND

    def give_up(_number: int, _frame: object) -> NoReturn:
        raise KernelError(
            f"{core}: gave up after {seconds:,.0f} s of work: memory is damaged"
        )

    before = signal.signal(signal.SIGPROF, give_up)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _size_of(core: Path) -> int:
    """What a core's file takes on the disk; 0 of what is none, as /proc/kcore."""
    try:
        status = core.stat()
    except (OSError, ValueError):  # said by what opens it
        return 0
    is_file = stat.S_ISREG(status.st_mode) and not str(core).startswith("/proc/")
    return min(status.st_size, 4096 * status.st_blocks) if is_file else 0


def read_toml(path: Path) -> str:
    """The text of a file that a person wrote; OSError, or ValueError if it is none."""
    with path.open("rb") as file:
        data = file.read(MAX_TOML_BYTES + 1)
    if len(data) > MAX_TOML_BYTES:
        raise ValueError(f"larger than {MAX_TOML_BYTES:,} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ValueError("not UTF-8") from error


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
        taken = take_census(kernel, scan=scan, details=details, progress=progress)
    return on_this_machine(taken)


def on_this_machine(census: Census) -> Census:
    """With what only the running machine tells: whether it can make a swap device."""
    if census.kernel.kind != "live":
        return census
    from memcgctl.actions import temp_swap
    from memcgctl.actions.host.machine import read_machine

    why = temp_swap.probe(read_machine()) or ""
    return replace(census, kernel=replace(census.kernel, temp_swap=why))


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
