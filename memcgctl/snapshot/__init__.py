"""How does a census become a file and a file a census again?

The file is JSON, ``memcgctl/census/1``, compressed with zstd or not. ``columns`` names
the fields of each class of the model; every value of such a class is a row in their
order. What many memcgs share would fill the file otherwise: text is kept once, in
``strings``, rows of the classes of ``SHARED`` once, in ``shared``, and wherever they
belong stands their index.

Text that is not UTF-8 is escaped in ``strings``, and ``strings_base64`` has its bytes
by the index; up to 0.1.0 it was there with lone surrogates. Memcgs come last, one a
line, so that they are checked and made row by row.

A file can come from anywhere: it is bounded and checked to the last value before it
becomes a census. Columns and keys that this version does not know are ignored.
"""

from __future__ import annotations

import json
import os
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import zstandard

from memcgctl import bounded, utf8
from memcgctl.bounded import duplicate
from memcgctl.model import Census, Kernel, Memcg
from memcgctl.snapshot.rows import (
    SHARED,
    CensusError,
    Tables,
    columns_of,
    decoder_of,
    many_of,
    row_of,
    strings_of,
)

__all__ = ["CensusError", "dumps", "load", "loads", "save", "write_whole"]

FORMAT = "memcgctl/census/"
VERSION = 1
BATCH_BYTES = 1 << 20
MAX_ROW_BYTES = 16 << 20


def save(census: Census, path: str) -> None:
    """Write ``census`` to ``path``: whole or not at all, over what was there before.

    Compressed if the name ends in ``.zst``. Only its owner can read it, as it names
    other people's processes and files. Raises OSError, or CensusError for what could
    not be loaded again: too large, or garbage from damaged memory.
    """
    data = dumps(census)
    loads(data)
    if path.endswith(".zst"):
        data = zstandard.ZstdCompressor(level=10, write_checksum=True).compress(data)
    write_whole(path, data, 0o600)


