"""memcgctl on a running kernel, against the same kernel's own files.

Each guest boots a Debian kernel, makes zombies, counts their pages by
/proc/kpagecgroup and /proc/kpageflags while they are online (tests/lab/run.py), removes
them and runs ``memcgctl list`` of this checkout.
"""

from __future__ import annotations

import base64
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.lab.live import live, run_in
from tests.lab.packages import PackageError
from tests.schemas import read

PROGRAMS = ["qemu-system-x86_64", "busybox", "cc", "ldd", "dpkg-deb", "apt-get"]
SYSTEM_PROGRAMS = ["mke2fs", "mkfs.xfs"]
# 5.10: struct pages hold memcgs, kernel pages too; 6.12: folios do, swap ids in pages;
# 7.3: folios hold obj_cgroups, swap ids lie in the swap table.
KERNELS = ["5.10", "6.12", "7.3"]
# With --arm64. Debian's 5.10 and 6.1 for arm64 need files from their debug packages.
ARM64_KERNELS = ["6.12-arm64", "6.12-arm64-16k", "7.3-arm64", "7.3-arm64-16k"]
ARM64_PROGRAMS = ["qemu-system-aarch64", "aarch64-linux-gnu-gcc"]


def give_up(why: str) -> None:
    """Skip with one line that says why; with CI=true that is a failure."""
    if os.environ.get("CI") == "true":
        pytest.fail(why)
    pytest.skip(why)


def on_arm64(config: pytest.Config) -> bool:
    return bool(config.getoption("--arm64", False))


def require_programs(config: pytest.Config | None = None) -> None:
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    needed = PROGRAMS + SYSTEM_PROGRAMS
    needed += ARM64_PROGRAMS if config and on_arm64(config) else []
    missing = [program for program in needed if not shutil.which(program, path=path)]
    if missing:
        give_up(f"a guest cannot be booted without {', '.join(missing)}")


@dataclass(frozen=True)
class Live:
    """What a guest said, and what memcgctl said in it."""

    truth: dict[str, Any]
    status: int
    listing: dict[str, Any]
    stderr: str
    audit_status: int
    audit: dict[str, Any]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    kernels = ARM64_KERNELS if on_arm64(metafunc.config) else KERNELS
    metafunc.parametrize("guest", kernels, indirect=True, scope="module")


@pytest.fixture(scope="module")
def guest(request: pytest.FixtureRequest) -> Iterator[Live]:
    require_programs(request.config)
    try:
        with live(request.param) as (booted, truth):
            ran = run_in(booted, "memcgctl", "list", "--all", "--json")
            listing = read(ran.stdout) if ran.status in (0, 4) else {}
            checked = run_in(booted, "memcgctl", "audit", "--json")
            audit = read(checked.stdout) if checked.status in (0, 4) else {}
            yield Live(truth, ran.status, listing, ran.stderr, checked.status, audit)
    except PackageError as error:
        give_up(f"no kernel packages: {error}")


def test_a_live_list_succeeds_quietly(guest: Live) -> None:
    """A person would get an error or noise on a machine where nothing is wrong."""
    assert (guest.status, guest.stderr) == (0, "")
    assert guest.listing["warnings"] == []
    assert guest.listing["source"]["kind"] == "live"
    assert guest.listing["source"]["release"] == guest.truth["kernel"]["release"]


def test_as_many_as_the_kernel_counts(guest: Live) -> None:
    """A person would see fewer or more zombies than cgroup.stat's number of them."""
    states = [memcg["state"] for memcg in guest.listing["memcgs"]]
    assert states.count("offline") == guest.truth["offline"]
    assert guest.listing["totals"]["offline"] == guest.truth["offline"]


def test_every_reference_is_accounted_for(guest: Live) -> None:
    """A person would be shown a kernel bug where there is none."""
    assert guest.audit_status == 0
    totals = guest.audit["totals"]
    assert totals["offline"] == guest.truth["offline"]
    assert (totals["unexplained"], totals["missing"], totals["unknown"]) == (0, 0, 0)
    assert guest.audit["warnings"] == []


def test_every_memcg_and_class_to_the_page(guest: Live) -> None:
    """A person would look for memory where it is not, or not see where it is."""
    found = {memcg["id"]: memcg for memcg in guest.listing["memcgs"]}
    expected = {memcg["id"]: memcg for memcg in guest.truth["memcgs"]}
    assert found.keys() == expected.keys()
    wrong = []
    for memcg, true in expected.items():
        keys = ["path", "state", "ancestor"]
        if true["exact"]:
            keys += ["charged", "folios", "swap"]
        for key in keys:
            said = found[memcg][key]
            if raw := found[memcg].get(f"{key}_base64"):
                said = os.fsdecode(base64.b64decode(raw))
            if isinstance(said, dict):  # folios: without a number for the kernel's
                said = {name: said[name] for name in true[key] if name in said}
                truth = {name: true[key][name] for name in said}
            else:
                truth = true[key]
            if said != truth:
                wrong.append((true["path"], key, said, truth))
    assert wrong == []


def test_overhead_is_the_parents_percpu_line(guest: Live) -> None:
    """A person would be told a cost that the kernel does not account."""
    paths = {memcg["path"]: memcg for memcg in guest.listing["memcgs"]}
    for ancestor in guest.truth["after"]:
        line = ancestor["stat"]["percpu"]
        # What a memcg costs is charged to its parent, so a top-level one's to nobody.
        below = [
            memcg["overhead"]["percpu_accounted"]
            for path, memcg in paths.items()
            if path.startswith(ancestor["path"].rstrip("/") + "/")
            and path.rpartition("/")[0]
        ]
        if guest.truth["shape"]["exact_stat"]:
            assert sum(below) == line, ancestor["path"]
        else:  # 32 pages' worth may be kept back on each CPU
            slack = 32 * 4096 * guest.truth["possible_cpus"]
            assert abs(sum(below) - line) <= slack, ancestor["path"]
