"""How do data, messages and progress reach the terminal?

Data alone goes to stdout; warnings, errors and progress go to stderr. Rich is
imported where it is used, to keep ``--help`` and completion fast.
"""

from __future__ import annotations

import codecs
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from rich.progress import Progress
    from rich.text import Text

    from memcgctl.report.text import Styled


def say(message: str) -> None:
    """One line on stderr. Names in it are the kernel's or a path's: escaped."""
    from memcgctl.report.text import escape

    if sys.stderr is not None:
        line = escape(f"memcgctl: {message}", sys.stderr.encoding)
        print(line, file=sys.stderr, flush=True)


def fail(message: str, code: int) -> NoReturn:
    """One line on stderr, and the exit code."""
    say(message)
    sys.exit(code)


def shape() -> tuple[int, str]:
    """How many columns stdout has, and its encoding, by Python's own name for it.

    A file opened by Python has the locale's name, which may be UTF-8 for utf-8.
    """
    encoding = sys.stdout.encoding if sys.stdout else "ascii"
    return shutil.get_terminal_size().columns, codecs.lookup(encoding).name


def size_of() -> tuple[int, int]:
    """Columns and lines of the terminal; 80 and 24 where there is none."""
    columns, lines = shutil.get_terminal_size()
    return columns, lines


def write(data: Styled | Text | str | bytes) -> None:
    """Write all data to stdout.

    A reader that has seen enough (``| head``) is no error; a full disk is.
    """
    if sys.stdout is None:
        fail("error: stdout is closed", 1)
    try:
        if isinstance(data, bytes):
            sys.stdout.buffer.write(data)
        elif isinstance(data, str):
            sys.stdout.write(data)
        elif not sys.stdout.isatty():
            sys.stdout.write(data.plain)
        else:
            from rich.console import Console
            from rich.text import Text

            text = Text.assemble(*data) if isinstance(data, list) else data
            Console(highlight=False).print(text, end="", soft_wrap=True)
        sys.stdout.flush()
    except OSError as error:
        # What is still in the buffer would fail once more when Python exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            sys.exit(0)
        fail(f"error: cannot write the output: {error.strerror}", 1)


@contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int], None]]:
    """A callback (what, done, total) that shows a bar once a second has passed.

    Only where stderr is a terminal; the bar is gone at the end, and when there is
    nothing to be done (a total of 0): before a question, say.
    """
    if sys.stderr is None or not sys.stderr.isatty():
        yield lambda what, done, total: None
        return
    bar: Progress | None = None
    begin = time.monotonic()

    def report(what: str, done: int, total: int) -> None:
        nonlocal bar
        if not total:
            if bar is not None:
                bar.stop()
            bar = None
            return
        if bar is None:
            if time.monotonic() - begin <= 1:
                return
            bar = _started_bar()
        bar.update(bar.task_ids[0], description=what, completed=done, total=total)

    try:
        yield report
    finally:
        if bar is not None:
            bar.stop()


def _started_bar() -> Progress:
    from rich.console import Console
    from rich.progress import Progress

    bar = Progress(console=Console(stderr=True), transient=True)
    bar.add_task("")
    bar.start()
    return bar
