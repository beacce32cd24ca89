"""Can a zombie be freed, and what has to happen for that? Sentences for a person."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from memcgctl.model import ChargeGroup, Details, Holder, Memcg, Plan
from memcgctl.report.text import counted, size
from memcgctl.report.verdict import process_words

# What a person has to see to, by the kind of holder; what is not here goes by itself
# or by a step.
_BY_HAND = {
    "socket": "that socket has to be closed",
    "fsnotify": "that watch has to be closed",
    "event": "that eventfd has to be closed",
    "other": "it has to end or let go",
}
_OBSTACLES = {
    "locked (mlock)": "munlock that memory, or end",
    "hugetlb (until truncated or unmapped)": "unmap its hugetlb pages or truncate them",
    "pinned": "unregister its buffers (io_uring, RDMA, a virtual machine), or end",
}
# How a holder that a process has open is written: TCP, lab (pid 374): fd 5.
_OPENED = re.compile(r"(.+?), (?:in flight to )?(.+ \(pid \d+\)): (fd [\d, ]+)")
_PID = re.compile(r"\(pid (\d+)\)")
# How a process is written that is still counted as in the cgroup, and what ends that.
_CSS_SETS = (
    (
        re.compile(r"css_set: (.+ \(pid \d+\)), dead but not reaped"),
        "the parent of {} has to reap it, or end",
    ),
    (
        re.compile(r"css_set: the cgroup namespace of (.+ \(pid \d+\))"),
        "{} has to end: its cgroup namespace was made there",
    ),
    (
        re.compile(r"css_set: (.+ \(pid \d+\))"),
        "{} has to end or be moved: it is still in the cgroup",
    ),
)
_SWAP_BACKED = ("shmem", "anon")
_SHOWN = 4


def verdict_of(memcg: Memcg, plan: Plan) -> str:
    """One sentence: can it be freed, by what, or until when not."""
    name = f"{memcg.path} (id {memcg.id})"
    if memcg.id in plan.freed:
        actions = dict.fromkeys(step.action for step in plan.steps)
        by = f" by {', '.join(actions)}" if actions else ", nothing holds it any more"
        return f"{name} can be freed{by}."
    for left in plan.remaining:
        if left.id == memcg.id:
            return f"{name} cannot be freed here: {', '.join(left.kinds) or left.why}."
    return f"Whether {name} can be freed is not known."


def cost(memcg: Memcg) -> str:
    """What it takes, in one sentence."""
    if memcg.charges is None or memcg.swap is None:
        return f"It takes {size(memcg.overhead.total_bytes)} of kernel overhead."
    parts = [
        (memcg.charges.total_bytes, "memory"),
        (memcg.swap.bytes, "swap"),
        (memcg.overhead.total_bytes, "kernel overhead"),
    ]
    named = ", ".join(f"{size(part)} {what}" for part, what in parts if part)
    return f"It costs {size(memcg.cost_bytes)}: {named}."


def to_do(memcg: Memcg, plan: Plan) -> list[str]:
    """What somebody has to do so that it goes; nothing where reclaim frees it."""
    if memcg.id in plan.freed:
        return []
    return way_out(memcg, plan)


def way_out(memcg: Memcg, plan: Plan) -> list[str]:
    """Who has to do what, so that something goes that no step frees."""
    details = memcg.details
    if details is None:
        return []
    sentences = [*_obstacles(details.charge_groups), *_holders(details)]
    kinds = {group.kind for group in details.charge_groups}
    if plan.more_by_transit and not kinds.isdisjoint(_SWAP_BACKED):
        sentences.append("--allow temp-swap moves shmem and anonymous memory")
    if details.unexplained:
        number = counted(details.unexplained, "reference")
        sentences.append(f"who has {number} is not known: memcgctl audit tells more")
    return [*dict.fromkeys(sentences)][:_SHOWN]


def _obstacles(groups: Sequence[ChargeGroup]) -> Iterator[str]:
    for group in groups:
        who = _who(group)
        for obstacle, _ in group.obstacles:
            if act := _OBSTACLES.get(obstacle):
                yield f"{who} {act}"
        if group.kind == "kernel":
            yield f"{who} end: page tables and stacks go with it"


def _holders(details: Details) -> Iterator[str]:
    paths = dict(details.lives_in)

    def placed(found: re.Match[str]) -> str:
        path = paths.get(int(found[1]))
        return f"{found[0]} in {path}" if path else found[0]

    for holder in details.holders:
        if act := _BY_HAND.get(holder.kind):
            yield _PID.sub(placed, _holder(holder, act))


def _holder(holder: Holder, act: str) -> str:
    if opened := _OPENED.fullmatch(holder.detail):
        what, who, descriptors = opened.groups()
        return f"{who} has to close {descriptors} ({what}), or end"
    for pattern, sentence in _CSS_SETS:
        if found := pattern.fullmatch(holder.detail):
            return sentence.format(*found.groups())
    return f"{holder.detail}: {act}" if holder.detail else act


def _who(group: ChargeGroup) -> str:
    """Whoever maps it, or has it otherwise, has to."""
    processes = [*group.mappers, *(one.process for one in group.keepers)]
    if not processes:
        return "whoever has it (no process was found that does) has to"
    first, more = process_words(processes[0]), len(processes) - 1
    return f"{first} and {more} more have to" if more else f"{first} has to"
