"""What cannot be read on the running host is not "none", "0" or "all moved"."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import drgn
import numpy as np
import pytest

from memcgctl.actions import drop_caches, fadvise, pageout_file, swapin
from memcgctl.actions.host import helper, measure, pages, swapcache, target
from memcgctl.actions.host.machine import (
    ActionError,
    Guard,
    Machine,
    Mount,
    no_room,
    read_machine,
)
from memcgctl.actions.host.pages import U64
from memcgctl.actions.host.target import open_cgroup, open_file
from memcgctl.actions.host.thresholds import Zombies, below
from memcgctl.actions.run import waiting
from memcgctl.actions.run.checkup import check
from memcgctl.actions.run.executor import Unreadable, carry_out
from memcgctl.actions.run.waiting import Waiting
from memcgctl.kernel.layout import LayoutError
from memcgctl.linux.records import present
from memcgctl.model import Charges, FileTarget, StepResult, SwapUse
from memcgctl.report import doctor
from memcgctl.views.listing import largest_reason
from tests.unit.fake_kernel import FakeKernel
from tests.unit.plans import FILE, TMPFS, step
from tests.unit.test_actions_executor import QUICK, Bench, Pretend, plan
from tests.unit.test_actions_executor import step as numbered
from tests.unit.zombies import memcg

PAGE = 4096


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A host whose /proc is empty, and whose memcgs the test writes."""
    for name in ("proc", "sys", "cgroup/app/job"):
        (tmp_path / name).mkdir(parents=True)
    point = str(tmp_path / "cgroup")
    mount = Mount(1, "0:1", "/", point, "cgroup2", frozenset(), frozenset())
    return replace(
        read_machine(),
        cgroup1=None,
        cgroup2=mount,
        swap_total_bytes=None,
        swap_free_bytes=None,
        proc=tmp_path / "proc",
        sys=tmp_path / "sys",
    )


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, Pretend({1}))


def test_swap_and_memory_of_nobody_knows_how_much(machine: Machine) -> None:
    """A step would swap out, or in, what there may be no room for."""
    for swap in (True, False):
        assert "cannot be read" in no_room(1, machine, swap=swap)
    (machine.proc / "meminfo").write_text("SwapFree: 8 kB\nMemAvailable: 4 kB\n")
    assert no_room(8192, machine, swap=True) == ""
    assert no_room(8192, machine, swap=False) == "no room in memory"


def test_a_host_whose_meminfo_cannot_be_read(machine: Machine) -> None:
    """A person reads "no swap is switched on", and switches on a second one."""
    seen = read_machine(machine.proc, machine.sys)
    assert (seen.swap_total_bytes, seen.swap_free_bytes) == (None, None)
    for action in (pageout_file, swapin):
        assert action.probe(seen) == "whether there is swap cannot be read"
    found = check(machine, (), None)
    assert found.swap_total_bytes is None
    assert re.search("^swap +cannot be read$", doctor.screen(found).plain, re.M)


def test_a_hierarchy_whose_controllers_cannot_be_read(machine: Machine) -> None:
    """A person would be sent to the kernel's command line: "memory is off"."""
    assert check(machine, (), None).memory_controller is None
    assert machine.cgroup2
    Path(machine.cgroup2.point, "cgroup.controllers").write_text("cpu\n")
    assert check(machine, (), None).memory_controller is False


def test_limits_that_cannot_be_read_are_not_no_limits(machine: Machine) -> None:
    """A memcg would be pushed over a limit, and its processes killed."""
    assert machine.cgroup
    app = Path(machine.cgroup.point, "app")
    assert measure.room("/app/job", machine, swap=False) == measure.Room(None)
    for name, text in (("max", "8192"), ("current", "4096")):
        (app / f"memory.{name}").write_text(text)
    room = measure.room("/app/job", machine, swap=False)
    assert room == measure.Room((4096, "/app"))
    assert (room.lacks(4096), room.lacks(4097)) == (
        "",
        "/app would be pushed over a limit",
    )
    for path in ("/app/gone", "/elsewhere"):
        assert (
            f"limits of {path} cannot" in measure.room(path, machine, swap=False).unread
        )
    nowhere = replace(machine, cgroup2=None)
    assert "mounted" in measure.room("/app", nowhere, swap=False).unread


@pytest.mark.parametrize(
    ("descendants", "depth", "why"),
    [("9", "max", None), ("8", "max", "is reached: 8 of 8"), ("9", "0", "depth of")],
)
def test_a_cgroup_that_may_have_no_other_below_it(
    machine: Machine, descendants: str, depth: str, why: str | None
) -> None:
    """doctor would say that all works, and each step end with EAGAIN."""
    assert machine.cgroup
    point = Path(machine.cgroup.point)
    (point / "cgroup.stat").write_text("nr_descendants 8\nnr_dying_descendants 3\n")
    (point / "cgroup.max.descendants").write_text(f"{descendants}\n")
    (point / "cgroup.max.depth").write_text(f"{depth}\n")
    told = helper.probe(machine)
    assert told is None if why is None else why in (told or "")


def test_a_step_whose_limits_cannot_be_read_is_told_of(bench: Bench) -> None:
    """The run's report would look as if all limits had been asked."""
    result = bench.run(plan(numbered(1, charged_to=("/gone",), charged_bytes=(4096,))))
    assert any("limits of /gone cannot be read" in one for one in result.warnings)


