"""Scenes in guests, one after the other: ``storm`` of tests/lab/__main__.py."""

from __future__ import annotations

import contextlib
import itertools
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from tests.lab import packages, run
from tests.lab.guest import Guest, GuestError, Machine
from tests.lab.live import CPU, ENVIRONMENT, ROOT, boot_with_python
from tests.lab.scenarios import CGROUPS, EXT4, HUGE, TMPFS, XFS
from tests.lab.storm.compose import TOGETHER, compose, together
from tests.lab.storm.judge import Verdict, judge

Json = dict[str, Any]

PROGRAM = Path(__file__).with_name("play.py")
CASES = Path(__file__).with_name("cases.json")
# Until there is an answer, or none to come.
WAIT = f"""
cd {ROOT}/run
while [ ! -e answer ]; do
    # Nobody waits for it meanwhile: it stays as a process that has ended.
    grep -q '^State:.[^ZX]' /proc/$(cat pid)/status || {{ tail -n 5 log; exit 1; }}
    sleep 0.3
done
cat answer; rm answer
"""
PATIENCE = 900  # seconds for a scene, when other guests take the processor


@dataclass
class Stage:
    """A guest in which scenes are played, booted anew where one left it unclean."""

    series: str
    stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    guest: Guest | None = None

    def play(self, scene: Json) -> Json:
        """Facts of a scene; where the guest is lost over it, only an "error"."""
        try:
            if self.guest is None:
                self.guest = self.stack.enter_context(_guest(self.series))
            self.guest.write(f"{ROOT}/run/asked", json.dumps(scene))
            self.guest.run("mv", f"{ROOT}/run/asked", f"{ROOT}/run/request")
            facts: Json = json.loads(self.guest.sh(WAIT))
        except (GuestError, OSError, ValueError) as error:
            facts = {"error": f"the guest is lost: {error}", "clean": False}
        if not facts["clean"]:
            self.close()
        return facts

    def close(self) -> None:
        self.guest = None
        self.stack.close()


@contextlib.contextmanager
def _guest(series: str) -> Iterator[Guest]:
    kernel = packages.get(series)
    with tempfile.TemporaryDirectory(prefix="memcgctl-lab-") as name:
        disks = run.make_disks(Path(name), True)
        machine = Machine(memory="768M", cpu=CPU, disks=disks, modules=("xfs",))
        with boot_with_python(kernel, machine) as guest:
            run.prepare(guest, 2)
            guest.sh(f"""
                for place in {EXT4} {XFS} {TMPFS} {HUGE} {CGROUPS}; do
                    mkdir -p {ROOT}$place; mount --bind $place {ROOT}$place
                done
                mount -t debugfs debugfs {ROOT}/sys/kernel/debug
                cp /bin/lab {ROOT}/usr/bin/lab
                echo 64M > /sys/block/zram0/disksize; mkswap /dev/zram0
            """)
            guest.write(f"{ROOT}/run/play.py", PROGRAM.read_text())
            words = f"chroot {ROOT} {' '.join(ENVIRONMENT)} {sys.executable}"
            guest.sh(f"""
                cd {ROOT}/run
                {words} /run/play.py < /dev/null > log 2>&1 &
                echo $! > pid
            """)
            guest.agent.settimeout(PATIENCE)
            yield guest


def report(scene: Json, verdict: Verdict, seconds: list[float], to: TextIO) -> None:
    """A line, and one for each finding."""
    words = "holds" if verdict.holds else "FAILS"
    print(
        f"{words}: {scene['origin']}: {verdict.freed} of {verdict.promised} promised "
        f"({verdict.zombies} zombies), lost {verdict.lost_bytes:,} of at most "
        f"{verdict.bound_bytes:,}, {' '.join(map(str, seconds))} s",
        file=to,
        flush=True,
    )
    for kind, why in verdict.findings:
        print(f"    {kind}: {why}", file=to, flush=True)


def without(scene: Json, names: Iterable[str]) -> Json:
    """The scene without some memcgs (and those below them), parts or limits.

    A part is named by its memcg's path and its number: ``app/z1.0``.
    """
    dropped = set(names)
    memcgs = []
    for memcg in scene["memcgs"]:
        path = memcg["path"]
        if any(path == one or path.startswith(f"{one}/") for one in dropped):
            continue
        parts = enumerate(memcg["parts"])
        kept = [part for n, part in parts if f"{path}.{n}" not in dropped]
        memcgs.append({**memcg, "parts": kept})
    there = {memcg["path"] for memcg in memcgs}
    for memcg in memcgs:
        for part in memcg["parts"]:
            for key in ("user", "second"):
                if key in part and part[key] not in there:
                    part[key] = _holder(memcg["path"])
            if "shared" in part and part["shared"] not in there:
                del part["shared"]
    limits = [
        limit
        for limit in scene["limits"]
        if limit["path"] in there and f"{limit['path']}:{limit['file']}" not in dropped
    ]
    return {**scene, "memcgs": memcgs, "limits": limits}


