"""A core, its types or its symbols are not as they should be: one line says so.

What cannot be understood is refused with exit code 3 and the reason, never with a
traceback, and never read as if it were something else.
"""

from __future__ import annotations

import re
import resource
import struct
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from memcgctl.census import take_census
from memcgctl.cli import reading
from memcgctl.kernel import kallsyms
from memcgctl.kernel.btf import Btf
from memcgctl.kernel.debuginfo import _own_btf
from memcgctl.kernel.errors import KernelError
from memcgctl.kernel.program import Sources, _own_symbols, open_kernel
from memcgctl.kernel.symbols import Symbols
from memcgctl.kernel.vmcoreinfo import parse
from memcgctl.linux.memmap import ALWAYS_BYTES, MOST_OF_DUMP, _check_size

FIXTURES = Path(__file__).parents[2] / "fixtures"
CORE = FIXTURES / "6.12-zoo.zst"

pytestmark = pytest.mark.skipif(not CORE.exists(), reason="there are no cores")


def refused(*words: object, limit_bytes: int = 4 << 30) -> str:
    """The one line on which a command ends with exit code 3."""
    limits = (limit_bytes, limit_bytes)
    ran = subprocess.run(
        [sys.executable, "-m", "memcgctl", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, limits),
    )
    assert (ran.returncode, ran.stdout) == (3, ""), ran.stderr
    *notes, line = ran.stderr.splitlines()
    assert line.startswith("memcgctl: error: ")
    assert all(note.startswith("memcgctl: ") for note in notes)
    return line


@cache
def symbols() -> Symbols:
    """Those of the core's own kallsyms."""
    with open_kernel(Sources(CORE)) as kernel:
        info = parse(kernel.prog["VMCOREINFO"].string_())
        return _own_symbols(kernel.prog, info)


def only(kept: str) -> Symbols:
    """The symbols whose line (type and name) matches."""
    lines = symbols().names.decode("latin-1").split("\n")[1:-1]
    chosen = [i for i, line in enumerate(lines) if re.fullmatch(kept, line)]
    names = "\n" + "".join(lines[i] + "\n" for i in chosen)
    return Symbols(names.encode("latin-1"), symbols().addresses[chosen])


def system_map(path: Path, kept: str) -> Path:
    some = only(kept)
    names = some.names.decode("latin-1").split("\n")[1:-1]
    path.write_text(
        "".join(
            f"{address:016x} {name[0]} {name[1:]}\n"
            for address, name in zip(some.addresses.tolist(), names, strict=True)
        )
    )
    return path


def test_a_symbol_that_drgn_cannot_do_without(tmp_path: Path) -> None:
    """Lost: drgn raises a bare Exception, which was a traceback."""
    places = system_map(tmp_path / "map", "(?!.page_offset_base$).*")
    line = refused("simulate", "--json", "--core", CORE, "--system-map", places)
    assert "cannot be understood: could not find variable in direct mapping" in line


@pytest.mark.parametrize(
    ("owner", "member"),
    [
        ("mem_section", "section_mem_map"),
        ("page", "flags"),
        ("list_head", "next"),
        ("idr", "idr_rt"),
        ("mem_cgroup", "id"),
        ("zonelist", "_zonerefs"),
    ],
)
def test_a_member_of_the_type_of_its_own_structure(
    owner: str, member: str, tmp_path: Path
) -> None:
    """Lost: a kernel's BTF with one bit flipped ended in a traceback."""
    with open_kernel(Sources(CORE)) as kernel:
        data = bytearray(_own_btf(kernel.prog))
    types = Btf(bytes(data))
    (own,) = (i for i in types._by_name[owner] if types._is_complete(i))
    header = int.from_bytes(data[4:8], "little")
    at = header + int.from_bytes(data[8:12], "little") + 4 * int(types._at[own])
    for place, (name, _, _) in enumerate(types._elements(own, 3)):
        if types._string(name) == member:
            where = at + 12 + 12 * place + 4
            data[where : where + 4] = own.to_bytes(4, "little")
            break
    else:
        raise AssertionError(f"{owner} has no {member}")
    (tmp_path / "btf").write_bytes(data)
    refused("simulate", "--json", "--core", CORE, "--btf", tmp_path / "btf")


