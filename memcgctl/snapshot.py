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
import math
import os
import stat
import tempfile
import types
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import zstandard

from memcgctl import bounded, utf8
from memcgctl.bounded import duplicate
from memcgctl.kernel.errors import KernelError
from memcgctl.model import Backing, Census, Kernel, Memcg, Process, SwapOwner

FORMAT = "memcgctl/census/"
VERSION = 1
BATCH_BYTES = 1 << 20
MAX_ROW_BYTES = 16 << 20
# a damaged kernel's counts can be below zero; all other numbers cannot
SIGNED = frozenset({"refs", "unexplained"})
SHARED: frozenset[type] = frozenset({Backing, Process, SwapOwner})

Decode = Callable[[object], Any]


class CensusError(KernelError):
    """A file is no census that this version can read; ``str()`` is one clear line."""


@dataclass(frozen=True)
class Tables:
    """What the rows of one file refer to."""

    columns: dict[str, list[str]]
    strings: list[str]
    shared: dict[str, object]


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
        _columns(document.get("columns")),
        _strings(document.get("strings"), document.get("strings_base64")),
        shared,
    )
    kernel = _row(Kernel, tables)(document.get("kernel"))
    if not kernel.page_size:
        raise CensusError("damaged: a kernel with pages of no size")
    memcgs, decode = document.get("memcgs"), _many(_row(Memcg, tables))
    census = Census(
        kernel=kernel,
        memcgs=decode(memcgs)
        if lines is None
        else tuple(memcg for batch in lines for memcg in decode(_value(batch))),
        warnings=_many(_decoder(str, tables))(document.get("warnings")),
        # the files of older versions have none
        unread=_many(_decoder(str, tables))(document.get("unread", [])),
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


def _strings(given: object, in_base64: object) -> list[str]:
    if not isinstance(given, list):
        raise CensusError("damaged: no strings")
    for text in given:
        if type(text) is not str or len(text) > bounded.MAX_STRING:
            raise CensusError("damaged: text that is not text, or too long")
        try:
            text.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError as error:
            raise CensusError("damaged: text that no kernel can hold") from error
    if not isinstance(in_base64 or {}, dict):
        raise CensusError("damaged: text that is not text")
    raws = in_base64 if isinstance(in_base64, dict) else {}
    for index, text in enumerate(given if raws else ()):
        if (raw := raws.get(str(index))) is not None:
            if (before := utf8.restored(text, raw)) is None:
                raise CensusError("damaged: text that its bytes do not spell")
            given[index] = before
    return given


def _columns(raw: object) -> dict[str, list[str]]:
    if not isinstance(raw, dict):
        raise CensusError("damaged: no columns")
    for names in raw.values():
        if not isinstance(names, list) or not all(type(n) is str for n in names):
            raise CensusError("damaged: columns without names")
        if duplicate(names) is not None:
            raise CensusError("damaged: a column twice")
    return raw


def _row(kind: type, tables: Tables) -> Decode:
    """Decodes rows of the model's class ``kind``."""
    names = tables.columns.get(kind.__name__)
    if names is None:  # none was saved
        names = []
    hints = get_type_hints(kind)
    cells: list[tuple[str, int, Decode]] = []
    unknown: dict[str, object] = {}
    for field in fields(kind):
        if field.name in names:
            decode = _decoder(hints[field.name], tables, signed=field.name in SIGNED)
            cells.append((field.name, names.index(field.name), decode))
        elif field.default is MISSING and names:
            raise CensusError(f"damaged: no {kind.__name__}.{field.name}")
        elif "before" in field.metadata:
            unknown[field.name] = field.metadata["before"]
    width = len(names)

    def row(raw: object) -> Any:
        if type(raw) is not list or len(raw) != width or not width:
            raise CensusError(f"damaged: not a row of {kind.__name__}")
        known = {name: decode(raw[index]) for name, index, decode in cells}
        return kind(**known, **unknown)

    return row


def _shared(kind: type, tables: Tables) -> Decode:
    """Decodes the index of a row of ``kind`` that is kept once."""
    rows = _many(_row(kind, tables))(tables.shared.get(kind.__name__, []))
    return lambda raw: rows[_index(raw, len(rows))]


def _decoder(hint: Any, tables: Tables, signed: bool = False) -> Decode:
    """What turns JSON into a value of the type ``hint``, or raises CensusError."""
    origin, args = get_origin(hint), get_args(hint)
    if is_dataclass(hint):
        assert isinstance(hint, type)
        return (_shared if hint in SHARED else _row)(hint, tables)
    if origin is tuple and args[-1] is Ellipsis:
        return _many(_decoder(args[0], tables))
    if origin is tuple:
        return _few([_decoder(arg, tables) for arg in args])
    if origin in (Union, types.UnionType):
        (some,) = (arg for arg in args if arg is not type(None))
        decode = _decoder(some, tables, signed)
        return lambda raw: None if raw is None else decode(raw)
    if origin is Literal:
        return _one_of(args, _decoder(type(args[0]), tables))
    if hint is str:
        return lambda raw: tables.strings[_index(raw, len(tables.strings))]
    leaves: dict[Any, Decode] = {float: _number, bool: _boolean}
    return leaves.get(hint, _signed if signed else _integer)


def _many(decode: Decode) -> Decode:
    def many(raw: object) -> tuple[Any, ...]:
        if type(raw) is not list:
            raise CensusError("damaged: something else in place of a list")
        return tuple(map(decode, raw))

    return many


def _few(decoders: list[Decode]) -> Decode:
    def few(raw: object) -> tuple[Any, ...]:
        if type(raw) is not list or len(raw) != len(decoders):
            raise CensusError(f"damaged: not a list of {len(decoders)}")
        return tuple(decode(item) for decode, item in zip(decoders, raw, strict=True))

    return few


def _one_of(known: tuple[object, ...], decode: Decode) -> Decode:
    def one_of(raw: object) -> object:
        if (value := decode(raw)) not in known:
            raise CensusError(f"damaged: {str(value)[:40]!a} is unknown here")
        return value

    return one_of


def _index(raw: object, end: int) -> int:
    if (index := _integer(raw)) >= end:
        raise CensusError(f"damaged: {index} refers to nothing")
    return index


def _integer(raw: object, low: int = 0) -> int:
    if type(raw) is not int or not low <= raw < 1 << 64:
        raise CensusError(f"damaged: {str(raw)[:40]!a} is no number in range")
    return raw


def _signed(raw: object) -> int:
    return _integer(raw, -1 << 63)


def _number(raw: object) -> float:
    if type(raw) is int:
        return float(_integer(raw, -1 << 63))
    if type(raw) is not float or not math.isfinite(raw):
        raise CensusError(f"damaged: {str(raw)[:40]!a} is no number")
    return raw


def _boolean(raw: object) -> bool:
    if type(raw) is not bool:
        raise CensusError(f"damaged: {str(raw)[:40]!a} is neither true nor false")
    return raw
