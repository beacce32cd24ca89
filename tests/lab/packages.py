"""Debian's kernel packages: which is the newest of a series, and its files unpacked.

The mirror is the one that this machine's apt uses. Indexes and packages are kept
outside the repository, in MEMCGCTL_LAB_CACHE or the user's cache directory.
"""

from __future__ import annotations

import contextlib
import fcntl
import lzma
import os
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from tests.lab.arch import AMD64, Arch

# Where Debian keeps the builds of a series; the first suite is asked first.
SUITES = {
    "5.10": ["bullseye-security", "bullseye"],
    "6.1": ["bookworm-security", "bookworm"],
    "6.12": ["trixie-security", "trixie"],
    "6.18": ["trixie-backports"],
    "7.0": ["trixie-backports"],
    "7.1": ["trixie-backports"],
    "7.2": ["trixie-backports", "forky"],
    "7.3": ["trixie-backports", "forky", "sid"],
}
INDEX_AGE = 86400
CLOUD = "cloud-amd64"


class PackageError(Exception):
    """A package or index cannot be had; the text says which."""


@dataclass(frozen=True)
class Kernel:
    """The unpacked packages of one kernel."""

    series: str
    release: str
    packages: tuple[str, ...]
    path: Path
    arch: Arch = AMD64


def cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    path = Path(os.environ.get("MEMCGCTL_LAB_CACHE") or Path(home) / "memcgctl-lab")
    path.mkdir(parents=True, exist_ok=True)
    return path


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """While no other process fills the cache: tests run side by side."""
    with (cache() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@lru_cache
def archive(name: str) -> str:
    """Address of the archive ``debian`` or ``debian-security`` in apt's words."""
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI)"]
    try:
        output = subprocess.run(command, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise PackageError("apt-get names no mirror on this machine") from error
    roots = {uri.rstrip("/") for uri in output.decode().split()}
    for root in sorted(roots):
        if root.endswith(f"/{name}"):
            return root
    # A machine without the security archive: it lies beside the other one.
    for root in sorted(roots):
        if root.endswith("/debian"):
            return root.removesuffix("debian") + name
    raise PackageError(f"apt is not configured with a mirror of {name}")


def archive_of(suite: str) -> str:
    return archive("debian-security" if suite.endswith("-security") else "debian")


def fetch(url: str, path: Path) -> Path:
    """Download ``url`` to ``path``, which is whole or absent at any time."""
    partial = path.with_suffix(".part")
    try:
        with urllib.request.urlopen(url, timeout=60) as answer, partial.open("wb") as f:
            shutil.copyfileobj(answer, f)
    except (urllib.error.URLError, OSError) as error:
        raise PackageError(f"{url}: {error}") from error
    partial.rename(path)
    return path


def index(suite: str) -> str:
    """The Packages file of a suite (main, amd64), at most a day old."""
    path = cache() / f"{suite}.Packages.xz"
    if not path.exists() or time.time() - path.stat().st_mtime > INDEX_AGE:
        root = archive_of(suite)
        fetch(f"{root}/dists/{suite}/main/binary-amd64/Packages.xz", path)
    return lzma.decompress(path.read_bytes()).decode()


def pools(series: str, flavour: str = CLOUD) -> dict[str, str]:
    """Package file name: its address, for every kernel package of a series."""
    found: dict[str, str] = {}
    pattern = rf"^Filename: (\S*/linux-(?:image|binary)-{re.escape(series)}\.[\w.+~]*"
    pattern += rf"(?:-\d+)?-{flavour}(?:-unsigned)?_\S*\.deb)$"
    for suite in SUITES[series]:
        root = archive_of(suite)
        for name in re.findall(pattern, index(suite), re.MULTILINE):
            found.setdefault(name.rpartition("/")[2], f"{root}/{name}")
    return found


def age(name: str) -> list[int]:
    """Sort key of a package file name, by version and then by build."""
    version = name.split("_")[1]
    return [int(number) for number in re.findall(r"\d+", version)]


def choices(series: str, flavour: str = CLOUD) -> list[list[str]]:
    """Addresses of the packages that make a kernel, the newest kernel first.

    From 6.19 on the image is split into linux-binary and linux-modules; the index
    of a suite may lack the latter, but the pool has it.
    """
    urls = pools(series, flavour)
    ordered = sorted(urls, key=lambda name: (age(name), "unsigned" not in name))
    split = any(name.startswith("linux-binary") for name in ordered)
    result = []
    for name in reversed(ordered):
        url = urls[name]
        if name.startswith("linux-binary"):
            modules = re.sub("/linux-binary-(unsigned-)?", "/linux-modules-", url)
            # Modules are built, and so kept, with the unsigned binary.
            modules = modules.replace("/linux-signed-amd64/", "/linux/")
            result.append([url, modules])
        elif not split:
            result.append([url])
    return result


def release_of(url: str) -> str:
    found = re.search(r"/linux-\w+-([^_/]*?-amd64)", url)
    assert found is not None
    return found[1]


def package(url: str) -> Path:
    path = cache() / url.rpartition("/")[2]
    return path if path.exists() else fetch(url, path)


def unpack(deb: Path, directory: Path) -> None:
    subprocess.run(["dpkg-deb", "-x", deb, directory], check=True)


def unpack_once(debs: Sequence[Path], directory: Path) -> None:
    """What ``debs`` have as ``directory``, which is whole or absent at any time."""
    if not directory.exists():
        partial = directory.with_suffix(".part")
        shutil.rmtree(partial, ignore_errors=True)
        for deb in debs:
            unpack(deb, partial)
        partial.rename(directory)


def get(wanted: str) -> Kernel:
    """``newest``, by one process at a time; ``6.12-arm64`` is of that machine."""
    from tests.lab import arm64

    with alone():
        return (arm64.newest if "-arm64" in wanted else newest)(wanted)


def newest(wanted: str) -> Kernel:
    """The newest kernel of a series whose packages the mirror really has.

    An index can list files that the pool does not have (any more, or yet): the
    signed image, the unsigned one, then the next older build are tried.
    ``wanted`` may also be the beginning of a release (5.10.0-43), and end in a flavour
    (6.12:amd64, which has what Debian's cloud kernels are built without).
    """
    wanted, _, flavour = wanted.partition(":")
    series = ".".join(wanted.split(".")[:2])
    if series not in SUITES:
        raise PackageError(f"{wanted}: the series are {', '.join(SUITES)}")
    failure: Exception | None = None
    for urls in choices(series, flavour or CLOUD):
        release = release_of(urls[0])
        if not f"{release}-".startswith((f"{wanted}.", f"{wanted}-", f"{wanted}+")):
            continue
        directory = cache() / release
        try:
            debs = [package(url) for url in urls]
        except PackageError as error:
            failure = error
            continue
        unpack_once(debs, directory)
        return Kernel(series, release, tuple(deb.name for deb in debs), directory)
    raise PackageError(f"no package of {wanted} could be had: {failure}")


def debug_vmlinux(kernel: Kernel) -> Path:
    """``vmlinux`` with DWARF, from the -dbg package of ``kernel`` in the same pool."""
    path = cache() / f"{kernel.release}-dbg"
    if not path.exists():
        for suite in SUITES[kernel.series]:
            name = rf"^Filename: (\S*/linux-image-{re.escape(kernel.release)}-dbg_\S*)$"
            found = re.search(name, index(suite), re.MULTILINE)
            if found:
                unpack(package(f"{archive_of(suite)}/{found[1]}"), path)
                break
        else:
            raise PackageError(f"{kernel.release} has no -dbg package")
    return next(path.rglob("vmlinux*"))
