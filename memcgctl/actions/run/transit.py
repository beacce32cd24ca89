"""The swap device that a run makes for the transit, and the one that a run left behind.

It is written down before it is made and until it is removed, beside the lock, which
lasts as long as the machine is up, as the device does: whatever ends a run in between,
the next one (or ``reclaim --finish``) brings back what is in it and removes it.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from memcgctl.actions.host import swapcache, zram
from memcgctl.actions.host.machine import ActionError, Guard, Machine, SwapDevice
from memcgctl.actions.run.journal import Journal, lock_path, open_directory, open_file
from memcgctl.actions.run.lock import locked
from memcgctl.actions.run.pace import Limits, Pace
from memcgctl.actions.run.signals import Signals, noted
from memcgctl.actions.run.worker import Runner, Worker, words_of

ACTION = "temp-swap"
_NOTE = "temp-swap"
# A device is that much larger than what is to be in it: the header, and entries that
# each CPU keeps for itself (a cluster, SWAPFILE_CLUSTER pages, and a cache of free
# ones). What is never written takes no memory.
_SPARE, _SPARE_A_CPU = 4 << 20, 4 << 20
# At least a window of what is paged out at once (``pageout``, ``pageout_file``).
LEAST = 16 << 20


@dataclass(frozen=True)
class Note:
    """What was written down of a device; ``number`` is None before it is made."""

    uuid: str
    size: int
    boot_id: str
    number: int | None = None

    @property
    def device(self) -> SwapDevice | None:
        return (
            None
            if self.number is None
            else SwapDevice(self.number, self.size, self.uuid)
        )


@dataclass
class Transit:
    """The device of one run, made when the first step needs it."""

    notes: Path
    journal: Journal
    worker: Runner
    signals: Signals
    machine: Machine
    device: SwapDevice | None = None
    why: str = ""

    def begin(self, needed: int) -> None:
        """Make a device for ``needed`` bytes, or for as much as memory allows at once.

        Raises ActionError, and then every time.
        """
        if self.device or self.why:
            if self.why:
                raise ActionError(self.why)
            return
        try:
            self._make(needed)
        except ActionError as error:
            self.why = str(error)
            raise

    def _make(self, needed: int) -> None:
        room = zram.room_for(self.machine)
        if room is None:
            raise ActionError("how much memory is free cannot be read")
        portion = min(needed, room)
        if portion < min(LEAST, needed):
            raise ActionError("too little memory is free for a swap device in memory")
        machine = self.machine
        if 0x7FFF in zram.swap_priorities(machine):
            raise ActionError("something is swapped to with the highest priority")
        size = portion + _SPARE + _SPARE_A_CPU * len(machine.cpus)
        note = Note(uuid.uuid4().hex, size // (1 << 20) << 20, _boot_id(machine))
        self.journal.write("transit", state="planned", uuid=note.uuid, size=note.size)
        _write(self.notes, note)
        self.worker.run(partial(_load, machine))
        number = self.worker.run(partial(_add, machine))
        note = Note(note.uuid, note.size, note.boot_id, number)
        _write(self.notes, note)
        self.device = note.device
        assert self.device
        self.journal.write("transit", state="made", **asdict(self.device))
        self.worker.run(partial(_switch_on, self.device, machine))
        self.journal.write("transit", state="on", **asdict(self.device))

    def end(self) -> str:
        """Bring back what is in it and remove it; why that could not be done."""
        if self.device is None:
            return ""
        self.device = None
        self.why = self.why or "its device is removed already"
        with patient(self.notes, self.signals, self.machine) as worker:
            return finish(self.notes, self.journal, worker, self.machine).why


@dataclass(frozen=True)
class Finished:
    """What was found of an earlier run's device: its name, and why it stays, if so."""

    name: str = ""
    why: str = ""
    bytes: int = 0


def found(machine: Machine, notes: Path | None = None) -> tuple[SwapDevice, str] | None:
    """A device that a run left, and its state (``zram.state``); None: there is none.

    Raises ActionError if that cannot be told.
    """
    note = _read(notes or lock_path().parent)
    if note is None or note.boot_id != _boot_id(machine) or note.device is None:
        return None
    state = zram.state(note.device, machine)
    return None if state in ("gone", "not ours") else (note.device, state)


