"""Page out to the run's own swap device, which brings it all back, charged anew.

What is swapped out of an offline memcg is charged to its nearest online ancestor, and
comes back charged to whom its entry is. The run makes the device before the first such
step and removes it after the last (``run.transit``); here it is filled, window by
window, and emptied whenever it, an ancestor's swap or an ancestor's memory has no room
for the next one.
"""

from __future__ import annotations

from memcgctl.actions import pageout, pageout_file, swapin_file
from memcgctl.actions.host import measure, zram
from memcgctl.actions.host.machine import (
    ActionError,
    Guard,
    Machine,
    Outcome,
    SwapDevice,
    no_room,
)
from memcgctl.model import FileTarget, Step, SwappedFileTarget

# Nothing more is paged out to memory when less than this is free beside it.
_KEEP_FREE = 32 << 20

NAME = "temp-swap"


def probe(machine: Machine) -> str | None:
    return zram.probe(machine) or pageout.probe(machine)


def apply(step: Step, machine: Machine, guard: Guard) -> Outcome:
    """Page out what the step is for; it comes back when the device is emptied."""
    device = machine.transit
    if device is None:
        raise ActionError(f"{step.target}: there is no device for the transit")
    paths = step.charged_to

    def make_room(size: int) -> bool:
        if _lacks(size, paths, device, machine):
            zram.again(device, machine)
        if why := _lacks(size, paths, device, machine):
            raise ActionError(f"{step.target}: {why}")
        return True

    guard.make_room = make_room
    try:
        if isinstance(step.aim, SwappedFileTarget):
            return swapin_file.apply(step, machine, guard)
        if isinstance(step.aim, FileTarget):
            return pageout_file.apply(step, machine, guard)
        return pageout.apply(step, machine, guard)
    finally:
        guard.make_room = None


def _lacks(
    size: int, paths: tuple[str, ...], device: SwapDevice, machine: Machine
) -> str:
    """What has no room for so many bytes more to be away for a moment, and come back.

    All that is away is taken to be of each of the memcgs.
    """
    away = zram.used(device, machine)
    if away is None:
        raise ActionError(f"{device.name} is not swapped to any more")
    if device.size - away - (4 << 20) < size:
        return "the device for the transit has no room"
    for path in paths:
        for swap, needed in ((True, size), (False, away + size)):
            least, unread = measure.room(path, machine, swap=swap)
            if unread:
                return unread
            if least and least[0] < needed:
                where = "swap in the meantime" if swap else "memory when it comes back"
                return f"{least[1]} has no room for it in {where}"
    return no_room(size + _KEEP_FREE, machine, swap=False)