def _holder(path: str) -> str:
    """Who always is there in its scene."""
    return "holder" + path.partition("/")[0].lstrip("adehlopr")


def shrunk(stage: Stage, scene: Json, kinds: set[str], seconds: float) -> list[str]:
    """What can be left out, and it fails in the same way still."""
    deadline = time.monotonic() + seconds
    names = [f"{one['path']}:{one['file']}" for one in scene["limits"]]
    paths = [memcg["path"] for memcg in scene["memcgs"]]
    whole = [path for path in paths if path.startswith("app") and "/" not in path]
    names = [*whole, *names, *(path for path in reversed(paths) if "/" in path)]
    for memcg in scene["memcgs"]:
        if len(memcg["parts"]) > 1:
            names += [f"{memcg['path']}.{n}" for n in range(len(memcg["parts"]))]
    dropped: list[str] = []
    for name in names:
        if time.monotonic() > deadline:
            break
        fewer = without(json.loads(json.dumps(scene)), [*dropped, name])
        verdict = judge(fewer, stage.play(fewer))
        if kinds & {kind for kind, _ in verdict.findings}:
            dropped.append(name)
    return dropped


@dataclass
class Storm:
    """What is asked for, and what came of it so far."""

    series: str
    shrink: float = 0
    out: Path | None = None
    keep: bool = False
    counts: Counter[str] = field(default_factory=Counter)

    def play(self, scenes: Iterable[Json]) -> bool:
        """Play scenes, tell of each; whether all that was promised held."""
        stage = Stage(self.series)
        try:
            for scene in scenes:
                self.one(stage, scene)
        finally:
            stage.close()
            words = (f"{value} {key}" for key, value in self.counts.items())
            print(f"{self.series}: {', '.join(words)}")
        return not self.counts["failed"]

    def one(self, stage: Stage, scene: Json) -> None:
        facts = stage.play(scene)
        verdict = judge(scene, facts)
        report(scene, verdict, facts.get("seconds", []), sys.stdout)
        kinds = {kind for kind, _ in verdict.findings}
        dropped: list[str] = []
        if kinds and self.shrink:
            dropped = shrunk(stage, scene, kinds, self.shrink)
            words = f" --drop {','.join(dropped)}" if dropped else ""
            print(f"    again: storm {scene['origin']}{words}", flush=True)
        if self.out:
            line = {"scene": scene, "facts": facts, "findings": verdict.findings}
            with self.out.open("a") as file:
                print(json.dumps(line | {"drop": dropped}), file=file)
        if kinds and self.keep:
            keep(self.series, without(scene, dropped), verdict)
        self.counts.update(kinds)
        self.counts.update(
            runs=1,
            scenes=scene["scenes"],
            promised=verdict.promised,
            freed=verdict.freed,
            zombies=verdict.zombies,
            failed=bool(kinds),
        )


def composed(
    series: str, seed: int, numbers: Iterable[int], minutes: float, drop: Iterable[str]
) -> Iterator[Json]:
    """Scenes of one group (``TOGETHER``) are one, as far as they are among numbers."""
    deadline = time.monotonic() + 60 * minutes
    for _, group in itertools.groupby(numbers, lambda number: number // TOGETHER):
        if time.monotonic() > deadline:
            return
        scenes = {number: compose(seed, number, series) for number in group}
        only = "".join(f" --only {number}" for number in scenes)
        origin = f"--kernel {series} --seed {seed}{only}"
        yield without(together(scenes, origin), drop)


def cases(series: str) -> list[Json]:
    """Scenes that failed once, on this kernel: those with the same swap as one."""
    kept = json.loads(CASES.read_text())
    by_swap: dict[str, dict[int, Json]] = {}
    for number, case in enumerate(kept):
        if case["kernel"] == series:
            by_swap.setdefault(case["scene"]["swap"], {})[number] = case["scene"]
    origin = f"--kernel {series} --cases"
    return [together(scenes, origin) for scenes in by_swap.values()]


def keep(series: str, scene: Json, verdict: Verdict) -> None:
    """Add a scene to the cases, as it is: what composes scenes may change."""
    kept = json.loads(CASES.read_text())
    why = [f"{kind}: {words}" for kind, words in verdict.findings]
    kept.append({"kernel": series, "why": why, "scene": scene})
    CASES.write_text(json.dumps(kept, indent=1) + "\n")
