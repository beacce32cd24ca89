"""The lab's commands. Needs QEMU, busybox-static, gcc, e2fsprogs, xfsprogs.

python -m tests.lab core --kernel 6.12 --scenario zoo -o DIR
python -m tests.lab big --kernel 6.12 --gib 16 --zombies 3000
python -m tests.lab live --kernel 6.12 -- memcgctl list --json
python -m tests.lab storm --kernel 6.12 --minutes 60 --seed 1
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.lab import big, core, live, packages
from tests.lab.arch import CHOICES, series_of
from tests.lab.scenarios import SCENARIOS
from tests.lab.storm.run import Storm, cases, composed


def run_live(options: argparse.Namespace) -> int:
    series = series_of(options.kernel, options.arch)
    place = live.live(series, options.scenario, cpu=options.cpu, memory=options.memory)
    with place as (guest, truth):
        if options.truth:
            options.truth.write_text(json.dumps(truth, indent=1) + "\n")
        ran = live.run_in(guest, *options.argv)
    sys.stdout.write(ran.stdout)
    sys.stderr.write(ran.stderr)
    return ran.status


def run_storm(options: argparse.Namespace) -> int:
    series, only = options.kernel, options.only
    seed = options.seed
    if seed is None:
        seed = random.randrange(1 << 32)
    numbers = only if only else itertools.count(options.first)
    minutes = math.inf if only else options.minutes
    # Ended, it ends its guest.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    storm = Storm(series, options.shrink, options.out, options.keep)
    scenes: Iterable[dict[str, Any]] = composed(
        series, seed, numbers, minutes, options.drop or ()
    )
    return 0 if storm.play(cases(series) if options.cases else scenes) else 4


def add_storm(commands: Any) -> None:
    parser = commands.add_parser("storm", help="random zombies, promises held to it")
    parser.add_argument("--kernel", required=True)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, help="any by default; it is printed")
    parser.add_argument("--first", type=int, default=0, help="the first scene's number")
    parser.add_argument("--only", type=int, action="append", help="this scene alone")
    names = "memcgs, parts (PATH.N), limits (PATH:FILE) to leave out, by commas"
    parser.add_argument("--drop", type=lambda text: text.split(","), help=names)
    words = "seconds for finding what a failure can do without"
    parser.add_argument("--shrink", type=float, default=0, help=words)
    parser.add_argument("-o", "--out", type=Path, help="all facts, a line a scene")
    parser.add_argument("--cases", action="store_true", help="those that failed once")
    words = "add what fails, as far as it was shrunk, to the cases"
    parser.add_argument("--keep", action="store_true", help=words)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.lab", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("core", help="make a core and its truth")
    make.add_argument("--kernel", required=True, help=f"one of {[*packages.SUITES]}")
    make.add_argument("--scenario", choices=[*SCENARIOS], default="zoo")
    make.add_argument("--arch", choices=CHOICES, default="amd64")
    make.add_argument("--raw", action="store_true", help="as QEMU wrote it")
    make.add_argument("-o", "--out", type=Path, default=Path())
    large = commands.add_parser("big", help="make a sparse core for the benchmarks")
    large.add_argument("--kernel", default="6.12")
    large.add_argument("--gib", type=int, default=16)
    large.add_argument("--zombies", type=int, default=3000)
    large.add_argument("--files", type=int, default=1, help="that hold each of them")
    large.add_argument("-o", "--out", type=Path, help="instead of the lab's cache")
    run = commands.add_parser("live", help="run a command in a guest")
    run.add_argument("--kernel", required=True)
    run.add_argument("--scenario", choices=[*SCENARIOS], default="basic")
    run.add_argument("--arch", choices=CHOICES, default="amd64")
    run.add_argument("--memory", default="512M")
    run.add_argument("--cpu", default=live.CPU, help="QEMU's name of a processor")
    run.add_argument("--truth", type=Path, help="where to write the truth")
    run.add_argument("argv", nargs="+")
    add_storm(commands)
    options = parser.parse_args()
    if options.command == "storm":
        sys.exit(run_storm(options))
    if options.command == "live":
        sys.exit(run_live(options))
    if options.command == "big":
        shape = options.kernel, options.gib, options.zombies, options.files
        print(big.big(*shape, options.out))
        return
    series = series_of(options.kernel, options.arch)
    for path in core.make(series, options.scenario, options.out, raw=options.raw):
        print(path, path.stat().st_size)


if __name__ == "__main__":
    main()
