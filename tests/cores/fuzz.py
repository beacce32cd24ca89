"""Damages real cores at random and lists them: does it ever crash, hang or trace back?

    python -m tests.cores.fuzz fixtures/*.zst --cases 5000 --seed 7

Each case is one run of ``memcgctl list --json`` in a process of its own on a core with
bits flipped, words overwritten or its end cut off. The places are found by opening
the undamaged core; the case's number is the seed of its damage.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import drgn
from drgn.helpers.linux.mm import follow_phys

from memcgctl.census.tree import read_tree
from memcgctl.cli import main
from memcgctl.kernel import elf
from memcgctl.kernel.compressed import is_compressed, unpacked
from memcgctl.kernel.program import Sources, open_kernel
from memcgctl.linux.memmap import page_ranges

LIMIT_SECONDS = 60
LIMIT_BYTES = 4 << 30  # of address space: a length that is garbage must not be believed
PAGE = 4096
GOOD = ("listed", "listed with warnings", "refused")


class Extent(NamedTuple):
    """Bytes of the core's file."""

    offset: int
    size: int


@dataclass(frozen=True)
class Case:
    """How one case ended; ``outcome`` is one of GOOD or says what is wrong."""

    number: int
    target: str
    outcome: str
    seconds: float
    message: str


def run(core: Path, cases: Sequence[int], jobs: int | None = None) -> list[Case]:
    """Run numbered cases on one core, several at a time."""
    jobs = jobs or os.cpu_count() or 1
    shares = [cases[job::jobs] for job in range(jobs)]
    with ProcessPoolExecutor(jobs) as pool:
        return [case for done in pool.map(_work, repeat(core), shares) for case in done]


def _work(core: Path, cases: Sequence[int]) -> list[Case]:
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory) / "core"
        subprocess.run(["cp", "--sparse=always", _unpacked(core), copy], check=True)
        copy.chmod(0o600)
        targets = _targets(copy)
        return [_case(copy, targets, number) for number in cases]


def _unpacked(core: Path) -> Path:
    with core.open("rb") as file:
        magic = file.read(16)
    return unpacked(core, magic) if is_compressed(magic) else core


# Where to damage


def _targets(core: Path) -> dict[str, list[Extent]]:
    """The extents of the file that hold what the name says."""
    with core.open("rb") as file:
        loads = elf.read(file).segments
    with open_kernel(Sources(core)) as kernel:
        prog = kernel.prog

        def extents(address: int, size: int) -> Iterator[Extent]:
            end = address + size
            while address < end:
                part = min(end, (address | (PAGE - 1)) + 1) - address
                physical = int(follow_phys(prog["init_mm"].address_of_(), address))
                for load in loads:
                    if load.physical <= physical < load.physical + load.size:
                        yield Extent(load.offset + physical - load.physical, part)
                address += part

        def objects(type_name: str, addresses: Sequence[int]) -> Iterator[Extent]:
            for address in filter(None, addresses):
                yield from extents(address, drgn.sizeof(prog.type(type_name)))

        tree = read_tree(kernel)
        page_size = drgn.sizeof(prog.type("struct page"))
        memory_map = [
            extent
            for pages in page_ranges(kernel)
            for extent in extents(pages.address, pages.pages * page_size)
        ]
        btf = kernel.symbol("__start_BTF")
        return {
            "memory map": memory_map,
            "tree": [
                *objects("struct mem_cgroup", tree.address.tolist()),
                *objects("struct cgroup", tree.memcg["css.cgroup"].tolist()),
                *objects("struct kernfs_node", tree.cgroup["kn"].tolist()),
            ],
            "BTF": [*extents(btf, kernel.symbol("__stop_BTF") - btf)],
            "headers": [Extent(0, min(load.offset for load in loads))],
            "anywhere": [Extent(load.offset, load.size) for load in loads],
            "truncated": [],
        }


# How to damage


def _case(core: Path, targets: dict[str, list[Extent]], number: int) -> Case:
    chance = random.Random(number)
    target = [*targets][number % len(targets)]
    with core.open("r+b", buffering=0) as file:
        if target == "truncated":
            with tempfile.NamedTemporaryFile(dir=core.parent) as short:
                size = chance.randrange(os.fstat(file.fileno()).st_size)
                _copy_start(file.fileno(), short.fileno(), size)
                return _run(Path(short.name), number, target)
        undo = _damage(file.fileno(), targets[target], chance)
        try:
            return _run(core, number, target)
        finally:
            for offset, data in reversed(undo):
                os.pwrite(file.fileno(), data, offset)


