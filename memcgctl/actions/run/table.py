"""Which module carries out which action? By the names that plans have for them."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Protocol, cast

from memcgctl import actions
from memcgctl.actions.host.machine import Guard, Machine, Outcome
from memcgctl.model import Step


class Action(Protocol):
    """What each module of an action has, beside its ``NAME``."""

    def probe(self, machine: Machine) -> str | None:
        """None if it can be done here and now, or else why not."""

    def apply(self, step: Step, machine: Machine, guard: Guard) -> Outcome:
        """Do it; ActionError if it cannot be done."""


def _all() -> Iterator[tuple[str, Action]]:
    """A file each, found by being there."""
    for file in pkgutil.iter_modules(actions.__path__):
        if not file.ispkg:
            module = import_module(f"{actions.__name__}.{file.name}")
            yield module.NAME, cast(Action, module)


ACTIONS: Mapping[str, Action] = dict(_all())
