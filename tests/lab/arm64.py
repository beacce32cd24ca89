"""Debian's arm64 packages: kernels, a static busybox, and a Python to run there.

They come by apt, from the mirror that this machine uses, with a configuration of their
own in the lab's cache, so that the machine's apt stays as it is.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from functools import lru_cache
from pathlib import Path

from tests.lab import packages
from tests.lab.arch import ARM64
from tests.lab.packages import PackageError

FLAVOURS = {"arm64": "cloud-arm64", "arm64-16k": "arm64-16k"}
KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"
CONFIGURATION = """
Dir::Etc::sourcelist "{root}/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Dir::State::lists "{root}/lists";
Dir::State::status "{root}/status";
Dir::Cache "{root}/cache";
APT::Architecture "arm64";
APT::Architectures {{ "arm64"; }};
Acquire::Languages "none";
Acquire::Check-Valid-Until "false";
APT::Sandbox::User "root";
"""
# drgn is not on PyPI for aarch64, but in Debian: a version that fits from forky on.
PYTHON_SUITE = "forky"
PYTHON = "python3-drgn python3-numpy python3-typer python3-rich python3-zstandard"


def root() -> Path:
    return packages.cache() / "apt-arm64"


@lru_cache
def apt() -> dict[str, str]:
    """The environment in which apt knows arm64, its lists at most a day old."""
    for directory in ["lists/partial", "cache/archives/partial", "python/partial"]:
        (root() / directory).mkdir(parents=True, exist_ok=True)
    (root() / "status").touch()
    suites = sorted({suite for suites in packages.SUITES.values() for suite in suites})
    lines = [
        f"deb [arch=arm64 signed-by={KEYS}] {packages.archive_of(suite)} {suite} main\n"
        for suite in suites
    ]
    (root() / "sources.list").write_text("".join(lines))
    configuration = root() / "apt.conf"
    configuration.write_text(CONFIGURATION.format(root=root()))
    environment = {**os.environ, "APT_CONFIG": str(configuration)}
    stamp = root() / "updated"
    if not stamp.exists() or time.time() - stamp.stat().st_mtime > packages.INDEX_AGE:
        subprocess.run(["apt-get", "-qq", "update"], env=environment, check=True)
        stamp.touch()
    return environment


def names(pattern: str) -> list[str]:
    """Packages whose name matches, the newest first, the signed ones first."""
    command = ["apt-cache", "search", "--names-only", pattern]
    output = subprocess.run(command, env=apt(), capture_output=True, check=True).stdout
    found = {line.split()[0] for line in output.decode().splitlines()}
    return sorted(
        found,
        key=lambda name: (
            [int(n) for n in re.findall(r"\d+", name.partition("-arm64")[0])],
            "unsigned" not in name,
        ),
        reverse=True,
    )


def package(name: str) -> Path:
    """The .deb of a package, ``name/suite`` for that of a suite."""
    pattern = f"{name.partition('/')[0]}_*.deb"
    found = next(packages.cache().glob(pattern), None)
    if found is None:
        command = ["apt-get", "-qq", "download", name]
        ran = subprocess.run(
            command, cwd=packages.cache(), env=apt(), capture_output=True, check=False
        )
        found = next(packages.cache().glob(pattern), None)
    if found is None:  # a suite's index can list what the pool has no more
        raise PackageError(f"{name}: {ran.stderr.decode()[-300:]}")
    return found


def newest(wanted: str) -> packages.Kernel:
    """The newest kernel of a series, such as ``6.12-arm64`` or ``6.12-arm64-16k``."""
    series, _, flavour = wanted.partition("-")
    if series not in packages.SUITES or flavour not in FLAVOURS:
        raise PackageError(f"{wanted}: the series are {', '.join(packages.SUITES)}")
    version = rf"{re.escape(series)}([.][0-9]+)*([+]deb[0-9.]+|-[0-9]+)"
    pattern = f"^linux-(image|binary)-{version}-{FLAVOURS[flavour]}(-unsigned)?$"
    found = names(pattern)
    # From 6.19 on the image is split into linux-binary and linux-modules.
    split = any(name.startswith("linux-binary") for name in found)
    failure: Exception | None = None
    for name in found:
        release = re.sub(r"^linux-\w+-|-unsigned$", "", name)
        if split and not name.startswith("linux-binary"):
            continue
        modules = [f"linux-modules-{release}"] if split else []
        try:
            debs = [package(deb) for deb in [name, *modules]]
        except PackageError as error:
            failure = error
            continue
        directory = packages.cache() / release
        packages.unpack_once(debs, directory)
        files = tuple(deb.name for deb in debs)
        return packages.Kernel(wanted, release, files, directory, ARM64)
    raise PackageError(f"no package of {wanted} for arm64 could be had: {failure}")


def debug_vmlinux(kernel: packages.Kernel) -> Path:
    """``vmlinux`` with DWARF, from the -dbg package of ``kernel``."""
    path = packages.cache() / f"{kernel.release}-dbg"
    packages.unpack_once([package(f"linux-image-{kernel.release}-dbg")], path)
    return next(path.rglob("vmlinux*"))


def busybox() -> Path:
    """The one that is linked statically, of the suite that has this machine's."""
    directory = packages.cache() / "busybox-arm64"
    if not directory.exists():
        packages.unpack_once([package("busybox-static/trixie")], directory)
    return next(directory.rglob("bin/busybox"))


def python_root() -> Path:
    """A directory with Debian's arm64 Python and what memcgctl needs."""
    directory = packages.cache() / "python-arm64"
    if directory.exists():
        return directory
    archives = root() / "python"
    command = ["apt-get", "-qq", "-o", f"Dir::Cache::archives={archives}", "-d", "-y"]
    command += ["install", "--no-install-recommends", "-t", PYTHON_SUITE]
    subprocess.run([*command, *PYTHON.split()], env=apt(), check=True)
    made = directory.with_suffix(".made")
    shutil.rmtree(made, ignore_errors=True)
    for deb in archives.glob("*.deb"):
        packages.unpack(deb, made)
    for name in ["bin", "lib", "lib64", "sbin"]:
        if not (made / name).exists():
            (made / name).symlink_to(f"usr/{name}")
    libraries = made / "usr/lib/aarch64-linux-gnu"
    for name in ["blas", "lapack"]:  # what the packages' scripts would link
        link = libraries / f"lib{name}.so.3"
        if not link.exists():
            link.symlink_to(f"{name}/lib{name}.so.3")
    return made.rename(directory)
