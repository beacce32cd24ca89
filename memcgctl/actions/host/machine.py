"""What is the running host, what may we do on it, and what do actions hand around?

Facts come from /proc (mounts, meminfo, self/status, sys/kernel), /sys (lockdown) and
``uname``, read once. Actions get them with a ``Guard``, which says how fast they may
go and when to stop, and answer with an ``Outcome`` or an ``ActionError``.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from memcgctl.model import Step, Target

T = TypeVar("T", bound=Target)


class ActionError(Exception):
    """An action was not carried out, or only in part: one line that says why."""


@dataclass(frozen=True)
class Mount:
    """A mount of this mount namespace; ``device`` is ``major:minor``.

    ``root`` is what of the file system is mounted, ``parent`` the id of the mount that
    it is on.
    """

    id: int
    device: str
    root: str
    point: str
    fs: str
    options: frozenset[str]
    super_options: frozenset[str]
    parent: int = 0

    @property
    def read_only(self) -> bool:
        return "ro" in self.options or "ro" in self.super_options


# include/uapi/linux/capability.h: those that some action needs.
CAPABILITIES = {
    "dac_override": 1,
    "dac_read_search": 2,
    "sys_rawio": 17,
    "sys_ptrace": 19,
    "sys_admin": 21,
    "sys_nice": 23,
    "checkpoint_restore": 40,
}


@dataclass(frozen=True)
class SwapDevice:
    """A zram device of ours as it was written down: number, size, its header's UUID."""

    number: int
    size: int
    uuid: str

    @property
    def name(self) -> str:
        return f"/dev/zram{self.number}"


@dataclass(frozen=True)
class Machine:
    """The facts of the running host that decide what can be done.

    ``cgroup1`` and ``cgroup2`` are the mounts of the memory controller's hierarchy (of
    v2: of the unified one), None where there is none. ``cpus`` are those that are
    online, ``capabilities`` the effective ones, by the names in ``CAPABILITIES``.
    ``lockdown`` is none, integrity or confidentiality, None where the kernel has no
    lockdown. Swap is None where /proc/meminfo cannot be read. ``proc``, ``sys`` and
    ``dev`` are where these file systems are. ``transit`` is the swap device that a run
    has made for itself.
    """

    release: str
    page_size: int
    cpus: frozenset[int]
    mounts: tuple[Mount, ...]
    cgroup1: Mount | None
    cgroup2: Mount | None
    swap_total_bytes: int | None
    swap_free_bytes: int | None
    euid: int
    capabilities: frozenset[str]
    lockdown: str | None
    proc: Path = Path("/proc")
    sys: Path = Path("/sys")
    dev: Path = Path("/dev")
    transit: SwapDevice | None = None

    @property
    def cgroup(self) -> Mount | None:
        """Where memcgs are: v1 if the memory controller is there, or else v2."""
        return self.cgroup1 or self.cgroup2

    def lacks(self, *capabilities: str) -> str | None:
        """A few words if a capability is missing."""
        missing = [one for one in capabilities if one not in self.capabilities]
        names = [f"CAP_{name.upper()}" for name in missing]
        return f"needs {' and '.join(names)}" if names else None

    def lacks_swap(self) -> str | None:
        """A few words if no swap is known to be switched on."""
        if self.swap_total_bytes is None:
            return "whether there is swap cannot be read"
        return None if self.swap_total_bytes else "no swap is switched on"


def read_machine(
    proc: Path = Path("/proc"), sys: Path = Path("/sys"), dev: Path = Path("/dev")
) -> Machine:
    """Look at the host. Mounts and capabilities that cannot be read are not there."""
    mounts = read_mounts(proc)
    swap = meminfo(proc)
    # One of the whole hierarchy first: paths are those below its root.
    whole = sorted(mounts, key=lambda mount: mount.root != "/")
    v1 = [m for m in whole if m.fs == "cgroup" and "memory" in m.super_options]
    v2 = [m for m in whole if m.fs == "cgroup2"]
    return Machine(
        release=os.uname().release,
        page_size=os.sysconf("SC_PAGE_SIZE"),
        cpus=_online(read_text(sys / "devices/system/cpu/online")),
        mounts=mounts,
        cgroup1=v1[0] if v1 else None,
        cgroup2=v2[0] if v2 else None,
        swap_total_bytes=swap.get("SwapTotal"),
        swap_free_bytes=swap.get("SwapFree"),
        euid=os.geteuid(),
        capabilities=_capabilities(read_text(proc / "self/status")),
        lockdown=_lockdown(read_text(sys / "kernel/security/lockdown")),
        proc=proc,
        sys=sys,
        dev=dev,
    )


def read_text(path: Path) -> str:
    """A file of /proc or /sys; empty if it is not there or not for us."""
    try:
        return os.fsdecode(path.read_bytes())
    except OSError:
        return ""


