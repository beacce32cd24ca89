"""Which option does a policy choose in which case?

A policy is a table: for each case the options to try, in order. A TOML file can hold
one; ``least-harm`` alone also asks what user space can do on the kernel at hand.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from memcgctl.policy.cases import CASES, MEMORY, Case

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Option = Literal["evict", "recharge-parent", "recharge-mapper", "deferred", "leave"]
MapperRule = Literal["first", "most", "lca"]
OPTIONS: tuple[Option, ...] = get_args(Option)
RULES: tuple[MapperRule, ...] = get_args(MapperRule)


class PolicyError(ValueError):
    """A policy file makes no sense; ``str()`` is one clear line."""


@dataclass(frozen=True)
class Policy:
    """``options`` by case; a case without any is left as it is.

    ``mapper`` says who is charged where memory has several users: ``first`` the one
    whose process is the oldest, ``most`` the one that uses most of it, ``lca`` the
    lowest common ancestor of all. ``least_harm``: the options in the order of the harm
    that the interfaces of this kernel do, instead of the table's. ``instead`` is what
    user space does where it has no way to do what a kernel would.
    """

    name: str
    options: dict[Case, tuple[Option, ...]]
    mapper: MapperRule = "most"
    least_harm: bool = False
    instead: dict[Case, tuple[Option, ...]] = field(default_factory=dict)

    def here(self, case: Case) -> tuple[Option, ...]:
        """The options that user space tries in a case, those of a kernel first."""
        return (*self.options.get(case, ()), *self.instead.get(case, ()))


def _everywhere(option: Option) -> dict[Case, tuple[Option, ...]]:
    """One option for all memory and swap.

    An inode's writeback can only be done with or go to the parent's, as kernels from
    5.14 on do it, and a stock can only be given back.
    """
    table: dict[Case, tuple[Option, ...]] = dict.fromkeys((*MEMORY, "swap"), (option,))
    writeback: Option = "evict" if option == "evict" else "recharge-parent"
    return table | {"writeback": (writeback,), "stock": ("evict",)}


POLICIES = {
    policy.name: policy
    for policy in (
        Policy(
            # The example algorithm of "Reducing zombie memcgs", and for swap entries
            # what its third open question asks: reparent them.
            "proposal",
            {
                "file-unmapped": ("evict",),
                "metadata": ("evict",),
                "file-mapped": ("recharge-mapper",),
                "swap-backed-unmapped": ("deferred",),
                "swap-backed-mapped": ("recharge-mapper",),
                "swap": ("recharge-parent",),
            },
            instead={
                "file-mapped": ("evict",),
                "swap-backed-mapped": ("recharge-parent",),
                "swap": ("recharge-mapper",),
            },
        ),
        Policy("evict", _everywhere("evict")),
        Policy(
            "parent",
            _everywhere("recharge-parent"),
            instead={"swap": ("recharge-mapper",)},
        ),
        Policy("mapper", _everywhere("recharge-mapper")),
        Policy("deferred", _everywhere("deferred")),
        Policy(
            "least-harm",
            {case: OPTIONS[:-1] for case in CASES if case != "other"},
            least_harm=True,
        ),
    )
}


def parse_policy(text: str, name: str) -> Policy:
    """The policy in the text of a TOML file; raises PolicyError.

    Top-level keys: ``name``, ``mapper``; the table ``cases`` has for each case an
    option or a list of options, in the order in which they are tried.
    """
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise PolicyError(f"not TOML: {error}") from error
    _known("key", document, ("name", "mapper", "cases"))
    cases = document.get("cases")
    if not isinstance(cases, dict) or not cases:
        raise PolicyError("no table [cases], which has an option for each case")
    _known("case", cases, tuple(case for case in CASES if case != "other"))
    title, mapper = document.get("name", name), document.get("mapper", "most")
    if not isinstance(title, str) or not title.isprintable() or not title:
        raise PolicyError("name is not a line of text")
    if mapper not in RULES:
        raise PolicyError(f"mapper is {_shown(mapper)}, not {_any_of(RULES)}")
    return Policy(
        title, {case: _options(case, given) for case, given in cases.items()}, mapper
    )


def _options(case: str, given: Any) -> tuple[Option, ...]:
    chosen = given if isinstance(given, list) else [given]
    for option in chosen:
        if option not in OPTIONS:
            raise PolicyError(f"{case} is {_shown(option)}, not {_any_of(OPTIONS)}")
    if not chosen:
        raise PolicyError(f"{case} has an empty list of options")
    return tuple(chosen)


def _known(what: str, table: dict[str, Any], known: tuple[str, ...]) -> None:
    for key in table:
        if key not in known:
            raise PolicyError(f"unknown {what} {_shown(key)}, not {_any_of(known)}")


def _shown(value: object) -> str:
    return ascii(value)[:40]


def _any_of(known: tuple[str, ...]) -> str:
    return f"one of {', '.join(known)}"
