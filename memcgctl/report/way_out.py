"""Can a zombie be freed, and what has to happen for that? Sentences for a person."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from memcgctl.model import ChargeGroup, Holder, Memcg, Plan, Process
from memcgctl.report.text import size
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
    if memcg.id in plan.freed or memcg.details is None:
        return []
    sentences = dict.fromkeys(
        (*_obstacles(memcg.details.charge_groups), *_holders(memcg.details.holders))
    )
    return [*sentences][:_SHOWN]


def _obstacles(groups: Sequence[ChargeGroup]) -> Iterator[str]:
    for group in groups:
        for obstacle, _ in group.obstacles:
            if act := _OBSTACLES.get(obstacle):
                yield f"{_who(group.mappers)} has to {act}"
        if group.kind == "kernel":
            yield "the process that its page tables and stacks belong to has to end"


def _holders(holders: Sequence[Holder]) -> Iterator[str]:
    for holder in holders:
        if not (act := _BY_HAND.get(holder.kind)):
            continue
        if opened := _OPENED.fullmatch(holder.detail):
            what, who, descriptors = opened.groups()
            yield f"{who} has to close {descriptors} ({what}), or end"
        else:
            yield f"{holder.detail}: {act}" if holder.detail else act


def _who(processes: Sequence[Process]) -> str:
    if not processes:
        return "whoever has it (no process was found that maps it)"
    more = f" and {len(processes) - 1} more" if len(processes) > 1 else ""
    return f"{process_words(processes[0])}{more}"
