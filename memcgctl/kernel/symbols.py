"""At which address is a kernel symbol? A table from kallsyms or a System.map.

Both come as text, ``address type name`` a line (``/proc/kallsyms``, ``System.map``),
or out of the kernel's compressed tables (see kallsyms.py). A lookup is a search in
one text of all names, so that nothing is built for the 200,000 symbols not asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import drgn
import numpy as np
import numpy.typing as npt

from memcgctl.kernel.corefile import read_file
from memcgctl.kernel.errors import KernelError
from memcgctl.kernel.vmcoreinfo import Vmcoreinfo

# Those of distributions have 5 to 10 MB; each MB takes 10 MB of memory.
_MAX_SYSTEM_MAP = 64 << 20
# KERNEL_IMAGE_SIZE: what is further from _stext is no address in the image, but a
# per-CPU offset (x86-64), a constant, or what a pointer points to (VMCOREINFO).
_KERNEL_IMAGE_SIZE = 1 << 30

Addresses = npt.NDArray[np.uint64]


class Symbols:
    """Names and addresses of one kernel's symbols.

    ``names`` is ``\\n``, then for each symbol its type as in nm(1), its name and
    ``\\n``, in the order of ``addresses``.
    """

    def __init__(self, names: bytes, addresses: Addresses) -> None:
        self.names = names
        self.addresses = addresses
        self._known: dict[str, list[tuple[str, int]]] = {}

    def all(self, name: str) -> list[tuple[str, int]]:
        """(type, address) of all symbols of that name, global ones first."""
        if name not in self._known:
            found = self._search(name.encode(errors="replace"))
            self._known[name] = sorted(found, key=lambda symbol: symbol[0].islower())
        return self._known[name]

    def _search(self, name: bytes) -> Iterator[tuple[str, int]]:
        if not name:
            return
        text = np.frombuffer(self.names, np.uint8)
        starts, lengths = self._lines
        index = np.flatnonzero(lengths == len(name))
        for column in (-1, len(name) // 2, 0):  # what most names differ in
            index = index[text[starts[index] + column % len(name)] == name[column]]
        for i, start in zip(index.tolist(), starts[index].tolist(), strict=True):
            if self.names.startswith(name, start):
                yield chr(self.names[start - 1]), int(self.addresses[i])

    @cached_property
    def _lines(self) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
        """Where the name of each symbol begins, and how long it is."""
        breaks = np.flatnonzero(np.frombuffer(self.names, np.uint8) == ord("\n"))
        return breaks[:-1] + 2, np.diff(breaks) - 2

    def find(self, name: str) -> int | None:
        """The address of the symbol, None if there is none."""
        found = self.all(name)
        return found[0][1] if found else None

    def register(self, prog: drgn.Program) -> None:
        """Let drgn find these symbols by name."""

        def finder(
            prog: drgn.Program, name: str | None, address: int | None, one: bool
        ) -> Sequence[drgn.Symbol]:
            if name is None or address is not None:
                return []
            found = self.all(name)
            return [
                drgn.Symbol(
                    name,
                    value,
                    0,
                    drgn.SymbolBinding.GLOBAL
                    if kind.isupper()
                    else drgn.SymbolBinding.LOCAL,
                    drgn.SymbolKind.FUNC if kind in "tT" else drgn.SymbolKind.OBJECT,
                )
                for kind, value in (found[:1] if one else found)
            ]

        prog.register_symbol_finder("memcgctl", finder, enable_index=0)


def parse_text(text: bytes) -> Symbols:
    """Symbols out of /proc/kallsyms or a System.map; raises ValueError if it is none.

    Symbols of modules, which /proc/kallsyms has at its end, are left out.
    """
    fields = text[: text.find(b"\t[")].split() if b"\t[" in text else text.split()
    # The cut leaves address, type and name of the first module's symbol.
    if len(fields) % 3 or not fields:
        raise ValueError("not a list of kernel symbols")
    kinds = fields[1::3]
    if any(len(kind) != 1 for kind in kinds):
        raise ValueError("not a list of kernel symbols")
    try:
        addresses = np.array([int(field, 16) for field in fields[::3]], np.uint64)
    except OverflowError:
        raise ValueError("an address has more than 64 bits") from None
    names = b"".join(b"\n%b%b" % pair for pair in zip(kinds, fields[2::3], strict=True))
    return Symbols(names + b"\n", addresses)


def read_system_map(path: Path, info: Vmcoreinfo) -> Symbols:
    """Symbols of a System.map, moved to where KASLR has put the image.

    Raises KernelError if it is none, or if VMCOREINFO has symbols elsewhere.
    """
    text = read_file(path, _MAX_SYSTEM_MAP + 1)
    if len(text) > _MAX_SYSTEM_MAP:
        raise KernelError(f"{path}: is larger than {_MAX_SYSTEM_MAP >> 20} MiB")
    try:
        linked = parse_text(text)
    except ValueError as error:
        # Debian's in /boot is one line, which says that the -dbg package has it.
        raise KernelError(f"{path}: is {error}, but perhaps a stub for it") from None
    in_image = _near(linked.addresses, linked.find("_stext") or 0)
    # A saved /proc/kallsyms has moved already.
    for offset in (info.kaslr_offset, 0):
        shift = np.where(in_image, np.uint64(offset), np.uint64(0))
        symbols = Symbols(linked.names, linked.addresses + shift)
        if _fits(symbols, info):
            return symbols
    raise KernelError(f"{path}: is not of this kernel ({info.release}) or this boot")


def _fits(symbols: Symbols, info: Vmcoreinfo) -> bool:
    """Whether the symbols are where VMCOREINFO has them; one at least has to be."""
    stext = info.symbols["_stext"]
    if symbols.find("_stext") != stext:
        return False
    fits = [
        address in {value for _, value in found}
        for name, address in info.symbols.items()
        if _near(np.array([address], np.uint64), stext)[0]
        and (found := symbols.all(name))
    ]
    return all(fits)


def _near(addresses: Addresses, stext: int) -> npt.NDArray[np.bool_]:
    """Which addresses are in the image whose text begins at ``stext``."""
    distance = (addresses - np.uint64(stext)).view(np.int64)
    near: npt.NDArray[np.bool_] = np.abs(distance) < _KERNEL_IMAGE_SIZE
    return near
