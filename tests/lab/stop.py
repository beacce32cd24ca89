"""Stops a guest where its kernel enters a function: for a core of that very moment.

Speaks the few words of GDB's remote protocol that QEMU needs for a breakpoint.
"""

from __future__ import annotations

import socket
import tempfile

from tests.lab.guest import Guest, GuestError

# So many seconds pass before a script begins that a breakpoint waits for.
HEAD_START = 2


def stop_at(guest: Guest, function: str, script: str) -> None:
    """Run ``script`` in the background; return with the guest stopped in ``function``.

    The guest runs no further. Raises GuestError if it does not come there.
    """
    symbols = guest.sh(f"grep ' {function}$' /proc/kallsyms").split()
    guest.sh(f"(sleep {HEAD_START}; {script}) > /dev/null 2>&1 &")
    with (
        tempfile.TemporaryDirectory(prefix="memcgctl-lab-") as directory,
        socket.socket(socket.AF_UNIX) as gdb,
    ):
        path = f"{directory}/gdb"
        command = {"command-line": f"gdbserver unix:{path},server=on,wait=off"}
        guest.qmp("human-monitor-command", **command)
        gdb.settimeout(60)
        gdb.connect(path)  # the guest stops here
        try:
            say(gdb, f"Z0,{symbols[0]},1")
            expect(gdb, b"OK")
            say(gdb, "c")
            expect(gdb, b"T05")  # SIGTRAP
        except (TimeoutError, ConnectionError) as error:
            raise GuestError(f"the kernel did not come to {function}") from error


def say(gdb: socket.socket, packet: str) -> None:
    gdb.sendall(f"${packet}#{sum(packet.encode()) % 256:02x}".encode())


def expect(gdb: socket.socket, answer: bytes) -> None:
    """Read packets until one begins with ``answer``."""
    data = b""
    while b"$" + answer not in data:
        part = gdb.recv(4096)
        if not part:
            raise ConnectionError
        data += part
        gdb.sendall(b"+" * part.count(b"#"))
