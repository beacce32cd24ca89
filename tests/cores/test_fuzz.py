"""At least 500 damaged cores in all, the same ones each time."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cores.fuzz import failures, report, run

CORES = sorted((Path(__file__).parents[2] / "fixtures").glob("*.zst"))
CASES = 504  # a multiple of the number of targets


@pytest.mark.parametrize("core", CORES, ids=lambda core: core.stem)
def test_damaged_cores(core: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A torn dump, which is when it is needed, would hang it or crash it."""
    each = -(-CASES // len(CORES))
    first = CORES.index(core) * each
    cases = run(core, range(first, first + each))
    with capsys.disabled():
        print(f"\n{core.name}\n{report(cases)}")
    assert not failures(cases)
    assert any(case.outcome in ("answered", "in part") for case in cases)
