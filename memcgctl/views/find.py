"""Which memcg does a person mean? Looks an ID up in a census.

Pure functions of the model; no kernel structure is read here. An ID is a cgroup id,
a path or a part of one, ``memcg:N`` (the private id) or ``0x…`` (the address of the
``struct mem_cgroup``).
"""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches

from memcgctl.model import Census, Memcg

PRIVATE = "memcg:"


def find(census: Census, text: str) -> tuple[Memcg, ...]:
    """The memcgs that ``text`` names: one if it is clear, none if it is unknown.

    What ``text`` is the whole name of goes before what it is only a part of. Even a
    whole path can have several memcgs: cgroups are removed and made again.
    """
    number = _number(text)
    path = text.rstrip("/") or text[:1]
    tests: tuple[Callable[[Memcg], bool], ...] = (
        lambda m: number is not None and number(m) == text.lower(),
        lambda m: m.path == path,
        lambda m: bool(text) and text in m.path,
    )
    for test in tests:
        if found := tuple(filter(test, census.memcgs)):
            return found
    return ()


def near(census: Census, text: str, limit: int = 8) -> tuple[Memcg, ...]:
    """The memcgs whose names look most like ``text``, which names none; best first."""
    spell = _number(text) or (_path if "/" in text else _name)
    spelled: dict[str, list[Memcg]] = {}
    for memcg in census.memcgs:
        spelled.setdefault(spell(memcg), []).append(memcg)
    spelled.pop(f"{PRIVATE}-", None)  # of those that have none, none is meant
    names = get_close_matches(text, spelled, n=limit, cutoff=0.5)
    return tuple(memcg for name in names for memcg in spelled[name])[:limit]


def _number(text: str) -> Callable[[Memcg], str] | None:
    """How a memcg's number is written if ``text`` is meant as one; else None."""
    if text.startswith(PRIVATE):
        # an offline memcg has no private id once its last swap entry is gone
        return lambda memcg: f"{PRIVATE}{memcg.private_id or '-'}"
    if text.lower().startswith("0x"):
        return lambda memcg: hex(memcg.address)
    return (lambda memcg: str(memcg.id)) if text.isdecimal() else None


def _path(memcg: Memcg) -> str:
    return memcg.path


def _name(memcg: Memcg) -> str:
    return memcg.path.rpartition("/")[2]
