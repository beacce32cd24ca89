"""Rows of a saved census, checked to the last value before they are of the model."""

from __future__ import annotations

import math
import types
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from memcgctl import bounded, utf8
from memcgctl.bounded import duplicate
from memcgctl.kernel.errors import KernelError
from memcgctl.model import Backing, Process, SwapOwner

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


def strings_of(given: object, in_base64: object) -> list[str]:
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


def columns_of(raw: object) -> dict[str, list[str]]:
    if not isinstance(raw, dict):
        raise CensusError("damaged: no columns")
    for names in raw.values():
        if not isinstance(names, list) or not all(type(n) is str for n in names):
            raise CensusError("damaged: columns without names")
        if duplicate(names) is not None:
            raise CensusError("damaged: a column twice")
    return raw


def row_of(kind: type, tables: Tables) -> Decode:
    """Decodes rows of the model's class ``kind``."""
    names = tables.columns.get(kind.__name__)
    if names is None:  # none was saved
        names = []
    hints = get_type_hints(kind)
    cells: list[tuple[str, int, Decode]] = []
    unknown: dict[str, object] = {}
    for field in fields(kind):
        if field.name in names:
            decode = decoder_of(hints[field.name], tables, signed=field.name in SIGNED)
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
    rows = many_of(row_of(kind, tables))(tables.shared.get(kind.__name__, []))
    return lambda raw: rows[_index(raw, len(rows))]


def decoder_of(hint: Any, tables: Tables, signed: bool = False) -> Decode:
    """What turns JSON into a value of the type ``hint``, or raises CensusError."""
    origin, args = get_origin(hint), get_args(hint)
    if is_dataclass(hint):
        assert isinstance(hint, type)
        return (_shared if hint in SHARED else row_of)(hint, tables)
    if origin is tuple and args[-1] is Ellipsis:
        return many_of(decoder_of(args[0], tables))
    if origin is tuple:
        return _few([decoder_of(arg, tables) for arg in args])
    if origin in (Union, types.UnionType):
        (some,) = (arg for arg in args if arg is not type(None))
        decode = decoder_of(some, tables, signed)
        return lambda raw: None if raw is None else decode(raw)
    if origin is Literal:
        return _one_of(args, decoder_of(type(args[0]), tables))
    if hint is str:
        return lambda raw: tables.strings[_index(raw, len(tables.strings))]
    leaves: dict[Any, Decode] = {float: _number, bool: _boolean}
    return leaves.get(hint, _signed if signed else _integer)


def many_of(decode: Decode) -> Decode:
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
