"""Evict what one offline memcg has, by the multi-generational LRU's file in debugfs.

``lru_gen_seq_write`` (mm/vmscan.c) takes "+", which begins a new generation of the
folios of a memcg on a node, and "-", which evicts all generations up to one, the two
youngest aside. From 6.1 to 6.19 a memcg is named by its private id, which an offline
one has as long as it has swap entries; from 7.0 on by its cgroup id, by which no
offline one is found.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress

from memcgctl.actions.host import lru
from memcgctl.actions.host.machine import (
    ENDED,
    ActionError,
    Guard,
    Machine,
    Outcome,
    aim,
    read_text,
)
from memcgctl.model import GenerationTarget, Step

_FILE = "kernel/debug/lru_gen"
# What was used since it was last looked at is taken at the next try only.
_ROUNDS = 4

# By node: the youngest generation, and pages of anonymous memory and of files.
Lists = dict[int, tuple[int, int, int]]

NAME = "lru_gen"


def probe(machine: Machine) -> str | None:
    enabled = read_text(machine.sys / "kernel/mm/lru_gen/enabled").strip()
    if not enabled:
        return "the kernel has no multi-generational LRU"
    if not int(enabled, 16) & 1:
        return "the multi-generational LRU is switched off"
    if machine.lockdown not in (None, "none"):
        return "the kernel is locked down"
    if lacks := machine.lacks("dac_override"):
        return lacks
    if not (machine.sys / _FILE).exists():
        return f"debugfs is not mounted at {machine.sys / 'kernel/debug'}"
    if not os.access(machine.sys / _FILE, os.W_OK):
        return f"{machine.sys / _FILE} may not be written to"
    return None


def apply(step: Step, machine: Machine, guard: Guard) -> Outcome:
    """Make all generations old, then evict: files, or what is swap-backed first."""
    target = aim(step, GenerationTarget)
    swappiness = target.swappiness
    guard.afford(step.bytes, step.target)
    lru.drain(machine)
    before = left = _pages(_lists(target, machine), swappiness)
    wanted = min(before, step.bytes // machine.page_size)
    for _ in range(_ROUNDS):
        if before - left >= wanted:
            break
        if not guard.allows((wanted - before + left) * machine.page_size):
            return Outcome((before - left) * machine.page_size, ENDED)
        # Other swap-backed memory would become swap of the same memcg's.
        most = f" {wanted - before + left}" if swappiness else ""
        for node, (youngest, *_) in _lists(target, machine).items():
            _evict(node, youngest, f"{swappiness}{most}", target, machine)
        left = _pages(_lists(target, machine), swappiness)
    moved = max(0, before - left)
    short = (wanted - moved) * machine.page_size
    why = f"{short} bytes stay in memory" if short > 0 else ""
    return Outcome(moved * machine.page_size, why)


def _pages(lists: Lists, swappiness: int) -> int:
    return sum(anon if swappiness else file for _, anon, file in lists.values())


def _lists(target: GenerationTarget, machine: Machine) -> Lists:
    """What the kernel shows of the memcg; ActionError unless it is the one meant.

    A private id may be another memcg's by now, whose path is another.
    """
    name = rf"{target.private_id} {re.escape(target.memcg_path)}"
    text = read_text(machine.sys / _FILE)
    found = re.findall(rf"^memcg +{name}\n((?: .*\n)+)", text, re.M)
    if len(found) != 1:
        raise ActionError(f"{target.memcg_path}: lru_gen does not show it any more")
    lists = {}
    for node, rows in re.findall(r"^ node +(\d+)\n((?: +\d+ .*\n)+)", found[0], re.M):
        # Generation, age in milliseconds, pages of anonymous memory, of files.
        numbers = [[int(word) for word in row.split()] for row in rows.splitlines()]
        lists[int(node)] = (
            max(row[0] for row in numbers),
            sum(row[2] for row in numbers),
            sum(row[3] for row in numbers),
        )
    return lists


def _evict(
    node: int, youngest: int, how: str, target: GenerationTarget, machine: Machine
) -> None:
    """Begin two generations, even if there are as many as can be; evict the others."""
    whose = f"{target.private_id} {node}"
    for generation in (youngest, youngest + 1):
        with suppress(OSError):  # somebody else did it meanwhile
            _write(f"+ {whose} {generation} 1 1", machine)
    try:
        _write(f"- {whose} {youngest} {how}", machine)
    except OSError as error:
        raise ActionError(f"{target.memcg_path}: lru_gen: {error.strerror}") from error


def _write(command: str, machine: Machine) -> None:
    fd = os.open(machine.sys / _FILE, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, command.encode())
    finally:
        os.close(fd)
