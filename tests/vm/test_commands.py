"""A plan's printed commands, typed into a shell one after the other.

A guest makes zombies, is asked for a plan, and each step's command is carried out as a
person would: by a shell's own programs where it has a word for it, else by memcgctl
for this one action. What came of it is told by the
kernel alone: cgroup.stat, /proc/kpagecgroup, memory.swap.current, the page cache.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.lab import run, truth
from tests.lab.guest import Guest
from tests.lab.live import ROOT, Ran, libraries, live, make_disk, run_in, stage
from tests.lab.packages import PackageError
from tests.lab.scenarios import (
    CGROUPS,
    Scenario,
    deleted,
    dirty,
    huge_pages,
    mapped_file,
    memory_object,
    moved_process,
    nested,
    online,
    opened,
    read_file,
    segment,
    swapped,
    swapped_shmem,
    tmpfs,
    under_online,
)
from tests.schemas import read
from tests.vm.test_actions import bind
from tests.vm.test_live import KERNELS, give_up, require_programs

# Zombies of all kinds that commands are printed for, few of each.
SCENARIO = Scenario(
    [
        *(read_file, opened, deleted, mapped_file, tmpfs, memory_object, segment),
        *(moved_process, huge_pages, swapped, swapped_shmem, nested),
        *(under_online, online, dirty),
    ],
    stock=False,
)
SHELL = ["awk", "bash", "blockdev", "cat", "dd", "find", "mktemp", "rmdir", "sh"]
SHELL += ["sync", "taskset", "true"]
# A shell finds Python in its path, not where the disk has it.
PYTHON = f'#!/usr/bin/sh\nexec {sys.executable} "$@"\n'
PAGE = 4096
LIVING = "/app/online"
PRECISION = 0.05

Moves = defaultdict[str, list[int]]


@dataclass(frozen=True)
class Look:
    """What the kernel says at one moment; bytes in memory and in swap by path.

    What is in memory is that of the memcg and of zombies whose nearest online ancestor
    it is, what is in swap that of all below it.
    """

    dying: int
    memory: dict[str, truth.Count]
    swap: dict[str, int]


@dataclass(frozen=True)
class Typed:
    """A plan, what each of its commands said, and a look before and after them all.

    Zombies are by their ids: those that the guest made, then those that are listed.
    """

    plan: dict[str, Any]
    commands: list[str]
    ran: list[Ran]
    before: Look
    after: Look
    made: set[int]
    listed: set[int]
    ancestors: dict[int, str]


def look(guest: Guest, told: dict[str, Any]) -> Look:
    living = {m["id"]: m["path"] for m in told["memcgs"] if m["state"] == "online"}
    counts = truth.count(guest)
    paths = [CGROUPS + path for path in living.values()]
    files = truth.read_files(guest, paths)
    return Look(
        run.dying(guest),
        {path: counts.get(one, truth.Count()).user() for one, path in living.items()},
        {living[said.id]: said.swap or 0 for said in files},
    )


def give_shell(guest: Guest) -> None:
    """The programs of a root shell, beside Python and memcgctl."""
    guest.sh(f"""
        mkdir /mnt/shell; mount -o ro /dev/disk/shell /mnt/shell
        cp -a /mnt/shell/. {ROOT}
        mkdir -p {ROOT}/tmp
    """)
    guest.write(f"{ROOT}/usr/bin/python3", PYTHON)
    guest.sh(f"chmod +x {ROOT}/usr/bin/python3")


def shell_disk(directory: Path) -> Path:
    path = "/usr/bin:/usr/sbin:/bin:/sbin"
    found = {name: shutil.which(name, path=path) for name in SHELL}
    if missing := [name for name, place in found.items() if not place]:
        give_up(f"nothing can be typed without {', '.join(missing)}")
    programs = {name: Path(place) for name, place in found.items() if place}
    stage(libraries(programs.values()), directory / "shell")
    for name, place in programs.items():
        (directory / "shell/usr/bin").mkdir(parents=True, exist_ok=True)
        shutil.copy2(place, directory / "shell/usr/bin" / name)
    return make_disk(directory / "shell", directory / "shell.ext4", 32)


@pytest.fixture(scope="module", params=KERNELS)
def typed(request: pytest.FixtureRequest) -> Iterator[Typed]:
    require_programs()
    with tempfile.TemporaryDirectory(prefix="memcgctl-lab-") as name:
        disks = {"shell": shell_disk(Path(name))}
        try:
            with live(request.param, SCENARIO, disks=disks) as (guest, told):
                yield type_all(guest, told)
        except PackageError as error:
            give_up(f"no kernel packages: {error}")


def type_all(guest: Guest, told: dict[str, Any]) -> Typed:
    bind(guest)
    give_shell(guest)
    planned = run_in(guest, "memcgctl", "reclaim", "--dry-run", "--json")
    assert (planned.status, planned.stderr) == (0, "")
    plan = read(planned.stdout)
    before = look(guest, told)
    commands = typed_words(plan["steps"])
    ran = [run_in(guest, "bash", "-c", command) for command in commands]
    time.sleep(run.SETTLE)
    after = look(guest, told)
    listed = run_in(guest, "memcgctl", "list", "--no-scan", "--json")
    return Typed(
        plan,
        commands,
        ran,
        before,
        after,
        {memcg["id"] for memcg in told["memcgs"] if memcg["state"] == "offline"},
        {memcg["id"] for memcg in read(listed.stdout)["memcgs"]},
        {memcg["id"]: memcg["ancestor"] for memcg in told["memcgs"]},
    )


def typed_words(steps: list[dict[str, Any]]) -> list[str]:
    """A shell's commands, then memcgctl's own in one: each takes a census anew."""
    own = [step for step in steps if step["command"].startswith("memcgctl ")]
    words = [step["command"] for step in steps if step not in own]
    only = dict.fromkeys(f"--only {step['action']}" for step in own)
    if own:
        words.append(f"memcgctl reclaim --yes {' '.join(only)}")
    return words


def test_each_command_does_its_work_without_a_word(typed: Typed) -> None:
    """A person would be given a command that fails, or says what is no matter."""
    assert typed.commands
    wrong = [
        (command, ran.status, ran.stdout, ran.stderr)
        for command, ran in zip(typed.commands, typed.ran, strict=True)
        if not is_fine(command, ran)
    ]
    assert wrong == []


def is_fine(command: str, ran: Ran) -> bool:
    """A shell's program says nothing, memcgctl what came of it."""
    own = command.startswith("memcgctl ")
    return (ran.status, own or ran.stdout, ran.stderr) == (0, own or "", "")


