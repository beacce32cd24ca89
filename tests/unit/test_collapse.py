"""Only what fills huge pages' worth of addresses is collapsed; what stays is told."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from memcgctl.actions import collapse
from memcgctl.actions.host import lru
from memcgctl.actions.host.machine import Guard, Machine, read_machine
from memcgctl.actions.pageout import Found
from memcgctl.model import ProcessTarget, Step
from tests.unit.plans import USER, step

HUGE, PAGE = 2 << 20, 4096
STEP = step(
    "collapse",
    option="recharge-mapper",
    target="pid 77 (user)",
    bytes=2 * HUGE,
    charged_to=("/holder",),
    aim=ProcessTarget(USER, (5,)),
)


@contextlib.contextmanager
def held(*_: Any) -> Iterator[int]:
    yield 3


@pytest.fixture
def advised(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Two ranges are full, of a third a page is missing, a fourth is out of line."""
    pages = [np.arange(at, at + HUGE, PAGE, dtype=np.uint64) for at in (HUGE, 2 * HUGE)]
    pages.append(np.arange(4 * HUGE + PAGE, 5 * HUGE, PAGE, dtype=np.uint64))
    pages.append(np.arange(8 * HUGE + PAGE, 9 * HUGE + PAGE, PAGE, dtype=np.uint64))
    addresses = np.concatenate(pages)
    found = Found(addresses, addresses // np.uint64(PAGE), addresses == 0)
    asked: list[tuple[int, int]] = []

    def advise(pidfd: int, ranges: list[tuple[int, int]], advice: int) -> Any:
        asked.extend(ranges)
        full = OSError(errno.ENOMEM, "Cannot allocate memory")
        return (0, full) if len(asked) == 2 else (HUGE, None)

    monkeypatch.setattr(collapse, "find", lambda *_: found)
    monkeypatch.setattr(collapse, "hold", held)
    monkeypatch.setattr(collapse, "process_madvise", advise)
    monkeypatch.setattr(collapse, "_huge_size", lambda machine: HUGE)
    monkeypatch.setattr(lru, "drain", lambda machine: None)
    return asked


def apply(moved: int, monkeypatch: pytest.MonkeyPatch) -> Any:
    def gone(meant: Found, step: Step, machine: Machine) -> int:
        assert len(meant.frames) * PAGE == 2 * HUGE
        return moved

    monkeypatch.setattr(collapse, "gone", gone)
    return collapse.apply(STEP, read_machine(), Guard())


def test_ranges_with_holes_are_left_alone(
    advised: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lost: memory, for zeros that fill up what a process never touched."""
    outcome = apply(2 * HUGE, monkeypatch)
    assert advised == [(HUGE, HUGE), (2 * HUGE, HUGE)]
    assert (outcome.bytes, outcome.left) == (2 * HUGE, "")


def test_what_has_no_huge_page_stays_and_is_told(
    advised: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lost: why a zombie is still there."""
    outcome = apply(HUGE, monkeypatch)
    assert len(advised) == 2
    assert outcome.left == f"{HUGE} bytes stay: Cannot allocate memory"
