"""A person's own patterns of cgroup names, before those that memcgctl knows."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import typer

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from memcgctl.cli.reading import read_toml
from memcgctl.views.workload import GROUPS, Rule, workload


def use_patterns(path: Path) -> None:
    """Name workloads by the file's patterns first; BadParameter says what is wrong.

    ``memcgctl help list`` shows what such a file looks like.
    """
    workload.put_first(_read(path))


def _read(path: Path) -> list[Rule]:
    def wrong(why: object) -> typer.BadParameter:
        return typer.BadParameter(f"{path}: {why}")

    try:
        document = tomllib.loads(read_toml(path))
    except OSError as error:
        raise wrong(error.strerror) from error
    except (ValueError, RecursionError) as error:
        raise wrong(f"not TOML: {error}") from error
    rules = document.pop("workload", None)
    if document or not isinstance(rules, list):
        raise wrong("has to be a list of [[workload]] and nothing else")
    found = []
    for number, rule in enumerate(rules, 1):
        try:
            found.append(_rule(rule))
        except ValueError as error:
            raise wrong(f"workload {number}: {error}") from error
    return found


def _rule(values: object) -> Rule:
    """ValueError if it cannot be one."""
    keys = {"runtime", "pattern"}
    if not isinstance(values, dict) or values.keys() != keys:
        raise ValueError("has to have a runtime and a pattern and nothing else")
    if not all(isinstance(value, str) and value for value in values.values()):
        raise ValueError("runtime and pattern have to be strings that are not empty")
    try:
        pattern = re.compile(values["pattern"])
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"its pattern is no regular expression: {error}") from error
    if others := pattern.groupindex.keys() - set(GROUPS):
        raise ValueError(
            f"a pattern's groups are {', '.join(GROUPS)}, not {', '.join(others)}"
        )
    if pattern.groups > len(pattern.groupindex):
        raise ValueError("a group without a name is written (?:...)")
    if pattern.match(""):
        raise ValueError("its pattern matches nothing at all, so it would match always")
    return Rule(values["runtime"], values["pattern"])