def test_page_frames_that_cannot_be_asked_about(machine: Machine) -> None:
    """All would count as moved: a frame of nobody is one that is charged no more."""
    frames = np.array([5], np.uint64)
    (machine.proc / "kpagecgroup").mkdir()
    with pytest.raises(ActionError, match="/proc/kpagecgroup"):
        pages.of_memcgs(frames, [7], machine)
    (machine.proc / "kpageflags").write_bytes(b"")  # beyond the last page frame
    assert not pages.flagged(frames, pages.WRITEBACK, machine).any()


def test_a_file_system_that_does_not_tell_what_is_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ "4096 bytes stay in memory" of a file that has none there."""
    path = tmp_path / "file"
    path.write_bytes(bytes(PAGE))

    class NoMmap:
        def __init__(self, *_: object) -> None:
            raise OSError(errno.ENODEV, "No such device")

    @contextmanager
    def opened(*_: object) -> Iterator[int]:
        fd = os.open(path, os.O_RDWR)
        yield fd
        os.close(fd)

    monkeypatch.setattr(fadvise, "Mapping", NoMmap)
    monkeypatch.setattr(fadvise, "open_file", opened)
    one = step("fadvise", aim=FileTarget(TMPFS))
    outcome = fadvise.apply(one, read_machine(), Guard())
    assert outcome.bytes is None
    assert "cannot be read" in outcome.left


def test_caches_are_dropped_and_nobody_knows_how_much(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ "0 bytes moved" of what may have been gigabytes."""
    file = machine.proc / "sys/vm/drop_caches"
    file.parent.mkdir(parents=True)
    monkeypatch.setattr(drop_caches, "sync_disks", lambda *_: [])
    assert drop_caches.apply(step("drop_caches"), machine, Guard()).bytes is None


def test_what_is_being_written_for_long_is_said_to_be(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ "Until memory is short" of pages that a slow disk has not written yet."""
    flags = 1 << pages.WRITEBACK | 1 << pages.SWAPCACHE
    words = np.full(8, flags, np.uint64)
    (machine.proc / "kpageflags").write_bytes(words.tobytes())
    (machine.proc / "kpagecgroup").write_bytes(np.full(8, 9, np.uint64).tobytes())
    monkeypatch.setattr(swapcache, "_WRITTEN_WITHIN", 0.0)
    frames = np.array([5, 6], np.uint64)
    assert swapcache.wait_written(frames, machine) == 2

    def drain(frames: U64, machine: Machine, **_: bool) -> U64:
        return frames[1:]

    monkeypatch.setattr(swapcache, "drain", drain)
    mine = Waiting(frames, np.array([9, 9], np.uint64), "", (False, False))
    stay = waiting.drain({1: mine}, machine)
    done = StepResult(1, numbered(1), "part", "", 0, 0.0)
    told = waiting.finished(done, mine, stay, PAGE)
    assert told.moved_bytes == PAGE
    assert told.why.endswith("4096 of them are still being written to swap")


def test_overhead_of_nobody_knows_how_much_is_not_below_a_threshold() -> None:
    """A timer with --min-overhead would never act where CPUs are not told."""
    assert below(Zombies(1000, "", None), 0, 1 << 30) is None
    assert below(Zombies(1000, "", None), 1001, 0) is not None


def test_a_kernel_that_cannot_be_read_at_the_end(bench: Bench) -> None:
    """ "Something holds it still" of a zombie that may be gone."""

    def look() -> set[int]:
        if bench.action.done:
            raise Unreadable("the list of cgroups has no end")
        return {1}

    result = carry_out(
        plan(numbered(1)),
        look,
        limits=QUICK,
        journal=bench.root / "state/journal",
        lock=bench.root / "state/lock",
        machine=bench.machine,
        actions={"pretend": bench.action},
        apart=False,
    )
    assert bench.action.done == [1]
    assert result.stopped == "the list of cgroups has no end"


def test_a_member_that_is_none_of_any_kernel_is_not_a_member_that_is_missing() -> None:
    """Damaged types would pass for a kernel that does not have the counter."""
    fake = FakeKernel({"inner": {"x": "u64"}, "outer": {"n": "u64", "inner": "inner"}})
    found = present(fake.prog, "struct outer", ("n", "inner", "other"))
    assert found == {"n": "n"}
    odd = fake.prog.float_type("odd", 8, "little")
    members = (drgn.TypeMember(odd, "n"),)
    wrong = fake.prog.struct_type("wrong", 8, members)
    fake.prog.register_type_finder(
        "wrong",
        lambda prog, kinds, name, file: wrong if name == "wrong" else None,
        enable_index=0,
    )
    with pytest.raises(LayoutError, match=r"wrong\.n is not an integer"):
        present(fake.prog, "struct wrong", ("n",))


def test_a_file_that_may_not_be_opened_is_not_gone(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A person looks for who removed it, and it is there: a right is missing."""

    def barred(*_: object, **__: object) -> NoReturn:
        raise OSError(errno.EPERM, "Operation not permitted")

    real = read_machine()
    monkeypatch.setattr(os, "open", barred)
    file = replace(FILE, path="/", device=real.mounts[-1].device)
    cannot = "cannot be opened: Operation not permitted"
    with pytest.raises(ActionError, match=cannot), open_cgroup(7, "/app", machine):
        pass
    monkeypatch.setattr(target, "leads_to", lambda *_: True)
    with pytest.raises(ActionError, match=cannot), open_file(file, (), machine):
        pass


def test_socket_memory_that_is_not_known_may_be_the_reason() -> None:
    """ "Largest reason: references" of a memcg with 12 MiB in a socket."""
    known, unknown = (
        memcg(charges=Charges(sock_bytes=sock), swap=SwapUse()) for sock in (0, None)
    )
    assert largest_reason([known]) is not None
    assert largest_reason([unknown]) is None
