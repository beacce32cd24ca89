"""A core, its types or its symbols are not as they should be: one line says so.

What cannot be understood is refused with exit code 3 and the reason, never with a
traceback, and never read as if it were something else.
"""

from __future__ import annotations

import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from memcgctl.census import take_census
from memcgctl.kernel import kallsyms
from memcgctl.kernel.btf import Btf
from memcgctl.kernel.debuginfo import _own_btf
from memcgctl.kernel.errors import KernelError
from memcgctl.kernel.program import Sources, _own_symbols, open_kernel
from memcgctl.kernel.symbols import Symbols
from memcgctl.kernel.vmcoreinfo import parse

FIXTURES = Path(__file__).parents[2] / "fixtures"
CORE = FIXTURES / "6.12-zoo.zst"

pytestmark = pytest.mark.skipif(not CORE.exists(), reason="there are no cores")


def refused(*words: object) -> str:
    """The one line on which a command ends with exit code 3."""
    ran = subprocess.run(
        [sys.executable, "-m", "memcgctl", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=120,
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
