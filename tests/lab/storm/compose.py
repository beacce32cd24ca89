"""What does a scene consist of? A pure function of seed, number and kernel.

A scene is plain data (JSON): memcgs in the order of their making, each with the parts
that its processes charge to it. ``play`` knows how each is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Any

Json = dict[str, Any]

PAGE = 4096
KIB = 1024
SWAPS = ["none", "disk", "disk", "zram", "zram", "both", "disks"]  # play knows them
FILES = {"file": 8, "xfs": 3, "dirty": 3, "private": 3}  # on xfs: in large folios
SHMEM = {
    "tmpfs": 8,
    "fallocated": 2,
    "huge-tmpfs": 2,
    "memfd": 4,
    "sysv": 2,
    "shared": 3,
}
ANON = {"anon": 10, "thp": 3, "ksm": 1, "locked": 1, "pinned": 1}
OTHERS = {"socket": 0.5, "inotify": 0.5}
USES = {
    "file": ["none", "open", "map", "half", "fork", "unlinked", "unlinked-map"],
    "dirty": ["none", "open", "map", "half"],
    "tmpfs": ["none", "open", "map", "half", "fork", "unlinked", "unlinked-map"],
    "huge-tmpfs": ["none", "open", "map", "half", "fork"],
    "fallocated": ["none", "open", "map", "half"],
    "memfd": ["map", "open", "fork"],
    "sysv": ["map", "none", "fork"],
    "shared": ["map", "fork"],
    "private": ["map", "fork"],
    "anon": ["map", "map", "fork", "threads", "leaderless"],
    "thp": ["map", "fork", "split"],
}
USES["xfs"] = USES["file"]
# What can be in swap.
SWAPPABLE = {"anon", "thp", "private", "shared", "tmpfs", "huge-tmpfs", "memfd", "sysv"}
STATES = ["no", "no", "no", "yes", "yes", "half", "cache"]
SIZES: list[int] = [
    *(1, 1000, 4095, PAGE, 4097, 3 * PAGE, 60 * KIB, 100_001),
    *(128 * KIB, 200 * KIB, 256 * KIB, 333_333, 512 * KIB, 700 * KIB, 1 << 20, 2 << 20),
]
ROOM = 8 << 20  # bytes that all of a scene may take: a guest and its swap are small
TOGETHER = 6  # scenes that are played at once: a run takes the longest to begin


def pick(random: Random, weights: Mapping[str, float]) -> str:
    return random.choices([*weights], [*weights.values()])[0]


def compose(seed: int, number: int, kernel: str) -> Json:
    """The scene of this number. It does not depend on those before it."""
    swap = Random(f"{seed} {number // TOGETHER} {kernel}").choice(SWAPS)
    random = Random(f"{seed} {number} {kernel}")
    online = tree(random)
    leaves = [path for path in online if "/s" in path or path == "holder"]
    memcgs: list[Json] = [
        {"path": path, "online": True, "parts": []} for path in online
    ]
    room = [ROOM]
    for one in memcgs:
        if one["path"] in leaves and one["path"] != "holder":
            for _ in range(random.choice([0, 1, 1, 2])):
                own = living_part(random, one["path"], swap != "none", room)
                one["parts"] += [own] if own else []
    for path in zombies(random, online):
        parts = []
        for _ in range(random.choice([1, 1, 1, 2, 2, 3, 4])):
            part = zombie_part(random, leaves, swap != "none", room)
            parts += [part] if part else []
        parts.sort(key=lambda part: part["swap"] == "no")
        made: Json = {"path": path, "online": False, "parts": parts}
        if swap != "none" and random.random() < 0.15:
            made["pressure"] = random.choice([64, 256, 1024]) * KIB
        memcgs.append(made)
    return {
        "swap": swap,
        "memcgs": memcgs,
        "limits": limits(random, online, leaves),
    }


def together(scenes: Mapping[int, Json], origin: str) -> Json:
    """Scenes as one, side by side: for all of them memcgctl is run once.

    They have their own directories at the top, by number, and the first one's swap.
    """
    memcgs, all_limits = [], []
    for number, scene in scenes.items():
        for memcg in scene["memcgs"]:
            parts = [
                {key: _within(number, key, value) for key, value in part.items()}
                for part in memcg["parts"]
            ]
            path = _within(number, "path", memcg["path"])
            memcgs.append({**memcg, "path": path, "parts": parts})
        for limit in scene["limits"]:
            path = _within(number, "path", limit["path"])
            all_limits.append({**limit, "path": path})
    return {
        "origin": origin,
        "swap": next(iter(scenes.values()))["swap"],
        "memcgs": memcgs,
        "limits": all_limits,
        "scenes": len(scenes),
        # Also ask who is to be charged: it takes as long as half of a run.
        "plan": min(scenes) // TOGETHER % 3 == 0,
    }


def _within(number: int, key: str, value: Any) -> Any:
    """A path within the scene of this number: ``app/z1`` is ``app7/z1``."""
    if key not in ("path", "user", "second", "shared"):
        return value
    top, slash, rest = value.partition("/")
    return f"{top}{number}{slash}{rest}"


def tree(random: Random) -> list[str]:
    """Online memcgs: where zombies are removed, and living siblings."""
    paths = ["holder", "app"]
    if random.random() < 0.4:
        paths.append("app/pod")
        if random.random() < 0.4:
            paths.append("app/pod/inner")
    many = random.choice([0, 1, 1, 2, 3, 4, 8, 8, 30])
    inside = [path for path in paths if path.startswith("app")]
    for number in range(many):
        above = random.choice(inside) if many < 10 else "app"
        paths.append(f"{above}/s{number}")
    return [path for path in paths if "/s" not in path] + [
        path for path in paths if "/s" in path
    ]


def zombies(random: Random, online: list[str]) -> list[str]:
    above = [path for path in online if path.startswith("app") and "/s" not in path]
    paths: list[str] = []
    for number in range(random.choice([1, 2, 2, 3, 3, 4, 6, 8])):
        nested = paths and random.random() < 0.15
        parent = random.choice(paths if nested else above)
        paths.append(f"{parent}/z{number}")
    return paths


def size_within(random: Random, kind: str, room: list[int]) -> int:
    """0 where there is no room for it any more."""
    if kind in ("thp", "huge-tmpfs"):
        bytes_ = random.choice([2, 2, 4]) << 20
    elif kind in ("ksm", "locked", "pinned"):
        bytes_ = random.choice([16, 64, 256]) * KIB
    else:
        bytes_ = random.choice(SIZES)
    if kind not in FILES and kind not in SHMEM:
        bytes_ = max(bytes_, PAGE)
    cost = max(bytes_, PAGE) * (2 if kind in ("private", "ksm") else 1)
    if cost > room[0]:
        return 0
    room[0] -= cost
    return bytes_


def zombie_part(
    random: Random, leaves: list[str], swap: bool, room: list[int]
) -> Json | None:
    """What a process of a memcg that is to die charged to it; None: no room left."""
    kind = pick(random, {**FILES, **SHMEM, **ANON, **OTHERS})
    bytes_ = size_within(random, kind, room)
    if not bytes_:
        return None
    part: Json = {"kind": kind, "bytes": bytes_}
    part["use"] = random.choice(USES.get(kind, ["map"]))
    part["user"] = random.choice([*leaves, "holder"])
    part["swap"] = "no"
    if swap and kind in SWAPPABLE:
        part["swap"] = random.choice(STATES)
    if part["use"] == "fork":
        part["second"] = random.choice(leaves)
    if kind in ("file", "tmpfs") and len(leaves) > 1 and random.random() < 0.2:
        part["shared"] = random.choice(leaves[1:])
    if kind == "anon" and random.random() < 0.5:
        part["tables"] = "user"  # who is charged for page tables
    return part


def living_part(random: Random, path: str, swap: bool, room: list[int]) -> Json | None:
    """What a living memcg has itself, used by a process in it or by none."""
    kinds = {"file": 5, "dirty": 2, "tmpfs": 3, "anon": 5, "shared": 1, "memfd": 1}
    kind = pick(random, kinds)
    bytes_ = size_within(random, kind, room)
    if not bytes_:
        return None
    uses = [use for use in USES[kind] if use in ("none", "open", "map", "half")]
    states = STATES if swap and kind in SWAPPABLE else ["no"]
    return {
        "kind": kind,
        "bytes": bytes_,
        "use": random.choice(uses),
        "user": path,
        "swap": random.choice(states),
    }


def limits(random: Random, online: list[str], leaves: list[str]) -> list[Json]:
    """On ancestors of zombies and on those that use their memory.

    With "slack" a limit is what is used when all is made, and so much more.
    """
    found: list[Json] = []
    inside = [path for path in online if path not in leaves]

    def limit(path: str, file: str, **value: int) -> None:
        found.append({"path": path, "file": file, **value})

    slack = [0, 16 * KIB, 256 * KIB, 1 << 20, 4 << 20]
    if random.random() < 0.2:
        limit(random.choice(inside), "memory.max", slack=random.choice(slack))
    if random.random() < 0.15:
        limit(random.choice(inside), "memory.high", slack=random.choice(slack))
    if random.random() < 0.2:
        limit(random.choice(inside), "memory.swap.max", slack=random.choice(slack))
    if random.random() < 0.15:
        limit(random.choice(inside), "memory.min", bytes=random.choice(slack[2:]))
    if random.random() < 0.15:
        limit(random.choice(leaves), "memory.max", slack=random.choice(slack[1:]))
    if random.random() < 0.1:
        limit(random.choice(leaves), "memory.min", bytes=random.choice(slack[2:]))
    return found
