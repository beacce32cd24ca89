"""Is JSON what strict readers take? Those of Rust and C++ refuse what Python reads."""

from __future__ import annotations

import json
from typing import Any


def strict(text: str | bytes | dict[str, Any]) -> Any:
    """The document in ``text``; fails if a reader that keeps to UTF-8 would refuse it.

    That is for lone surrogates, and for numbers that are none.
    """
    document = json.loads(text) if isinstance(text, (str, bytes)) else text
    json.dumps(document, ensure_ascii=False, allow_nan=False).encode("utf-8", "strict")
    return document
