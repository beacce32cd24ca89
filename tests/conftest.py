"""How the tests run, wherever that is, and which tier each belongs to."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# How long an example takes says more of the machine than of the program.
settings.register_profile("without deadlines", deadline=None)
settings.load_profile("without deadlines")
# .ci/quick: a tenth of the examples that a test asks for.
if os.environ.get("MEMCGCTL_QUICK"):
    settings.register_profile("quick", deadline=None, max_examples=10)
    settings.load_profile("quick")

TIERS = {"unit": "quick", "cores": "cores", "vm": "vm"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with its tier, by the directory that it is in."""
    for item in items:
        room = Path(item.path).relative_to(Path(__file__).parent).parts[0]
        fuzz = item.path.name == "test_fuzz.py"
        item.add_marker("fuzz" if fuzz else TIERS[room])
