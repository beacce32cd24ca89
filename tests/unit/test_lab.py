"""The lab says what it lacks before a guest panics for it."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from tests.lab import big
from tests.lab.initramfs import needs_libraries

BUSYBOX = shutil.which("busybox")


def test_a_program_that_needs_a_loader_is_known() -> None:
    """Lost: an hour, to "No working init found" in a guest (Debian's busybox)."""
    assert needs_libraries(Path(sys.executable).resolve())


@pytest.mark.skipif(not BUSYBOX, reason="busybox is not here")
def test_the_static_one_is_taken() -> None:
    """Lost: every guest."""
    assert BUSYBOX
    assert not needs_libraries(Path(BUSYBOX))


def test_a_big_guest_gets_all_that_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Lost: the command, to an argument that came in another one's place."""
    from tests.lab import __main__ as lab

    asked = []
    monkeypatch.setattr(big, "big", lambda *given: asked.append(given))
    line = ["lab", "big", "--gib", "4", "--zombies", "9", "--files", "2"]
    monkeypatch.setattr(sys, "argv", [*line, "-o", str(tmp_path / "x")])
    lab.main()
    assert asked == [("6.12", 4, 9, 2, tmp_path / "x")]
