"""Who carries out a step? A process of its own, which can be left behind.

Whatever a step touches can belong to a file system, a device or a process that never
answers; then not even SIGKILL ends who waits (state D). So the steps are done by a fork
that has neither our lock nor our output. It shows signs of life: windows that it has
done, CPU time, what the device has written. Without any for too long it is killed, or,
where it cannot be, left behind with a note, so that the next run does not wait again.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import struct
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from math import inf
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any, NoReturn, Protocol

from memcgctl.actions.host.libc import die_with_parent, set_name
from memcgctl.actions.host.machine import ActionError, Guard, read_text
from memcgctl.actions.host.target import start_ticks
from memcgctl.actions.run.signals import Signals

# How long a step may go without a sign of life: undisturbed, when it is to end (one
# signal, or --max-seconds), when somebody asks for it once more.
PATIENCE = 30.0
PATIENCE_AT_THE_END = 5.0
_KILLED_WITHIN = 2.0
_TICK = 0.25
_NAME = "memcgctl-step"
_NOTE = "left."


# From what counts signals, and from what is told that it only waits.
GuardMaker = Callable[[Callable[[], int], Callable[[], None]], Guard]
Avoid = Mapping[str, str]
_NOTHING: Avoid = {}
# What a step does, given a guard; it has to go through a pipe.
Work = Callable[[Guard], Any]


class Hangs(ActionError):
    """Something that a step waits for does not answer.

    ``device`` (major:minor) is what it waits for, where that is known.
    """

    def __init__(self, why: str, device: str = ""):
        super().__init__(f"hangs: {why}")
        self.device = device


class Failed(Exception):
    """What an error in the worker was, in words."""


class Runner(Protocol):
    """Has work done, and waits for it."""

    def run(self, work: Work, most: int | None = None, avoid: Avoid = _NOTHING) -> Any:
        """What the work returns; raises ActionError, Hangs included, or Failed."""

    def close(self) -> None:
        """Have no process any more."""


@dataclass
class Here:
    """Has work done in this process: what hangs, hangs."""

    guard: Guard

    def run(self, work: Work, most: int | None = None, avoid: Avoid = _NOTHING) -> Any:
        self.guard.most, self.guard.avoid = most, avoid
        return work(self.guard)

    def close(self) -> None:
        pass


class _Shared:
    """A page of memory that both processes see: signals one way, signs of life back."""

    _COUNTS = struct.Struct("=QQ")  # signals that came; beats
    _TEXT = slice(16, 16 + 256)

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, mmap.PAGESIZE)

    def _count(self, which: int) -> int:
        return int(self._COUNTS.unpack_from(self._page)[which])

    def signals(self) -> int:
        return self._count(0)

    def came(self, signals: int) -> None:
        struct.pack_into("=Q", self._page, 0, signals)

    def beats(self) -> int:
        return self._count(1)

    def beat(self) -> None:
        struct.pack_into("=Q", self._page, 8, self.beats() + 1)

    def note(self, doing: str, device: str = "") -> None:
        self.beat()
        text = f"{device}\0{doing}".encode(errors="surrogateescape")
        size = self._TEXT.stop - self._TEXT.start
        self._page[self._TEXT] = text[:size].ljust(size, b"\0")

    def noted(self) -> tuple[str, str]:
        """What is being done, and with which device."""
        text = os.fsdecode(bytes(self._page[self._TEXT]).rstrip(b"\0"))
        device, _, doing = text.partition("\0")
        return doing, device


@dataclass
class Worker:
    """Has work done by a fork of this process, which is made anew if it hangs.

    ``notes`` is the directory for notes of processes that are left behind.
    """

    make_guard: GuardMaker
    signals: Signals
    deadline: float | None
    notes: Path
    proc: Path = Path("/proc")
    sys: Path = Path("/sys")
    patience: float = PATIENCE
    _pid: int = 0
    _pipe: Connection | None = None
    _shared: _Shared = field(default_factory=_Shared)

    def run(self, work: Work, most: int | None = None, avoid: Avoid = _NOTHING) -> Any:
        if self._pipe is None:
            self._fork()
        assert self._pipe is not None
        self._shared.note("")
        try:
            self._pipe.send((work, most, avoid))
            self._wait(self._pipe)
            kind, answer = self._pipe.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError) as error:
            self.close()
            raise ActionError("the process that did it was killed") from error
        if kind == "done":
            return answer
        raise (ActionError if kind == "error" else Failed)(answer)

    def close(self) -> None:
        """End the process, which has nothing to do."""
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None
            _ended(self._pid)

    def _fork(self) -> None:
        self._shared = _Shared()
        self._pipe, theirs = Pipe()
        parent = os.getpid()
        with warnings.catch_warnings():
            # Python 3.12+ warns of threads: ours draw a progress bar, NumPy's wait.
            warnings.simplefilter("ignore", DeprecationWarning)
            self._pid = os.fork()
        if not self._pid:
            try:
                _serve(theirs, self._shared, self.make_guard, parent)
            finally:
                os._exit(1)
        theirs.close()

    def _wait(self, pipe: Connection) -> None:
        """Until it answers; Hangs once it has shown no sign of life for too long."""
        sign, since = self._sign(), time.monotonic()
        while not pipe.poll(_TICK):
            came = len(self.signals.came)
            self._shared.came(came)
            now = time.monotonic()
            late = self.deadline is not None and now >= self.deadline
            new = self._sign()
            if new != sign and came < 2:
                sign, since = new, now
            hurry = late or came > 0
            patience = min(self.patience, PATIENCE_AT_THE_END if hurry else inf)
            if now - since >= patience or came > 2:
                self._leave(now - since)

    def _sign(self) -> tuple[object, ...]:
        """Something else each time that it gets on."""
        stat = read_text(self.proc / str(self._pid) / "stat").rpartition(")")[2].split()
        _, device = self._shared.noted()
        written = read_text(self.sys / f"dev/block/{device}/stat") if device else ""
        # Of a block device: writes completed, sectors written, time of these.
        return self._shared.beats(), stat[11:15], written.split()[4:7]

    def _leave(self, seconds: float) -> NoReturn:
        """Kill it; what cannot be killed stays, and is told of to the next run."""
        doing, device = self._shared.noted()
        wchan = read_text(self.proc / str(self._pid) / "wchan")
        where = f" ({wchan})" if wchan.strip("0") else ""
        why = f"{doing or 'the step'} for {seconds:.0f} s{where}"
        started = start_ticks(self._pid, self.proc)
        assert self._pipe is not None
        self._pipe.close()
        self._pipe = None
        if _ended(self._pid):
            raise Hangs(why, device)
        leave_note(self.notes, self._pid, started, doing, device)
        raise Hangs(f"{why}; pid {self._pid} is left behind", device)


def _serve(pipe: Connection, shared: _Shared, make: GuardMaker, parent: int) -> None:
    """Do what comes, until nobody is there any more to send it."""
    _be_alone(pipe.fileno())
    if os.getppid() != parent:  # before we asked to die with it
        return
    guard = make(shared.signals, shared.beat)
    guard.note = shared.note
    while True:
        try:
            work, guard.most, guard.avoid = pipe.recv()
        except EOFError:
            os._exit(0)
        try:
            answer = "done", work(guard)
        except ActionError as error:
            answer = "error", str(error)
        except Exception as error:  # one odd process is not to end all the rest
            answer = "failed", words_of(error)
        pipe.send(answer)


def _be_alone(keep: int) -> None:
    """Have nothing of our parent's but its memory: no lock, no output, no terminal.

    Who waits for the end of our parent's output would wait for ours.
    """
    os.setsid()
    die_with_parent()
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(nothing, fd)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) != keep:
            with suppress(OSError):  # of the listing itself
                os.close(int(name))
    set_name(_NAME)


def _ended(pid: int) -> bool:
    """Kill a child of ours; False: it is not to be killed."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + _KILLED_WITHIN
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def words_of(error: Exception) -> str:
    """What a person reads of an error that a step ended with."""
    if isinstance(error, (ActionError, Failed)):
        return str(error)
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return f"internal error: {type(error).__name__}: {error}"


# --- who was left behind --------------------------------------------------------------


@dataclass(frozen=True)
class Left:
    """A process of an earlier run that hangs still, doing this with this device."""

    pid: int
    doing: str
    device: str


def leave_note(
    notes: Path, pid: int, started: int | None, doing: str, device: str
) -> None:
    facts = {"pid": pid, "started": started, "doing": doing, "device": device}
    with suppress(OSError):  # without it the next run finds out for itself
        fd = os.open(
            notes / f"{_NOTE}{pid}",
            os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC,
            0o600,
        )
        with open(fd, "w") as file:
            json.dump(facts, file)


def left_behind(notes: Path, proc: Path = Path("/proc")) -> list[Left]:
    """Who was left behind and is there still; notes of others are removed."""
    found = []
    for path in sorted(notes.glob(f"{_NOTE}*")):
        with suppress(OSError, ValueError, KeyError, TypeError):
            facts = json.loads(path.read_text(errors="replace"))
            started = start_ticks(int(facts["pid"]), proc)
            if started is not None and started == facts["started"]:
                one = Left(int(facts["pid"]), f"{facts['doing']}", f"{facts['device']}")
                found.append(one)
                continue
        with suppress(OSError):
            path.unlink()
    return found
