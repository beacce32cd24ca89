"""Which memcgs does a command line mean? What is not clear is asked back, with exit 2.

What acts takes only what is named exactly; what shows takes the nearest match as well,
and says what it matched.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, NoReturn

from memcgctl.cli.terminal import say

if TYPE_CHECKING:
    from memcgctl.model import Census, Memcg
    from memcgctl.views.find import How

SHOWN = 20
_WORDS: dict[How, str] = {
    "name": "ends in '{}'",
    "glob": "matches '{}'",
    "part": "has '{}' in it",
}


def shown(census: Census, text: str) -> Memcg:
    """The one memcg that ``text`` names or matches, to be looked at."""
    from memcgctl.views.find import match

    found = match(census, text)
    if found is None:
        _unknown(census, text)
    if len(found.memcgs) > 1:
        _ambiguous(text, found.memcgs)
    (memcg,) = found.memcgs
    if found.how != "exact":
        say(f"{memcg.path} (id {memcg.id}) {_WORDS[found.how].format(text)}")
    return memcg


def meant(census: Census, ids: Iterable[str], parts: Iterable[str]) -> list[Memcg]:
    """The memcgs that are named exactly, and all those that parts are said to match.

    These are told: somebody is to see what will be acted on.
    """
    from memcgctl.views.find import find, matching

    found = {}
    for text in ids:
        named = find(census, text)
        if not named:
            _unknown(census, text, act=True)
        if len(named) > 1:
            _ambiguous(text, named)
        found[named[0].address] = named[0]
    for text in parts:
        matched = matching(census, text)
        if matched is None:
            _unknown(census, text)
        say(f"--match '{text}': {_counted(len(matched.memcgs))}")
        _list(matched.memcgs)
        found |= {memcg.address: memcg for memcg in matched.memcgs}
    return list(found.values())


def below(census: Census, text: str | None) -> list[Memcg]:
    """The memcgs at or below what ``text`` names or matches; all without one.

    That there are none is told, so that nobody reads that no memcg is offline.
    """
    from memcgctl.views.find import find, is_number, is_under, under

    if text is None:
        return list(census.memcgs)
    if is_number(text) and not find(census, text):
        _unknown(census, text)
    found = [*filter(under(census, text), census.memcgs)]
    offline = [memcg for memcg in census.memcgs if memcg.state == "offline"]
    if offline and all(memcg.state == "online" for memcg in found):
        parts = sum(is_under(memcg.path, f"*{text}*") for memcg in offline)
        hint = f"; {parts:,} at or below '*{text}*'" if parts else ""
        say(f"none of {len(offline):,} offline memcgs is at or below '{text}'{hint}")
    return found


def _unknown(census: Census, text: str, *, act: bool = False) -> NoReturn:
    from memcgctl.views.find import match, near

    what = f"has id {text}" if text.isdecimal() else f"is '{text}'"
    matched = match(census, text) if act else None
    if matched:
        say(f"no memcg {what}; it is a part of these (--match takes all of them):")
        _list(matched.memcgs)
    else:
        similar = near(census, text)
        say(f"no memcg {what}{'; similar ones:' if similar else ''}")
        _list(similar)
    sys.exit(2)


def _ambiguous(text: str, memcgs: tuple[Memcg, ...]) -> NoReturn:
    from memcgctl.views.find import tell_apart

    by = tell_apart(memcgs)
    say(f"{_counted(len(memcgs))} are '{text}'; give the {by} of one:")
    _list(memcgs, by)
    sys.exit(2)


def _list(memcgs: tuple[Memcg, ...], by: str = "id") -> None:
    for memcg in memcgs[:SHOWN]:
        private = f" (memcg:{memcg.private_id})" if memcg.private_id else ""
        address = f"{memcg.address:#x}{private} " if by != "id" else ""
        say(f"  {address}{memcg.id} {memcg.state} {memcg.path}")
    if (more := len(memcgs) - SHOWN) > 0:
        say(f"  and {more:,} more")


def _counted(number: int) -> str:
    from memcgctl.report.text import counted

    return counted(number, "memcg")
