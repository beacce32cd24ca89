"""What was done, and where did it stop? A file of JSON lines that is only added to.

A line before and one after each step, written through to the disk before anything
else is done. A run that was killed has a ``before`` without an ``after``.
"""

from __future__ import annotations

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


class Journal:
    """An open journal; ActionError if it cannot be written."""

    def __init__(self, path: Path):
        self.path = path
        self.run = uuid.uuid4().hex
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with suppress(FileNotFoundError):
                if path.stat().st_size > _SIZE_LIMIT:
                    path.rename(path.with_name(path.name + ".1"))
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
            # A FIFO without a reader would never be open.
            self._fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
        except OSError as error:
            raise ActionError(f"the journal {path}: {error.strerror}") from error
        if not stat.S_ISREG(os.fstat(self._fd).st_mode):
            os.close(self._fd)
            raise ActionError(f"the journal {path}: it is not a regular file")

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
