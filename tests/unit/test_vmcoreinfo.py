"""VMCOREINFO, whole, damaged, and somewhere in memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memcgctl.kernel.errors import KernelError
from memcgctl.kernel.vmcoreinfo import NOTE_SIZE, parse, search

NOTE = b"""\
OSRELEASE=6.12.117+deb13-cloud-amd64
BUILD-ID=3bde3ce03156c39bec3310fbdd6bd14bfbefb62e
PAGESIZE=4096
SYMBOL(init_uts_ns)=ffffffff8be219c0
SYMBOL(swapper_pg_dir)=ffffffff8bc22000
SYMBOL(_stext)=ffffffff8a000000
NUMBER(VMALLOC_START)=0xffffd41bc0000000
SIZE(page)=64
NUMBER(phys_base)=-50331648
KERNELOFFSET=9000000
"""
BLOCK = 1 << 16


def blocks(memory: bytes) -> Iterator[bytes]:
    """As they are read: each repeats the end of the one before it."""
    for at in range(0, len(memory), BLOCK):
        yield memory[max(at - NOTE_SIZE, 0) : at + BLOCK]


def test_parse() -> None:
    """Lost: symbols and the KASLR offset, so every address."""
    info = parse(NOTE + b"\0" * 100)
    assert info.raw == NOTE
    assert info.release == "6.12.117+deb13-cloud-amd64"
    assert info.kaslr_offset == 0x9000000
    assert info.symbols == {
        "init_uts_ns": 0xFFFFFFFF8BE219C0,
        "swapper_pg_dir": 0xFFFFFFFF8BC22000,
        "_stext": 0xFFFFFFFF8A000000,
    }
    assert info.values["SIZE(page)"] == "64"


@pytest.mark.parametrize(
    "key", ["OSRELEASE", "PAGESIZE", "_stext", "swapper_pg_dir", "init_uts_ns"]
)
def test_what_is_needed_is_asked_for(key: str) -> None:
    """Lost: a message that says what is wrong with the note."""
    with pytest.raises(KernelError, match=key):
        parse(NOTE.replace(key.encode(), b"X"))


@pytest.mark.parametrize("value", [b"", b"hello", b"-1", b"f" * 17, b"ff ff"])
def test_a_symbol_that_is_no_address_is_none(value: bytes) -> None:
    """Lost: a traceback on a damaged note."""
    damaged = NOTE.replace(b"(_stext)=ffffffff8a000000", b"(_stext)=" + value)
    with pytest.raises(KernelError, match="_stext"):
        parse(damaged)


@settings(deadline=None)
@given(st.binary(max_size=400))
def test_any_text_is_vmcoreinfo_or_refused(text: bytes) -> None:
    """Lost: a traceback when a file is not what its name says."""
    for raw in (text, NOTE + text, text + NOTE):
        with contextlib.suppress(KernelError):
            info = parse(raw)
            assert info.symbols
            assert info.kaslr_offset >= 0


@settings(deadline=None, max_examples=40)
@given(at=st.integers(0, 4 * BLOCK))
def test_the_note_is_found_wherever_it_is(at: int) -> None:
    """Lost: dumps without the note, if it lies across two blocks."""
    memory = bytearray(5 * BLOCK)
    memory[at : at + len(NOTE)] = NOTE
    assert [info.raw for info in search(blocks(bytes(memory)))] == [NOTE]


def test_the_fullest_comes_first() -> None:
    """Lost: lines of the note (symbols), by taking a copy that was cut off."""
    cut = NOTE[: NOTE.index(b"SIZE(")]
    memory = b"\1" * 1000 + cut + b"\0" * 1000 + NOTE + b"\0" * 99 + cut + b"\0"
    assert [info.raw for info in search(blocks(memory))] == [NOTE, cut]


def test_what_only_looks_like_it_is_passed_over() -> None:
    """Lost: the right one among log lines, format strings and other files' text."""
    memory = b"OSRELEASE=%s\n\0OSRELEASE=6.1\nPRETTY_NAME=Debian\n\0OSRELEASE="
    memory += NOTE.replace(b"PAGESIZE", b"PAGE-SIZE") + b"\0OSRELEASE=OSRELEASE="
    assert search(blocks(memory)) == []
    assert [info.raw for info in search(blocks(memory + b"\0" + NOTE))] == [NOTE]


def test_a_memory_full_of_them_takes_no_time() -> None:
    """Lost: minutes, on a dump that was made to look like this."""
    assert len(search(blocks(b"OSRELEASE=x\n" * 400_000))) == 0
    lines = [NOTE.replace(b"=64", b"=%d" % n) for n in range(1000)]
    assert 0 < len(search(blocks(b"\0".join(lines)))) <= 64
