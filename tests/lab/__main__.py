"""The lab's commands. Needs QEMU, busybox-static, gcc, e2fsprogs, xfsprogs.

python -m tests.lab core --kernel 6.12 --scenario zoo -o DIR
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tests.lab import core, packages
from tests.lab.scenarios import SCENARIOS


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.lab", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("core", help="make a core and its truth")
    make.add_argument("--kernel", required=True, help=f"one of {[*packages.SUITES]}")
    make.add_argument("--scenario", choices=[*SCENARIOS], default="zoo")
    make.add_argument("--raw", action="store_true", help="as QEMU wrote it")
    make.add_argument("-o", "--out", type=Path, default=Path())
    options = parser.parse_args()
    for path in core.make(
        options.kernel, options.scenario, options.out, raw=options.raw
    ):
        print(path, path.stat().st_size)


if __name__ == "__main__":
    main()
