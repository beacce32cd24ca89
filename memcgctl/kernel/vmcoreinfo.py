"""What does the kernel say of itself in VMCOREINFO (kernel/vmcore_info.c)?

A note of ``KEY=value`` lines: release, page size, a few symbols, sizes and offsets, and
where KASLR put the image. Its content is as hostile as the rest of a dump. In a dump
without the note it is found by its own text, since the kernel keeps it in memory.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from memcgctl.kernel.errors import KernelError

# The kernel has one page for it (VMCOREINFO_BYTES); a file given by hand may be larger.
MAX_SIZE = 1 << 20

_NUMBER = re.compile(r"NUMBER\((\w+)\)")
_SYMBOL = re.compile(r"SYMBOL\((\w+)\)")


@dataclass(frozen=True)
class Vmcoreinfo:
    """The note's text and its lines as a mapping."""

    raw: bytes
    values: dict[str, str]

    @property
    def release(self) -> str:
        return self.values["OSRELEASE"]

    @cached_property
    def symbols(self) -> dict[str, int]:
        """Addresses of the SYMBOL() lines."""
        found = {}
        for key, value in self.values.items():
            match = _SYMBOL.fullmatch(key)
            if match and re.fullmatch("[0-9a-fA-F]{1,16}", value):
                found[match[1]] = int(value, 16)
        return found

    @cached_property
    def numbers(self) -> dict[str, int]:
        """The NUMBER() lines, decimal or hexadecimal."""
        found = {}
        for key, value in self.values.items():
            match = _NUMBER.fullmatch(key)
            if match and re.fullmatch("-?[0-9]{1,20}|0x[0-9a-f]{1,16}", value):
                found[match[1]] = int(value, 0)
        return found

    @property
    def kaslr_offset(self) -> int:
        """By how much the image is away from its link address."""
        value = self.values.get("KERNELOFFSET", "0")
        return int(value, 16) if re.fullmatch("[0-9a-fA-F]{1,16}", value) else 0


def parse(raw: bytes) -> Vmcoreinfo:
    """Raises KernelError if a line that is needed to read memory is missing."""
    raw = raw.split(b"\0")[0][:MAX_SIZE]
    values = {}
    for line in raw.decode("utf-8", "replace").split("\n"):
        key, equals, value = line.partition("=")
        if equals:
            values[key] = value.strip()
    info = Vmcoreinfo(raw, values)
    for name in ("OSRELEASE", "PAGESIZE", "swapper_pg_dir", "_stext", "init_uts_ns"):
        if not values.get(name) and name not in info.symbols:
            raise KernelError(f"has a damaged VMCOREINFO, without {name}")
    return info


# The kernel writes OSRELEASE first; PAGESIZE tells it from a log or a shell history.
_NOTE = re.compile(rb"OSRELEASE=[!-~]{1,64}\n(?:[^\n=\0]{1,64}=[^\n\0]{0,255}\n)+")
# VMCOREINFO_BYTES is a page.
NOTE_SIZE = 4096
_MAX_FOUND = 64


def search(blocks: Iterable[bytes]) -> list[Vmcoreinfo]:
    """What looks like VMCOREINFO in memory, the fullest first.

    ``blocks`` overlap by ``NOTE_SIZE``. There can be several: copies that the kernel
    keeps, one that was cut off, one of a kernel that ran before.
    """
    found: dict[bytes, Vmcoreinfo] = {}
    for block in blocks:
        at = block.find(b"OSRELEASE=")
        while at != -1:
            match = _NOTE.match(block, at, at + NOTE_SIZE)
            if match and b"\nPAGESIZE=" in match[0] and len(found) < _MAX_FOUND:
                with contextlib.suppress(KernelError):
                    found[match[0]] = parse(match[0])
            at = block.find(b"OSRELEASE=", match.end() if match else at + 1)
    return sorted(found.values(), key=lambda info: -len(info.values))
