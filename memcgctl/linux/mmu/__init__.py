"""How do a machine's page tables look, and where is its physical memory mapped?

One file a machine; to add one, write its ``Format`` and a line here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import drgn

from memcgctl.linux.mmu import arm64, x86_64
from memcgctl.linux.mmu.base import Format

if TYPE_CHECKING:
    from memcgctl.kernel.program import OpenedKernel

__all__ = ["Format", "direct_map", "format_of"]

# How to get at the format, and where the direct map begins.
_MACHINES: dict[
    drgn.Architecture,
    tuple[Callable[[OpenedKernel], Format], Callable[[OpenedKernel], int]],
] = {
    drgn.Architecture.X86_64: (x86_64.format_of, x86_64.direct_map),
    drgn.Architecture.AARCH64: (arm64.format_of, arm64.direct_map),
}


def format_of(kernel: OpenedKernel) -> Format:
    """The format of the page tables of processes."""
    platform = kernel.prog.platform
    assert platform is not None
    return _MACHINES[platform.arch][0](kernel)


def direct_map(kernel: OpenedKernel) -> int:
    """Virtual address of physical address 0, which need not be mapped itself."""
    platform = kernel.prog.platform
    assert platform is not None
    return _MACHINES[platform.arch][1](kernel)