def test_those_that_were_to_go_are_gone_and_no_others(typed: Typed) -> None:
    """A person would type for an hour, and zombies would stay that were to go."""
    promised = set(typed.plan["predicted"]["freed"])
    assert promised
    assert typed.made - typed.listed == promised
    assert typed.before.dying - typed.after.dying == len(promised)


def test_who_is_charged_and_for_how_much(typed: Typed) -> None:
    """Somebody would be charged for what the plan charges to another, or to nobody."""
    memory, swap = predicted(typed)
    assert memory or swap
    pairs = ((memory, memory_gained(typed)), (swap, swap_gained(typed)))
    for said, found in pairs:
        for path in {*said, *found} - {"/", LIVING}:
            room = PRECISION * sum(map(abs, said[path]))
            assert abs(found[path] - sum(said[path])) <= room, (path, said, found)


def predicted(typed: Typed) -> tuple[Moves, Moves]:
    """What each step takes from memory and from swap, and puts there, by path.

    A zombie's are its nearest online ancestor's, as the kernel shows them.
    """
    memory: Moves = defaultdict(list)
    swap: Moves = defaultdict(list)
    for step in typed.plan["steps"]:
        if not step["bytes"]:
            continue
        (ancestor,) = {typed.ancestors[memcg] for memcg in step["memcgs"]}
        comes_back = step["action"].startswith("swapin")
        (swap if comes_back else memory)[ancestor].append(-step["bytes"])
        stays = step["option"] == "recharge-mapper"
        if step["action"] == "swapin-file":
            stays = not step["aim"].get("page_out")
        for path, size in zip(step["charged"], step["charged_bytes"], strict=True):
            (memory if stays else swap)[path].append(size)
    return memory, swap


def memory_gained(typed: Typed) -> Counter[str]:
    found: Counter[str] = Counter()
    for path, count in typed.after.memory.items():
        pages = sum(count.pages) - sum(typed.before.memory[path].pages)
        found[path] = pages * PAGE
    return found


def swap_gained(typed: Typed) -> Counter[str]:
    """Of a memcg and its zombies: without those of living memcgs below it."""
    found: Counter[str] = Counter()
    for path, now in typed.after.swap.items():
        gain = now - typed.before.swap[path]
        found[path] += gain
        if path.count("/") > 1:
            found[path.rpartition("/")[0]] -= gain
    return found


def test_the_living_lose_no_more_than_was_said(typed: Typed) -> None:
    """A command would do to living memcgs what it is to be typed instead of."""
    most = max(step["collateral_bytes"] for step in typed.plan["steps"])
    lost = typed.before.memory[LIVING] - typed.after.memory[LIVING]
    assert min(lost.pages) >= 0
    assert sum(lost.pages) * PAGE <= most
