"""Which memcg does a person mean? Looks what was typed up in a census.

Pure functions of the model; no kernel structure is read here. What names a memcg is a
cgroup id, a whole path (as the kernel has it or below the mount of the hierarchy),
``memcg:N`` (the private id), ``0x…`` (the address of the ``struct mem_cgroup``) or the
uid of a pod. The last name of a path, a pattern or a part of a path only match: what
acts on memory is not to guess by them, and what shows it says what they matched.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Literal

from memcgctl.model import Census, Memcg
from memcgctl.views.explain import descendants

PRIVATE = "memcg:"
# Where hierarchies with the memory controller are mounted, if the census has no mount.
_MOUNTS = ("/sys/fs/cgroup/unified", "/sys/fs/cgroup/memory", "/sys/fs/cgroup")
_UID = re.compile(r"[0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}")

How = Literal["exact", "name", "glob", "part"]


@dataclass(frozen=True)
class Found:
    """The memcgs that a text names or matches, and how."""

    how: How
    memcgs: tuple[Memcg, ...]


def find(census: Census, text: str) -> tuple[Memcg, ...]:
    """The memcgs that ``text`` names exactly: none if there is no such one.

    Even a whole path, and a cgroup id, can have several: cgroups are removed and made
    again, and the memory controller is taken from a cgroup and given back.
    """
    named = _naming(census, text)
    return tuple(filter(named, census.memcgs)) if named else ()


def match(census: Census, text: str) -> Found | None:
    """What ``text`` names, or else what it matches.

    A number, an address and a whole path are never taken for a part of another name.
    """
    if found := find(census, text):
        return Found("exact", found)
    if is_number(text) or (text.startswith("/") and not _is_glob(text)):
        return None
    return matching(census, text)


def matching(census: Census, text: str) -> Found | None:
    """What has ``text`` as its last name, or else as a pattern, or else in part."""
    tests: dict[How, Callable[[Memcg], bool]] = {
        "name": lambda memcg: memcg.path.endswith(f"/{text.strip('/')}"),
        "glob": lambda memcg: _is_glob(text) and matches(memcg.path, text),
        "part": lambda memcg: text in memcg.path or _undashed(text) in memcg.path,
    }
    for how, test in tests.items() if text.strip("/") else ():
        if found := tuple(filter(test, census.memcgs)):
            return Found(how, found)
    return None


def under(census: Census, text: str) -> Callable[[Memcg], bool]:
    """The test for memcgs at or below what ``text`` names, or matches but in part."""
    named = find(census, text)
    if named or is_number(text):
        below = (one for memcg in named for one in descendants(census, memcg))
        addresses = {memcg.address for memcg in (*named, *below)}
        paths = {memcg.path for memcg in named} if text.startswith("/") else ()
        return lambda memcg: (
            memcg.address in addresses
            or any(is_under(memcg.path, one, str.__eq__) for one in paths)
        )
    glob = path(census, text) if text.startswith("/") else text
    return lambda memcg: is_under(memcg.path, glob)


def is_under(
    path: str, glob: str, same: Callable[[str, str], bool] = fnmatchcase
) -> bool:
    """Whether ``path``, or a cgroup above it, matches ``glob``.

    ``*`` stays within one name. A glob that begins with ``/`` starts at the root,
    any other at any depth.
    """
    names, pattern = _names(path), _names(glob)
    depths = range(len(names) - len(pattern) + 1)
    return any(
        all(map(same, names[depth:], pattern))
        for depth in (depths[:1] if glob.startswith("/") else depths)
    )


def matches(path: str, glob: str) -> bool:
    """Whether ``path`` itself, and not only one above it, matches ``glob``."""
    return is_under(path, glob) and not is_under(path.rpartition("/")[0], glob)


def near(census: Census, text: str, limit: int = 8) -> tuple[Memcg, ...]:
    """The memcgs whose names look most like ``text``, which names none; best first."""
    spell = _spelling(text) or (_path if "/" in text else _name)
    spelled: dict[str, list[Memcg]] = {}
    for memcg in census.memcgs:
        spelled.setdefault(spell(memcg), []).append(memcg)
    spelled.pop(f"{PRIVATE}-", None)  # of those that have none, none is meant
    names = get_close_matches(text, spelled, n=limit, cutoff=0.5)
    return tuple(memcg for name in names for memcg in spelled[name])[:limit]


def is_number(text: str) -> bool:
    """Whether ``text`` is meant as an id or an address."""
    return _spelling(text) is not None


def tell_apart(memcgs: tuple[Memcg, ...]) -> Literal["id", "address"]:
    """What each of these has for itself.

    A cgroup has a memcg each time that the memory controller is given to it: the old
    one and the new one have one id.
    """
    return "id" if len({memcg.id for memcg in memcgs}) == len(memcgs) else "address"


def _naming(census: Census, text: str) -> Callable[[Memcg], bool] | None:
    """The test for the memcgs that ``text`` is a whole name of."""
    if spell := _spelling(text):
        return lambda memcg: spell(memcg) == text.lower()
    if text.startswith("/"):
        return lambda memcg: memcg.path == path(census, text)
    if _UID.fullmatch(text.lower().removeprefix("pod")):
        return lambda memcg: pod_uid(_name(memcg)) == _dashed(text)
    return None


def path(census: Census, text: str) -> str:
    """A path as the kernel has it, of one that may begin with the mount's."""
    mount = census.kernel.cgroup_mount
    here = text.rstrip("/") or text[:1]
    for point in (mount,) if mount else _MOUNTS:
        if here == point:
            return "/"
        if here.startswith(f"{point}/"):
            return here.removeprefix(point)
    return here


def pod_uid(name: str) -> str | None:
    """The uid, with dashes, of the pod whose cgroup has this name.

    ``pod<uid>`` with the cgroupfs driver, ``kubepods-burstable-pod<uid>.slice`` with
    underscores in the uid with systemd's.
    """
    found = re.fullmatch(rf"(?:.*-)?pod({_UID.pattern})(?:\.slice)?", name)
    return found[1].replace("_", "-") if found else None


def _dashed(text: str) -> str:
    return text.lower().removeprefix("pod").replace("_", "-")


def _undashed(text: str) -> str:
    """A piece of a pod's uid as systemd's names have it."""
    return text.replace("-", "_") if re.fullmatch("[0-9a-f-]{9,}", text) else text


def _spelling(text: str) -> Callable[[Memcg], str] | None:
    """How a memcg's number is written if ``text`` is meant as one; else None."""
    if text.startswith(PRIVATE):
        # an offline memcg has no private id once its last swap entry is gone
        return lambda memcg: f"{PRIVATE}{memcg.private_id or '-'}"
    if text.lower().startswith("0x"):
        return _address
    return _id if text.isdecimal() else None


def _is_glob(text: str) -> bool:
    return any(char in text for char in "*?[")


def _names(path: str) -> list[str]:
    return [name for name in path.split("/") if name]


def _id(memcg: Memcg) -> str:
    return str(memcg.id)


def _address(memcg: Memcg) -> str:
    return hex(memcg.address)


def _path(memcg: Memcg) -> str:
    return memcg.path


def _name(memcg: Memcg) -> str:
    return memcg.path.rpartition("/")[2]
