"""Which machine is this kernel of, and what time is it there?

Reads ``init_uts_ns``, ``sysctl_bootid`` and the timekeeper's wall clock, which a core
keeps as they were when it was taken.
"""

from __future__ import annotations

import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import drgn

from memcgctl.kernel.layout import has_member, offset_of, size_of

if TYPE_CHECKING:
    from memcgctl.kernel.program import OpenedKernel

# Clocks that are not set show the epoch; memcgs are younger (2008).
_OLDEST, _YOUNGEST = 1.2e9, 1e10


class Host(NamedTuple):
    """A machine and a moment of it; None where the kernel does not tell.

    ``name`` is the host's name (``uname -n``), ``boot_id`` the kernel's random one,
    which it makes when it is first asked for, ``time`` its wall clock in seconds since
    the epoch, up to a tick behind. ``machine_id`` is systemd's, of a running one.
    """

    name: str | None
    boot_id: str | None
    machine_id: str | None
    time: float | None


def read_host(kernel: OpenedKernel) -> Host:
    """The machine that the kernel runs, or ran, on."""
    if kernel.kind != "live":
        return Host(_name(kernel), _boot_id(kernel), None, _time(kernel))
    boot_id = _line("/proc/sys/kernel/random/boot_id")
    machine_id = _line("/proc/1/root/etc/machine-id", "/etc/machine-id")
    return Host(_name(kernel), boot_id, machine_id, time.time())


def _line(*paths: str) -> str | None:
    """The first line of the first of these files that has one."""
    for path in paths:
        try:
            if line := Path(path).read_text(errors="replace").partition("\n")[0]:
                return line[:64]
        except OSError:
            continue
    return None


def _name(kernel: OpenedKernel) -> str | None:
    try:
        at = offset_of(kernel.prog, "struct uts_namespace", "name.nodename")
        data = kernel.memory.read(kernel.symbol("init_uts_ns") + at, 65)
    except (LookupError, drgn.FaultError):
        return None
    name, end, _ = data.partition(b"\0")
    if not end or name in (b"", b"(none)"):  # UTS_NODENAME: it was never set
        return None
    return name.decode(errors="surrogateescape")


def _boot_id(kernel: OpenedKernel) -> str | None:
    try:
        data = kernel.memory.read(kernel.symbol("sysctl_bootid"), 16)
    except (LookupError, drgn.FaultError):
        return None
    return str(uuid.UUID(bytes=data)) if any(data) else None


def _time(kernel: OpenedKernel) -> float | None:
    try:
        keeper = _timekeeper(kernel)
        fields = ("xtime_sec", "tkr_mono.xtime_nsec")
        seconds, fraction = (
            int.from_bytes(kernel.memory.read(keeper + _at(kernel, path), 8), "little")
            for path in fields
        )
        shift = kernel.memory.read(keeper + _at(kernel, "tkr_mono.shift"), 4)
    except (LookupError, drgn.FaultError):
        return None
    now = seconds + (fraction >> min(int.from_bytes(shift, "little"), 63)) / 1e9
    return now if _OLDEST < now < _YOUNGEST else None


def _at(kernel: OpenedKernel, path: str) -> int:
    return offset_of(kernel.prog, "struct timekeeper", path)


def _timekeeper(kernel: OpenedKernel) -> int:
    """The address of the ``struct timekeeper`` of CLOCK_REALTIME."""
    try:
        # An array of them, this one first, in newer kernels (seen in 7.3).
        core = kernel.symbol("timekeeper_data")
    except LookupError:
        core = kernel.symbol("tk_core")
    # Since Linux kernel commit 206db8b13619 ("timekeeping: Define a struct type for
    # tk_core to make it reusable") (in v6.13).
    if has_member(kernel.prog, "struct tk_data", "timekeeper"):
        return core + offset_of(kernel.prog, "struct tk_data", "timekeeper")
    # Before, a structure without a name: a sequence counter, aligned, before it.
    counter: int = size_of(kernel.prog, "seqcount_raw_spinlock_t")
    return core + (counter + 7) // 8 * 8
