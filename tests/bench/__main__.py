"""How fast and how harmless is memcgctl, against what it is compared with?

    python -m tests.bench --drgn-tools DIR

makes cores in the lab if they are not given: of a guest of 16 GiB (``--core``), of one
of 4 GiB (``--small``), and of one with 10,000 zombies (``--many``); and takes the lab's
debug vmlinux (``--vmlinux``). DIR is a checkout of drgn-tools. Then what memcgctl
reclaim frees and costs is compared with what people do without it, on a kernel given by
``--kernel``. Only that:

    python -m tests.bench --reclaim [--kernel 6.12]

A benchmark, not a test: it fails at nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from tests.bench import measure as measures
from tests.bench import reclaim
from tests.lab import packages
from tests.lab.big import big
from tests.lab.live import ROOT, live, run_in

MIB = 1 << 20
ZOMBIES = 3000
MANY = 10_000, 10  # zombies, files of each


class Row(NamedTuple):
    """What was compared, both sides in words, their ratio, and what it should be."""

    what: str
    ours: str
    theirs: str
    ratio: float
    wanted: str


def measure(kind: str, core: Path, *options: str) -> Any:
    """One measurement in a fresh process; see ``tests.bench.measure``."""
    command = [sys.executable, "-m", "tests.bench.measure", kind, str(core), *options]
    return json.loads(
        subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    )


def live_scan(series: str) -> Any:
    """The scan and a bare read of /proc/kcore within a guest of 16 GiB."""
    with live(series, memory="16G") as (guest, _):
        program = "/run/measure.py"
        guest.write(f"{ROOT}{program}", Path(measures.__file__).read_text())
        ran = run_in(guest, "PYTHONPATH=/checkout", sys.executable, program, "scan")
    return json.loads(ran.stdout)


def peak_bytes(core: Path) -> int:
    """Peak resident memory of ``memcgctl list`` on a core.

    By the process itself: what ``wait4`` tells includes the parent's before exec.
    """
    code = """
import sys
from memcgctl.__main__ import main
try:
    main()
finally:
    status = open("/proc/self/status").read()
    print(status.split("VmHWM:")[1].split()[0], file=sys.stderr)
"""
    command = [sys.executable, "-c", code, "list", "--core", str(core)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stderr.split()[-1]) * 1024


OPEN = """
import sys
from pathlib import Path
from memcgctl.kernel.program import Sources, open_kernel
open_kernel(Sources(Path(sys.argv[-1])))
"""
LIST = "from memcgctl.__main__ import main; main()"


def process_seconds(code: str, *arguments: str) -> float:
    """The shortest of some runs of a whole process, from start to exit."""
    times = []
    for _ in range(7):
        begin = time.perf_counter()
        subprocess.run(
            [sys.executable, "-c", code, *arguments],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        times.append(time.perf_counter() - begin)
    return min(times)


def ms(seconds: float) -> str:
    return f"{seconds * 1000:,.0f} ms"


def us(seconds: float) -> str:
    return f"{seconds * 1e6:.3f} µs"


def mib(size: float) -> str:
    return f"{size / MIB:,.0f} MiB"


def scan_row(read: str, scan: Any) -> Row:
    return Row(
        f"scan: {read} {mib(scan['bytes'])}",
        ms(scan["scan"]),
        ms(scan["read"]),
        scan["scan"] / scan["read"],
        "at most 3",
    )


def plan_row(core: Path) -> Row:
    found = measure("plan", core)
    return Row(
        f"plan of {found['groups']:,} groups: census",
        ms(found["plan"]),
        ms(found["census"]),
        found["plan"] / found["census"],
        "at most 0.1",
    )


def rows(core: Path, small: Path, vmlinux: Path, tools: Path | None) -> list[Row]:
    scan = measure("scan", core)
    btf = measure("open", core)
    dwarf = measure("open", core, "--vmlinux", str(vmlinux))
    peak, small_peak = peak_bytes(core), peak_bytes(small)
    explain = measure("explain", core)
    ours = scan["scan"] / scan["pages"]
    print(f"{core}: {scan['pages']:,} pages, {scan['memcgs']:,} memcgs")
    opening = process_seconds(OPEN, str(core))
    listing = process_seconds(LIST, "list", "--no-scan", "--core", str(core))
    found = [
        scan_row("a bare pread of", scan),
        Row(
            f"explain of {explain['pages']:,} pages: scan",
            ms(explain["explain"]),
            ms(explain["scan"]),
            explain["explain"] / explain["scan"],
            "at most 5",
        ),
        Row(
            "list --no-scan: opening, processes",
            ms(listing),
            ms(opening),
            listing / opening,
            "at most 1.5",
        ),
        Row(
            "the same within a process",
            ms(btf["list"]),
            ms(btf["open"]),
            btf["list"] / btf["open"],
            "",
        ),
        Row(
            "opening by BTF: by DWARF",
            ms(btf["open"]),
            ms(dwarf["open"]),
            btf["open"] / dwarf["open"],
            "at most 1",
        ),
        Row(
            "peak memory: 300 MiB",
            mib(peak),
            mib(300 * MIB),
            peak / (300 * MIB),
            "at most 1",
        ),
        Row(
            "peak memory: on the smaller guest",
            mib(peak),
            mib(small_peak),
            peak / small_peak,
            "about 1",
        ),
    ]
    if tools:
        theirs = measure(
            "drgn-tools", core, "--vmlinux", str(vmlinux), "--drgn-tools", str(tools)
        )
        each = theirs["scan"] / theirs["pages"]
        found.insert(
            0,
            Row(
                "drgn-tools: scan, a page", us(each), us(ours), each / ours, "over 100"
            ),
        )
    return found


def command() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--core", type=Path, help="of a 16 GiB guest")
    parser.add_argument("--small", type=Path, help="of a 4 GiB guest")
    parser.add_argument("--many", type=Path, help="of one with many zombies")
    parser.add_argument("--vmlinux", type=Path, help="of both, with DWARF")
    parser.add_argument("--drgn-tools", type=Path, help="a checkout of drgn-tools")
    parser.add_argument("--reclaim", action="store_true", help="only reclaim's harm")
    parser.add_argument("--kernel", default="6.12", help="of the guests for reclaim")
    options = parser.parse_args()
    if not options.reclaim:
        speed(options)
    reclaim.report(options.kernel)


def speed(options: argparse.Namespace) -> None:
    """A line for each comparison of time and of memory."""
    core = options.core or big("6.12", 16, ZOMBIES)
    small = options.small or big("6.12", 4, ZOMBIES)
    vmlinux = options.vmlinux or packages.debug_vmlinux(packages.get("6.12"))
    found = rows(core, small, vmlinux, options.drgn_tools)
    found.append(plan_row(options.many or big("6.12", 4, *MANY)))
    found.append(scan_row("/proc/kcore,", live_scan(options.kernel)))
    for what, ours, theirs, ratio, wanted in found:
        note = f"  ({wanted})" if wanted else ""
        print(f"{what:36} {ours:>10} : {theirs:>10} = {ratio:7.2f}{note}")
    if not options.drgn_tools:
        print("drgn-tools was not measured: no --drgn-tools")


if __name__ == "__main__":
    command()
