"""Branches on a kernel's shape name the commit that made it; a table has the traits."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from memcgctl.model.traits import NAMES, TRAITS, Trait
from memcgctl.policy.interfaces import INTERFACES
from memcgctl.policy.interfaces.base import AnyInterface

TOP = Path(__file__).parents[2]
ROOMS = ("kernel", "linux", "census")
ASKING = {"has_member", "first_member"}
# A hash with its subject, or an option without which the kernel is built.
ABOVE = 8
# What does not ask for one shape itself.
EXEMPT = {
    "memcgctl/census/charges/collect.py:second": "its callers name them",
    "memcgctl/census/overhead.py:_sum": "the lists that it is for name them",
    "memcgctl/census/swap/maps.py:_maps": "its table of generations names them",
    "memcgctl/census/traits.py:_has": "the table of traits names them",
}
NAMED = re.compile(r'\b[0-9a-f]{12}\b[\s#]*\("|CONFIG_')


class Branch(NamedTuple):
    """A place that asks for the shape of the kernel, and what is said of it there."""

    where: str
    said: str


def branches() -> Iterator[Branch]:
    for room in ROOMS:
        for path in sorted((TOP / "memcgctl" / room).rglob("*.py")):
            yield from branches_of(path, TOP)


def branches_of(path: Path, top: Path) -> Iterator[Branch]:
    source = path.read_text()
    lines = source.splitlines()
    for function in ast.walk(ast.parse(source)):
        if not isinstance(function, ast.FunctionDef) or function.name in ASKING:
            continue
        for statement in _statements(function):
            asks = any(
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in ASKING
                for node in _own(statement)
            )
            if asks:
                said = "\n".join(_comments(lines, statement))
                said += ast.get_docstring(function) or ""
                where = f"{path.relative_to(top)}:{function.name}"
                yield Branch(where, said)


def _statements(function: ast.FunctionDef) -> Iterator[ast.stmt]:
    """All statements of a function, those of functions within it left out."""
    pending: list[ast.AST] = [*function.body]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.FunctionDef):
            continue
        if isinstance(node, ast.stmt):
            yield node
        pending += [
            one for one in ast.iter_child_nodes(node) if not isinstance(one, ast.expr)
        ]


def _own(statement: ast.stmt) -> Iterator[ast.AST]:
    """The expressions of a statement, without those of statements within it."""
    pending: list[ast.AST] = [
        one for one in ast.iter_child_nodes(statement) if isinstance(one, ast.expr)
    ]
    while pending:
        node = pending.pop()
        yield node
        pending += ast.iter_child_nodes(node)


def _comments(lines: list[str], statement: ast.stmt) -> list[str]:
    """Comments in the lines above a statement, in it, and at the head of its body."""
    body = getattr(statement, "body", None)
    end = body[0].lineno if isinstance(body, list) else statement.end_lineno
    near = lines[max(0, statement.lineno - ABOVE) : end]
    return [line.partition("#")[2] for line in near if "#" in line]


def test_branches_on_shape_name_their_commit() -> None:
    """Lost: whoever meets the next shape has to find out anew what this one was."""
    found = [*branches()]
    assert len(found) > 20  # the script finds them
    bare = {one.where for one in found if not NAMED.search(one.said)}
    assert bare == set(EXEMPT)


def test_a_branch_without_a_commit_is_found(tmp_path: Path) -> None:
    """Lost: the rule, to a script that finds nothing."""
    path = tmp_path / "made_up.py"
    for said, named in (("6.9", False), ('0123456789ab ("mm: a change")', True)):
        path.write_text(
            f"def f(prog):\n    # Since {said}.\n"
            '    if has_member(prog, "a", "b"):\n        pass\n'
        )
        (one,) = branches_of(path, tmp_path)
        assert bool(NAMED.search(one.said)) is named


def test_traits_are_named_once_and_told_by_something() -> None:
    """Lost: a trait that is always there, or another one's."""
    assert len(NAMES) == len(TRAITS)
    for trait in TRAITS:
        assert trait.symbols or trait.members, trait.name
        if trait.since:
            assert re.fullmatch("[0-9a-f]{12}", trait.since.hash)


@pytest.mark.parametrize("interface", INTERFACES, ids=lambda one: one.name)
def test_what_an_interface_needs_is_a_trait(interface: AnyInterface) -> None:
    """Lost: an action that no kernel seems to have, for a word misspelt."""
    assert {*interface.needs} <= NAMES


def test_names_in_the_planner_are_traits() -> None:
    """Lost: a branch that is never taken, for a word misspelt."""
    for path in (TOP / "memcgctl/policy").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Compare) or not isinstance(
                node.left, ast.Constant
            ):
                continue
            if any("interfaces" in ast.unparse(one) for one in node.comparators):
                assert node.left.value in NAMES, f"{path.name}: {node.left.value!r}"


def rows() -> list[str]:
    head = "| trait | what such a kernel does | versions | commit |"
    return [head, "|---|---|---|---|", *map(_row, TRAITS)]


def _row(trait: Trait) -> str:
    since, until = trait.since, trait.until
    commit = f"{since.hash} ({since.subject})" if since else ""
    versions = ", ".join(
        [
            *([f"from {since.version} on"] if since else []),
            *([f"before {until}"] if until else []),
            *([f"cgroup v{trait.cgroup_version}"] if trait.cgroup_version else []),
        ]
    )
    return f"| {trait.name} | {trait.what} | {versions} | {commit} |"


def test_the_readme_has_the_table() -> None:
    """Lost: a person reads of a kernel what the program does not think."""
    assert "\n".join(rows()) in (TOP / "memcgctl/topics/kernels.md").read_text()