def test_a_kernel_without_kallsyms_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lost: "this kernel has no memory cgroups" on Debian's arm64 kernels."""
    functions = only("[tTwW].*")
    monkeypatch.setattr(kallsyms, "read_symbols", lambda *args: functions)
    monkeypatch.setenv("DEBUGINFOD_URLS", "")
    with pytest.raises(KernelError) as caught:
        open_kernel(Sources(CORE))
    line = str(caught.value)
    assert "have no variables (CONFIG_KALLSYMS_ALL is off)" in line
    assert "give --system-map or --vmlinux" in line


def test_a_kernel_without_numa(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lost: all of a kernel of CONFIG_NUMA=n, which has no symbol nr_node_ids."""
    others = only("(?!.(nr_node_ids|node_data)$).*")
    monkeypatch.setattr(kallsyms, "read_symbols", lambda *args: others)
    with open_kernel(Sources(CORE)) as kernel:
        census = take_census(kernel, details="offline")
    assert census.kernel.numa_nodes == 1
    assert not census.warnings
    assert sum(memcg.state == "offline" for memcg in census.memcgs) == 57


def bomb(path: Path, headers: int, notes: int = 0) -> Path:
    """A sparse ELF core whose headers claim far more than there is."""
    start = struct.pack("<16sHHI", b"\x7fELF\x02\x01\x01".ljust(16, b"\0"), 4, 62, 1)
    rest = struct.pack("<QQQIHHHHHH", 0, 4096, 64, 0, 64, 56, 0xFFFF, 64, 1, 0)
    section = struct.pack("<IIQQQQIIQQ", 0, 0, 0, 0, 0, 0, 0, headers, 0, 0)
    note = struct.pack("<IIQQQQQQ", 4, 0, 1 << 20, 0, 0, 256 << 20, 256 << 20, 4)
    with path.open("wb") as file:
        file.write(start + rest + section)
        file.seek(4096)
        file.write(note * notes)
        file.truncate(300 << 30)
    return path


@pytest.mark.parametrize(
    ("headers", "notes", "words"),
    [
        (2**32 - 1, 0, "has 4,294,967,295 program headers"),
        (30_000_000, 0, "has 30,000,000 program headers"),
        (50, 50, "is a core without any memory in it"),
    ],
)
def test_headers_that_claim_more_than_there_is(
    headers: int, notes: int, words: str, tmp_path: Path
) -> None:
    """Lost: the machine's memory, or a minute, to a file of one KiB."""
    path = bomb(tmp_path / "core", headers, notes)
    assert words in refused("list", "--core", path, limit_bytes=1 << 30)


def test_a_memory_map_that_the_dump_cannot_hold() -> None:
    """Lost: minutes and gigabytes to a core that claims petabytes of memory."""
    with open_kernel(Sources(CORE)) as kernel:
        assert kernel.memory.dump_bytes is not None
        most = max(kernel.memory.dump_bytes * MOST_OF_DUMP, ALWAYS_BYTES)
        _check_size(kernel, most)
        with pytest.raises(KernelError, match="far more than this dump can hold"):
            _check_size(kernel, most + 1)


def endless() -> None:
    while True:
        pass


def test_a_core_on_which_a_walk_does_not_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Lost: an answer; the command would work on for hours."""
    core = tmp_path / "core"
    core.write_bytes(bytes(4096))
    monkeypatch.setattr(reading, "LEAST_SECONDS", 0.2)
    with pytest.raises(KernelError, match="gave up after"), reading._bounded(core):
        endless()
