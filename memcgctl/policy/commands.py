"""What would a person type to do what a step does?

Every command works as it stands in a root shell (bash, dash, zsh or busybox), and is
ASCII whatever the names in it are. Where a shell has no word for a step, it is
memcgctl's own (``interfaces.common.only``).
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable


def quote(text: str) -> str:
    """``text`` as one word of a shell, in ASCII.

    What a terminal would not show comes from ``printf``, as dash has no ``$'…'``: it
    would end that word at an escaped quote, and run the rest. But for a newline at the
    end, which ``$(…)`` does not keep: that is for bash, zsh and busybox, and no quote
    is in it.
    """
    if text.isascii() and text.isprintable():
        return shlex.quote(text)
    raw = text.encode("utf-8", "surrogateescape")
    if raw.endswith(b"\n"):
        return "$'" + "".join(f"\\x{byte:02x}" for byte in raw) + "'"
    plain = (f"\\{byte:03o}" if _special(byte) else chr(byte) for byte in raw)
    return f"\"$(printf '{''.join(plain).replace('%', '%%')}')\""


def _special(byte: int) -> bool:
    return not 0x20 <= byte < 0x7F or chr(byte) in "\\'-"


def file_of(pid: int, inode: int) -> str:
    """A word that opens a file without a path: by a process that uses it."""
    where = f"/proc/{pid}/fd /proc/{pid}/map_files"
    # Not deeper: a process can have the root directory open.
    return f'"$(find -L {where} -maxdepth 1 -inum {inode} -print -quit)"'


def sync(devices: Iterable[str] | None = None) -> str:
    """As ``actions.sync``: each file system of a disk for itself, or these alone.

    ``sync`` alone would wait for network file systems and FUSE, too. Of what is mounted
    at one mount point, the last.
    """
    disks = "/ - btrfs /||$3!~/^0:/&&!/ - fuse/"
    if devices is not None:
        disks = f"$3~/^({'|'.join(devices)})$/"
    return (
        f"awk '{{t[$5]={disks}}}END{{for(m in t)if(t[m])print m}}' "
        """/proc/self/mountinfo|while read -r m;do sync -f "$(printf %b "$m")";done"""
    )
