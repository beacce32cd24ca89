"""How fast may a run go, and when is it to wait or to end?"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from memcgctl.actions.host import measure
from memcgctl.actions.host.machine import Guard
from memcgctl.actions.run.worker import PATIENCE


@dataclass(frozen=True)
class Limits:
    """``rate`` is in bytes a second; ``max_pressure`` in percent, of memory's "some".

    ``settle_seconds`` is how long memcgs may take to go after the last step,
    ``patience_seconds`` how long memory may stay short before that ends the run,
    ``hang_seconds`` how long a step may show no sign of life.
    """

    max_seconds: float | None = None
    max_bytes: int | None = None
    rate: int | None = 512 << 20
    max_pressure: float = 10.0
    settle_seconds: float = 5.0
    look_seconds: float = 1.0
    patience_seconds: float = 600.0
    hang_seconds: float = PATIENCE


@dataclass(frozen=True)
class Pace:
    """The limits of one run; ``deadline`` is of ``time.monotonic``."""

    limits: Limits
    deadline: float | None
    proc: Path

    def guard(self, came: Callable[[], int], alive: Callable[[], None]) -> Guard:
        """What an action is told by; ``came`` counts the signals that came.

        ``alive`` is told that it only waits.
        """

        def sleep(seconds: float) -> None:
            until = time.monotonic() + seconds
            while (left := until - time.monotonic()) > 0 and came() < 2:
                alive()
                time.sleep(min(left, 0.5))

        return Guard(
            rate=self.limits.rate,
            deadline=self.deadline,
            stop=lambda: came() > 1,
            calm=lambda: self.calm(came, alive),
            sleep=sleep,
        )

    def late(self) -> bool:
        return self.deadline is not None and time.monotonic() >= self.deadline

    def calm(
        self, came: Callable[[], int], alive: Callable[[], None] = lambda: None
    ) -> bool:
        """Wait while memory is short; False if that took all the time there was."""
        patience = time.monotonic() + self.limits.patience_seconds
        while (measure.pressure(self.proc) or 0.0) > self.limits.max_pressure:
            if self.late() or time.monotonic() >= patience or came():
                return False
            alive()
            time.sleep(0.5)
        return True
