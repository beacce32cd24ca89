"""The one exception that a person sees when a kernel cannot be opened or understood."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType


class KernelError(Exception):
    """A kernel or core cannot be opened or understood; ``str()`` is one clear line."""


def first_line(error: BaseException) -> str:
    """The first line of what any exception says, for a message of one line."""
    return (str(error).splitlines() or [type(error).__name__])[0]


@contextmanager
def understood() -> Iterator[None]:
    """Make a KernelError of all that drgn raises for memory and types without sense.

    Everything that reads a kernel runs in this. What our own code raises is a bug, and
    stays what it is.
    """
    try:
        yield
    except Exception as error:
        if not _is_drgns(error):
            raise
        raise KernelError(
            f"the kernel cannot be understood: {first_line(error)}"
        ) from error


def _is_drgns(error: Exception) -> bool:
    """Whether drgn has raised it: by its class, or in one of drgn's own functions."""
    import drgn

    if isinstance(error, (drgn.FaultError, drgn.ObjectAbsentError)):
        return True
    # What drgn's C code has no class of its own for.
    if type(error) in (Exception, LookupError):
        return True
    return _innermost(error.__traceback__).startswith(os.path.dirname(drgn.__file__))


def _innermost(traceback: TracebackType | None) -> str:
    """The file of the frame that raised."""
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback.tb_frame.f_code.co_filename if traceback else ""
