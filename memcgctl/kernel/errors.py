"""The one exception that a person sees when a kernel cannot be opened or understood."""

from __future__ import annotations


class KernelError(Exception):
    """A kernel or core cannot be opened or understood; ``str()`` is one clear line."""
