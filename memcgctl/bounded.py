"""How is JSON from anywhere read without the memory and time that it asks for?

A few KiB of zstd can stand for gigabytes, and two bytes of JSON, ``[]``, for a hundred
of memory. So the size is bounded while a file is unpacked, and the shape (depth, number
of values, length of text and numbers) is looked at before anything is parsed.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Iterator
from typing import IO, Any

import zstandard

MAX_BYTES = 96 << 20
MAX_WINDOW = 64 << 20
MAX_VALUES = 24_000_000
MAX_STRING = 1 << 20
MAX_DEPTH = 32
# What is parsed at one time: a census of a million lists is, and all else is small.
MAX_PARSED_BYTES = 256 << 20
# A census of 65,000 equal zombies packs to a 28th.
MAX_RATIO = 300
FREE_BYTES = 16 << 20

ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
# An integer has 20 digits at most; Python up to 3.10 takes minutes for a million.
_DIGITS = 64
_NUMBER = re.compile(rb"[0-9.]{%d}" % (_DIGITS + 1))
_CHUNK = 1 << 20
_NO_BRACKET = bytes(set(range(256)) - set(b"[]{}"))


class Refused(Exception):
    """The file is not what it should be; ``str()`` is one clear line."""


def read(stream: IO[bytes], packed_bytes: int | None = None) -> bytearray:
    """All of ``stream``, which may be an endless device or unpack to gigabytes."""
    most = MAX_BYTES
    if packed_bytes is not None:
        most = min(most, max(FREE_BYTES, packed_bytes * MAX_RATIO))
    data = bytearray()
    while chunk := stream.read(_CHUNK):
        data += chunk
        if len(data) > most:
            raise Refused(
                f"larger than {MAX_BYTES >> 20} MiB"
                if most == MAX_BYTES
                else f"unpacks to more than {len(data) // max(packed_bytes or 0, 1):,} "
                "times its size"
            )
    return data


def unpacked(data: bytes | bytearray) -> bytes | bytearray:
    """What ``data`` holds if it is compressed with zstd, else ``data``."""
    if not data.startswith(ZSTD_MAGIC):
        return data
    decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW)
    try:
        told_bytes = zstandard.frame_content_size(data)  # -1: it is not told
        found = read(decompressor.stream_reader(io.BytesIO(data)), len(data))
    except (zstandard.ZstdError, MemoryError) as error:
        raise Refused(f"damaged: {error}") from error
    if len(found) < told_bytes:  # the reader does not notice
        raise Refused("truncated")
    return found


def check_shape(data: bytes | bytearray) -> None:
    """Refuse what would not be JSON of a sane size, whatever else it is."""
    values = 0
    tail, brackets = b"", b""
    for outside in _outside_of_strings(data):
        values += outside.count(b",") + outside.count(b"[") + outside.count(b"{")
        if values > MAX_VALUES:
            raise Refused(f"more than {MAX_VALUES:,} values")
        if _NUMBER.search(tail + outside):
            raise Refused(f"damaged: a number of more than {_DIGITS} digits")
        tail = outside[-_DIGITS:]
        brackets = _unclosed(brackets + outside.translate(None, _NO_BRACKET))
        if len(brackets) > MAX_DEPTH:
            raise Refused(f"damaged: nested more than {MAX_DEPTH} deep, or unbalanced")


def _unclosed(brackets: bytes) -> bytes:
    """Without the pairs; what is nested too deeply stays."""
    for _ in range(MAX_DEPTH + 1):
        if not brackets:
            break
        brackets = brackets.replace(b"[]", b"").replace(b"{}", b"")
    return brackets


def _outside_of_strings(data: bytes | bytearray) -> Iterator[bytes]:
    """The text, piece by piece, with ``""`` for each string; Refused for a long one."""
    carry, inside, length = b"", False, 0
    for start in range(0, len(data), _CHUNK):
        chunk = carry + data[start : start + _CHUNK]
        slashes = len(chunk) - len(chunk.rstrip(b"\\"))
        carry = chunk[len(chunk) - slashes % 2 :]
        chunk = chunk[: len(chunk) - slashes % 2]
        chunk = chunk.replace(b"\\\\", b"__").replace(b'\\"', b"__")
        parts = chunk.split(b'"')
        strings = parts[not inside :: 2]
        if strings:
            length = length + len(strings[0]) if inside else len(strings[0])
            longest = max(length, *map(len, strings))
            if longest > MAX_STRING * 6:  # each character as \u1234
                raise Refused("damaged: text that is too long")
        ends_inside = inside ^ (len(parts) % 2 == 0)
        if ends_inside and len(strings) > 1:
            length = len(strings[-1])
        yield b'""'.join(parts[inside::2])
        inside = ends_inside


def parse(data: bytes | bytearray) -> Any:
    """The JSON value in ``data``, whose shape was checked; Refused, or ValueError."""
    lists = data.count(b"[") + data.count(b"{")
    text_bytes = len(data) if data.isascii() else 4 * len(data)
    cost_bytes = 2 * text_bytes + 100 * lists + 40 * data.count(b",")
    if cost_bytes > MAX_PARSED_BYTES:
        raise Refused("too much for one value of a census")
    text = data.decode()
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=float)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    if (twice := duplicate(key for key, _ in pairs)) is not None:
        raise Refused(f"the key {twice[:40]!a} twice")
    return dict(pairs)


def duplicate(values: Iterable[Any]) -> Any:
    """A value other than 0 that is there twice, or None."""
    seen: set[Any] = set()
    for value in values:
        if value in seen:
            return value
        if value != 0:
            seen.add(value)
    return None
