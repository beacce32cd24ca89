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
    """Leave as a shell expects, by way of every ``finally``.

    A ``reclaim`` that acts, between whose steps we are, has done its work in part.
    """
    acts = sys.argv[1:2] == ["reclaim"] and "--dry-run" not in sys.argv
    sys.exit(4 if acts else 128 + number)


if __name__ == "__main__":
    main()
