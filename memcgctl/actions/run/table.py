"""Which module carries out which action? By the names that plans have for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from memcgctl.actions import (
    charge_on_cpu,
    collapse,
    drop_caches,
    fadvise,
    flush_device,
    force_empty,
    lru_gen,
    memory_reclaim,
    pageout,
    pageout_file,
    swapin,
    swapin_file,
    temp_swap,
    writeback_cleanup,
)
from memcgctl.actions.host.machine import Guard, Machine, Outcome
from memcgctl.model import Step


class Action(Protocol):
    """What each module of an action has."""

    def probe(self, machine: Machine) -> str | None:
        """None if it can be done here and now, or else why not."""

    def apply(self, step: Step, machine: Machine, guard: Guard) -> Outcome:
        """Do it; ActionError if it cannot be done."""


ACTIONS: Mapping[str, Action] = {
    "fadvise": fadvise,
    "pageout": pageout,
    "pageout-file": pageout_file,
    "temp-swap": temp_swap,
    "collapse": collapse,
    "swapin": swapin,
    "swapin-file": swapin_file,
    "writeback-cleanup": writeback_cleanup,
    "charge-on-cpu": charge_on_cpu,
    "flush-device": flush_device,
    "lru_gen": lru_gen,
    "memory.reclaim": memory_reclaim,
    "memory.force_empty": force_empty,
    "drop_caches": drop_caches,
}
