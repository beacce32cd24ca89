"""The machines that QEMU emulates for the lab: one row an architecture."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Arch:
    """What differs between guests; ``agent`` is the device that guest.c talks by."""

    name: str
    qemu: tuple[str, ...]
    # Neither has more than what the emulation of QEMU 7.2 does without faults.
    cpu: str
    console: str
    agent: str
    agent_device: tuple[str, ...]
    compiler: str
    modules: tuple[str, ...] = ()


AMD64 = Arch(
    "amd64",
    ("qemu-system-x86_64",),
    "qemu64",
    "ttyS0",
    "/dev/ttyS1",
    ("-serial", "chardev:agent"),
    "cc",
)
# Graviton 2 and Altra: 48 bits of address, pages of 4, 16 and 64 KiB. The machine has
# one serial line, which is the console's.
ARM64 = Arch(
    "arm64",
    ("qemu-system-aarch64", "-M", "virt,gic-version=3"),
    "neoverse-n1",
    "ttyAMA0",
    "/dev/vport0p1",
    (
        *("-device", "virtio-serial-pci,bus=pcie.0"),
        *("-device", "virtserialport,chardev=agent,name=agent"),
    ),
    "aarch64-linux-gnu-gcc",
    ("virtio_console", "crc32c_generic", "ext4"),
)
# What --arch takes: with pages of 16 KiB it is another kernel of the same machine.
CHOICES = ("amd64", "arm64", "arm64-16k")


def series_of(kernel: str, choice: str) -> str:
    """``6.12`` and ``arm64-16k`` are the series ``6.12-arm64-16k``."""
    return kernel if choice == "amd64" else f"{kernel}-{choice}"
