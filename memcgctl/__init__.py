"""memcgctl: list, explain and free zombie memory cgroups.

``memcgctl.open`` takes a census of a kernel, as plain frozen data:

    >>> import memcgctl
    >>> census = memcgctl.open(core="fixtures/6.12-zoo.zst")
    >>> census.kernel.release.startswith("6.12")
    True
    >>> zombies = [memcg for memcg in census.memcgs if memcg.state == "offline"]
    >>> len(zombies)
    57
    >>> all(memcg.details.holders for memcg in zombies)
    True
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memcgctl.version import __version__

if TYPE_CHECKING:
    import os

    import drgn

    from memcgctl.model import Census

__all__ = ["__version__", "open"]


def open(
    *, core: str | os.PathLike[str] | None = None, prog: drgn.Program | None = None
) -> Census:
    """The census of a core, of a program that drgn has open, or of the running kernel.

    With what holds each offline memcg; what could not be read is in its ``warnings``.
    Raises ``memcgctl.kernel.errors.KernelError`` with one clear line.
    """
    from pathlib import Path

    from memcgctl.census import take_census
    from memcgctl.kernel.errors import KernelError, understood
    from memcgctl.kernel.program import Sources, adopt, open_kernel

    if core is not None and prog is not None:
        raise ValueError("core and prog exclude each other")
    with understood():
        if prog is None:
            kernel = open_kernel(Sources(None if core is None else Path(core)))
        elif (adopted := adopt(prog)) is not None:
            kernel = adopted
        else:
            raise KernelError("the program is being opened")
        return take_census(kernel, details="offline")
