"""JSON Schema files: what programs hold our documents against."""

from __future__ import annotations

from typing import Any, get_args, get_type_hints

import pytest

from memcgctl.cli.help import topics
from memcgctl.report import documents, listing
from memcgctl.snapshot import dumps
from memcgctl.views.listing import select
from tests.schemas import FILES, read, schema_of, texts
from tests.unit.zombies import census, memcg


def test_the_files_are_those_of_the_documents() -> None:
    """Lost: what programs check by. ``python -m tests.schemas`` writes them anew."""
    there = {path: path.read_text() for path in FILES.glob("*.json")}
    assert there == texts()


def test_every_document_is_listed_in_help() -> None:
    """Who writes a program would not know that there is a schema."""
    told = topics()["json"]
    for path in texts():
        assert f"{path.name}" in told


@pytest.mark.parametrize(
    ("key", "value"), [("id", "7"), ("path", None), ("children", 1.5), ("new", 1)]
)
def test_what_is_not_as_documented_is_found(key: str, value: object) -> None:
    """Lost: the check itself, if it takes anything."""
    document = read(listing.to_json(select(census(memcg(7)))))
    document["memcgs"][0][key] = value
    with pytest.raises(ValueError, match=key):
        read(document)
    del document["memcgs"][0][key]
    if key != "new":
        with pytest.raises(ValueError, match=key):
            read(document)


def test_a_schema_refers_to_nothing_outside_it() -> None:
    """A program that has one file would have to find the others."""

    def references(value: Any) -> set[str]:
        if isinstance(value, dict):
            own = {value["$ref"]} if "$ref" in value else set()
            return own.union(*map(references, value.values()))
        return (
            set().union(*map(references, value)) if isinstance(value, list) else set()
        )

    for document in documents.DOCUMENTS:
        schema = schema_of(document)
        assert references(schema) == {f"#/$defs/{name}" for name in schema["$defs"]}
        assert get_args(get_type_hints(document)["schema"]) == (schema["title"],)


def test_a_saved_census_keeps_to_its_schema() -> None:
    """Lost: what other programs that read a saved census rely on."""
    read(dumps(census(memcg(7))))
