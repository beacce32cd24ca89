"""What can be asked of the tests in guests, if this directory is named to pytest."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--every-kernel",
        action="store_true",
        help="test each action on more kernels than there is time for every day",
    )
    parser.addoption(
        "--arm64",
        action="store_true",
        help="test list, audit and each action on arm64's kernels instead",
    )
