"""Shmem that waits in the swap cache where nobody can be asked is paged out again."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memcgctl.actions import pageout_file
from memcgctl.actions.host import swapcache
from memcgctl.actions.host.libc import Mapping
from memcgctl.actions.host.machine import Guard, Mount, Outcome, read_machine
from memcgctl.model import FileTarget
from tests.unit.plans import PAGE, TMPFS, step

STEP = step("pageout-file", bytes=2 * PAGE, charged_to=("/app",), aim=FileTarget(TMPFS))


@pytest.mark.parametrize(("asked", "tries", "waiting"), [(True, 1, 2), (False, 2, 0)])
def test_what_waits_where_nobody_can_be_asked_is_paged_out_once_more(
    asked: bool, tries: int, waiting: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lost: half of the tmpfs zombies of a kernel without memory.reclaim, with zram."""
    fd = os.memfd_create("file")
    os.write(fd, bytes(2 * PAGE))
    calls: list[str] = []

    @contextlib.contextmanager
    def opened(*_: Any) -> Iterator[int]:
        yield fd

    def page_out(*_: Any) -> Any:
        calls.append("page out")
        left = [7, 8] if len(calls) == 1 else []
        return np.array(left, np.uint64)

    monkeypatch.setattr(pageout_file, "open_file", opened)
    monkeypatch.setattr(pageout_file, "no_room", lambda size, machine, swap: "")
    frames = np.array([7, 8], np.uint64)
    monkeypatch.setattr(pageout_file, "_touch", lambda *_: frames)
    monkeypatch.setattr(pageout_file, "_page_out", page_out)
    monkeypatch.setattr(swapcache, "can_be_asked", lambda machine, untargeted: asked)
    monkeypatch.setattr(swapcache, "use_up_slots", lambda machine: calls.append("use"))
    outcome: Outcome = pageout_file.apply(STEP, read_machine(), Guard())
    os.close(fd)
    assert calls == ["page out", "use", "page out"][: 2 * tries - 1]
    assert len(outcome.waiting) == waiting


def test_what_was_reserved_is_paged_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lost: zombies of what posix_fallocate(3) made (PostgreSQL's shared memory).

    It is charged, but for mincore(2) and SEEK_DATA it is a hole.
    """
    fd = os.memfd_create("file")
    os.posix_fallocate(fd, 0, 3 * PAGE + 5)
    os.pwrite(fd, b"x", PAGE)

    @contextlib.contextmanager
    def opened(*_: Any) -> Iterator[int]:
        yield fd

    monkeypatch.setattr(pageout_file, "open_file", opened)
    monkeypatch.setattr(pageout_file, "_page_out", lambda *_: np.zeros(0, np.uint64))
    machine = read_machine()
    with Mapping(fd, 0, 4 * PAGE) as mapping:
        assert mapping.resident(PAGE) == bytes([0, 1, 0, 0])
        pageout_file.apply(STEP, machine, Guard(make_room=lambda _: True))
        assert mapping.resident(PAGE) == bytes([1] * 4)
    os.ftruncate(fd, 5 * PAGE)  # with a hole, none of which is to be filled
    with Mapping(fd, 0, 5 * PAGE) as mapping:
        pageout_file.apply(STEP, machine, Guard(make_room=lambda _: True))
        assert mapping.resident(PAGE) == bytes([1] * 4 + [0])
    os.close(fd)


def test_what_can_be_told_what_to_prefer_can_be_asked(tmp_path: Path) -> None:
    """Lost: shmem for which nobody is asked, or files of the living."""
    mount = Mount(1, "0:1", "/", str(tmp_path), "cgroup2", frozenset(), frozenset())
    machine = replace(read_machine(), cgroup1=None, cgroup2=mount)
    file = tmp_path / "a/memory.reclaim"
    assert not swapcache.can_be_asked(machine, untargeted=True)
    file.parent.mkdir()
    file.touch()
    assert swapcache.can_be_asked(machine, untargeted=True)
    assert file.read_text() == ""
    assert swapcache.can_be_asked(machine, untargeted=False)
    assert file.read_text() == "0 swappiness=200"
    file.unlink()
    file.mkdir()  # which cannot be written, as with a key that is not known
    assert not swapcache.can_be_asked(machine, untargeted=False)


def test_each_cpus_free_entries_are_used_up_by_pages_that_go() -> None:
    """Lost: the CPUs that we may run on, if one of them were left behind."""
    before = os.sched_getaffinity(0)
    swapcache.use_up_slots(read_machine())
    assert os.sched_getaffinity(0) == before
