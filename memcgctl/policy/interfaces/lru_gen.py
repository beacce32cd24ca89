"""What one offline memcg is charged for: lru_gen of debugfs evicts its generations."""

from __future__ import annotations

from memcgctl.model import GenerationTarget, Memcg
from memcgctl.policy.cases import Part, movable
from memcgctl.policy.effects import Effect
from memcgctl.policy.interfaces.base import (
    FILES,
    Action,
    Interface,
    Move,
    Reach,
    Served,
    cannot,
)
from memcgctl.policy.interfaces.common import evicted
from memcgctl.policy.interfaces.context import PlanContext


def reach(part: Part, context: PlanContext) -> Reach:
    memcg, group = part.memcg, part.group
    assert group
    if not memcg.private_id:  # it has no swap entries
        return cannot(part, "")
    if group.kind == "file":
        return evicted(part, _target(memcg, 0), context)
    if group.mapped or group.backing:
        return cannot(part, "")  # it would be its swap
    size, why = movable(group)
    if why:
        return cannot(part, why)
    done = Effect(part, "evict", evicted_bytes=size)  # its entries are there already
    return Reach(done, (Move(_target(memcg, 200), size),))


def _target(memcg: Memcg, swappiness: int) -> GenerationTarget:
    return GenerationTarget(memcg.id, memcg.path, memcg.private_id, swappiness)


def action(target: GenerationTarget, served: Served, context: PlanContext) -> Action:
    return Action(
        target,
        target.memcg_path,
        command(target.private_id, target.swappiness),
        "who uses it waits for the device when it is touched next",
    )


def command(private_id: int, swappiness: int) -> str:
    """Have lru_gen evict files (0) or what is swap-backed first (200) of one memcg.

    In three rounds: what was used of late is taken later.
    """
    script = (
        'import re;p="/sys/kernel/debug/lru_gen";'
        'w=lambda*a:open(p,"w").write(" ".join(map(str,a)));'
        "l=lambda:[(n,max(int(x.split()[0])for x in r.splitlines()))for n,r in "
        r're.findall("node +([0-9]+)\n((?: +[0-9]+ .*\n)+)",'
        rf're.search("(?m)^memcg +{private_id} .*\n((?: .*\n)+)",open(p).read())[1])];'
        f'[[w("+",{private_id},n,g,1,1)and w("+",{private_id},n,g+1,1,1)and '
        f'w("-",{private_id},n,g,{swappiness})for n,g in l()]for _ in range(3)]'
    )
    return f"python3 -c '{script}'"


INTERFACE = Interface(
    name="lru_gen",
    does="evicts one zombie's generations",
    harm=140,
    options=("evict",),
    cases=(*FILES, "swap-backed-unmapped", "metadata"),
    needs=("lru_gen by private id",),
    seen=("6.12", "6.18"),
    requires="root, debugfs mounted, the multi-generational LRU switched on",
    effect="nobody is charged until it is read again; swap entries stay",
    touches="nothing but what that memcg is charged for",
    cannot="memcgs without swap entries, mapped shmem and anonymous memory; all "
    "offline ones from 7.0 on, which names them by cgroup id and finds none",
    reach=reach,
    action=action,
    disturbs=True,
)
