"""Was the promise kept? Facts of a scene become findings; pure functions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]

PAGE = 4096
# What a living memcg is charged more than was said: statistics, a batch of readahead.
SLACK_BYTES = 128 << 10


@dataclass(frozen=True)
class Verdict:
    """What a scene came to. ``findings`` are (kind, words); none where all held.

    ``lost_bytes`` is what living memcgs lost from memory, ``bound_bytes`` what the
    plan said they could lose at most.
    """

    promised: int
    freed: int
    zombies: int
    lost_bytes: int
    bound_bytes: int
    findings: tuple[tuple[str, str], ...]

    @property
    def holds(self) -> bool:
        return not self.findings


def judge(scene: Json, facts: Json) -> Verdict:
    if "error" in facts:
        lines = facts["error"].strip().splitlines()
        return Verdict(0, 0, 0, 0, 0, (("scene", lines[-1]),))
    found = [("damage", words) for words in facts["damage"]]
    found += [("left behind", f"{key}: {what}") for key, what in _changes(facts)]
    for name in {"plan", "ran", "rest"} & facts.keys():
        said = facts[name]
        if said["json"] is None or said["status"] not in (0, 4):
            lines = said["stderr"].strip().splitlines() or [""]
            found.append(("command", f"{name}: {said['status']}: {lines[-1]}"))
    if facts["ran"]["json"] is None:
        return Verdict(0, 0, facts["before"]["dying"], 0, 0, tuple(found))
    result = facts["ran"]["json"]
    promised, freed, words = _promise(facts, result)
    found += [("promise", word) for word in words]
    lost, bound = _lost(scene, facts), result["predicted"]["collateral_bytes"]
    total = sum(lost.values())
    stolen = facts["after"].get("stolen", 0) - facts["before"].get("stolen", 0)
    if total > bound and stolen:  # by kswapd, from everybody, as the guest is small
        found.append(("scene", f"the machine was short of memory: {stolen} pages"))
    elif total > bound:
        most = ", ".join(f"{path} {bytes_}" for path, bytes_ in lost.items() if bytes_)
        found.append(("harm", f"the living lost {total}, at most {bound}: {most}"))
    found += [("harm", words) for words in _killed(facts)]
    found += [("charged", words) for words in _gained(scene, facts)]
    zombies = facts["before"]["dying"]
    return Verdict(promised, freed, zombies, total, bound, tuple(found))


def _changes(facts: Json) -> list[tuple[str, str]]:
    return [
        (f"{key} {word}", what)
        for word, part in (("more", "left"), ("less", "lost"))
        for key, all_of in facts[part].items()
        for what in all_of
    ]


def _promise(facts: Json, result: Json) -> tuple[int, int, list[str]]:
    """How many were promised, how many of these are gone, and what is wrong."""
    paths = {one: path for path, one in facts["ids"].items()}
    promised = set(result["predicted"]["freed"])
    count, before = facts["after"]["dying"], facts["before"]["dying"]
    listed = facts["rest"]["json"] if "rest" in facts else None
    still = {
        m["id"] for m in (listed or {"memcgs": []})["memcgs"] if m["state"] == "offline"
    }
    left = {one["id"]: one for one in result["measured"]["remaining"]}
    words = []
    for one in sorted(promised & still):
        why = left.get(one, {})
        reason = why.get("verdict") or why.get("why") or "?"
        words.append(f"{paths.get(one, one)}: {' '.join(reason.split())}")
    if listed and count != len(still):
        words.append(f"the kernel counts {count} dying, list has {len(still)}")
    if not listed and count != before - len(promised):
        words.append(f"{before} were dying, {count} are, {len(promised)} promised")
    said = set(result["measured"]["freed"])
    if not promised - still <= said or said & still:
        words.append(f"says it freed {sorted(said)}; promised {sorted(promised)}")
    complete = not promised & still
    if facts["ran"]["status"] != (0 if complete else 4):
        words.append(f"exit {facts['ran']['status']}, complete: {complete}")
    return len(promised), len(promised - still), words


def leaves(scene: Json) -> list[str]:
    """Living memcgs without any below them: what is shown for them is theirs."""
    paths = [memcg["path"] for memcg in scene["memcgs"]]
    return [
        memcg["path"]
        for memcg in scene["memcgs"]
        if memcg["online"]
        and not any(other.startswith(memcg["path"] + "/") for other in paths)
    ]


def _lost(scene: Json, facts: Json) -> dict[str, int]:
    """What each living memcg lost from memory, class by class."""
    lost = {}
    for path in leaves(scene):
        before, after = (facts[when]["memcgs"][path] for when in ("before", "after"))
        pairs = zip(before["pages"][:3], after["pages"][:3], strict=True)
        lost[path] = sum(max(0, was - are) for was, are in pairs) * PAGE
    return lost


def _killed(facts: Json) -> list[str]:
    found = []
    for path, before in facts["before"]["memcgs"].items():
        events = facts["after"]["memcgs"][path]["events"]
        if events["oom_kill"] > before["events"]["oom_kill"]:
            found.append(f"{path}: OOM killed")
    return found


def _gained(scene: Json, facts: Json) -> list[str]:
    """Who is charged for more than the plan said."""
    said: dict[str, int] = {}
    if not (plan := facts.get("plan", {}).get("json")):
        return []
    for step in plan["steps"]:
        for path, bytes_ in zip(step["charged"], step["charged_bytes"], strict=False):
            said[path] = said.get(path, 0) + bytes_
    found = []
    for path in leaves(scene):
        before, after = (facts[when]["memcgs"][path] for when in ("before", "after"))
        # Not swap: an entry in the swap cache would count twice.
        was, are = (sum(one["pages"][:3]) * PAGE for one in (before, after))
        allowed = said.get(f"/{path}", 0)
        if are - was > allowed + SLACK_BYTES:
            found.append(f"/{path}: charged {are - was} more, {allowed} was said")
    return found
