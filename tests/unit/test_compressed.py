"""Cores that are compressed as a whole, and the cache of unpacked ones."""

from __future__ import annotations

import fcntl
import gzip
import lzma
import os
import resource
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memcgctl.kernel import compressed
from memcgctl.kernel.cache import cache_directory
from memcgctl.kernel.compressed import is_compressed, unpacked
from memcgctl.kernel.errors import KernelError

PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "zst": zstandard.ZstdCompressor(write_checksum=True).compress,
    "xz": lzma.compress,
    "gz": gzip.compress,
}
# As a core: sparse.
CORE = b"\x7fELF" + os.urandom(100_000) + bytes(3 << 20) + os.urandom(5000) + bytes(99)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "memcgctl"


def unpack(path: Path, data: bytes, notify: Callable[[str], None] = print) -> Path:
    path.write_bytes(data)
    assert is_compressed(data[:16])
    return unpacked(path, data[:16], notify=notify)


@pytest.mark.parametrize("packer", PACKERS)
def test_the_copy_is_the_core(tmp_path: Path, cache: Path, packer: str) -> None:
    """Lost: all cores that are compressed so."""
    messages: list[str] = []
    # The name says nothing.
    copy = unpack(tmp_path / "core.dump", PACKERS[packer](CORE), messages.append)
    assert copy.read_bytes() == CORE
    assert [str(copy) in message for message in messages] == [True]
    status = copy.stat()
    assert status.st_blocks * 512 < 1 << 20, "not sparse"
    # It holds the memory of everybody on that machine.
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700


def test_it_is_unpacked_once(tmp_path: Path, cache: Path) -> None:
    """Lost: minutes for each command on a large core; or the core of yesterday."""
    messages: list[str] = []
    packed = PACKERS["zst"](CORE)
    first = unpack(tmp_path / "a.zst", packed, messages.append)
    assert unpack(tmp_path / "b.zst", packed, messages.append) == first
    assert len(messages) == 1
    # Same name and size, another content.
    other = unpack(tmp_path / "a.zst", PACKERS["zst"](CORE[::-1]), messages.append)
    assert other.read_bytes() == CORE[::-1]
    assert len(list(cache.iterdir())) == 2


def test_several_frames_are_one_core(tmp_path: Path) -> None:
    """Lost: all but the first part of what pzstd, pigz or ``xz -T0`` wrote."""
    skippable = b"\x50\x2a\x4d\x18" + b"\4\0\0\0" + b"size"
    for packer, pack in PACKERS.items():
        data = pack(CORE[:50_000]) + pack(CORE[50_000:])
        if packer == "zst":
            data = skippable + data
        assert unpack(tmp_path / "core", data).read_bytes() == CORE


@pytest.mark.parametrize("packer", PACKERS)
def test_damaged_archives(tmp_path: Path, cache: Path, packer: str) -> None:
    """Lost: half a core is taken for a whole one."""
    packed = PACKERS[packer](CORE)
    middle = len(packed) // 2
    for data in (
        packed[:middle],
        packed[:20],
        packed[:-3],
        packed[:middle] + b"damage" + packed[middle + 6 :],
    ):
        with pytest.raises(KernelError, match="is damaged or truncated") as caught:
            unpack(tmp_path / "core", data)
        assert "\n" not in str(caught.value)
    assert list(cache.iterdir()) == [], "something was left behind"


def test_a_full_disk_is_named(tmp_path: Path, cache: Path) -> None:
    """Lost: a clear line, and the disk, which stays full of what nobody can use."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    path = tmp_path / "core"
    path.write_bytes(PACKERS["gz"](CORE))
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
        with pytest.raises(KernelError, match="cannot be unpacked") as caught:
            unpacked(path, b"\x1f\x8b")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "XDG_CACHE_HOME" in str(caught.value)
    assert list(cache.iterdir()) == []


def test_no_place_for_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lost: a traceback for users without a home directory."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(KernelError, match="cannot be unpacked"):
        unpack(tmp_path / "core", PACKERS["gz"](CORE))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert cache_directory() == Path("/home/somebody/.cache/memcgctl")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with pytest.raises(KernelError, match="XDG_CACHE_HOME"):
        cache_directory()


@settings(
    deadline=None,
    max_examples=50,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    packer=st.sampled_from(sorted(PACKERS)),
    parts=st.lists(
        st.one_of(st.binary(max_size=300), st.integers(0, 1 << 18)), max_size=5
    ),
)
def test_whatever_it_holds(
    tmp_path: Path, packer: str, parts: list[bytes | int]
) -> None:
    """Lost: the last bytes of a core, or where its holes were."""
    core = b"".join(bytes(p) if isinstance(p, int) else p for p in parts)
    assert unpack(tmp_path / "core", PACKERS[packer](core)).read_bytes() == core


def kept(cache: Path, number: int, size: int, age: int = 0) -> Path:
    """A copy that an earlier command has left."""
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = cache / f"{number:064x}.core"
    path.write_bytes(b"x" * size)
    os.utime(path, (10_000 - age, 10_000 - age))
    return path


def test_the_cache_has_a_bound(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lost: the disk, to a core a day; or the core that another command reads."""
    monkeypatch.setenv("MEMCGCTL_CACHE_MAX", "400K")
    used = kept(cache, 1, 100 << 10, 40)
    oldest, newer = kept(cache, 2, 100 << 10, 30), kept(cache, 3, 100 << 10, 20)
    own = cache / "somebody's notes"
    own.write_bytes(b"x")
    messages: list[str] = []
    with used.open("rb") as reader:
        fcntl.flock(reader, fcntl.LOCK_SH)
        copy = unpack(tmp_path / "a", PACKERS["zst"](CORE), messages.append)
    assert copy.read_bytes() == CORE
    assert (used.exists(), oldest.exists(), newer.exists()) == (True, False, True)
    assert own.exists()
    assert "the cache takes 0.3 MiB of at most 0.4 MiB" in messages[0]
    # What this process reads is in use, too.
    monkeypatch.setenv("MEMCGCTL_CACHE_MAX", "200K")
    with pytest.raises(KernelError, match=r"more than the 0\.2 MiB"):
        unpack(tmp_path / "b", PACKERS["zst"](CORE[::-1]))
    assert copy.exists()