def write_whole(path: str, data: bytes, mode: int) -> None:
    """Write a file whole or not at all, over what was there before."""
    target = Path(path).resolve()  # a symbolic link stays one
    if target.exists() and not stat.S_ISREG(target.stat().st_mode):
        target.write_bytes(data)  # a pipe or a device cannot be renamed over
        return
    handle, name = tempfile.mkstemp(prefix=f".{target.name[:50]}.", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(handle, mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise


def load(path: str) -> Census:
    """The census in the file ``path``, which becomes its source.

    Raises CensusError.
    """
    try:
        if _is_fifo(path):
            raise CensusError("not a regular file")
        with open(path, "rb") as file:
            census = loads(bounded.read(file))
    except bounded.Refused as error:
        raise CensusError(f"{path}: {error}") from error
    except OSError as error:
        raise CensusError(f"{path}: {error.strerror}") from error
    except CensusError as error:
        raise CensusError(f"{path}: {error}") from error
    return replace(census, kernel=replace(census.kernel, kind="census", path=path))


def dumps(census: Census) -> bytes:
    """``census`` as the text of a file, one memcg a line; ASCII."""
    strings: dict[str, int] = {}
    columns: dict[str, list[str]] = {}
    shared: dict[str, dict[Any, tuple[int, object]]] = {}

    def encode(value: Any) -> object:
        if isinstance(value, str):
            return strings.setdefault(value, len(strings))
        if isinstance(value, tuple):
            return [encode(item) for item in value]
        if not is_dataclass(value):
            return value
        if type(value) not in SHARED:
            return row(value)
        known = shared.setdefault(type(value).__name__, {})
        if value not in known:
            known[value] = (len(known), row(value))
        return known[value][0]

    def row(value: Any) -> object:
        names = columns.get(type(value).__name__)
        if names is None:
            names = [field.name for field in fields(value)]
            columns[type(value).__name__] = names
        return [encode(getattr(value, name)) for name in names]

    memcgs = [_json(encode(memcg)) for memcg in census.memcgs]
    document = {
        "schema": _json(f"{FORMAT}{VERSION}"),
        "kernel": _json(encode(census.kernel)),
        "warnings": _json(encode(census.warnings)),
        "unread": _json(encode(census.unread)),
        "shared": _json(
            {name: [r for _, r in rows.values()] for name, rows in shared.items()}
        ),
        "columns": _json(columns),
        "strings": _json([utf8.escaped(text) for text in strings]),
        "strings_base64": _json(
            {str(n): raw for n, text in enumerate(strings) if (raw := utf8.raw(text))}
        ),
        "memcgs": "[\n" + ",\n".join(memcgs) + "]",
    }
    lines = ",\n".join(f"{_json(key)}:{text}" for key, text in document.items())
    return f"{{{lines}}}\n".encode("ascii")


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def loads(data: bytes | bytearray) -> Census:
    """The census whose file holds ``data``; raises CensusError."""
    try:
        data = bounded.unpacked(data)
        return _loads(data)
    except (bounded.Refused, CensusError) as error:
        reason = f"{error}"
        if FORMAT.encode() not in data[:100] and reason.startswith("damaged"):
            reason = "not a saved census"
        raise CensusError(reason) from error


def _loads(data: bytes | bytearray) -> Census:
    bounded.check_shape(data)
    rest, lines = _split(data)
    document = _parse(rest)
    _check_schema(document.get("schema"))
    shared = document.get("shared")
    if not isinstance(shared, dict):
        raise CensusError("damaged: no shared rows")
    tables = Tables(
        columns_of(document.get("columns")),
        strings_of(document.get("strings"), document.get("strings_base64")),
        shared,
    )
    kernel = row_of(Kernel, tables)(document.get("kernel"))
    if not kernel.page_size:
        raise CensusError("damaged: a kernel with pages of no size")
    memcgs, decode = document.get("memcgs"), many_of(row_of(Memcg, tables))
    census = Census(
        kernel=kernel,
        memcgs=decode(memcgs)
        if lines is None
        else tuple(memcg for batch in lines for memcg in decode(_value(batch))),
        warnings=many_of(decoder_of(str, tables))(document.get("warnings")),
        # the files of older versions have none
        unread=many_of(decoder_of(str, tables))(document.get("unread", [])),
    )
    if twice := duplicate(memcg.address for memcg in census.memcgs):
        raise CensusError(f"damaged: two memcgs at {twice:#x}")
    return census


def _split(
    data: bytes | bytearray,
) -> tuple[bytes | bytearray, Iterator[bytes] | None]:
    """A file without its memcgs, and batches of these, as ``dumps`` writes them.

    In JSON no text has a line break, so that what is found is no part of a name. None
    for a file that another program has written anew.
    """
    mark, start_of_key = b'\n"memcgs":[\n', b'\n"'
    start = data.find(mark)
    if start < 0:
        return data, None
    low = start + len(mark)
    end = data.find(start_of_key, low - 1)
    high = data.rfind(b"]", low, len(data) if end < 0 else end)
    if high < 0:
        raise CensusError("damaged: no end of the memcgs")
    return data[: low - 1] + data[high:], _batches(data, low, high)


def _batches(data: bytes | bytearray, start: int, end: int) -> Iterator[bytes]:
    """Lists of some rows each, out of the lines from ``start`` to ``end``."""
    while start < end:
        stop = min(start + BATCH_BYTES, end)
        if stop < end:
            stop = data.find(b",\n", stop - 1, end)
            stop = end if stop < 0 else stop
        if stop - start > MAX_ROW_BYTES:
            raise CensusError("damaged: a memcg that is too long")
        yield b"[" + data[start:stop] + b"]"
        start = stop + 1


def _is_fifo(path: str) -> bool:
    """One with a name, where nobody may ever write; no pipe of the shell's."""
    is_pipe = os.path.realpath(path).startswith("/proc/")
    return stat.S_ISFIFO(os.stat(path).st_mode) and not is_pipe


def _parse(data: bytes | bytearray) -> dict[str, object]:
    if not isinstance(document := _value(data), dict):
        raise CensusError("not a saved census")
    return document


def _value(data: bytes | bytearray) -> object:
    try:
        return bounded.parse(data)
    except ValueError as error:
        raise CensusError(f"damaged: {error}") from error


def _check_schema(schema: object) -> None:
    text = schema if isinstance(schema, str) else ""
    if not text.startswith(FORMAT):
        raise CensusError(f"not a saved census: its schema is {text[:99]!a}")
    if text != f"{FORMAT}{VERSION}":
        raise CensusError(
            f"written by a newer memcgctl: {text[:99]!a}, not {FORMAT}{VERSION}"
        )
