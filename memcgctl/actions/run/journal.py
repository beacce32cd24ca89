"""What was done, and where did it stop? A file of JSON lines that is only added to.

A line before and one after each step, written through to the disk before anything
else is done. A run that was killed has a ``before`` without an ``after``.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any

from memcgctl import utf8
from memcgctl.actions.host.machine import ActionError
from memcgctl.private import exposed

SCHEMA = "memcgctl/journal/1"
# A directory that nobody else can put a file into; the service's, too.
RUNTIME_DIRECTORY = Path("/run/memcgctl")
# The file before this one is kept as journal.1.
_SIZE_LIMIT = 16 << 20


def state_directory() -> Path:
    """Below $XDG_STATE_HOME, or /var/lib."""
    home = os.environ.get("XDG_STATE_HOME")
    return Path(home or "/var/lib") / "memcgctl"


def default_path() -> Path:
    return state_directory() / "journal"


def lock_path() -> Path:
    """For root one place, whatever the environment: all act on the same kernel."""
    return (state_directory() if os.geteuid() else RUNTIME_DIRECTORY) / "lock"


def open_directory(path: Path) -> int:
    """A descriptor of a directory that nobody else can put a file into.

    Raises ActionError if somebody else can, and OSError.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(path, flags)
    except OSError as error:
        if not path.is_symlink():
            raise
        raise ActionError(f"{path} is a symbolic link: remove it") from error
    if above := exposed(path):
        os.close(fd)
        raise ActionError(f"{above} can be written to by others: chmod o-w it")
    return _trusted(path, fd)


def open_file(path: Path, flags: int, directory: int) -> int:
    """Open a regular file of a directory of ours that nobody else can write to.

    Raises ActionError if somebody else can, and OSError.
    """
    # A FIFO without a reader would never be open.
    flags |= os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        fd = os.open(path.name, flags, 0o600, dir_fd=directory)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise ActionError(f"{path} is a symbolic link: remove it") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise ActionError(f"{path} is not a regular file: remove it")
    return _trusted(path, fd)


def _trusted(path: Path, fd: int) -> int:
    """The descriptor, if only we and root can write to what it is of."""
    status = os.fstat(fd)
    if status.st_uid in (0, os.geteuid()) and not status.st_mode & 0o022:
        return fd
    os.close(fd)
    if status.st_mode & 0o022:
        raise ActionError(f"{path} can be written to by others: chmod go-w it")
    raise ActionError(f"{path} belongs to uid {status.st_uid}, not to you: remove it")


class Journal:
    """An open journal; ActionError if it cannot be written."""

    def __init__(self, path: Path):
        self.path = path
        self.run = uuid.uuid4().hex
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            directory = open_directory(path.parent)
            try:
                self._fd = self._open(directory)
            finally:
                os.close(directory)
        except OSError as error:
            raise ActionError(f"the journal {path}: {error.strerror}") from error
        except ActionError as error:
            raise ActionError(f"the journal {path}: {error}") from error

    def _open(self, directory: int) -> int:
        name = self.path.name
        with suppress(FileNotFoundError):
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
            if status.st_size > _SIZE_LIMIT:
                at = {"src_dir_fd": directory, "dst_dir_fd": directory}
                os.rename(name, name + ".1", **at)
        return open_file(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, directory)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._fd)

    def write(self, event: str, **facts: object) -> None:
        """Add a line; returns when it is on the disk."""
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        head = {"schema": SCHEMA, "run": self.run, "time": now, "event": event}
        line = utf8.dumps(head | facts).encode() + b"\n"
        try:
            if os.write(self._fd, line) != len(line):
                raise ActionError(f"the journal {self.path}: no room")
            os.fsync(self._fd)
        except OSError as error:
            raise ActionError(f"the journal {self.path}: {error.strerror}") from error


def entries(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a journal, oldest first; those that are damaged are passed over.

    Raises OSError if the file cannot be read.
    """
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            with suppress(ValueError):
                entry = json.loads(line)
                if isinstance(entry, dict) and entry.get("schema") == SCHEMA:
                    yield entry
