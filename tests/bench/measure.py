"""One measurement, in a process of its own; prints a JSON object.

    python -m tests.bench.measure scan CORE

Without CORE it measures the running kernel, as root; a plan's census is made up.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import io
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memcgctl.model import Census

CHUNK = 1 << 20
TRIES = 3


def best(run: Callable[[], Any], tries: int = TRIES) -> float:
    """The shortest of a few times, in seconds: the rest is the machine's noise."""
    times = []
    for _ in range(tries):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return min(times)


def scan(core: Path | None, _: argparse.Namespace) -> dict[str, float]:
    """The scan of the memory map, and a bare read of the same bytes, in turns."""
    import drgn

    from memcgctl.census.folios import count_folios
    from memcgctl.census.tree import read_tree
    from memcgctl.kernel.program import Sources, open_kernel
    from memcgctl.linux.memmap import page_ranges

    with open_kernel(Sources(core)) as kernel:
        tree = read_tree(kernel)
        ranges = page_ranges(kernel)
        size = drgn.sizeof(kernel.prog.type("struct page"))
        spans = [(r.address, r.pages * size) for r in ranges]
        path = core or Path("/proc/kcore")
        extents = list(_merged(_extents(kernel.prog, path, core is None, spans)))
        file = os.open(path, os.O_RDONLY)
        scans, reads = [], []
        for _try in range(TRIES):
            reads.append(best(lambda: _read(file, extents), 1))
            scans.append(best(lambda: count_folios(kernel, tree.address), 1))
    return {
        "pages": sum(r.pages for r in ranges),
        "memcgs": len(tree.address),
        "scan": min(scans),
        "read": min(reads),
        "bytes": sum(length for _, length in extents),
    }


def explaining(core: Path | None, _: argparse.Namespace) -> dict[str, float]:
    """The details of the memcg with the most charged pages, and the scan, in turns."""
    from memcgctl.census import take_census
    from memcgctl.census.charges.groups import details_for
    from memcgctl.census.folios import count_folios
    from memcgctl.census.tree import read_tree
    from memcgctl.kernel.program import Sources, open_kernel

    with open_kernel(Sources(core)) as kernel:
        tree = read_tree(kernel)
        charged = {
            m.address: m.charges.total_bytes
            for m in take_census(kernel).memcgs
            if m.charges
        }
        largest = max(charged, key=lambda address: charged[address])
        scans, details = [], []
        for _try in range(TRIES):
            scans.append(best(lambda: count_folios(kernel, tree.address), 1))
            details.append(best(lambda: details_for(kernel, tree, [largest]), 1))
        page_size = kernel.memory.page_size
    return {
        "pages": charged[largest] // page_size,
        "scan": min(scans),
        "explain": min(details),
    }


def _read(file: int, extents: list[tuple[int, int]]) -> None:
    for offset, size in extents:
        for at in range(offset, offset + size, CHUNK):
            os.pread(file, min(CHUNK, offset + size - at), at)


def _extents(
    prog: Any, path: Path, live: bool, spans: list[tuple[int, int]]
) -> Iterator[tuple[int, int]]:
    """Where the file has these virtual addresses: (offset, size), page by page.

    /proc/kcore is indexed by virtual address, a core by physical address.
    """
    from drgn.helpers.linux.mm import follow_phys

    from memcgctl.kernel import elf

    with path.open("rb") as file:
        loads = elf.read(file).segments
    mm = prog["init_mm"].address_of_()
    page = int(prog["PAGE_SIZE"])
    for address, size in spans:
        for at in range(address, address + size, page):
            place = at if live else int(follow_phys(mm, at))
            for load in loads:
                start = load.virtual if live else load.physical
                if start <= place < start + load.size:
                    yield load.offset + place - start, page
                    break


def _merged(extents: Iterator[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    start, size = next(extents)
    for offset, length in extents:
        if offset != start + size:
            yield start, size
            start, size = offset, 0
        size += length
    yield start, size


def opening(core: Path | None, options: argparse.Namespace) -> dict[str, float]:
    """Opening alone, and opening, reading and showing the tree without a scan."""
    from memcgctl.census import take_census
    from memcgctl.kernel.program import Sources, open_kernel
    from memcgctl.report.listing import screen
    from memcgctl.views.listing import select

    def tree() -> None:
        with open_kernel(sources) as kernel:
            str(screen(select(take_census(kernel, scan=False))))

    def alone() -> None:
        with open_kernel(sources):
            pass

    sources = Sources(core, vmlinux=options.vmlinux)
    gc.disable()  # as the command does
    return {"open": best(alone), "list": best(tree)}


def drgn_tools(core: Path | None, options: argparse.Namespace) -> dict[str, float]:
    """drgn-tools' own scan, on as many pages as asked for (0: all)."""
    import drgn

    sys.path.append(str(options.drgn_tools))
    module = importlib.import_module("drgn_tools.kernfs_memcg")
    dump = module.dump_page_cache_pages_pinning_cgroups
    prog = drgn.Program()
    prog.set_core_dump(core)
    prog.load_debug_info([options.vmlinux])
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        seconds = best(lambda: dump(prog, max_scan=options.pages), 1)
    counts = re.findall(r"Scanned (\d+) pages, found (\d+)", shown.getvalue())
    pages, found = map(int, counts[-1])
    return {"pages": pages, "found": found, "scan": seconds}


def planning(core: Path | None, _: argparse.Namespace) -> dict[str, float]:
    """A plan for all zombies, and the census that it needs; made up without a core."""
    from memcgctl.census import take_census
    from memcgctl.kernel.program import Sources, open_kernel
    from memcgctl.policy.plan import plan
    from memcgctl.policy.policies import POLICIES

    gc.disable()  # as the command does
    policy, taken = POLICIES["least-harm"], 0.0
    if core:
        with open_kernel(Sources(core)) as kernel:
            taken = best(lambda: take_census(kernel, details="offline"))
            census = take_census(kernel, details="offline")
    else:
        census = _made_up()
    held = [memcg.details for memcg in census.memcgs if memcg.details]
    return {
        "zombies": len(held),
        "groups": sum(len(details.charge_groups) for details in held),
        "steps": len(plan(census, policy).steps),
        "plan": best(lambda: plan(census, policy)),
        "census": taken,
    }


def _made_up() -> Census:
    """10,000 zombies with 100,000 groups of folios on 100,000 files."""
    from tests.unit import zombies as made
    from tests.unit.plans import CASES, swapped, world, zombie

    cases = list(CASES.values())[:4]
    files = [{**cases[n % 4]} for n in range(100_000)]
    for n, file in enumerate(files):
        if file["backing"]:
            file["backing"] = replace(file["backing"], inode=n, path=f"/f/{n}")
    groups = [made.group(**file) for file in files]
    held = [
        zombie(100 + n, *groups[10 * n : 10 * n + 10], swap=swapped())
        for n in range(10_000)
    ]
    return world(*held)


def command() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    kinds = {
        "scan": scan,
        "open": opening,
        "drgn-tools": drgn_tools,
        "explain": explaining,
        "plan": planning,
    }
    parser.add_argument("kind", choices=kinds)
    parser.add_argument("core", type=Path, nargs="?")
    parser.add_argument("--vmlinux", type=Path)
    parser.add_argument("--drgn-tools", type=Path)
    parser.add_argument("--pages", type=int, default=0)
    options = parser.parse_args()
    print(json.dumps(kinds[options.kind](options.core, options)))


if __name__ == "__main__":
    command()
