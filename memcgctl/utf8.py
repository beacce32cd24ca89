"""How does text that is not UTF-8 become JSON that every program can read?

The names of cgroups, processes, files and devices can hold any byte. In the model a
byte that is not UTF-8 is a lone surrogate, as ``os.fsdecode`` makes it; JSON could hold
that as ``\\udcff``, but DuckDB, Polars and others refuse the whole document, and jq
changes it. So it is written as the four characters ``\\xff``, and where the text is the
value of a key, that key with ``_base64`` has all its bytes beside it.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections.abc import Mapping
from typing import Any

_SURROGATE = re.compile("[\ud800-\udfff]")
RAW = "_base64"


def dumps(document: object, *, indent: int | None = None) -> str:
    """``document`` as JSON, in ASCII: valid UTF-8 whatever the names in it are."""
    try:
        text = json.dumps(document, indent=indent, allow_nan=False)
        if "\\ud" not in text:
            return text
    except ValueError:  # a number that JSON does not have
        pass
    return json.dumps(_readable(document), indent=indent, allow_nan=False)


def escaped(text: str) -> str:
    """``text`` with each byte that is not UTF-8 as ``\\xff``."""
    return _SURROGATE.sub(_escape, text)


def raw(text: str) -> str | None:
    """The bytes of ``text`` in base64 if these are not UTF-8, else None."""
    if not _SURROGATE.search(text):
        return None
    try:
        name = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # none that a kernel can have
        return None
    return base64.b64encode(name).decode("ascii")


def restored(text: object, encoded: object) -> str | None:
    """What ``raw`` has encoded; None if it is not what ``text`` was escaped from."""
    if not isinstance(encoded, str):
        return None
    try:
        name = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        return None
    found = name.decode("utf-8", "surrogateescape")
    return found if escaped(found) == text else None


def value(entry: Mapping[str, Any], key: str) -> object:
    """What was under ``key`` before a document was written."""
    found = entry.get(key)
    before = restored(found, entry.get(key + RAW))
    return found if before is None else before


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"


def _readable(value: object) -> object:
    if isinstance(value, str):
        return escaped(value)
    if isinstance(value, dict):
        return _readable_object(value)
    if isinstance(value, (list, tuple)):
        return [_readable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _readable_object(value: Mapping[Any, object]) -> dict[Any, object]:
    done: dict[Any, object] = {}
    for key, item in value.items():
        key = escaped(key) if isinstance(key, str) else key
        done[key] = _readable(item)
        if isinstance(item, str) and (encoded := raw(item)) is not None:
            done[key + RAW] = encoded
    return done
