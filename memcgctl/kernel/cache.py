"""Where are unpacked cores kept, and how much may they take?

A core may hold anybody's data, so the directory is ours alone. Its size is bounded in
blocks of the disk, since cores are sparse: the least recently used make way, except
those that a running memcgctl has open (each holds a shared lock on its copy). A file
that is still being written has another name and an exclusive lock; without one, whoever
wrote it was killed.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from memcgctl.kernel.errors import KernelError
from memcgctl.private import exposed

LIMIT_VARIABLE = "MEMCGCTL_CACHE_MAX"

_LIMIT = 16 << 30
_PART_OF_DISK = 10
# What stays free on the disk: its hundredth, or this if that is more.
_FREE = 256 << 20
_FREE_PART = 100
# How much is written before it is looked again what there is room for.
_GRANT = 16 << 20
# A file without any block takes an inode.
_LEAST = 4096

_COPY = re.compile(r"[0-9a-f]{64}\.core")
_PARTIAL = "unpacking-"
_SIZE = re.compile(r"([0-9]{1,18})\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)
_NOFOLLOW = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK

# The locks of the copies that this process reads: they last as long as it does.
_in_use: dict[Path, int] = {}


def cache_directory() -> Path:
    """Where unpacked cores are kept: $XDG_CACHE_HOME/memcgctl or ~/.cache/memcgctl.

    Raises KernelError if there is neither.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The specification has relative paths ignored.
    if not os.path.isabs(base):
        base = os.path.expanduser("~/.cache")
    if not os.path.isabs(base):
        raise KernelError("no directory to unpack into: set XDG_CACHE_HOME")
    return Path(base) / "memcgctl"