def finish(notes: Path, journal: Journal, worker: Runner, machine: Machine) -> Finished:
    """Bring back what is in the device that is written down, and remove it."""
    try:
        left = found(machine, notes)
        size = left and zram.used(left[0], machine)
    except ActionError as error:
        return Finished(why=str(error))
    if left is None:
        _forget(notes)
        return Finished()
    device, state = left
    why = ""
    with suppress(ActionError):  # without a journal it has to come back all the same
        journal.write("transit", state="removing", **asdict(device))
    try:
        worker.run(partial(_remove, device, state, machine))
        _forget(notes)
    except Exception as error:
        why = f"{words_of(error)}; memcgctl reclaim --finish tries again"
    with suppress(ActionError):
        done = "left" if why else "removed"
        journal.write("transit", state=done, **asdict(device), why=why)
    return Finished(device.name, why, size or 0)


def finish_alone(journal: Path, machine: Machine, lock: Path | None = None) -> Finished:
    """``finish`` as a run of its own; raises Locked if another is at work."""
    with (
        locked(lock) as notes,
        Journal(journal) as book,
        noted() as signals,
        patient(notes, signals, machine) as worker,
    ):
        return finish(notes, book, worker, machine)


@contextmanager
def patient(notes: Path, signals: Signals, machine: Machine) -> Iterator[Runner]:
    """A worker that signals of before do not hurry: what is away has to come back."""
    pace = Pace(Limits(), None, machine.proc)
    worker = Worker(pace.guard, _Later(signals), None, notes)
    with closing(worker):
        yield worker


class _Later(Signals):
    """Only the signals from now on."""

    def __init__(self, signals: Signals):
        self._all, self._before = signals, len(signals.came)
        super().__init__()

    @property
    def came(self) -> list[str]:
        return self._all.came[self._before :]

    @came.setter
    def came(self, value: list[str]) -> None:
        pass


def _load(machine: Machine, guard: Guard) -> None:
    zram.load(machine)


def _add(machine: Machine, guard: Guard) -> int:
    return zram.add(machine)


def _switch_on(device: SwapDevice, machine: Machine, guard: Guard) -> None:
    others = bool(zram.swap_priorities(machine))
    zram.switch_on(device, machine)
    if others:  # what CPUs keep of a disk's entries would be used first
        swapcache.use_up_slots(machine, 2 * swapcache.SWAPFILE_CLUSTER)


def _remove(device: SwapDevice, state: str, machine: Machine, guard: Guard) -> None:
    if state == "on":
        zram.take_back(device, machine)
    zram.remove(device, machine)


def _boot_id(machine: Machine) -> str:
    path = machine.proc / "sys/kernel/random/boot_id"
    try:
        return path.read_text().strip()
    except OSError as error:
        raise ActionError(f"{path} cannot be read: {error.strerror}") from error


def _read(notes: Path) -> Note | None:
    """The note; None where there is none. Raises ActionError if it is not to trust."""
    try:
        directory = open_directory(notes)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ActionError(f"{notes}: {error.strerror}") from error
    try:
        fd = open_file(notes / _NOTE, os.O_RDONLY, directory)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ActionError(f"{notes / _NOTE}: {error.strerror}") from error
    finally:
        os.close(directory)
    with open(fd, encoding="ascii", errors="replace") as file:
        try:
            return _parsed(json.loads(file.read(4096)))
        except (ValueError, TypeError, KeyError) as error:
            raise ActionError(f"{notes / _NOTE} is damaged: {error}") from error


def _parsed(facts: dict[str, object]) -> Note:
    number = facts["number"]
    if not (number is None or isinstance(number, int)):
        raise ValueError("its number is none")
    size, identity = facts["size"], facts["uuid"]
    if not isinstance(size, int) or not isinstance(identity, str):
        raise ValueError("no size or UUID")
    return Note(identity, size, str(facts["boot_id"]), number)


def _write(notes: Path, note: Note) -> None:
    """Whole or not at all."""
    path = notes / f"{_NOTE}.new"
    try:
        with suppress(FileNotFoundError):
            path.unlink()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(path, flags, 0o600), "w") as file:
            json.dump(asdict(note), file)
        path.rename(notes / _NOTE)
    except OSError as error:
        raise ActionError(f"{notes / _NOTE}: {error.strerror}") from error


def _forget(notes: Path) -> None:
    with suppress(OSError):
        (notes / _NOTE).unlink()