def no_room(size: int, machine: Machine, *, swap: bool) -> str:
    """Why there is none for that many bytes, by /proc/meminfo; empty: there is."""
    where, line = ("swap", "SwapFree") if swap else ("memory", "MemAvailable")
    free = meminfo(machine.proc).get(line)
    if free is None:
        return f"whether there is room in {where} cannot be read"
    return f"no room in {where}" if free < size else ""


def meminfo(proc: Path) -> dict[str, int]:
    """/proc/meminfo in bytes; nothing if it cannot be read."""
    lines = re.findall(r"^(\S+):\s+(\d+) kB$", read_text(proc / "meminfo"), re.M)
    return {name: int(size) * 1024 for name, size in lines}


def read_mounts(proc: Path, pid: int | str = "self") -> tuple[Mount, ...]:
    """The mounts of a process's mount namespace, the oldest first."""
    found = []
    # Only blanks, tabs and newlines are escaped: no splitlines(), no split().
    for line in read_text(proc / f"{pid}/mountinfo").split("\n"):
        before, _, after = line.partition(" - ")
        first, last = before.split(" "), after.split(" ")
        with suppress(IndexError, ValueError):
            found.append(
                Mount(
                    id=int(first[0]),
                    device=first[2],
                    root=_unescape(first[3]),
                    point=_unescape(first[4]),
                    fs=last[0],
                    options=frozenset(first[5].split(",")),
                    super_options=frozenset(last[2].split(",")),
                    parent=int(first[1]),
                )
            )
    return tuple(found)


def _unescape(text: str) -> str:
    """mountinfo has blanks and backslashes in octal (``mangle_path``)."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _capabilities(status: str) -> frozenset[str]:
    found = re.search(r"^CapEff:\s+([0-9a-f]+)$", status, re.M)
    bits = int(found[1], 16) if found else 0
    return frozenset(name for name, bit in CAPABILITIES.items() if bits >> bit & 1)


def _online(text: str) -> frozenset[int]:
    """The CPUs of a list like 0-3,8; our own where there is none."""
    spans = [part.partition("-") for part in text.strip().split(",") if part]
    if not spans:
        return frozenset(os.sched_getaffinity(0))
    return frozenset(
        cpu
        for first, _, last in spans
        for cpu in range(int(first), int(last or first) + 1)
    )


def _lockdown(text: str) -> str | None:
    found = re.search(r"\[(\w+)\]", text)
    return found[1] if found else None


def aim(step: Step, kind: type[T]) -> T:
    """What a step acts on, if it is of the kind that its action is for."""
    if not isinstance(step.aim, kind):
        raise ActionError(f"{step.target}: nothing that {step.action} can act on")
    return step.aim


@dataclass(frozen=True)
class Outcome:
    """What an action did: bytes that it moved, None where it cannot tell.

    ``left`` says in a few words what it could not do; empty: it did all. ``waiting``
    are page frames in the swap cache that are let go of after the last step.
    """

    bytes: int | None
    left: str = ""
    waiting: tuple[int, ...] = ()


@dataclass
class Guard:
    """How fast an action may go, and when it is to end.

    ``rate`` is in bytes a second, ``deadline`` of ``time.monotonic``, ``calm`` waits
    until the machine is not under pressure and returns False if that is too late,
    ``stop`` says that nobody wants to wait any longer. ``most`` is how many bytes the
    step may move, which can find more than the plan knew of; None: any. ``note`` is
    told what is done next that may not answer, and with which device (major:minor);
    ``avoid`` are devices that did not answer, and since when. ``make_room``
    makes room for so many bytes in the run's own swap device, where that is used.
    """

    rate: int | None = None
    deadline: float | None = None
    stop: Callable[[], bool] = lambda: False
    calm: Callable[[], bool] = lambda: True
    sleep: Callable[[float], None] = time.sleep
    most: int | None = None
    note: Callable[[str, str], None] = lambda doing, device: None
    avoid: Mapping[str, str] = field(default_factory=dict)
    make_room: Callable[[int], bool] | None = None
    _ready: float = field(default=0.0, repr=False)

    def allows(self, size: int) -> bool:
        """Wait until ``size`` more bytes may be moved; False: end here.

        Called between the windows that an action works in.
        """
        late = self.deadline is not None and time.monotonic() >= self.deadline
        self.note("", "")
        if late or self.stop() or not self.calm():
            return False
        now = time.monotonic()
        if self.rate:
            if self._ready > now:
                self.sleep(self._ready - now)
            self._ready = max(self._ready, now) + size / self.rate
        if self.stop():
            return False
        return self.make_room is None or self.make_room(size)

    def afford(self, size: int, target: str) -> None:
        """ActionError if that is more than may be moved."""
        if self.most is not None and size > self.most:
            raise ActionError(
                f"{target}: {size} bytes are more than --max-bytes leaves"
            )


ENDED = "it was stopped before the end"
