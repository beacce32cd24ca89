"""One offline memcg is evicted by its line in debugfs, and no other one."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from memcgctl.actions import lru_gen
from memcgctl.actions.host import lru
from memcgctl.actions.host.machine import ActionError, Guard, Machine, read_machine
from memcgctl.model import GenerationTarget
from tests.unit.plans import PAGE, step

# As 6.12 prints it: two nodes for the one that is meant, and one that has its id's
# digits in its name.
TEXT = """memcg     1 /
 node     0
          0     302860          0           0
          1     302860        160        3821
memcg    44 /app/z1
 node     0
          0     302860          9           9
memcg     4 /app/z1
 node     0
          0       2552        121           0
          1       2552         20         {0}
 node     1
          5       2552         34           {1}
          6       2552          2           0
"""
STEP = step(
    "lru_gen",
    target="/app/z1",
    bytes=128 * PAGE,
    aim=GenerationTarget(100, "/app/z1", private_id=4, swappiness=0),
)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setattr(lru, "drain", lambda machine: None)
    for name, text in (("mm/lru_gen/enabled", "0x0007\n"), ("debug/lru_gen", "")):
        path = tmp_path / "kernel" / name
        path.parent.mkdir(parents=True)
        path.write_text(text)
    (tmp_path / "kernel/debug/lru_gen").write_text(TEXT.format(120, 8))
    capabilities = frozenset({"dac_override"})
    return replace(
        read_machine(), sys=tmp_path, lockdown=None, capabilities=capabilities
    )


def test_all_nodes_are_aged_twice_and_evicted(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lost: what was used of late, which the first try leaves; or another memcg's."""
    written: list[str] = []
    left = iter([(120, 8), (100, 0), (0, 0)])

    def write(command: str, machine: Machine) -> None:
        if command.startswith("- 4 0"):
            text = TEXT.format(*next(left))
            (machine.sys / "kernel/debug/lru_gen").write_text(text)
        written.append(command)

    monkeypatch.setattr(lru_gen, "_write", write)
    outcome = lru_gen.apply(STEP, machine, Guard())
    assert (outcome.bytes, outcome.left) == (128 * PAGE, "")
    one = ["+ 4 0 1 1 1", "+ 4 0 2 1 1", "- 4 0 1 0"]
    other = ["+ 4 1 6 1 1", "+ 4 1 7 1 1", "- 4 1 6 0"]
    assert written == 3 * [*one, *other]


def test_what_stays_is_said(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lost: a step that calls itself done and moved nothing."""
    monkeypatch.setattr(lru_gen, "_write", lambda command, machine: None)
    outcome = lru_gen.apply(STEP, machine, Guard())
    assert (outcome.bytes, outcome.left) == (0, f"{128 * PAGE} bytes stay in memory")


def test_an_id_that_is_another_memcgs_by_now(machine: Machine) -> None:
    """Lost: a living cgroup's memory, evicted for a dead one's."""
    for path, number in (("/app/z2", 4), ("/app/z1", 5), ("/app", 4)):
        aim = GenerationTarget(100, path, number, 0)
        with pytest.raises(ActionError, match="does not show it"):
            lru_gen.apply(replace(STEP, aim=aim), machine, Guard())


def test_where_it_cannot_be(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lost: why it is passed over, on most machines."""
    assert lru_gen.probe(machine) is None
    assert "CAP_DAC" in (
        lru_gen.probe(replace(machine, capabilities=frozenset())) or ""
    )
    assert "locked" in (lru_gen.probe(replace(machine, lockdown="integrity")) or "")
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda *_: False)  # as root may all else
        assert "may not be written to" in (lru_gen.probe(machine) or "")
    (machine.sys / "kernel/debug/lru_gen").unlink()
    assert "not mounted" in (lru_gen.probe(machine) or "")
    (machine.sys / "kernel/mm/lru_gen/enabled").write_text("0x0000\n")
    assert "off" in (lru_gen.probe(machine) or "")
    (machine.sys / "kernel/mm/lru_gen/enabled").unlink()
    assert "no multi" in (lru_gen.probe(machine) or "")
