"""Is another run at work? One file is locked for as long as a run acts."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from memcgctl.actions.host.machine import ActionError
from memcgctl.actions.run.journal import lock_path, open_directory, open_file


class Locked(ActionError):
    """Another run is at work."""


def must_be_alone(lock: Path | None = None) -> None:
    """Raise Locked if another run is at work now; nothing is locked after that.

    Raises ActionError if somebody else could keep us from it.
    """
    path = lock or lock_path()
    with suppress(OSError):  # of what is wrong with it the run itself tells
        fd = _open(path, os.O_RDONLY)
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise _held(path, fd) from error
        finally:
            os.close(fd)


def _open(path: Path, flags: int) -> int:
    """Raises ActionError unless the lock is ours or root's alone, and OSError."""
    try:
        directory = open_directory(path.parent)
        try:
            return open_file(path, flags, directory)
        finally:
            os.close(directory)
    except ActionError as error:
        raise ActionError(f"the lock {path}: {error}") from error


def _held(path: Path, fd: int) -> Locked:
    holder = os.pread(fd, 64, 0).decode(errors="replace").strip()
    return Locked(f"pid {holder} is at work: it holds {path}")


@contextmanager
def locked(lock: Path | None = None) -> Iterator[Path]:
    """Be the only run: the kernel lets go of the lock however we end.

    The directory is ours alone, for notes to the next run.
    """
    path = lock or lock_path()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = _open(path, os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise ActionError(f"the lock {path}: {error.strerror}") from error
    try:
        try:
            _lock(fd)
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        except BlockingIOError as error:
            raise _held(path, fd) from error
        except OSError as error:
            raise ActionError(f"the lock {path}: {error.strerror}") from error
        yield path.parent
    finally:
        os.close(fd)


def _lock(fd: int) -> None:
    """Twice: another run may just be looking whether it is alone."""
    with suppress(BlockingIOError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    time.sleep(0.1)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
