"""How does a census become a file and a file a census again?

The file is JSON, ``memcgctl/census/1``, compressed with zstd or not. ``columns`` names
the fields of each class of the model; every value of such a class is a row in their
order. What many memcgs share would fill the file otherwise: text is kept once, in
``strings``, rows of the classes of ``SHARED`` once, in ``shared``, and wherever they
belong stands their index.

A file can come from anywhere: it is bounded and checked to the last value before it
becomes a census. Columns and keys that this version does not know are ignored.
"""

from __future__ import annotations

import io
import json
import math
import os
import stat
import tempfile
import types
from collections.abc import Callable, Iterable
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import IO, Any, Literal, Union, get_args, get_origin, get_type_hints

import zstandard

from memcgctl.kernel.errors import KernelError
from memcgctl.model import Backing, Census, Kernel, Memcg, Process, SwapOwner

FORMAT = "memcgctl/census/"
VERSION = 1
MAX_BYTES = 256 << 20
MAX_VALUES = 20_000_000
MAX_STRING = 1 << 20
MAX_WINDOW = 128 << 20
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
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
    target = Path(path).resolve()  # a symbolic link stays one
    if target.exists() and not stat.S_ISREG(target.stat().st_mode):
        target.write_bytes(data)  # a pipe or a device cannot be renamed over
        return
    handle, name = tempfile.mkstemp(prefix=f".{target.name[:50]}.", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
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
            census = loads(_bounded(file))
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
        "memcgs": "[\n" + ",\n".join(memcgs) + "]",
        "shared": _json(
            {name: [r for _, r in rows.values()] for name, rows in shared.items()}
        ),
        "columns": _json(columns),
        "strings": _json(list(strings)),
    }
    lines = ",\n".join(f"{_json(key)}:{text}" for key, text in document.items())
    return f"{{{lines}}}\n".encode("ascii")


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def loads(data: bytes) -> Census:
    """The census whose file holds ``data``; raises CensusError."""
    document = _parse(_unpacked(data))
    _check_schema(document.get("schema"))
    shared = document.get("shared")
    if not isinstance(shared, dict):
        raise CensusError("damaged: no shared rows")
    tables = Tables(
        _columns(document.get("columns")), _strings(document.get("strings")), shared
    )
    kernel = _row(Kernel, tables)(document.get("kernel"))
    if not kernel.page_size:
        raise CensusError("damaged: a kernel with pages of no size")
    census = Census(
        kernel=kernel,
        memcgs=_many(_row(Memcg, tables))(document.get("memcgs")),
        warnings=_many(_decoder(str, tables))(document.get("warnings")),
    )
    if twice := _duplicate(memcg.address for memcg in census.memcgs):
        raise CensusError(f"damaged: two memcgs at {twice:#x}")
    return census


def _is_fifo(path: str) -> bool:
    """One with a name, where nobody may ever write; no pipe of the shell's."""
    is_pipe = os.path.realpath(path).startswith("/proc/")
    return stat.S_ISFIFO(os.stat(path).st_mode) and not is_pipe


def _bounded(stream: IO[bytes]) -> bytes:
    """All of ``stream``, which may be an endless device or a zstd bomb."""
    data = bytearray()
    while chunk := stream.read(1 << 20):
        data += chunk
        if len(data) > MAX_BYTES:
            raise CensusError(f"not a census: larger than {MAX_BYTES >> 20} MiB")
    return bytes(data)


def _unpacked(data: bytes) -> bytes:
    if not data.startswith(ZSTD_MAGIC):
        return _bounded(io.BytesIO(data))
    decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW)
    try:
        told_bytes = zstandard.frame_content_size(data)  # -1: it is not told
        unpacked = _bounded(decompressor.stream_reader(data))
    except zstandard.ZstdError as error:
        raise CensusError(f"damaged: {error}") from error
    if len(unpacked) < told_bytes:  # the reader does not notice
        raise CensusError("truncated")
    return unpacked


def _parse(data: bytes) -> dict[str, object]:
    # a list of empty lists needs 21 times its text in memory
    if data.count(b",") > MAX_VALUES:
        raise CensusError(f"not a census: more than {MAX_VALUES:,} values")
    try:
        document = json.loads(
            data.decode(), object_pairs_hook=_unique, parse_constant=float
        )
    except CensusError:
        raise
    except (ValueError, RecursionError) as error:
        if FORMAT.encode() not in data[:100]:
            raise CensusError("not a saved census") from error
        raise CensusError(f"damaged: {error}") from error
    if not isinstance(document, dict):
        raise CensusError("not a saved census")
    return document


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    if (twice := _duplicate(key for key, _ in pairs)) is not None:
        raise CensusError(f"damaged: the key {twice!a} twice")
    return dict(pairs)


def _duplicate(values: Iterable[Any]) -> Any:
    """A value other than 0 that is there twice, or None."""
    seen: set[Any] = set()
    for value in values:
        if value in seen:
            return value
        if value != 0:
            seen.add(value)
    return None


def _check_schema(schema: object) -> None:
    text = schema if isinstance(schema, str) else ""
    if not text.startswith(FORMAT):
        raise CensusError(f"not a saved census: its schema is {text[:99]!a}")
    if text != f"{FORMAT}{VERSION}":
        raise CensusError(
            f"written by a newer memcgctl: {text[:99]!a}, not {FORMAT}{VERSION}"
        )


def _strings(raw: object) -> list[str]:
    if not isinstance(raw, list):
        raise CensusError("damaged: no strings")
    for text in raw:
        if type(text) is not str or len(text) > MAX_STRING:
            raise CensusError("damaged: text that is not text, or too long")
        try:
            text.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError as error:
            raise CensusError("damaged: text that no kernel can hold") from error
    return raw


def _columns(raw: object) -> dict[str, list[str]]:
    if not isinstance(raw, dict):
        raise CensusError("damaged: no columns")
    for names in raw.values():
        if not isinstance(names, list) or not all(type(n) is str for n in names):
            raise CensusError("damaged: columns without names")
        if _duplicate(names) is not None:
            raise CensusError("damaged: a column twice")
    return raw


def _row(kind: type, tables: Tables) -> Decode:
    """Decodes rows of the model's class ``kind``."""
    names = tables.columns.get(kind.__name__)
    if names is None:  # none was saved
        names = []
    hints = get_type_hints(kind)
    cells: list[tuple[str, int, Decode]] = []
    for field in fields(kind):
        if field.name in names:
            decode = _decoder(hints[field.name], tables, signed=field.name in SIGNED)
            cells.append((field.name, names.index(field.name), decode))
        elif field.default is MISSING and names:
            raise CensusError(f"damaged: no {kind.__name__}.{field.name}")
    width = len(names)

    def row(raw: object) -> Any:
        if type(raw) is not list or len(raw) != width or not width:
            raise CensusError(f"damaged: not a row of {kind.__name__}")
        return kind(**{name: decode(raw[index]) for name, index, decode in cells})

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
    if type(raw) not in (int, float) or not math.isfinite(number := float(raw)):  # type: ignore[arg-type]
        raise CensusError(f"damaged: {str(raw)[:40]!a} is no number")
    return number


def _boolean(raw: object) -> bool:
    if type(raw) is not bool:
        raise CensusError(f"damaged: {str(raw)[:40]!a} is neither true nor false")
    return raw
