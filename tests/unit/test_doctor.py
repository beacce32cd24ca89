"""What doctor says of machines that were made up, and of this one as it is."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from memcgctl import actions
from memcgctl.actions.host.machine import CAPABILITIES, Machine, Mount
from memcgctl.actions.run.checkup import Wanted, check
from memcgctl.actions.run.table import ACTIONS
from memcgctl.cli.doctor import EXIT_CODES, _wanted
from memcgctl.model import Checkup, Kernel
from memcgctl.policy import interfaces
from memcgctl.report.doctor import screen, to_json
from tests.schemas import read

# As the service has them: CAP_SYS_ADMIN is as good as CAP_CHECKPOINT_RESTORE.
ALL = frozenset(CAPABILITIES) - {"checkpoint_restore"}
NEEDS = {need for wanted in _wanted() for need in wanted.needs}
KERNEL = Kernel(
    kind="live",
    path=None,
    release="6.12.0",
    types="btf",
    cgroup_version=2,
    page_size=4096,
    possible_cpus=2,
    numa_nodes=1,
    interfaces=tuple(sorted(NEEDS - {"memory.force_empty"})),
)
UNREAD = "/proc/kcore is masked, as in a container: run memcgctl on the host"


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """Root on a host with cgroup v2, swap, huge pages, debugfs and seven zombies."""
    mount = tmp_path / "cgroup"
    mount.mkdir()
    (mount / "cgroup.stat").write_text("nr_descendants 9\nnr_dying_descendants 7\n")
    (mount / "cgroup.controllers").write_text("cpu io memory pids\n")
    size = tmp_path / "sys/kernel/mm/transparent_hugepage/hpage_pmd_size"
    size.parent.mkdir(parents=True)
    size.write_text("2097152\n")
    for name, text in (("mm/lru_gen/enabled", "0x0007\n"), ("debug/lru_gen", "")):
        path = tmp_path / "sys/kernel" / name
        path.parent.mkdir(parents=True)
        path.write_text(text)
    caches = tmp_path / "proc/sys/vm/drop_caches"
    caches.parent.mkdir(parents=True)
    caches.write_text("0\n")
    cgroup2 = Mount(
        *(30, "0:26", "/", str(mount), "cgroup2"), frozenset({"rw"}), frozenset({"rw"})
    )
    return Machine(
        release="6.12.0",
        page_size=4096,
        cpus=frozenset({0, 1}),
        mounts=(cgroup2,),
        cgroup1=None,
        cgroup2=cgroup2,
        swap_total_bytes=1 << 30,
        swap_free_bytes=1 << 29,
        euid=0,
        capabilities=ALL,
        lockdown="none",
        proc=tmp_path / "proc",
        sys=tmp_path / "sys",
        dev=tmp_path / "dev",
    )


def checked(machine: Machine, kernel: Kernel | None = KERNEL) -> Checkup:
    unread = None if kernel else UNREAD
    return check(machine, _wanted(), kernel, unread, offline=7 if kernel else None)


def whys(checkup: Checkup) -> dict[str, tuple[str | None, str | None]]:
    return {one.action: (one.lack, one.why) for one in checkup.abilities}


def read_only(mount: Mount | None) -> Mount:
    assert mount
    return replace(mount, options=frozenset({"ro"}))


def test_every_action_of_a_policy_can_be_probed() -> None:
    """Doctor would fail, or leave out an action that reclaim takes."""
    assert {wanted.action for wanted in _wanted()} == set(ACTIONS)


def test_an_action_has_one_file_in_each_room() -> None:
    """Who looks for what an action does, or why it is chosen, would have to search."""
    rooms = [Path(actions.__file__).parent, Path(interfaces.__file__).parent]
    mine, theirs = ({one.stem for one in room.glob("*.py")} for room in rooms)
    assert theirs - mine == {"base", "common", "context"}
    assert mine <= theirs
    for one in interfaces.INTERFACES:
        assert 0 < len(one.does) <= 38, f"{one.name}: it stands beside the numbers"
    harms = [one.harm for one in interfaces.INTERFACES]
    assert len(harms) == len({*harms}), "which is tried first is not said"


def test_where_all_is_well(machine: Machine) -> None:
    """A person would look for a fault where there is none."""
    checkup = checked(machine)
    assert EXIT_CODES[checkup.verdict] == 0
    assert (checkup.zombies, checkup.offline, checkup.missing) == (7, 7, ())
    text = screen(checkup).plain
    assert text.startswith("Reclaim works here.\n")
    assert not [
        a for a in checkup.abilities if a.why and a.lack != "kernel" and not a.ask
    ]


def test_a_root_that_lacks_a_capability(machine: Machine) -> None:
    """A person would not learn what a unit file or a container took away."""
    checkup = checked(replace(machine, capabilities=ALL - {"sys_ptrace"}))
    assert EXIT_CODES[checkup.verdict] == 4
    assert checkup.missing == ("CAP_SYS_PTRACE",)
    assert whys(checkup)["swapin"] == ("machine", "needs CAP_SYS_PTRACE")
    text = screen(checkup).plain
    assert text.startswith("Reclaim works here in part: ")
    assert "CAP_SYS_PTRACE" in text


def test_no_swap(machine: Machine) -> None:
    """A person would not learn why zombies of shmem and anonymous memory stay."""
    checkup = checked(replace(machine, swap_total_bytes=0, swap_free_bytes=0))
    assert EXIT_CODES[checkup.verdict] == 4
    assert whys(checkup)["swapin"][0] == "needless"
    assert whys(checkup)["pageout-file"][0] == "machine"
    assert "Without swap, shmem" in screen(checkup).plain


def test_what_the_kernel_lacks_is_no_fault_of_the_machine(machine: Machine) -> None:
    """Doctor would complain on each kernel that is older than an action."""
    gone = "writeback cleanup"
    interfaces = tuple(one for one in KERNEL.interfaces if one != gone)
    checkup = checked(machine, replace(KERNEL, interfaces=interfaces))
    assert EXIT_CODES[checkup.verdict] == 0
    lack, why = whys(checkup)["writeback-cleanup"]
    assert lack == "kernel"
    assert why is not None
    assert "5.14" in why


def test_cgroups_that_cannot_be_written(machine: Machine) -> None:
    """In a container, a person would be told that actions work that do not."""
    checkup = checked(replace(machine, cgroup2=read_only(machine.cgroup2)))
    lack, why = whys(checkup)["writeback-cleanup"]
    assert lack == "machine"
    assert why is not None
    assert "read-only" in why
    assert EXIT_CODES[checkup.verdict] == 4


def test_without_the_memory_controller(machine: Machine) -> None:
    """With cgroup_disable=memory a person would be told that all is well."""
    assert machine.cgroup2
    Path(machine.cgroup2.point, "cgroup.controllers").write_text("cpu io pids\n")
    checkup = checked(machine)
    assert EXIT_CODES[checkup.verdict] == 4
    assert "without the memory controller" in screen(checkup).plain


def test_a_kernel_that_cannot_be_read(machine: Machine) -> None:
    """A person would not learn the reason, nor what there is to know without it."""
    checkup = checked(machine, None)
    assert EXIT_CODES[checkup.verdict] == 3
    text = screen(checkup).plain
    assert text.startswith("Nothing can be listed or reclaimed here")
    assert UNREAD in " ".join(text.split())
    assert "7 by nr_dying_descendants" in text.replace("\n" + " " * 22, " ")


def test_no_facts_at_all(machine: Machine) -> None:
    """A person would get a traceback in a sandbox without /proc and /sys."""
    bare = replace(
        machine,
        mounts=(),
        cgroup2=None,
        swap_total_bytes=0,
        capabilities=frozenset(),
        euid=1000,
        lockdown=None,
        proc=Path("/nonexistent"),
        sys=Path("/nonexistent"),
    )
    for kernel in (None, KERNEL):
        checkup = checked(bare, kernel)
        assert "not mounted" in screen(checkup).plain
        read(to_json(checkup))


@pytest.mark.parametrize("width", [80, 40])
@pytest.mark.parametrize("kernel", [KERNEL, None])
def test_it_fits_the_screen(
    machine: Machine, width: int, kernel: Kernel | None
) -> None:
    """Lines would be broken by the terminal, in the middle of words."""
    machine = replace(machine, capabilities=frozenset(), euid=1000)
    mount = replace(read_only(machine.cgroup2), point="/sys/fs/cgroup\x1b[2J")
    text = screen(checked(replace(machine, cgroup2=mount), kernel), width=width).plain
    words = [word for line in text.splitlines() for word in line.split()]
    longest = max(map(len, words))
    assert max(map(len, text.splitlines())) <= max(width, 22 + longest)
    assert "\x1b" not in text
    assert text.isascii()


def test_json_has_what_the_screen_has(machine: Machine) -> None:
    """A monitoring script would have to parse the screen."""
    said = read(to_json(checked(machine)))
    assert said["schema"] == "memcgctl/doctor/1"
    assert said["verdict"] == "works"
    assert said["source"]["types"] == "btf"
    assert said["cgroups"][0]["version"] == 2
    assert said["swap"] == {
        "total": 1 << 30,
        "free": 1 << 29,
        "transit_room": None,
        "transit_left": "",
    }
    assert said["privileges"] == {"euid": 0, "missing": []}
    assert said["zombies"]["count"] == said["zombies"]["in_kernel_memory"] == 7
    assert [one["action"] for one in said["actions"]] == [w.action for w in _wanted()]


def test_what_is_not_taken_unasked_decides_nothing(machine: Machine) -> None:
    """Exit code 4 would say that something is wrong with actions nobody takes."""
    wanted = [Wanted("drop_caches", (), "drop-caches")]
    checkup = check(replace(machine, euid=1000), wanted, KERNEL)
    assert checkup.abilities[0].lack == "machine"
    assert checkup.verdict == "works"


def test_on_this_machine() -> None:
    """A person would get a traceback, or a line that the terminal breaks."""
    ran = subprocess.run(
        [sys.executable, "-c", "from memcgctl.__main__ import main; main()", "doctor"],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "COLUMNS": "80"},
    )
    assert ran.returncode in EXIT_CODES.values()
    assert "Traceback" not in ran.stderr
    assert max(map(len, ran.stdout.splitlines())) <= 80
