"""What would a person type to do what a step does?

Every command works as it stands in a root shell (bash, zsh or busybox), and is ASCII
whatever the names in it are. Where a shell has no word for a step, it is memcgctl's own
(``interfaces.common.only``).
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable


def quote(text: str) -> str:
    """``text`` as one word of a shell, in ASCII."""
    if text.isascii() and text.isprintable():
        return shlex.quote(text)
    escaped = "".join(
        f"\\x{byte:02x}" if not 0x20 <= byte < 0x7F else _plain(chr(byte))
        for byte in text.encode("utf-8", "surrogateescape")
    )
    return f"$'{escaped}'"


def _plain(char: str) -> str:
    return f"\\{char}" if char in "\\'" else char


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
