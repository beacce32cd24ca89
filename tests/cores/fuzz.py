"""Damages real cores at random: does a command ever crash, hang or trace back?

    python -m tests.cores.fuzz fixtures/*.zst --cases 5000 --seed 7

Each case is one run of one of ``COMMANDS`` in a process of its own on a core with bits
flipped, words overwritten or its end cut off. The places are found by opening the
undamaged core: what a whole census of it reads, and more often what steers its walks.
The case's number is the seed of its damage.
"""

from __future__ import annotations

import argparse
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
from contextlib import suppress
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import drgn
from drgn.helpers.linux.mm import follow_phys

from memcgctl.census import take_census
from memcgctl.census.tree import read_tree
from memcgctl.cli import main
from memcgctl.kernel import elf
from memcgctl.kernel.compressed import is_compressed, unpacked
from memcgctl.kernel.program import OpenedKernel, Sources, open_kernel
from memcgctl.linux.memmap import page_ranges
from tests.schemas import read

LIMIT_SECONDS = 60
LIMIT_BYTES = 4 << 30  # of address space: a length that is garbage must not be believed
PAGE = 4096
GOOD = ("answered", "in part", "refused", "usage")
# Of what has an {id}, any of the core's zombies is asked for.
COMMANDS = (
    ("list", "--json"),
    ("explain", "{id}", "--json"),
    ("simulate", "--json"),
    ("list", "--all", "--json"),
    ("explain", "{id}", "--folios"),
    ("audit", "--json"),
    ("reclaim", "--dry-run", "--json"),
    ("snapshot", "-o", "-"),
)
READS = 1 << 17


class Extent(NamedTuple):
    """Bytes of the core's file."""

    offset: int
    size: int


@dataclass(frozen=True)
class Case:
    """How one case ended; ``outcome`` is one of GOOD or says what is wrong."""

    number: int
    target: str
    command: str
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
        targets, ids = _targets(copy)
        return [_case(copy, targets, ids, number) for number in cases]


def _unpacked(core: Path) -> Path:
    with core.open("rb") as file:
        magic = file.read(16)
    return unpacked(core, magic) if is_compressed(magic) else core


# Where to damage


def _targets(core: Path) -> tuple[dict[str, list[Extent]], list[int]]:
    """The extents of the file that hold what the name says; the zombies' ids."""
    with core.open("rb") as file:
        loads = elf.read(file).segments
    with open_kernel(Sources(core)) as kernel:
        prog = kernel.prog
        init_mm = prog["init_mm"].address_of_()

        def extents(address: int, size: int) -> Iterator[Extent]:
            end = address + size
            while address < end:
                part = min(end, (address | (PAGE - 1)) + 1) - address
                with suppress(drgn.FaultError):  # a per-CPU variable's offset
                    physical = int(follow_phys(init_mm, address))
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
        reads, symbols = _read_by_a_census(kernel)
        memory_map_at = {extent.offset // PAGE for extent in memory_map}
        ids = [i for i, on in zip(tree.id.tolist(), tree.online, strict=True) if not on]
        targets = {
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
            "globals": [e for at in symbols for e in extents(at, 8)],
            "read": [
                extent
                for at, size in reads
                for extent in extents(at, size)
                if extent.offset // PAGE not in memory_map_at
            ],
        }
        return targets, ids


def _read_by_a_census(
    kernel: OpenedKernel,
) -> tuple[list[tuple[int, int]], list[int]]:
    """(address, size) of what a census with all details reads, and of which symbols."""
    reads: dict[tuple[int, int], None] = {}
    symbols: dict[int, None] = {}
    read, symbol = kernel.memory.read, kernel.symbol

    def noted(address: int, size: int) -> bytes:
        data = read(address, size)
        if len(reads) < READS and size <= PAGE * 16:
            reads[address, size] = None
        return data

    def found(name: str) -> int:
        symbols[address := symbol(name)] = None
        return address

    kernel.memory.read, kernel.symbol = noted, found  # type: ignore[method-assign]
    take_census(kernel, details="offline")
    del kernel.memory.read, kernel.symbol
    return [*reads], [*symbols]


# How to damage


def _case(
    core: Path, targets: dict[str, list[Extent]], ids: Sequence[int], number: int
) -> Case:
    chance = random.Random(number)
    # Half of the cases damage what steers the walks.
    names = [*targets, *["globals", "read", "read"] * 2]
    target = names[number % len(names)]
    command = COMMANDS[number // len(names) % len(COMMANDS)]
    words = [word.format(id=chance.choice(ids)) for word in command]
    with core.open("r+b", buffering=0) as file:
        if target == "truncated":
            with tempfile.NamedTemporaryFile(dir=core.parent) as short:
                size = chance.randrange(os.fstat(file.fileno()).st_size)
                _copy_start(file.fileno(), short.fileno(), size)
                return _run(Path(short.name), number, target, words)
        undo = _damage(file.fileno(), targets[target], chance)
        try:
            return _run(core, number, target, words)
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


def _run(core: Path, number: int, target: str, command: Sequence[str]) -> Case:
    """A command in a fork, which has drgn and NumPy imported already."""
    begin = time.monotonic()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        if not (child := os.fork()):
            _command(core, command, out.fileno(), err.fileno())
        _, status = os.waitpid(child, 0)
        seconds = time.monotonic() - begin
        out.seek(0)
        err.seek(0)
        text = err.read().decode(errors="replace")
        code = os.waitstatus_to_exitcode(status)
        outcome = _outcome(code, out.read(), text, "--json" in command)
    return Case(number, target, " ".join(command), outcome, seconds, text)


def _command(core: Path, command: Sequence[str], out: int, err: int) -> NoReturn:
    code: Any = 70
    try:
        resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))
        signal.alarm(LIMIT_SECONDS)
        os.dup2(out, 1)
        os.dup2(err, 2)
        sys.stdout = os.fdopen(1, "w", closefd=False)
        sys.stderr = os.fdopen(2, "w", closefd=False)
        sys.argv = ["memcgctl", *command, "--core", str(core)]
        main()
    except SystemExit as done:
        code = done.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code or 0)


def _outcome(code: int, out: bytes, err: str, is_json: bool) -> str:
    if code == -signal.SIGALRM:
        return "hang"
    if code < 0:
        return f"killed by signal {-code}"
    if "Traceback" in err:
        return "traceback"
    if code == 3 and not out:
        lines = err.splitlines()
        return "refused" if lines[-1].startswith("memcgctl: error: ") else "no message"
    if code == 2:
        return "usage" if err and not out else "no message"
    if code not in (0, 4):
        return f"exit code {code}"
    if is_json:
        try:
            read(out)
        except ValueError:
            return "bad JSON"
    return "in part" if code or "warning: " in err else "answered"


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
        f"case {case.number} ({case.target}, {case.command}): {case.outcome}: "
        + case.message.strip()
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