class Cache:
    """The open directory; raises KernelError if it is not ours alone, and OSError."""

    def __init__(self) -> None:
        self.path = cache_directory()
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._fd = _open_private(self.path)
        try:
            self.limit_bytes = self._limit()
        except BaseException:
            os.close(self._fd)
            raise

    def __enter__(self) -> Cache:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._fd)

    def find(self, name: str) -> Path | None:
        """The copy of this name, if there is one; it stays for as long as we run."""
        with self._alone():
            return self._find(name)

    def used_bytes(self) -> int:
        """What all files in the cache take on the disk; of partial ones, so far."""
        return sum(size for _, _, size in self._files())

    def sized(self) -> str:
        return f"{_words(self.used_bytes())} of at most {_words(self.limit_bytes)}"

    @contextmanager
    def new(self, name: str) -> Iterator[Partial]:
        """A file to write to, which is found by ``name`` afterwards."""
        with self._alone():
            self._sweep()
            partial = _PARTIAL + secrets.token_hex(8)
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | _NOFOLLOW
            fd = os.open(partial, flags, 0o600, dir_fd=self._fd)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            yield Partial(self, partial, fd)
            with self._alone():
                if self._find(name) is None:  # another may have been faster
                    os.rename(partial, name, src_dir_fd=self._fd, dst_dir_fd=self._fd)
                    fcntl.flock(fd, fcntl.LOCK_SH)
                    self._find(name)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(partial, dir_fd=self._fd)
            os.close(fd)

    def room(self, partial: str, written: int, wanted: int) -> int:
        """How many bytes may be added to a partial file: ``wanted`` or some more.

        What is least recently used makes way; raises KernelError if that is not enough.
        """
        with self._alone():
            others = [f for f in self._files() if f[1] != partial]
            total = written + wanted + sum(size for _, _, size in others)
            for _, name, size in others:
                if total <= self.limit_bytes and self._free() >= wanted:
                    break
                if self._removed(name):
                    total -= size
            free = self._free()
        if total > self.limit_bytes:
            raise KernelError(
                f"it would take more than the {_words(self.limit_bytes)} that "
                f"{self.path} may take in all ({LIMIT_VARIABLE} sets it)"
            )
        if free < wanted:
            raise KernelError(f"the disk of {self.path} has no room for it")
        return wanted + min(_GRANT, self.limit_bytes - total, free - wanted)

    def _limit(self) -> int:
        text = os.environ.get(LIMIT_VARIABLE, "")
        if not text:
            disk = os.fstatvfs(self._fd)
            return max(_LIMIT, disk.f_blocks * disk.f_frsize // _PART_OF_DISK)
        match = _SIZE.fullmatch(text.strip())
        if match is None:
            raise KernelError(f"{LIMIT_VARIABLE}: {text!r} is not a size such as 16G")
        return int(match[1]) << 10 * " KMGT".index(match[2].upper() or " ")

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Nobody else finds, adds or removes anything for this moment."""
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def _find(self, name: str) -> Path | None:
        path = self.path / name
        try:
            fd = os.open(name, os.O_RDONLY | _NOFOLLOW, dir_fd=self._fd)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            raise KernelError(f"{path} is a symbolic link: remove it") from error
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
                raise KernelError(f"{path} is not a file of yours: remove it")
            os.fchmod(fd, 0o600)
            os.utime(fd)
            fcntl.flock(fd, fcntl.LOCK_SH)
        except BaseException:
            os.close(fd)
            raise
        if path in _in_use:
            os.close(_in_use[path])
        _in_use[path] = fd
        return path

    def _files(self) -> list[tuple[int, str, int]]:
        """(time of last use, name, bytes on the disk), the least recent first."""
        found = []
        for name in os.listdir(self._fd):
            with suppress(FileNotFoundError):
                status = os.stat(name, dir_fd=self._fd, follow_symlinks=False)
                size = max(status.st_blocks * 512, _LEAST)
                found.append((status.st_mtime_ns, name, size))
        return sorted(found)

    def _sweep(self) -> None:
        for _, name, _ in self._files():
            if name.startswith(_PARTIAL):
                self._removed(name)

    def _removed(self, name: str) -> bool:
        """Whether a file was ours to remove, and in nobody's use."""
        if not (_COPY.fullmatch(name) or name.startswith(_PARTIAL)):
            return False
        try:
            fd = os.open(name, os.O_RDONLY | _NOFOLLOW, dir_fd=self._fd)
        except OSError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(name, dir_fd=self._fd)
        except OSError:
            return False
        finally:
            os.close(fd)
        return True

    def _free(self) -> int:
        disk = os.fstatvfs(self._fd)
        kept = min(_FREE, disk.f_blocks * disk.f_frsize // _FREE_PART)
        return max(disk.f_bavail * disk.f_frsize - kept, 0)


class Partial:
    """A file of the cache that is being written."""

    def __init__(self, cache: Cache, name: str, fd: int) -> None:
        self._cache, self._name, self._fd = cache, name, fd
        self._written = self._granted = 0
        self.size_bytes = 0

    def write(self, data: bytes) -> None:
        """Append; raises KernelError if the cache or the disk has no room."""
        if len(data) > self._granted:
            self._granted = self._cache.room(self._name, self._written, len(data))
        view = memoryview(data)
        while view:
            done = os.pwrite(self._fd, view, self.size_bytes)
            self.size_bytes += done
            view = view[done:]
        self._written += len(data)
        self._granted -= len(data)

    def skip(self, size: int) -> None:
        """Append a hole."""
        self.size_bytes += size

    def finish(self) -> None:
        os.ftruncate(self._fd, self.size_bytes)


def _open_private(path: Path) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | _NOFOLLOW
    try:
        fd = os.open(path, flags)
    except OSError as error:
        if not path.is_symlink():
            raise
        raise KernelError(
            f"the cache {path} is a symbolic link: name its target by XDG_CACHE_HOME"
        ) from error
    try:
        status = os.fstat(fd)
        if status.st_uid != os.geteuid():
            raise KernelError(
                f"the cache {path} belongs to uid {status.st_uid}, not to you "
                "(XDG_CACHE_HOME chooses another directory)"
            )
        if above := exposed(path):
            raise KernelError(
                f"others can put another cache in the place of {path}: {above} can be "
                "written to by anybody (XDG_CACHE_HOME chooses another directory)"
            )
        if stat.S_IMODE(status.st_mode) != 0o700:
            os.fchmod(fd, 0o700)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _words(count_bytes: int) -> str:
    if count_bytes < 1 << 30:
        return f"{count_bytes / (1 << 20):,.1f} MiB"
    return f"{count_bytes / (1 << 30):,.1f} GiB"
