"""How the tests run, wherever that is."""

from __future__ import annotations

from hypothesis import settings

# How long an example takes says more of the machine than of the program.
settings.register_profile("without deadlines", deadline=None)
settings.load_profile("without deadlines")
