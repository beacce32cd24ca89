"""Swap that zswap has compressed in memory is told from swap on the disk.

Debian's cloud kernels are built without zswap: this boots its general ones, which are
ten times larger. Not among the tests that are always run: ``pytest tests/vm/zswap.py``.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.lab import packages, run
from tests.lab.guest import Guest, Machine
from tests.lab.live import CPU, boot_with_python, run_in
from tests.vm.test_live import give_up, require_programs

# Red-black trees, 6.1; xarrays, 6.12; the swap table beside them, 7.3.
KERNELS = ["6.1:amd64", "6.12:amd64", "7.3:amd64"]
CGROUP = "/sys/fs/cgroup"
# The first is stored in zswap, the second on the disk before zswap is switched on.
PREPARE = f"""
    mount -t cgroup2 cgroup2 {CGROUP}
    echo +memory > {CGROUP}/cgroup.subtree_control
    mkdir {CGROUP}/app {CGROUP}/holder
    echo +memory > {CGROUP}/app/cgroup.subtree_control
    mkdir {CGROUP}/app/inside {CGROUP}/app/outside
    mount -t debugfs debugfs /sys/kernel/debug
    mkswap /dev/disk/swap1 > /dev/null
    lab do swapon=10:/dev/disk/swap1
"""
ENABLE = "echo Y > /sys/module/zswap/parameters/enabled"


@dataclass(frozen=True)
class Played:
    """What the guest said of each memcg before it was removed, and memcgctl after."""

    told: dict[str, dict[str, int]]
    stored_pages: int
    listing: dict[str, Any]
    explained: dict[str, str]


def swap_out(guest: Guest, name: str, kib: int) -> None:
    """A process whose memory is charged to a memcg, in swap, and which is elsewhere."""
    words = (f"join={CGROUP}/app/{name}", f"anon={kib}K", "touch", "pageout")
    guest.run("lab", "do", *words, f"join={CGROUP}/holder", "hold")


@pytest.fixture(scope="module", params=KERNELS)
def played(request: pytest.FixtureRequest) -> Iterator[Played]:
    require_programs()
    try:
        kernel = packages.get(request.param)
    except packages.PackageError as error:
        give_up(f"no kernel packages: {error}")
    with tempfile.TemporaryDirectory(prefix="memcgctl-lab-") as name:
        disks = run.make_disks(Path(name), False)
        modules = ("crc32c_generic", "ext4", "zsmalloc", "lzo")
        machine = Machine(memory="512M", cpu=CPU, disks=disks, modules=modules)
        with boot_with_python(kernel, machine) as guest:
            guest.sh(PREPARE)
            swap_out(guest, "outside", 192)
            guest.sh(ENABLE)
            swap_out(guest, "inside", 640)
            told = {
                one: {
                    key: int(value)
                    for key, value in re.findall(
                        r"^(zswap|zswapped) (\d+)$",
                        guest.read(f"{CGROUP}/app/{one}/memory.stat"),
                        re.M,
                    )
                }
                for one in ("inside", "outside")
            }
            stored = int(guest.read("/sys/kernel/debug/zswap/stored_pages"))
            guest.sh(f"rmdir {CGROUP}/app/inside {CGROUP}/app/outside")
            listed = run_in(guest, "memcgctl", "list", "--json")
            assert (listed.status, listed.stderr) == (0, "")
            explained = {
                one: run_in(guest, "memcgctl", "explain", f"/app/{one}").stdout
                for one in told
            }
            yield Played(told, stored, json.loads(listed.stdout), explained)


def of(played: Played, name: str) -> dict[str, Any]:
    (memcg,) = (m for m in played.listing["memcgs"] if m["path"] == f"/app/{name}")
    swap: dict[str, Any] = memcg["swap"]
    return swap


def test_what_is_in_zswap_is_what_the_kernel_says(played: Played) -> None:
    """Lost: memory that a zombie costs, in nobody's sum; "on the disk" of what is not.

    Pages of one value are kept without any memory, on kernels that tell them apart.
    """
    inside, outside = of(played, "inside"), of(played, "outside")
    assert (outside["zswap_entries"], outside["zswap_bytes"]) == (0, 0)
    assert played.stored_pages > 0
    assert inside["zswap_entries"] == played.stored_pages
    assert inside["zswap_entries"] * 4096 == played.told["inside"]["zswapped"]
    assert inside["zswap_bytes"] == played.told["inside"]["zswap"]


def test_explain_says_where_it_is(played: Played) -> None:
    """A person would look for it on the disk."""
    line = " ".join(played.explained["inside"].split())
    assert f"{played.stored_pages:,} entries in zswap, where they take" in line
    assert "zswap" not in played.explained["outside"]
