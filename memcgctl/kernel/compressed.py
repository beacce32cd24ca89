"""Is a core compressed as a whole? Then unpack it, once, into the user's cache.

The copy is sparse (blocks of zeros become holes), named by the hash of the compressed
file, and appears under its name only when it is complete. It is a core: it may hold
anybody's data, so nobody else may read it.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import lzma
import os
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import zstandard

from memcgctl.kernel.errors import KernelError

_BLOCK = 1 << 20
_HOLE = 1 << 16
_ZEROS = bytes(_HOLE)

_XZ, _GZIP, _ZSTD = b"\xfd7zXZ\0", b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE = b"\x2a\x4d\x18"  # after a byte from 0x50 to 0x5f; pzstd starts so

# Four bytes can stand for 128 KiB: what comes out of a piece is bounded to 64 MiB.
_ZSTD_PIECE = 1 << 11

_DAMAGE = (
    EOFError,
    gzip.BadGzipFile,
    lzma.LZMAError,
    MemoryError,
    zlib.error,
    zstandard.ZstdError,
)

_Progress = Callable[[str, int, int], None]


def _reader(magic: bytes) -> Callable[[BinaryIO], Iterator[bytes]] | None:
    if magic.startswith(_XZ):
        return lambda file: _blocks(lzma.LZMAFile(file))
    if magic.startswith(_GZIP):
        return lambda file: _blocks(gzip.GzipFile(fileobj=file))
    if magic.startswith(_ZSTD) or magic[1:4] == _ZSTD_SKIPPABLE:
        return _zstd_blocks
    return None


def _blocks(reader: lzma.LZMAFile | gzip.GzipFile) -> Iterator[bytes]:
    while block := reader.read(_BLOCK):
        yield block


def _zstd_blocks(file: BinaryIO) -> Iterator[bytes]:
    """Unpack frame by frame; zstandard's own reader does not notice a truncated one."""
    unpack = zstandard.ZstdDecompressor(max_window_size=1 << 31)
    frame = unpack.decompressobj()
    while data := file.read(_ZSTD_PIECE):
        while data:
            if frame.eof:
                frame = unpack.decompressobj()
            yield frame.decompress(data)
            data = frame.unused_data if frame.eof else b""
    if not frame.eof:
        raise EOFError("it ends within a frame")


def is_compressed(magic: bytes) -> bool:
    """Whether a file that starts so is one that ``unpacked`` unpacks."""
    return _reader(magic) is not None


def unpacked(
    path: Path,
    magic: bytes,
    *,
    progress: _Progress | None = None,
    notify: Callable[[str], None] | None = None,
) -> Path:
    """The unpacked copy of a compressed core; made now if there is none yet.

    Raises KernelError if the archive is damaged or the copy cannot be written.
    """
    reader = _reader(magic)
    assert reader is not None
    directory = cache_directory()
    try:
        with path.open("rb") as file:
            copy = directory / f"{_digest(file, progress)}.core"
            if copy.exists():
                os.utime(copy)  # for those who clean their cache by age
                return copy
            if notify is not None:
                notify(f"unpacking {path} to {copy}")
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            file.seek(0)
            _unpack(file, reader(file), copy, progress)
            return copy
    except _DAMAGE as error:
        raise KernelError(
            f"{path}: the archive is damaged or truncated: {error}"
        ) from error
    except OSError as error:
        where = error.filename or directory
        raise KernelError(
            f"{path}: cannot be unpacked: {where}: {error.strerror} "
            "(XDG_CACHE_HOME chooses another directory)"
        ) from error


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


def _digest(file: BinaryIO, progress: _Progress | None) -> str:
    digest, size = hashlib.sha256(), os.fstat(file.fileno()).st_size
    while block := file.read(_BLOCK):
        digest.update(block)
        if progress is not None:
            progress("looking for an unpacked copy", file.tell(), size)
    return digest.hexdigest()


def _unpack(
    packed: BinaryIO, blocks: Iterator[bytes], copy: Path, progress: _Progress | None
) -> None:
    descriptor, name = tempfile.mkstemp(prefix="unpacking-", dir=copy.parent)
    size = os.fstat(packed.fileno()).st_size
    try:
        with os.fdopen(descriptor, "wb") as out:
            for block in blocks:
                _write_sparse(out, block)
                if progress is not None:
                    progress("unpacking", packed.tell(), size)
            out.truncate()
        os.rename(name, copy)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def _write_sparse(out: BinaryIO, block: bytes) -> None:
    for at in range(0, len(block), _HOLE):
        part = block[at : at + _HOLE]
        if part == _ZEROS[: len(part)]:
            out.seek(len(part), os.SEEK_CUR)
        else:
            out.write(part)
