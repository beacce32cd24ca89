"""The console script: signals are heeded before the slow imports begin."""

from __future__ import annotations

import signal
import sys
from typing import Any, NoReturn


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    from memcgctl import cli

    cli.main()


def _stop(number: int, _frame: Any) -> NoReturn:
    """Leave as a shell expects, by way of every ``finally``."""
    sys.exit(128 + number)


if __name__ == "__main__":
    main()
