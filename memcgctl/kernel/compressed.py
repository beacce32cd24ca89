"""Is a core compressed as a whole? Then unpack it, once, into the user's cache.

The copy is sparse (blocks of zeros become holes), named by the hash of the compressed
file, and appears under its name only when it is complete. It is a core: it may hold
anybody's data, so nobody else may read it.
"""

from __future__ import annotations

import gzip
import hashlib
import lzma
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import zstandard

from memcgctl.kernel.cache import Cache, Partial
from memcgctl.kernel.errors import KernelError

_BLOCK = 1 << 20
_HOLE = 1 << 16
_ZEROS = bytes(_HOLE)

_XZ, _GZIP, _ZSTD = b"\xfd7zXZ\0", b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE = b"\x2a\x4d\x18"  # after a byte from 0x50 to 0x5f; pzstd starts so

# Four bytes can stand for 128 KiB: what comes out of a piece is bounded to 64 MiB.
_ZSTD_PIECE = 1 << 11

# Holes take no room, but time. The memory map of a kernel is a 64th of its memory and
# packs to a tenth at best, so a core cannot be much smaller than its 640th; zeros alone
# pack to their 32,768th.
_MAX_RATIO = 8192
_FREE_SIZE = 4 << 30
_MAX_SIZE = 1 << 46  # all that Linux reaches with four levels of page tables

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
    where = ""
    try:
        with path.open("rb") as file, Cache() as cache:
            where = str(cache.path)
            name = f"{_digest(file, progress)}.core"
            if copy := cache.find(name):
                return copy
            copy = cache.path / name
            if notify is not None:
                notify(f"unpacking {path} to {copy} (the cache takes {cache.sized()})")
            file.seek(0)
            with cache.new(name) as out:
                _unpack(file, reader(file), out, progress)
            return copy
    except KernelError as error:
        raise KernelError(f"{path}: cannot be unpacked: {error}") from error
    except _DAMAGE as error:
        raise KernelError(
            f"{path}: the archive is damaged or truncated: {error}"
        ) from error
    except OSError as error:
        raise KernelError(
            f"{path}: cannot be unpacked: {error.filename or where}: {error.strerror} "
            "(XDG_CACHE_HOME chooses another directory)"
        ) from error


def _digest(file: BinaryIO, progress: _Progress | None) -> str:
    digest, size = hashlib.sha256(), os.fstat(file.fileno()).st_size
    while block := file.read(_BLOCK):
        digest.update(block)
        if progress is not None:
            progress("looking for an unpacked copy", file.tell(), size)
    return digest.hexdigest()


def _unpack(
    packed: BinaryIO, blocks: Iterator[bytes], out: Partial, progress: _Progress | None
) -> None:
    size = os.fstat(packed.fileno()).st_size
    most = min(_MAX_SIZE, max(_FREE_SIZE, size * _MAX_RATIO))
    for block in blocks:
        if out.size_bytes + len(block) > most:
            raise KernelError(f"it unpacks to more than {most >> 30:,} GiB: no core")
        _write_sparse(out, block)
        if progress is not None:
            progress("unpacking", packed.tell(), size)
    out.finish()


def _write_sparse(out: Partial, block: bytes) -> None:
    for at in range(0, len(block), _HOLE):
        part = block[at : at + _HOLE]
        if part == _ZEROS[: len(part)]:
            out.skip(len(part))
        else:
            out.write(part)
