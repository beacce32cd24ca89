"""When is there too little to act on? Counters as kernels write them, made up."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from memcgctl.actions.host.machine import Machine, read_machine
from memcgctl.actions.host.thresholds import (
    below,
    count_dying,
    count_zombies,
    possible_cpus,
    recount,
)

# cgroup.stat of a root on 6.1 and on 6.12, with zombies.
STAT_6_1 = "nr_descendants 12\nnr_dying_descendants 23\n"
STAT_6_12 = """nr_descendants 12
nr_subsys_cpu 13
nr_subsys_memory 13
nr_dying_descendants 25
nr_dying_subsys_cpu 0
nr_dying_subsys_memory 23
nr_dying_subsys_pids 0
"""
# The root and two cgroups below it live, 20 are dying.
CGROUPS = """#subsys_name	hierarchy	num_cgroups	enabled
cpuset	0	1	1
memory	2	23	1
"""


def machine(
    directory: Path, *, v1: bool = False, root: str = "/", cpus: str = "0-63"
) -> Machine:
    """A host whose /proc, /sys and cgroups lie in ``directory``."""
    mount = directory / "cgroup with blank"
    for name in ("proc/self", "sys/devices/system/cpu", "dev", f"{mount.name}/a/b"):
        (directory / name).mkdir(parents=True)
    (directory / "sys/devices/system/cpu/possible").write_text(cpus + "\n")
    point = str(mount).replace(" ", "\\040")
    end = "- cgroup cgroup rw,memory" if v1 else "- cgroup2 cgroup2 rw"
    line = f"30 23 0:26 {root} {point} rw,nosuid shared:4 {end}\n"
    (directory / "proc/self/mountinfo").write_text(line)
    (directory / "proc/cgroups").write_text(CGROUPS)
    for name in ("tasks", "a/tasks"):
        (mount / name).write_text("")
    return read_machine(directory / "proc", directory / "sys", directory / "dev")


def stat(directory: Path, text: str) -> None:
    (directory / "cgroup with blank/cgroup.stat").write_text(text)


@pytest.mark.parametrize("text", [STAT_6_1, STAT_6_12])
def test_v2_counts_what_is_dying_of_memory(tmp_path: Path, text: str) -> None:
    """The timer would act on cgroups without memory, or never act at all."""
    host = machine(tmp_path)
    stat(tmp_path, text)
    zombies = count_zombies(host)
    assert zombies.count == 23
    assert zombies.source.endswith("cgroup with blank/cgroup.stat")


def test_dying_cgroups_are_counted_as_a_census_does(tmp_path: Path) -> None:
    """A metric would jump with each reading of the kernel that fails."""
    host = machine(tmp_path)
    stat(tmp_path, "nr_dying_descendants 25\nnr_dying_subsys_memory 23\n")
    assert count_dying(host) == 25
    stat(tmp_path, "nr_descendants 25\n")
    assert count_dying(host) is None


def test_v1_counts_those_without_a_directory(tmp_path: Path) -> None:
    """On cgroup v1 the timer would take living cgroups for zombies."""
    assert count_zombies(machine(tmp_path, v1=True)).count == 20


@pytest.mark.parametrize(
    ("v1", "root", "why"),
    [
        (False, "/", "does not tell"),
        (True, "/docker/1f", "not all of the hierarchy is mounted"),
    ],
)
def test_what_nobody_counts_is_no_reason_to_stop(
    tmp_path: Path, v1: bool, root: str, why: str
) -> None:
    """In a container, or on an odd kernel, the timer would do nothing for ever."""
    zombies = count_zombies(machine(tmp_path, v1=v1, root=root))
    assert (zombies.count, zombies.overhead_bytes) == (None, None)
    assert why in zombies.source
    assert below(zombies, 1, 1) is None


def test_no_cgroups_at_all(tmp_path: Path) -> None:
    """A person would get a traceback on a machine without cgroups."""
    for name in ("proc", "sys", "dev"):
        (tmp_path / name).mkdir()
    host = read_machine(tmp_path / "proc", tmp_path / "sys", tmp_path / "dev")
    assert count_zombies(host).count is None


def test_the_thresholds(tmp_path: Path) -> None:
    """The timer would scan for nothing each hour, or let zombies pile up."""
    host = machine(tmp_path)
    stat(tmp_path, STAT_6_12)
    zombies = count_zombies(host)
    assert below(zombies, 23, 0) is None
    assert below(zombies, 24, 0) == "23 zombies are fewer than 24"
    assert zombies.overhead_bytes is not None
    assert below(zombies, 0, zombies.overhead_bytes) is None
    why = below(zombies, 0, zombies.overhead_bytes + 1)
    assert why is not None
    assert "estimated" in why


def test_dying_cgroups_are_not_all_dying_memcgs(tmp_path: Path) -> None:
    """The timer would do nothing for ever where controllers come and go.

    A living cgroup's memcg is removed with the controller, and counted nowhere.
    """
    host = machine(tmp_path)
    stat(tmp_path, STAT_6_1)
    zombies = count_zombies(host)
    assert below(zombies, 24, 1 << 40) is None
    assert below(recount(zombies, 24), 24, 0) is None
    assert below(recount(zombies, 23), 24, 0) == "23 zombies are fewer than 24"


def test_the_estimate_is_no_more_than_what_was_measured(tmp_path: Path) -> None:
    """--min-overhead would be reached before there is that much overhead.

    100 memcgs cost 11,563,200 bytes of the percpu line of memory.stat on 6.1 with 64
    possible CPUs and two nodes, so one no less than 1,948 bytes with one node.
    """
    zombies = count_zombies(machine(tmp_path))
    assert zombies.each_bytes is not None
    assert 64 * 1752 < zombies.each_bytes <= 173584 + 11126


@pytest.mark.parametrize(
    ("text", "cpus"), [("0", 1), ("0-63", 64), ("0-3,8-9,15", 7), ("", None)]
)
def test_possible_cpus(tmp_path: Path, text: str, cpus: int | None) -> None:
    """The estimate would be off by as many CPUs as were not counted."""
    assert possible_cpus(machine(tmp_path, cpus=text)) == cpus


def test_the_counters_are_read_without_what_reads_a_kernel() -> None:
    """Each hour, a machine without zombies would load NumPy and drgn for nothing."""
    code = """
import sys
import memcgctl.actions.host.thresholds
sys.exit(bool({"numpy", "drgn"} & set(sys.modules)))
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
