"""``memcgctl watch``: how fast do zombies come, and of which family?"""

from __future__ import annotations

import gc
import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from memcgctl.cli.options import BtfFile, SystemMap, Vmlinux
from memcgctl.cli.reading import opened
from memcgctl.cli.terminal import shape, size_of, write

if TYPE_CHECKING:
    from rich.live import Live

    from memcgctl.views.watch import Watched


def watch(
    interval: Annotated[
        float, typer.Option("--interval", min=0.5, metavar="S", help="Between looks.")
    ] = 10.0,
    count: Annotated[
        int | None,
        typer.Option("--count", "-c", min=1, metavar="N", help="End after N looks."),
    ] = None,
    vmlinux: Vmlinux = None,
    btf: BtfFile = None,
    system_map: SystemMap = None,
) -> None:
    """Watch the running kernel's zombies: how many, how fast they come and go.

    Reads the cgroup tree, not memory, so that a look costs little; one that comes and
    goes between two looks is not seen. In a pipe it writes a line a look. Ctrl-C ends.

    Example: memcgctl watch --interval 60 >> zombies.log
    """
    from memcgctl.census import take_census
    from memcgctl.report.watch import rows_of
    from memcgctl.views.watch import Watch

    gc.enable()  # this is no short run
    watched = Watch()
    with opened((None, vmlinux, btf, system_map, None)) as (kernel, _), _Screen() as to:
        looks = 0
        while True:
            begin = time.monotonic()
            census = take_census(kernel, scan=False, identities=True)
            to.show(watched.see(census, begin, rows_of(size_of()[1])), interval)
            looks += 1
            if looks == count:
                return
            time.sleep(max(interval - (time.monotonic() - begin), interval / 10))


class _Screen:
    """A terminal's whole screen, given back at the end; in a pipe a line a look."""

    def __init__(self) -> None:
        self._live: Live | None = None

    def __enter__(self) -> _Screen:
        if sys.stdout is not None and sys.stdout.isatty():
            from rich.console import Console
            from rich.live import Live

            console = Console(highlight=False)
            self._live = Live(console=console, screen=True, auto_refresh=False)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def show(self, seen: Watched, interval: float) -> None:
        from memcgctl.report.watch import line, screen

        if self._live is None:
            write(line(seen))
            return
        from rich.text import Text

        width, height = size_of()
        shown = screen(seen, interval, width=width, height=height, encoding=shape()[1])
        self._live.update(Text.assemble(*shown, no_wrap=True), refresh=True)
