"""JSON Schema of each document, and whether what was written keeps to it.

``python -m tests.schemas`` writes the files of ``memcgctl/schemas`` anew.
"""

from __future__ import annotations

import json
import types
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from jsonschema import Draft202012Validator

from memcgctl.report import documents

FILES = Path(documents.__file__).parents[2] / "schemas"
_LEAVES = {str: "string", int: "integer", float: "number", bool: "boolean"}


def read(text: str | bytes | dict[str, Any]) -> Any:
    """The document in ``text``; ValueError if it is not what its schema says.

    And if a reader that keeps to UTF-8 would refuse it, as those of Rust and C++ do for
    lone surrogates, which only version 1 has, and for numbers that are none. A key that
    the schema does not have is a failure here: it is not documented.
    """
    document = json.loads(text) if isinstance(text, (str, bytes)) else text
    name = document["schema"]
    old = name.endswith("/1") and f"{name[:-1]}2" in _documents()
    written = json.dumps(document, ensure_ascii=False, allow_nan=False)
    written.encode("utf-8", "surrogatepass" if old else "strict")
    for error in _validator(name).iter_errors(document):
        raise ValueError(f"{name}: {error.json_path}: {error.message}")
    return document


def file_of(name: str) -> Path:
    """The schema of ``memcgctl/list/2`` is ``list-2.json``."""
    _, kind, version = name.split("/")
    return FILES / f"{kind}-{version}.json"


@cache
def _documents() -> dict[str, Any]:
    return {_name(document): document for document in documents.DOCUMENTS}


def _name(document: Any) -> str:
    (name,) = get_args(get_type_hints(document)["schema"])
    return str(name)


@cache
def _validator(name: str) -> Draft202012Validator:
    schema = json.loads(file_of(name).read_text())
    for one in (schema, *schema["$defs"].values()):
        one["additionalProperties"] = False
    return Draft202012Validator(schema)


def schema_of(document: Any) -> dict[str, Any]:
    """The JSON Schema of a class of ``documents``, with all that it refers to."""
    definitions: dict[str, Any] = {}
    body = _object(document, definitions)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": _name(document),
        **body,
        "$defs": dict(sorted(definitions.items())),
    }


def _object(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    hints = get_type_hints(kind)
    named = not any(key.endswith("_base64") for key in hints)
    return {
        "type": "object",
        "properties": {
            key: {"const": _name(kind)} if key == "schema" else _type(hint, definitions)
            for key, hint in hints.items()
        },
        # The bytes of a name that is not UTF-8 stand beside it.
        "patternProperties": {"_base64$": {"type": "string"}} if named else {},
        "required": sorted(kind.__required_keys__),
    }


def _type(hint: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return {}
    if hint in _LEAVES:
        return {"type": _LEAVES[hint]}
    if origin is Literal:
        return {"enum": list(args)}
    if origin in (Union, types.UnionType):
        return {"anyOf": [_type(arg, definitions) for arg in args]}
    if hint is type(None):
        return {"type": "null"}
    if origin is list:
        return {"type": "array", "items": _type(args[0], definitions)}
    if origin is dict:
        values = _type(args[1], definitions)
        return {"type": "object", "additionalProperties": values}
    if hint.__name__ not in definitions:
        definitions[hint.__name__] = {}
        definitions[hint.__name__] = _object(hint, definitions)
    return {"$ref": f"#/$defs/{hint.__name__}"}


def texts() -> dict[Path, str]:
    """What the files are to hold."""
    return {
        file_of(name): json.dumps(schema_of(document), indent=1) + "\n"
        for name, document in _documents().items()
    }


if __name__ == "__main__":
    FILES.mkdir(exist_ok=True)
    for path, text in texts().items():
        path.write_text(text)
