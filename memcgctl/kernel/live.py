"""May the live kernel be read, and if not, why?

/proc/kcore can be missing, forbidden to this user, or forbidden to everybody by kernel
lockdown (security/lockdown/lockdown.c), and each needs another answer.
"""

from __future__ import annotations

import os
from pathlib import Path

import drgn

from memcgctl.kernel import elf, vmcoreinfo
from memcgctl.kernel.errors import KernelError, first_line
from memcgctl.kernel.symbols import Symbols, parse_text
from memcgctl.kernel.vmcoreinfo import Vmcoreinfo

KCORE = Path("/proc/kcore")
KALLSYMS = Path("/proc/kallsyms")
BTF = Path("/sys/kernel/btf/vmlinux")
LOCKDOWN = Path("/sys/kernel/security/lockdown")


def check() -> None:
    """Raises KernelError if the live kernel cannot be read."""
    try:
        with KCORE.open("rb") as file:
            if os.pread(file.fileno(), 4, 0) != elf.MAGIC:
                # Container runtimes mount /dev/null over it.
                raise KernelError(
                    f"{KCORE} is masked, as in a container: run memcgctl on the host"
                )
            elf.read(file)
    except FileNotFoundError:
        raise KernelError(
            f"{KCORE} is missing: this kernel is built without CONFIG_PROC_KCORE, or "
            "this is a container; run on the host, or read a vmcore with --core"
        ) from None
    except PermissionError:
        raise KernelError(_why_forbidden()) from None
    except OSError as error:
        raise KernelError(f"{KCORE} cannot be read: {error.strerror}") from error


def _why_forbidden() -> str:
    if os.geteuid() != 0:
        return (
            f"{KCORE} cannot be read: not root; run memcgctl as root, "
            "or read a vmcore with --core"
        )
    # Only the stricter mode has LOCKDOWN_KCORE.
    if "[confidentiality]" in _text(LOCKDOWN):
        return (
            f"{KCORE} is locked down (kernel lockdown: confidentiality): boot without "
            "lockdown=confidentiality, or read a vmcore with --core"
        )
    return (
        f"{KCORE} cannot be read: this root lacks CAP_SYS_RAWIO, as in a container; "
        "run memcgctl on the host"
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def open_live() -> tuple[drgn.Program, Vmcoreinfo]:
    """The running kernel; raises KernelError if it cannot be read."""
    check()
    prog = drgn.Program()
    try:
        prog.set_kernel()
        raw: bytes = prog["VMCOREINFO"].string_()
    except Exception as error:  # drgn has many
        raise KernelError(f"{KCORE} cannot be opened: {first_line(error)}") from error
    return prog, vmcoreinfo.parse(raw)


def read_symbols() -> Symbols | None:
    """The symbols in /proc/kallsyms, None if the kernel does not tell addresses."""
    try:
        symbols = parse_text(KALLSYMS.read_bytes())
    except (OSError, ValueError):
        return None
    # kernel.kptr_restrict=2 shows zeros, even to root.
    return symbols if symbols.find("_stext") else None
