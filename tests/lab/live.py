"""A guest with Python and this checkout in it, and memcgctl run there, live.

The running interpreter, its standard library, what memcgctl depends on and all their
shared libraries go onto a disk under the paths they have here; the guest changes its
root to that. The disk is kept in the lab's cache, the checkout is a disk of its own.
"""

from __future__ import annotations

import compileall
import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from tests.lab import arm64, packages, run
from tests.lab.arch import AMD64, ARM64, Arch
from tests.lab.guest import Guest, Machine, boot
from tests.lab.scenarios import SCENARIOS, Scenario

CHECKOUT = Path(__file__).parents[2]
ROOT = "/mnt/python"
PROGRAM = """#!{executable}
import sys
sys.path.insert(0, "/checkout")
from memcgctl.__main__ import main
main()
"""
# NumPy's wheels need SSE4.2, which QEMU's default lacks. With AVX2, as "max" has it,
# sorting in NumPy 2.2 crashes under QEMU 7.2's emulation.
CPU = "Nehalem"
ENVIRONMENT = ["env", "HOME=/run", "TERM=dumb", "PATH=/usr/bin", "LANG=C.UTF-8"]


@dataclass(frozen=True)
class Ran:
    """What a command in the guest did."""

    status: int
    stdout: str
    stderr: str


def dependencies() -> list[metadata.Distribution]:
    """What memcgctl needs at run time, and what that needs."""
    declared = re.search(
        r"^dependencies = \[(.*?)^\]",
        (CHECKOUT / "pyproject.toml").read_text(),
        re.MULTILINE | re.DOTALL,
    )
    assert declared is not None
    found: dict[str, metadata.Distribution] = {}
    names = re.findall(r'"([\w.-]+)', declared[1])
    while names:
        name = re.sub(r"[-_.]+", "-", names.pop()).lower()
        if name in found:
            continue
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.distribution(name)
            for line in found[name].requires or []:
                if "extra ==" not in line:
                    names += re.findall(r"^[\w.-]+", line)
    return [found[name] for name in sorted(found)]


def libraries(programs: Iterable[Path]) -> set[Path]:
    """Shared libraries and the loader that ``programs`` need, by ldd."""
    output = subprocess.run(
        ["ldd", *programs], capture_output=True, text=True, check=False
    ).stdout
    return {Path(path) for path in re.findall(r"(/\S+) \(0x", output)}


def python_files() -> set[Path]:
    files = {Path(sys.executable), Path(sys.executable).resolve()}
    pyvenv = Path(sys.prefix, "pyvenv.cfg")
    files |= {pyvenv} if pyvenv.exists() else set()
    standard = Path(sysconfig.get_path("stdlib"))
    unused = {"test", "tests", "idlelib", "tkinter", "ensurepip", "lib2to3"}
    unused |= {"site", "dist", "turtledemo", "config"}  # up to a "-"
    for path in standard.rglob("*"):
        parts = {part.partition("-")[0] for part in path.relative_to(standard).parts}
        if path.is_file() and not unused & parts:
            files.add(path)
    for distribution in dependencies():
        for entry in distribution.files or []:
            path = Path(str(distribution.locate_file(entry)))
            if path.is_file() and "tests" not in path.parts:
                files.add(path.parent.resolve() / path.name)
    objects = {p for p in files if ".so" in p.suffixes or p == Path(sys.executable)}
    return files | libraries(objects)


