"""Symbols out of /proc/kallsyms and System.map texts."""

from __future__ import annotations

import contextlib
from pathlib import Path

import drgn
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memcgctl.kernel.errors import KernelError
from memcgctl.kernel.symbols import Symbols, parse_text, read_system_map
from memcgctl.kernel.vmcoreinfo import Vmcoreinfo, parse
from tests.unit.fake_kernel import PLATFORM

SYSTEM_MAP = b"""\
0000000000000000 D __per_cpu_start
0000000000033440 d runqueues
ffffffff81000000 T _stext
ffffffff81000000 T _text
ffffffff81000123 t helper
ffffffff81000456 t helper
ffffffff81000789 T helper
ffffffff82a00000 D init_uts_ns
ffffffff82a00040 b xhelper
"""


def vmcoreinfo(offset: int, **more: int) -> Vmcoreinfo:
    lines = [
        "OSRELEASE=6.0.0-test",
        "PAGESIZE=4096",
        f"SYMBOL(_stext)={0xFFFFFFFF81000000 + offset:x}",
        f"SYMBOL(init_uts_ns)={0xFFFFFFFF82A00000 + offset:x}",
        "SYMBOL(swapper_pg_dir)=ffffffff83000000",
        "SYMBOL(mem_section)=ffff888000100000",
        f"KERNELOFFSET={offset:x}",
    ]
    lines += [f"SYMBOL({name})={value:x}" for name, value in more.items()]
    return parse("\n".join([*lines, ""]).encode())


def test_lookup_is_by_the_whole_name() -> None:
    """Lost: a variable is read at the address of one with a similar name."""
    symbols = parse_text(SYSTEM_MAP)
    assert symbols.find("runqueues") == 0x33440
    assert symbols.find("init_uts_ns") == 0xFFFFFFFF82A00000
    for name in ("init_uts", "uts_ns", "Tinit_uts_ns", "queues", "", "\n", "missing"):
        assert symbols.find(name) is None


def test_of_several_the_global_one_is_taken() -> None:
    """Lost: a static variable stands for the kernel's global one."""
    symbols = parse_text(SYSTEM_MAP)
    assert symbols.find("helper") == 0xFFFFFFFF81000789
    assert [kind for kind, _ in symbols.all("helper")] == ["T", "t", "t"]


def test_modules_are_left_out() -> None:
    """Lost: the kernel's variable is mistaken for a module's of the same name."""
    text = SYSTEM_MAP + b"".join(
        b"ffffffffc000%04x d secret%d\t[module]\n" % (i, i) for i in range(9)
    )
    symbols = parse_text(text)
    assert symbols.find("init_uts_ns") == 0xFFFFFFFF82A00000
    assert symbols.find("secret5") is None


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_any_text_is_symbols_or_refused(text: bytes) -> None:
    """Lost: a traceback when a file is not what its name says."""
    with contextlib.suppress(ValueError):
        assert isinstance(parse_text(text), Symbols)


def test_drgn_finds_them() -> None:
    """Lost: every drgn helper that looks for a symbol."""
    prog = drgn.Program(PLATFORM)
    parse_text(SYSTEM_MAP).register(prog)
    assert prog.symbol("_stext").address == 0xFFFFFFFF81000000
    assert prog.symbol("helper").binding == drgn.SymbolBinding.GLOBAL
    assert prog.symbol("helper").kind == drgn.SymbolKind.FUNC
    assert prog.symbol("runqueues").kind == drgn.SymbolKind.OBJECT
    assert len(prog.symbols("helper")) == 3
    with pytest.raises(LookupError):
        prog.symbol("missing")


def test_a_map_of_which_nothing_can_be_compared_is_refused(tmp_path: Path) -> None:
    """Lost: a map of another machine, all of it below the image, is taken as it is."""
    path = tmp_path / "System.map"
    path.write_bytes(
        b"ffff800080000000 T _text\nffff800080010000 T _stext\n"
        b"ffff800082a00000 D init_uts_ns_of_another\n"
    )
    lines = (
        "OSRELEASE=6.0.0",
        "PAGESIZE=4096",
        "SYMBOL(_stext)=ffff800080020000",
        "SYMBOL(init_uts_ns)=ffff800082b00000",
        "SYMBOL(swapper_pg_dir)=ffff800083000000",
    )
    with pytest.raises(KernelError, match="is not of this kernel"):
        read_system_map(path, parse("\n".join([*lines, ""]).encode()))


@pytest.mark.parametrize("offset", [0, 0x2F800000])
def test_system_map_moves_with_kaslr(tmp_path: Path, offset: int) -> None:
    """Lost: with --system-map, every address on a kernel with KASLR."""
    path = tmp_path / "System.map"
    path.write_bytes(SYSTEM_MAP)
    symbols = read_system_map(path, vmcoreinfo(offset))
    assert symbols.find("helper") == 0xFFFFFFFF81000789 + offset
    # Up to 6.14 per-CPU variables are offsets, which do not move.
    assert symbols.find("runqueues") == 0x33440


def test_a_saved_kallsyms_has_moved_already(tmp_path: Path) -> None:
    """Lost: what a user saved of /proc/kallsyms cannot stand in for a System.map."""
    path = tmp_path / "kallsyms"
    path.write_bytes(SYSTEM_MAP)
    info = vmcoreinfo(0)
    info.values["KERNELOFFSET"] = "1000000"
    assert read_system_map(path, info).find("_stext") == 0xFFFFFFFF81000000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SYSTEM_MAP.replace(b"82a00000", b"82b00000"), "is not of this kernel"),
        (SYSTEM_MAP.replace(b"_stext", b"_start"), "is not of this kernel"),
        (
            b"ffffffffffffffff B The real System.map is in the linux-image-dbg package",
            "is not a list of kernel symbols, but perhaps a stub",
        ),
        (b"\x7fELF\x02\x01\x01", "is not a list of kernel symbols"),
        (b"", "is empty"),
    ],
)
def test_wrong_system_maps_are_named(tmp_path: Path, text: bytes, message: str) -> None:
    """Lost: garbage is read with the addresses of another kernel's System.map."""
    path = tmp_path / "System.map"
    path.write_bytes(text)
    with pytest.raises(KernelError, match=message) as caught:
        read_system_map(path, vmcoreinfo(0x1000000))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_map_that_is_larger_than_any_is_refused(tmp_path: Path) -> None:
    """Lost: gigabytes of memory, or the symbols behind where the reading ended."""
    path = tmp_path / "System.map"
    with path.open("wb") as file:
        file.truncate(1 << 36)
    with pytest.raises(KernelError, match="is larger than 64 MiB"):
        read_system_map(path, vmcoreinfo(0))
