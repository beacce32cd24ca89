"""A kernel booted in QEMU, the commands run in it, and its memory written out.

The guest's memory is dumped over QMP. Commands travel over the second serial line to
the agent in guest.c, which runs them one at a time.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from tests.lab import initramfs
from tests.lab.arch import AMD64, Arch
from tests.lab.packages import Kernel


def encode(text: str) -> bytes:
    """Kernel names are bytes; those that are not UTF-8 are surrogates in a str."""
    return text.encode("utf-8", "surrogateescape")


def decode(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


class GuestError(Exception):
    """The guest, or a command in it, failed; the text says which and how."""


@dataclass(frozen=True)
class Machine:
    """What QEMU is asked to emulate."""

    memory: str = "160M"
    smp: str = "2"
    arch: Arch = AMD64
    cpu: str = AMD64.cpu
    cmdline: str = ""
    # by name; /dev/disk/NAME in the guest
    disks: Mapping[str, Path] = field(default_factory=dict)
    modules: tuple[str, ...] = ()
    qemu: tuple[str, ...] = ()
    vmcoreinfo: bool = True


@dataclass
class Guest:
    """A running guest. All methods raise GuestError when it is gone."""

    process: subprocess.Popen[bytes]
    agent: socket.socket
    monitor: socket.socket
    console: Path
    replies: Any = field(init=False)

    def __post_init__(self) -> None:
        self.replies = self.monitor.makefile("rb")
        self.replies.readline()
        self.qmp("qmp_capabilities")

    def qmp(self, command: str, **arguments: object) -> Any:
        request = {"execute": command, "arguments": arguments}
        self.monitor.sendall(json.dumps(request).encode())
        for line in self.replies:
            reply = json.loads(line)
            if "error" in reply:
                raise GuestError(f"{command}: {reply['error']['desc']}")
            if "return" in reply:
                return reply["return"]
        raise GuestError(f"{command}: QEMU is gone")

    def receive(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            part = self.agent.recv(size - len(data))
            if not part:
                tail = self.console.read_text(errors="replace")[-2000:]
                raise GuestError(f"the guest is gone; its console ends with:\n{tail}")
            data += part
        return bytes(data)

    def call(self, *argv: str) -> tuple[int, bytes]:
        """Exit status and output (stdout and stderr together) of a command."""
        request = b"".join(encode(word) + b"\0" for word in argv)
        self.agent.sendall(struct.pack("<I", len(request)) + request)
        status, size = struct.unpack("<II", self.receive(8))
        return status, self.receive(size)

    def run(self, *argv: str) -> bytes:
        """Output of a command that must succeed."""
        status, output = self.call(*argv)
        if status:
            raise GuestError(f"{argv} exited with {status}: {output!r}")
        return output

    def sh(self, script: str) -> str:
        return decode(self.run("sh", "-ec", script))

    def read(self, path: str) -> str:
        return self.files([path])[0][1]

    @cached_property
    def page_size(self) -> int:
        return int(self.run("lab", "page"))

    def write(self, path: str, text: str) -> None:
        self.run("sh", "-c", 'printf %s "$2" > "$1"', "sh", path, text)

    def files(self, paths: Sequence[str]) -> list[tuple[int, str]]:
        """Inode number and text of each file; (0, "") where there is none."""
        output = self.run("lab", "files", *paths)
        result, at = [], 0
        for _ in paths:
            end = output.index(b"\n", at)
            inode, size = map(int, output[at:end].split())
            at = end + 1 + size
            result.append((inode, decode(output[end + 1 : at])))
        return result

    def dump(self, path: Path, **arguments: object) -> None:
        """Write guest memory to ``path``: an ELF core unless ``format`` is given."""
        arguments = {"paging": False, **arguments}
        self.qmp("dump-guest-memory", protocol=f"file:{path}", **arguments)


def qemu_command(
    machine: Machine, vmlinuz: Path, initrd: Path, directory: Path
) -> list[str]:
    arch = machine.arch
    command = [*arch.qemu, "-accel", "tcg,thread=multi"]
    command += ["-m", machine.memory, "-smp", machine.smp, "-cpu", machine.cpu]
    command += ["-display", "none", "-nodefaults", "-no-reboot"]
    command += ["-kernel", str(vmlinuz), "-initrd", str(initrd)]
    cmdline = f"console={arch.console} quiet panic=-1 {machine.cmdline}"
    command += ["-append", cmdline.strip()]
    command += ["-serial", f"file:{directory}/console"]
    command += ["-chardev", f"socket,id=agent,path={directory}/agent"]
    command += arch.agent_device
    command += ["-qmp", f"unix:{directory}/qmp"]
    if machine.vmcoreinfo:
        command += ["-device", "vmcoreinfo"]
    for name, path in machine.disks.items():
        # A snapshot, so that several guests can have one image: writes are lost.
        drive = f"file={path},if=none,id={name},format=raw,cache=unsafe,snapshot=on"
        device = f"virtio-blk-pci,drive={name},serial={name}"
        command += ["-drive", drive, "-device", device]
    return [*command, *machine.qemu]


def accept(listener: socket.socket, process: subprocess.Popen[bytes]) -> socket.socket:
    listener.settimeout(1)
    while True:
        with contextlib.suppress(TimeoutError):
            connection = listener.accept()[0]
            connection.settimeout(600)
            return connection
        if process.poll() is not None:
            raise GuestError(f"QEMU exited with {process.returncode}")


@contextlib.contextmanager
def boot(kernel: Kernel, machine: Machine) -> Iterator[Guest]:
    """Boot a kernel on a machine of its kind; the guest ends with the block."""
    if kernel.arch is not AMD64:
        machine = replace(machine, arch=kernel.arch, cpu=kernel.arch.cpu)
    vmlinuz = next(kernel.path.rglob("vmlinuz*"))
    with tempfile.TemporaryDirectory(prefix="memcgctl-lab-") as name:
        directory = Path(name)
        initrd = initramfs.build(kernel.path, directory, machine.modules, machine.arch)
        with contextlib.ExitStack() as stack:
            listeners = []
            for path in ["agent", "qmp"]:
                listener = stack.enter_context(socket.socket(socket.AF_UNIX))
                listener.bind(str(directory / path))
                listener.listen()
                listeners.append(listener)
            command = qemu_command(machine, vmlinuz, initrd, directory)
            process = stack.enter_context(subprocess.Popen(command))
            stack.callback(process.kill)
            agent, monitor = (accept(listener, process) for listener in listeners)
            guest = Guest(process, agent, monitor, directory / "console")
            while guest.receive(1) != b"\n":
                pass  # the agent says "LAB\n" once its line is raw
            yield guest
