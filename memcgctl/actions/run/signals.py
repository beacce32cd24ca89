"""Which signals came while steps are carried out? They end a run, never a step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType


@dataclass
class Signals:
    """Those that came, by name."""

    came: list[str] = field(default_factory=list)


@contextmanager
def noted() -> Iterator[Signals]:
    """SIGINT and SIGTERM are noted; they do not interrupt a step.

    So is SIGHUP, a terminal that is gone, unless it is ignored (``nohup``).
    """
    signals = Signals()

    def note(number: int, _: FrameType | None) -> None:
        signals.came.append(signal.Signals(number).name)

    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {n: signal.signal(n, note) for n in numbers}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
