"""The options that say what is to become of zombies, and the policy that they name."""

from __future__ import annotations

import re
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memcgctl.cli.reading import read_toml

if TYPE_CHECKING:
    from memcgctl.policy.policies import Policy

UNITS = "KMGT"


class MapperRule(str, Enum):
    """What ``--mapper`` takes; the same as in ``memcgctl.policy.policies``."""

    first = "first"
    most = "most"
    lca = "lca"


class Allow(str, Enum):
    """What ``--allow`` takes; the same as in ``memcgctl.policy.choice``."""

    over_limit = "over-limit"
    unaimed = "unaimed"
    drop_caches = "drop-caches"
    temp_swap = "temp-swap"


Mapper = Annotated[
    MapperRule | None,
    typer.Option(
        help="Who is charged for what several processes use: the oldest of them, the "
        "one that uses most, or the lowest common ancestor of their memcgs. "
        "Without it, what the policy says: most.",
        show_default=False,
    ),
]


def parse_size(text: str | int) -> int:
    """Bytes: ``1048576``, ``1024K``, ``1M`` or ``1MiB``."""
    found = re.fullmatch(
        rf"([0-9]{{1,20}})\s*(?:([{UNITS}])(?:iB|B)?|B)?", str(text).strip(), re.I
    )
    if not found:
        raise typer.BadParameter(f"'{text}' is no size like 1048576, 64K, 100M or 2G.")
    power = UNITS.index(found[2].upper()) + 1 if found[2] else 0
    return int(found[1]) << 10 * power


def load_policy(name: str, mapper: MapperRule | None = None) -> Policy:
    """The built-in policy of that name, or the one in the TOML file."""
    from memcgctl.policy.policies import POLICIES, PolicyError, parse_policy

    policy = POLICIES.get(name)
    if policy is None:
        path = Path(name)
        try:
            policy = parse_policy(read_toml(path), path.stem)
        except OSError as error:
            known = ", ".join(POLICIES)
            raise typer.BadParameter(
                f"'{name}' is neither a policy ({known}) nor a file: {error.strerror}."
            ) from error
        except (PolicyError, ValueError) as error:
            raise typer.BadParameter(f"{name}: {error}.") from error
    return policy if mapper is None else replace(policy, mapper=mapper.value)