def test_a_core_too_large_for_the_cache(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lost: the disk, to a file of a few KiB."""
    monkeypatch.setenv("MEMCGCTL_CACHE_MAX", "1M")
    bomb = PACKERS["zst"](b"bomb" * (1 << 20))
    assert len(bomb) < 1000
    with pytest.raises(KernelError, match="MEMCGCTL_CACHE_MAX sets it") as caught:
        unpack(tmp_path / "core", bomb)
    assert "\n" not in str(caught.value)
    assert list(cache.iterdir()) == []
    monkeypatch.setenv("MEMCGCTL_CACHE_MAX", "much")
    with pytest.raises(KernelError, match="'much' is not a size such as 16G"):
        unpack(tmp_path / "core", bomb)


def test_a_full_disk_is_seen_before_it_is_full(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lost: everything else that writes to that disk."""
    found = os.statvfs(tmp_path)

    def full(_: int) -> os.statvfs_result:
        return os.statvfs_result((*found[:4], 0, *found[5:]))

    monkeypatch.setattr(os, "fstatvfs", full)
    with pytest.raises(KernelError, match="has no room for it"):
        unpack(tmp_path / "core", PACKERS["gz"](CORE))
    assert list(cache.iterdir()) == []


def test_zeros_without_an_end(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lost: hours, to a core of holes, which take no room."""
    monkeypatch.setattr(compressed, "_FREE_SIZE", 1 << 20)
    bomb = PACKERS["zst"](bytes(64 << 20))
    with pytest.raises(KernelError, match="unpacks to more than"):
        unpack(tmp_path / "core", bomb)
    assert list(cache.iterdir()) == []


def test_what_a_killed_command_left_is_removed(tmp_path: Path, cache: Path) -> None:
    """Lost: room for a core with each kill; or the file that another is writing."""
    cache.mkdir(mode=0o700, parents=True)
    stale, live = cache / "unpacking-stale", cache / "unpacking-live"
    stale.write_bytes(b"x")
    with live.open("wb") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        unpack(tmp_path / "core", PACKERS["gz"](CORE))
    assert (stale.exists(), live.exists()) == (False, True)


def test_the_cache_is_ours_alone(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lost: the memory of a machine, to who made the directory before us."""
    packed = PACKERS["gz"](CORE)
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    copy = unpack(tmp_path / "core", packed)
    copy.chmod(0o644)
    assert unpack(tmp_path / "core", packed) == copy
    assert [stat.S_IMODE(path.stat().st_mode) for path in (cache, copy)] == [
        0o700,
        0o600,
    ]
    cache.parent.chmod(0o777)
    with pytest.raises(KernelError, match="others can put another cache in the place"):
        unpack(tmp_path / "core", packed)
    cache.parent.chmod(0o1777)  # as /tmp
    assert unpack(tmp_path / "core", packed) == copy
    copy.unlink()
    (tmp_path / "theirs").write_bytes(CORE)
    copy.symlink_to(tmp_path / "theirs")
    with pytest.raises(KernelError, match="is a symbolic link: remove it"):
        unpack(tmp_path / "core", packed)
    me = os.geteuid()
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: me + 1)
        with pytest.raises(KernelError, match=f"belongs to uid {me}, not to you"):
            unpack(tmp_path / "core", packed)
    cache.rename(tmp_path / "elsewhere")
    cache.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(KernelError, match=r"the cache .* is a symbolic link"):
        unpack(tmp_path / "core", packed)
