"""What can ``list`` be sorted and grouped by, in which form, and what is an age?"""

from __future__ import annotations

import re
from enum import Enum

import typer


class Sort(str, Enum):
    """The keys of ``--sort``; the same as in ``memcgctl.views.listing``."""

    cost = "cost"
    age = "age"
    who = "who"
    id = "id"
    path = "path"
    memcgs = "memcgs"
    refs = "refs"
    children = "children"
    file = "file"
    shmem = "shmem"
    anon = "anon"
    kernel = "kernel"
    hugetlb = "hugetlb"
    sock = "sock"
    swap = "swap"
    overhead = "overhead"
    usage = "usage"


class GroupBy(str, Enum):
    """What ``--group-by`` can group by."""

    ancestor = "ancestor"
    who = "who"
    unit = "unit"
    pod = "pod"
    holder = "holder"
    file = "file"
    family = "family"


class Output(str, Enum):
    """Forms for a person, ``-o``."""

    wide = "wide"
    name = "name"
    id = "id"


_AGES = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604_800}


def parse_age(text: str) -> float:
    """``90s``, ``15m``, ``6h``, ``2d`` in seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw]?)", text)
    if not match:
        raise typer.BadParameter(f"'{text}' is no age: 90s, 15m, 6h, 2d.")
    return float(match[1]) * _AGES[match[2] or "s"]
