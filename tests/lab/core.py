"""One command from a kernel series and a scenario to a core and its truth."""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tests.lab import packages, run, stop, trim
from tests.lab.guest import GuestError, boot
from tests.lab.scenarios import SCENARIOS

ATTEMPTS = 3


def make(series: str, scenario: str, out: Path, *, raw: bool = False) -> list[Path]:
    """Boot, play, dump and trim; return the files that were written.

    ``raw``: neither trim nor compress. A run in which pages moved between two counts,
    or a memcg went that should have stayed, is worth nothing and made again.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return make_once(series, scenario, out, raw=raw)
        except GuestError as error:
            print(f"attempt {attempt}: {error}", file=sys.stderr)
            if attempt == ATTEMPTS:
                raise
    raise AssertionError


def make_once(series: str, scenario: str, out: Path, *, raw: bool) -> list[Path]:
    kernel = packages.get(series)
    chosen = SCENARIOS[scenario]
    shape = run.shape_of(kernel.release)
    name = out / f"{series}-{scenario}"
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="memcgctl-lab-") as directory:
        xfs = run.uses_xfs(chosen, shape)
        machine = replace(
            chosen.machine,
            disks=run.make_disks(Path(directory), xfs),
            modules=(*chosen.machine.modules, *(("xfs",) if xfs else ())),
        )
        core = Path(directory) / "core"
        with boot(kernel, machine) as guest:
            truth: dict[str, Any] = {
                "schema": "memcgctl/truth/1",
                "made_by": f"python -m tests.lab core --kernel {series}"
                f" --scenario {scenario}",
                "kernel": {"release": kernel.release, "packages": kernel.packages},
                "shape": asdict(shape),
                **run.run(chosen, guest, shape),
            }
            if chosen.stop_at:
                stop.stop_at(guest, chosen.stop_at, chosen.stop_by)
                run.remove_last(truth, chosen.stop_by)
            guest.dump(core)
        files = [name.with_name(name.name + ".json")]
        files[0].write_text(json.dumps(truth, indent=1) + "\n")
        if raw:
            files.append(name.with_name(name.name + ".elf"))
            files[1].write_bytes(core.read_bytes())
            return files
        trimmed = Path(directory) / "trimmed"
        trim.trim(core, trimmed)
        files.append(name.with_name(name.name + ".zst"))
        trim.compress(trimmed, files[1])
        return files
