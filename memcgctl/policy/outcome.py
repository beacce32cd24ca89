"""Which zombies go once parts of them are gone, and why do the others stay?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from memcgctl.model import HOLDERS, Census, Memcg, Remaining, Topic
from memcgctl.policy.cases import Case
from memcgctl.policy.effects import Effect

IN_VAIN = "no memcg would go if its users were disturbed"
WORDS: dict[Case, str] = {
    "file-unmapped": "page cache",
    "file-mapped": "mapped page cache",
    "swap-backed-unmapped": "unmapped shmem or anonymous memory",
    "swap-backed-mapped": "mapped shmem or anonymous memory",
    "swap": "swap entries",
    "metadata": "page cache of a block device",
    "kernel": "kernel pages",
    "hugetlb": "hugetlb pages",
    "writeback": "cgroup writeback",
    "stock": "a per-CPU charge stock",
    "other": "a reference",
}


def offline(census: Census) -> list[Memcg]:
    """The offline memcgs of a census, parents before their children.

    In a damaged kernel two can have one id: the first is taken.
    """
    found: dict[int, Memcg] = {}
    for memcg in census.memcgs:
        if memcg.state == "offline":
            found.setdefault(memcg.id, memcg)
    return list(found.values())


def with_descendants(census: Census, wanted: Iterable[int] | None) -> list[Memcg]:
    """The offline memcgs that have a wanted id or are below one that has; or all."""
    if wanted is None:
        return offline(census)
    ids = set(wanted)
    for memcg in census.memcgs:
        if memcg.parent_id in ids:
            ids.add(memcg.id)
    return [memcg for memcg in offline(census) if memcg.id in ids]


def fates(
    memcgs: Iterable[Memcg],
    effects: Mapping[int, Iterable[Effect]],
    children: Mapping[int, Iterable[Memcg]],
) -> tuple[tuple[int, ...], tuple[Remaining, ...]]:
    """The ids of the memcgs that go, children first, and what is said of the others.

    ``effects`` and ``children`` are by the memcg's id; ``memcgs`` has parents before
    their children, as a census has.
    """
    freed: dict[int, None] = {}
    remaining: list[Remaining] = []
    for memcg in reversed(list(memcgs)):
        mine = [one for one in effects.get(memcg.id, ()) if one.why]
        whys = list(reasons(memcg, mine))
        kinds = list(reasons(memcg, mine, leftover))
        stay = [child for child in children.get(memcg.id, ()) if child.id not in freed]
        if stay:
            more = f" and {len(stay) - 1} more" if len(stay) > 1 else ""
            whys.append(f"its child {stay[0].path} (id {stay[0].id}) stays{more}")
            kinds.append("a child stays")
        if whys:
            why, kinds = "; ".join(_first_hand(whys)), _first_hand(kinds)
            remaining.append(Remaining(memcg.id, why, tuple(kinds)))
        else:
            freed[memcg.id] = None
    return tuple(freed), tuple(reversed(remaining))


def _first_hand(whys: Iterable[str]) -> list[str]:
    """Each reason once; without what was only left since others stay anyway."""
    once = list(dict.fromkeys(whys))
    return [why for why in once if not why.endswith(IN_VAIN)] or once


def reasons(
    memcg: Memcg,
    effects: Iterable[Effect],
    words: Callable[[Effect], str] | None = None,
) -> Iterable[str]:
    """Why a memcg stays, its children aside; nothing if it goes."""
    if memcg.details is None:
        yield "its references and charges were not looked at"
        return
    for one in effects:
        if one.why:
            yield (words or because)(one)
    unread, unexplained = memcg.details.unread, memcg.details.unexplained
    if Topic.SWAP_MAP in unread and any(
        h.kind == "swap" for h in memcg.details.holders
    ):
        yield "which swap entries it has could not be read in full"
    if unexplained is None:
        yield "how many references it has is not known"
    elif unexplained > 0 and any(topic in unread for topic in HOLDERS):
        yield "the holders of all its references could not be read"
    elif unexplained > 0 and words:
        yield "references that nobody accounts for"
    elif unexplained > 0:
        yield f"nobody accounts for {unexplained} of its references"


def because(one: Effect) -> str:
    """Why something of a part is left."""
    holder = one.part.holder
    if one.part.case == "other" and holder:
        detail = f" ({holder.detail})" if holder.detail else ""
        return f"{holder.kind} reference{detail}"
    return f"{WORDS[one.part.case]}: {one.why}"


def leftover(one: Effect) -> str:
    """As ``because``, but the same for all of a kind."""
    if one.part.case == "other" and one.part.holder:
        return f"{one.part.holder.kind} reference"
    return because(one)


def children_of(memcgs: Iterable[Memcg]) -> dict[int, list[Memcg]]:
    """Offline memcgs by the id of their parent."""
    found: dict[int, list[Memcg]] = {}
    for memcg in memcgs:
        found.setdefault(memcg.parent_id, []).append(memcg)
    return found
