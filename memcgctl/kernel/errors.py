"""The one exception that a person sees when a kernel cannot be opened or understood."""

from __future__ import annotations


class KernelError(Exception):
    """A kernel or core cannot be opened or understood; ``str()`` is one clear line."""


def first_line(error: BaseException) -> str:
    """The first line of what any exception says, for a message of one line."""
    return (str(error).splitlines() or [type(error).__name__])[0]
