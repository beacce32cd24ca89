"""Who made a removed cgroup and when it was made and removed, by the guest's clock."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from memcgctl.census import take_census
from memcgctl.kernel.program import Sources, open_kernel
from memcgctl.model import Census

FIXTURES = Path(__file__).parents[2] / "fixtures"
# fixture: the shape of its list of extended attributes
KERNELS = {"5.10-named": "list", "6.12-named": "tree", "7.3-named": "hashed list"}


@pytest.fixture(scope="module", params=[*KERNELS])
def named(request: pytest.FixtureRequest) -> tuple[Census, dict[str, Any]]:
    core = FIXTURES / f"{request.param}.zst"
    truth = json.loads(core.with_suffix(".json").read_text())
    with open_kernel(Sources(core)) as kernel:
        return take_census(kernel), truth


def test_times_and_attributes(named: tuple[Census, dict[str, Any]]) -> None:
    """Lost: how old a zombie is, and by which invocation its log is found."""
    census, truth = named
    found = {memcg.id: memcg for memcg in census.memcgs}
    marked = [memcg for memcg in truth["memcgs"] if "created" in memcg]
    assert len(marked) > 5
    for said in marked:
        memcg = found[said["id"]]
        assert memcg.path == said["path"]
        first, last = said["created"]
        assert memcg.created_at is not None
        assert first <= memcg.created_at <= last
        first, last = said["removed"]
        assert memcg.removed_at is not None
        assert first <= memcg.removed_at <= last
        assert dict(memcg.xattrs) == said["xattrs"]


def test_unknown_is_not_told(named: tuple[Census, dict[str, Any]]) -> None:
    """A cgroup without attributes has no age, and an online one was not removed."""
    census, truth = named
    marked = {memcg["id"] for memcg in truth["memcgs"] if "created" in memcg}
    for memcg in census.memcgs:
        if memcg.id not in marked:
            assert memcg.created_at is None
            assert memcg.removed_at is None


def test_when_and_of_what(named: tuple[Census, dict[str, Any]]) -> None:
    """Lost: which of two censuses is the later one. The core was taken at the end."""
    census, truth = named
    last = max(m["removed"][1] for m in truth["memcgs"] if "removed" in m)
    assert census.kernel.taken_at is not None
    assert last <= census.kernel.taken_at < last + 120
    assert census.kernel.host == truth["host"]
    assert census.kernel.boot_id == truth["boot_id"]
    assert census.kernel.machine_id is None  # no kernel knows it