def stage(files: Iterable[Path], directory: Path) -> None:
    for path in files:
        target = directory / path.relative_to("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)


def make_disk(directory: Path, disk: Path, megabytes: int) -> Path:
    """An ext4 image with the contents of ``directory``."""
    command: list[str | Path] = ["mke2fs", "-q", "-t", "ext4", "-d", directory, disk]
    # It tells of each file that it makes, even with -q.
    subprocess.run([*command, f"{megabytes}M"], check=True, stdout=subprocess.DEVNULL)
    return disk


def python_disk(arch: Arch = AMD64) -> Path:
    """The interpreter's disk from the cache, or a new one."""
    if arch is not AMD64:
        return foreign_disk()
    names = [f"{d.metadata['Name']} {d.version}" for d in dependencies()]
    key = "\n".join([sys.version, sys.prefix, Path(__file__).read_text(), *names])
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    disk = packages.cache() / f"python-{digest}.ext4"
    if not disk.exists():
        with tempfile.TemporaryDirectory(prefix="memcgctl-lab-") as name:
            directory = Path(name)
            stage(python_files(), directory)
            for mount in ["proc", "sys", "dev", "run", "checkout", "usr/bin"]:
                (directory / mount).mkdir(parents=True, exist_ok=True)
            program = directory / "usr/bin/memcgctl"
            program.write_text(PROGRAM.format(executable=sys.executable))
            program.chmod(0o755)
            size = sum(p.stat().st_size for p in directory.rglob("*") if p.is_file())
            partial = disk.with_suffix(f".{os.getpid()}")
            make_disk(directory, partial, (size >> 20) * 5 // 4 + 64).rename(disk)
    return disk


def python_of(arch: Arch) -> str:
    """The interpreter on a guest's disk."""
    return sys.executable if arch is AMD64 else "/usr/bin/python3"


def foreign_disk() -> Path:
    """Debian's own Python for arm64, from its packages.

    Nobody compiled these, so what the first run compiles is kept in the guest.
    """
    disk = packages.cache() / "python-arm64.ext4"
    if not disk.exists():
        root = arm64.python_root()
        for mount in ["proc", "sys", "dev", "run", "checkout", "tmp"]:
            (root / mount).mkdir(exist_ok=True)
        program = root / "usr/bin/memcgctl"
        text = PROGRAM.format(executable=python_of(ARM64))
        kept = 'import sys\nsys.pycache_prefix = "/run/compiled"\n'
        program.write_text(text.replace("import sys\n", kept))
        program.chmod(0o755)
        size = sum(p.lstat().st_size for p in root.rglob("*") if p.is_file())
        partial = disk.with_suffix(f".{os.getpid()}")
        make_disk(root, partial, (size >> 20) * 5 // 4 + 64).rename(disk)
    return disk


def checkout_disk(directory: Path) -> Path:
    copy = directory / "checkout"
    shutil.copytree(
        CHECKOUT / "memcgctl",
        copy / "memcgctl",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    compileall.compile_dir(copy, quiet=1, stripdir=copy, prependdir="/checkout")
    return make_disk(copy, directory / "checkout.ext4", 16)


def run_in(guest: Guest, *argv: str) -> Ran:
    """Run a command where Python and memcgctl are."""
    script = f'chroot {ROOT} "$@" 2> /tmp/stderr'
    status, output = guest.call("sh", "-c", script, "sh", *ENVIRONMENT, *argv)
    return Ran(status, output.decode(errors="replace"), guest.read("/tmp/stderr"))


@contextlib.contextmanager
def boot_with_python(kernel: packages.Kernel, machine: Machine) -> Iterator[Guest]:
    """A guest in which memcgctl can run, by ``run_in``, and nothing else was done."""
    with tempfile.TemporaryDirectory(prefix="memcgctl-lab-") as name:
        disks = dict(machine.disks)
        python = python_disk(kernel.arch)
        disks |= {"python": python, "checkout": checkout_disk(Path(name))}
        with boot(kernel, replace(machine, disks=disks)) as guest:
            # Not over /tmp: the interpreter's environment can lie there.
            guest.sh(f"""
                mkdir {ROOT}
                mount -t ext4 -o noatime /dev/disk/python {ROOT}
                mount -t ext4 -o ro /dev/disk/checkout {ROOT}/checkout
                for mount in proc sys dev; do mount --rbind /$mount {ROOT}/$mount; done
                mount -t tmpfs -o mode=755 tmpfs {ROOT}/run
            """)
            yield guest


@contextlib.contextmanager
def live(
    series: str,
    scenario: str | Scenario = "basic",
    *,
    cpu: str = CPU,
    memory: str = "512M",
    disks: Mapping[str, Path] | None = None,
) -> Iterator[tuple[Guest, dict[str, Any]]]:
    """A guest in which a scenario was played and memcgctl can run, and its truth.

    ``disks`` are given to it beside those that each scenario has. Where the truth is
    none, as pages came or went meanwhile, it is played again.
    """
    chosen = SCENARIOS[scenario] if isinstance(scenario, str) else scenario
    more = disks or {}
    with contextlib.ExitStack() as stack:
        for left in reversed(range(4)):
            try:
                made = stack.enter_context(_played(series, chosen, cpu, memory, more))
                break
            except run.Unsettled:
                if not left:
                    raise
        yield made


@contextlib.contextmanager
def _played(
    series: str, chosen: Scenario, cpu: str, memory: str, more: Mapping[str, Path]
) -> Iterator[tuple[Guest, dict[str, Any]]]:
    kernel = packages.get(series)
    shape = run.shape_of(kernel.release)
    with tempfile.TemporaryDirectory(prefix="memcgctl-lab-") as name:
        xfs = run.uses_xfs(chosen, shape)
        disks = {**run.make_disks(Path(name), xfs), **more}
        modules = (*chosen.machine.modules, *(("xfs",) if xfs else ()))
        machine = replace(
            chosen.machine, cpu=cpu, memory=memory, disks=disks, modules=modules
        )
        with boot_with_python(kernel, machine) as guest:
            truth = run.run(chosen, guest, shape)
            truth["kernel"] = {"release": kernel.release}
            truth["shape"] = asdict(shape)
            yield guest, truth
