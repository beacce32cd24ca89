"""What is to be done: targets, steps, plans, and what a policy would come to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from memcgctl.model.census import Kernel
from memcgctl.model.details import Backing, Process


@dataclass(frozen=True)
class Remaining:
    """An offline memcg that would still be there, and why.

    ``kinds`` are the reasons again, without names and numbers.
    """

    id: int
    why: str
    kinds: tuple[str, ...] = ()


@dataclass(frozen=True)
class FileTarget:
    """An inode; ``users`` have it open or map it.

    ``untargeted``: memory.reclaim may be asked although it takes files as well.
    """

    file: Backing
    users: tuple[Process, ...] = ()
    untargeted: bool = False


@dataclass(frozen=True)
class SwappedFileTarget(FileTarget):
    """A file of shmem, to be read from within a memcg; ``page_out``: it goes again.

    With ``keep`` what of it was in memory before stays.
    """

    memcg_id: int = 0
    memcg_path: str = ""
    page_out: bool = False
    keep: bool = False


@dataclass(frozen=True)
class ProcessTarget:
    """What one process maps, or has in swap.

    ``shown_ids`` are the online memcgs under whose ids /proc/kpagecgroup shows the
    pages that are meant; with a ``file`` only what it maps of that. ``untargeted``:
    memory.reclaim may be asked although it takes files as well.
    """

    process: Process
    shown_ids: tuple[int, ...] = ()
    file: Backing | None = None
    untargeted: bool = False


@dataclass(frozen=True)
class CgroupTarget:
    """An online memcg that is asked to give memory back."""

    memcg_id: int
    memcg_path: str


@dataclass(frozen=True)
class GenerationTarget:
    """The MGLRU generations of an offline memcg, which has ``private_id`` there.

    ``swappiness`` says what to evict: 0 files, 200 what is swap-backed first.
    """

    memcg_id: int
    memcg_path: str
    private_id: int
    swappiness: int


@dataclass(frozen=True)
class CpuTarget:
    """A CPU's stock of charges."""

    cpu: int


@dataclass(frozen=True)
class DeviceTarget:
    """The page cache of a block device, by its name; ``file`` is its inode."""

    device: str
    file: Backing | None = None


@dataclass(frozen=True)
class HostTarget:
    """All file systems of the machine, or those of these devices (major:minor)."""

    devices: tuple[str, ...] | None = None


Way = Literal["out", "back", "neither"]
# What a step acts on, by what it is: no name that may come to mean another thing.
Target = (
    FileTarget
    | ProcessTarget
    | CgroupTarget
    | GenerationTarget
    | CpuTarget
    | DeviceTarget
    | HostTarget
)


@dataclass(frozen=True)
class Step:
    """One action of a plan, for all offline memcgs that it serves.

    ``bytes`` is what it moves of theirs, ``collateral_bytes`` what it can move of
    others'. ``charged_to`` names who is charged afterwards, if anybody, and
    ``charged_bytes`` each one's part. ``frees`` are the memcgs that are gone after it.
    ``over_limit`` are the memcgs that it could push over a limit. ``does`` says in a
    few words what the action is, ``way`` which way memory goes: out of memory, back
    from swap, or neither.
    """

    memcgs: tuple[int, ...]
    action: str
    option: str
    target: str
    command: str
    bytes: int
    charged_to: tuple[str, ...]
    collateral_bytes: int
    risk: str
    aim: Target = HostTarget()
    frees: tuple[int, ...] = ()
    over_limit: tuple[str, ...] = ()
    charged_bytes: tuple[int, ...] = ()
    does: str = ""
    way: Way = "out"

    @property
    def untargeted(self) -> bool:
        """Whether memory.reclaim may be asked although it takes files as well."""
        aim = self.aim
        return isinstance(aim, (FileTarget, ProcessTarget)) and aim.untargeted


@dataclass(frozen=True)
class Shortfall:
    """How many steps do one option where the policy asks for another."""

    asked: str
    done: str
    steps: int


@dataclass(frozen=True)
class Plan:
    """What to do, in this order, and what would be left.

    ``left_out`` are steps that would push a memcg over a limit, or that there was no
    budget for. Of what ``steps`` move, ``recharged_bytes`` are charged to whoever uses
    them, ``returned_bytes`` come back. ``more_by_transit`` is how many more memcgs
    would go by way of a temporary swap device, where that was not allowed;
    ``falls_short`` is where user space does another thing than the policy says.
    """

    kernel: Kernel
    policy: str
    steps: Sequence[Step]
    left_out: Sequence[Step]
    freed: tuple[int, ...]
    remaining: tuple[Remaining, ...]
    warnings: tuple[str, ...]
    returned_bytes: int
    recharged_bytes: int
    more_by_transit: int = 0
    falls_short: tuple[Shortfall, ...] = ()


@dataclass(frozen=True)
class Gain:
    """What a memcg is charged more; ``room_bytes`` it has left, None: no limit."""

    path: str
    bytes: int
    room_bytes: int | None


@dataclass(frozen=True)
class Leftover:
    """What would be left for one reason, and of how many memcgs."""

    why: str
    memcgs: int
    bytes: int


@dataclass(frozen=True)
class Simulation:
    """What one policy would do to all offline memcgs if a kernel followed it.

    All bytes of theirs are evicted (``written_bytes`` of these after they are written
    to a file), swapped out, charged to parents or to mappers, or left. Of what parents
    get for the time being (``deferred_bytes``), ``likely_bytes`` are likely touched by
    somebody. ``freed_here`` are the memcgs that user space can free on this kernel,
    ``freed_by_transit`` those with a temporary swap device.
    """

    policy: str
    offline: int
    freed: int
    freed_here: int
    freed_by_transit: int
    freed_overhead_bytes: int
    evicted_bytes: int
    written_bytes: int
    swapped_bytes: int
    parent_bytes: int
    mapper_bytes: int
    deferred_bytes: int
    likely_bytes: int
    left_bytes: int
    leftovers: tuple[Leftover, ...]
    over_limit: tuple[str, ...]
    gains: tuple[Gain, ...]


@dataclass(frozen=True)
class Prospect:
    """What one option comes to for one memcg, on this kernel if it is ``supported``.

    ``how`` names the interfaces and what these leave, ``effect`` says who is charged.
    """

    option: str
    bytes: int
    supported: bool
    how: str
    effect: str
