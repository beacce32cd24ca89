"""``memcgctl explain --json``: ``documents.Explain2``; versions are in ``schemas``."""

from __future__ import annotations

from collections.abc import Sequence

from memcgctl.model import Details, Explanation, Frames, Prospect
from memcgctl.report import documents
from memcgctl.report.parts import (
    charge_json,
    device_json,
    frames_json,
    holder_json,
    inherited_json,
    option_json,
    user_json,
)
from memcgctl.report.schemas import LATEST, dumper, memcg_json, source_json
from memcgctl.report.verdict import verdict

SCHEMA = "memcgctl/explain/"


def to_json(
    explanation: Explanation,
    frames: Frames | None = None,
    options: Sequence[Prospect] = (),
    following: str = "",
    schema: int = LATEST,
) -> str:
    """``memcgctl/explain``; ASCII, see ``schemas`` for its versions.

    ``total`` and ``unexplained`` are null where the kernel does not tell the total.
    """
    details = explanation.memcg.details
    document = {
        "schema": f"{SCHEMA}{schema}",
        "source": source_json(explanation.kernel, schema),
        "memcg": memcg_json(explanation.memcg, schema),
        "verdict": verdict(explanation),
        "references": details and _references_json(explanation, details),
        "charges": [charge_json(g) for g in (details.charge_groups if details else ())],
        "swap": [device_json(d) for d in (details.swap_devices if details else ())],
        "users": [user_json(user) for user in explanation.users],
        "unused_bytes": explanation.unused_bytes,
        "unfound_bytes": explanation.unfound_bytes,
        "inherited": inherited_json(explanation.memcg.inherited),
        "children": [
            {"id": child.id, "path": child.path, "state": child.state}
            for child in explanation.children
        ],
        "held_below": explanation.keeper and memcg_json(explanation.keeper, schema),
        **({"frames": frames_json(frames)} if frames else {}),
        "options": [option_json(option) for option in options],
        "next": following or None,
        "unread": explanation.unread,
        "warnings": explanation.warnings,
    }
    return dumper(schema)(document, indent=1) + "\n"


def _references_json(
    explanation: Explanation, details: Details
) -> documents.References:
    explained, unexplained = explanation.explained, details.unexplained
    return {
        "total": None if unexplained is None else explained + unexplained,
        "explained": explained,
        "unexplained": unexplained,
        "holders": [holder_json(holder) for holder in details.holders],
    }