def _damage(
    file: int, extents: Sequence[Extent], chance: random.Random
) -> list[tuple[int, bytes]]:
    """Change a few words; returns what was there before.

    Half of the cases aim at kernel pointers, which make cycles and wild walks.
    """
    at_pointers = chance.random() < 0.5
    undo = []
    for _ in range(1 << chance.randrange(8)):
        offset, word = _word(file, extents, chance, at_pointers)
        _, other = _word(file, extents, chance, at_pointers)
        flipped = int.from_bytes(word, "little") ^ 1 << chance.randrange(64)
        new = chance.choice([flipped.to_bytes(8, "little")] * 2 + [other])
        undo.append((offset, word))
        os.pwrite(file, new, offset)
    return undo


def _word(
    file: int, extents: Sequence[Extent], chance: random.Random, pointer: bool
) -> tuple[int, bytes]:
    """A random word; with ``pointer`` one that points into the kernel, if found."""
    for _ in range(64):
        extent = chance.choice(extents)
        offset = extent.offset + chance.randrange(max(extent.size // 8, 1)) * 8
        word = os.pread(file, 8, offset)
        if not pointer or (word[6:] == b"\xff\xff" and word != b"\xff" * 8):
            break
    return offset, word


def _copy_start(source: int, target: int, size: int) -> None:
    offset = 0
    while offset < size:
        offset += os.sendfile(target, source, offset, size - offset)


# How to run


def _run(core: Path, number: int, target: str) -> Case:
    """``memcgctl list --json`` in a fork, which has drgn and NumPy imported already."""
    begin = time.monotonic()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        if not (child := os.fork()):
            _list(core, out.fileno(), err.fileno())
        _, status = os.waitpid(child, 0)
        seconds = time.monotonic() - begin
        out.seek(0)
        err.seek(0)
        text = err.read().decode(errors="replace")
        outcome = _outcome(os.waitstatus_to_exitcode(status), out.read(), text)
    return Case(number, target, outcome, seconds, text)


def _list(core: Path, out: int, err: int) -> NoReturn:
    code: Any = 70
    try:
        resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))
        signal.alarm(LIMIT_SECONDS)
        os.dup2(out, 1)
        os.dup2(err, 2)
        sys.stdout = os.fdopen(1, "w", closefd=False)
        sys.stderr = os.fdopen(2, "w", closefd=False)
        sys.argv = ["memcgctl", "list", "--json", "--core", str(core)]
        main()
    except SystemExit as done:
        code = done.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code or 0)


def _outcome(code: int, out: bytes, err: str) -> str:
    if code == -signal.SIGALRM:
        return "hang"
    if code < 0:
        return f"killed by signal {-code}"
    if "Traceback" in err:
        return "traceback"
    if code == 3 and not out:
        lines = err.splitlines()
        return "refused" if lines[-1].startswith("memcgctl: error: ") else "no message"
    if code == 0:
        try:
            document = json.loads(out)
        except ValueError:
            return "bad JSON"
        return "listed with warnings" if document["warnings"] else "listed"
    return f"exit code {code}"


def report(cases: Sequence[Case]) -> str:
    """Counts by target and outcome, the slowest case, and everything that is wrong."""
    counts = Counter((case.target, case.outcome) for case in cases)
    lines = [
        f"{target:12} {outcome:22} {count:6}"
        for (target, outcome), count in sorted(counts.items())
    ]
    slowest = max(cases, key=lambda case: case.seconds)
    lines.append(
        f"{len(cases)} cases, the slowest {slowest.seconds:.1f} s "
        f"(case {slowest.number}, {slowest.target})"
    )
    lines += [
        f"case {case.number} ({case.target}): {case.outcome}: {case.message.strip()}"
        for case in failures(cases)
    ]
    return "\n".join(lines)


def failures(cases: Sequence[Case]) -> list[Case]:
    return [case for case in cases if case.outcome not in GOOD]


def command() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cores", type=Path, nargs="+")
    parser.add_argument("--cases", type=int, default=500, help="for each core")
    parser.add_argument("--seed", type=int, default=0, help="number of the first case")
    parser.add_argument("--jobs", type=int)
    options = parser.parse_args()
    bad = 0
    for core in options.cores:
        numbers = range(options.seed, options.seed + options.cases)
        cases = run(core, numbers, options.jobs)
        print(f"{core.name}\n{report(cases)}", flush=True)
        bad += len(failures(cases))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(command())
