"""Which swap device did a killed run leave? By what it wrote, and what is there."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from memcgctl.actions.host import zram
from memcgctl.actions.host.machine import ActionError, Machine, SwapDevice, read_machine
from memcgctl.actions.run import transit

BOOT = "3f1c"
NOTE = {"uuid": "ab" * 16, "size": 1 << 24, "boot_id": BOOT, "number": 7}


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    (tmp_path / "notes").mkdir(mode=0o700)
    return tmp_path / "notes"


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    boot = tmp_path / "proc/sys/kernel/random/boot_id"
    boot.parent.mkdir(parents=True)
    boot.write_text(f"{BOOT}\n")
    block = tmp_path / "sys/block/zram7"
    block.mkdir(parents=True)
    (block / "disksize").write_text("0\n")
    return replace(
        read_machine(),
        proc=tmp_path / "proc",
        sys=tmp_path / "sys",
        dev=tmp_path / "dev",
    )


def write(notes: Path, **changes: Any) -> None:
    (notes / "temp-swap").write_text(json.dumps(NOTE | changes))
    (notes / "temp-swap").chmod(0o600)


def test_what_was_made_and_has_no_size_yet_is_found(
    notes: Path, machine: Machine
) -> None:
    """A device would stay of each run that was killed."""
    assert transit.found(machine, notes) is None
    write(notes)
    assert transit.found(machine, notes) == (SwapDevice(7, 1 << 24, "ab" * 16), "empty")


def test_that_of_another_boot_is_somebody_elses(notes: Path, machine: Machine) -> None:
    """After a power cut the number is another device's."""
    write(notes, boot_id="other")
    assert transit.found(machine, notes) is None


@pytest.mark.parametrize("size", ["4096", "33554432"])
def test_one_of_another_size_is_left_alone(
    notes: Path, machine: Machine, size: str
) -> None:
    """Somebody's device that has the number now would be reset."""
    write(notes)
    (machine.sys / "block/zram7/disksize").write_text(size)
    assert transit.found(machine, notes) is None


@pytest.mark.parametrize("changes", [{"number": "7"}, {"size": None}, {"uuid": 3}])
def test_a_note_that_makes_no_sense_is_no_note(
    notes: Path, machine: Machine, changes: dict[str, Any]
) -> None:
    """Nobody would hear that a device may be left, or a wrong one be taken."""
    write(notes, **changes)
    with pytest.raises(ActionError, match="damaged"):
        transit.found(machine, notes)


def test_a_note_that_others_can_write_to_is_not_believed(
    notes: Path, machine: Machine
) -> None:
    """Any user could have root switch off a swap device."""
    write(notes)
    (notes / "temp-swap").chmod(0o666)
    with pytest.raises(ActionError, match="written to by others"):
        transit.found(machine, notes)


@pytest.mark.parametrize("path", ["sys/block/zram7/disksize", "proc/swaps"])
def test_what_cannot_be_read_is_not_told_to_be_gone(
    notes: Path, machine: Machine, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The note would go, and with it who has somebody's pages in the device."""
    write(notes)
    (machine.sys / "block/zram7/disksize").write_text(f"{1 << 24}\n")
    (machine.proc / "swaps").write_text("Filename Type Size Used Priority\n")
    header = (NOTE["uuid"], zram.LABEL)
    monkeypatch.setattr(zram, "_read_header", lambda device, machine: header)
    found = transit.found(machine, notes)
    assert found is not None
    assert found[1] == "off"
    (machine.sys.parent / path).unlink()
    with pytest.raises(ActionError, match="cannot be read"):
        transit.found(machine, notes)


def test_without_a_boot_id_a_note_is_not_another_boots(
    notes: Path, machine: Machine
) -> None:
    """The same: all devices would be another boot's."""
    write(notes)
    (machine.proc / "sys/kernel/random/boot_id").unlink()
    with pytest.raises(ActionError, match="cannot be read"):
        transit.found(machine, notes)
