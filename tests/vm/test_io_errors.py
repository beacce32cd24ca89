"""A file system that fails under memcgctl reclaim, on a running kernel.

ext4 is told to shut down (``EXT4_IOC_SHUTDOWN``), as it does by itself on a device that
fails: what is in the page cache stays there, and every access is an I/O error.
"""

from __future__ import annotations

import sys

from tests.lab import run
from tests.lab.live import live, run_in
from tests.lab.packages import PackageError
from tests.lab.scenarios import CGROUPS, EXT4, TMPFS, Scenario, read_file, tmpfs
from tests.schemas import read
from tests.vm.test_actions import bind
from tests.vm.test_live import give_up, require_programs

SHUT_DOWN = f"""
import fcntl, os, struct
fcntl.ioctl(os.open("{EXT4}", os.O_RDONLY), 0x8004587D, struct.pack("I", 2))
"""
DIRTY = f"""
    mkdir {CGROUPS}/app/dirty
    lab do join={CGROUPS}/app/dirty write=300K:{EXT4}/dirty
    rmdir {CGROUPS}/app/dirty
"""


def test_an_io_error_stops_that_file_and_is_reported() -> None:
    """A person would see a traceback, or lose what the other steps could free."""
    require_programs()
    try:
        with live("6.12", Scenario([read_file, tmpfs], stock=False)) as (guest, _):
            bind(guest)
            guest.sh(DIRTY)
            assert run_in(guest, sys.executable, "-c", SHUT_DOWN).status == 0
            before = run.dying(guest)
            ran = run_in(guest, "memcgctl", "reclaim", "--yes", "--json")
            after = run.dying(guest)
    except PackageError as error:
        give_up(f"no kernel packages: {error}")
    assert (ran.status, ran.stderr) == (4, "")
    result = read(ran.stdout)
    steps = {step["target"]: step for step in result["steps"]}
    for name in ("read", "dirty"):
        step = steps[f"{EXT4}/{name}"]
        why = f"{EXT4}/{name}: Input/output error"
        assert (step["status"], step["why"]) == ("failed", why)
    # Reclaim for what waits in the swap cache can take a zombie's clean file as well.
    freed, (plain,) = result["measured"]["freed"], steps[f"{TMPFS}/plain"]["memcgs"]
    assert plain in freed
    assert len(freed) == before - after
    whys = {memcg["id"]: memcg["why"] for memcg in result["measured"]["remaining"]}
    (dirty,) = steps[f"{EXT4}/dirty"]["memcgs"]
    assert "Input/output error" in whys[dirty]
