"""How is kernel memory read in bulk, and what happens where it cannot be read?

drgn translates addresses in C (segments of the core first, then the kernel's page
tables), as fast as a bare ``pread`` once the blocks are large; what is added here is
the handling of faults: holes are skipped and noted, and a live kernel, which may
have changed underneath, is asked again first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import drgn
import numpy as np

from memcgctl.kernel.layout import (
    value_of,
)
from memcgctl.kernel.trouble import (
    Trouble,
)

# A live kernel's fault may be a race with a free or a remap: ask again.
_LIVE_TRIES = 3

_LAST = 2**64 - 1
# Reading this much in vain costs less than one more read.
_GAP = 4096
_MAX_GROUP = 1 << 20


class Memory:
    """Bulk reads of kernel virtual memory; ``trouble`` is told what stayed unreadable.

    What is read of a ``live`` kernel can be another thing the next time.
    """

    def __init__(self, prog: drgn.Program, trouble: Trouble | None = None) -> None:
        self.trouble = trouble or Trouble()
        self._prog = prog
        self.live = bool(prog.flags & drgn.ProgramFlags.IS_LIVE)
        self._tries = _LIVE_TRIES if self.live else 1
        self._page_size: int | None = None
        # How much memory the dump can hold, for bounds on what it claims; None: live.
        self.dump_bytes: int | None = None

    def read(self, address: int, size: int) -> bytes:
        """Read ``size`` bytes; raises drgn.FaultError where there is no memory."""
        tries_left = self._tries
        while True:
            try:
                return self._prog.read(address, size)  # type: ignore[no-any-return]
            except drgn.FaultError:
                tries_left -= 1
                if not tries_left:
                    raise
            except (OSError, ValueError, OverflowError) as error:
                # /proc/kcore has EIO and EFAULT for holes; drgn refuses addresses
                # beyond the address space as values.
                tries_left -= 1
                if not tries_left:
                    raise drgn.FaultError(str(error), address & _LAST) from error

    def try_read(self, address: int, size: int) -> bytes | None:
        """Read ``size`` bytes, or count a fault and return None."""
        try:
            return self.read(address, size)
        except drgn.FaultError:
            self.trouble.fault()
            return None

    def chunks(
        self, address: int, size: int, chunk: int = 1 << 20, *, unit: int = 1
    ) -> Iterator[tuple[int, bytes | None]]:
        """Read a large range piece by piece: (address of the piece, its bytes).

        Pieces are multiples of ``unit`` bytes (the size of an array's element), at
        most ``chunk`` long, in ascending order and without gaps. A chunk with a hole
        is read again page by page; a piece that cannot be read is None, counted as a
        fault, and ends where the next one (or the range) does.
        """
        pages = max(self.page_size // unit, 1) * unit
        chunk = max(chunk // unit, 1) * unit
        end = address + size
        for start in range(address, end, chunk):
            stop = min(start + chunk, end)
            try:
                yield start, self.read(start, stop - start)
            except drgn.FaultError:
                for part in range(start, stop, pages):
                    yield part, self.try_read(part, min(pages, stop - part))

    def gather(self, addresses: Iterable[int], size: int) -> list[bytes | None]:
        """Read many small structures of equal ``size``, in the order asked for.

        Neighbours, as slab objects mostly are, come with one read. None where there
        was a fault.
        """
        wanted = [address & _LAST for address in addresses]
        found: dict[int, bytes | None] = {}
        for group in _neighbours(wanted, size):
            start = group[0]
            try:
                block = self.read(start, group[-1] + size - start)
            except drgn.FaultError:
                parts = [self.try_read(address, size) for address in group]
            else:
                parts = [block[at - start : at - start + size] for at in group]
            found.update(zip(group, parts, strict=True))
        return [found[address] for address in wanted]

    @property
    def page_size(self) -> int:
        """The kernel's page size in bytes."""
        if self._page_size is None:
            self._page_size = value_of(self._prog["PAGE_SIZE"])
        return self._page_size


def _neighbours(addresses: list[int], size: int) -> Iterator[list[int]]:
    """Addresses, sorted and each once, in groups that are worth one read each."""
    # np.unique would import numpy.ma, which takes longer than most calls of this.
    ordered = np.sort(np.array(addresses, np.uint64))
    ordered = ordered[np.diff(ordered, prepend=~ordered[:1]) != 0]
    far = np.diff(ordered) > size + _GAP
    far |= np.diff(ordered // np.uint64(_MAX_GROUP)) != 0
    start, values = 0, ordered.tolist()
    for end in [*(far.nonzero()[0] + 1).tolist(), len(values)]:
        if end > start:
            yield values[start:end]
        start = end
