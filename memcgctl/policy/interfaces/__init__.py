"""Which interface of user space carries out an option, on whom, and at what price?

One file each, found by being here. What nobody has seen to work is in none of them.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator
from importlib import import_module

from memcgctl.policy.interfaces.base import AnyInterface, Interface


def _all() -> Iterator[AnyInterface]:
    for file in pkgutil.iter_modules(__path__):
        module = import_module(f"{__name__}.{file.name}")
        yield from (one for one in vars(module).values() if isinstance(one, Interface))


# The least harmful first.
INTERFACES: tuple[AnyInterface, ...] = tuple(sorted(_all(), key=lambda one: one.harm))
