"""Opens a dump: which file is it, and which VMCOREINFO makes its memory readable?

A note may be missing (QEMU without its vmcoreinfo device), stale or damaged, so what a
dump says of itself is believed only when the kernel's own ``init_uts_ns``, read through
it, names the same release. Else VMCOREINFO is looked for in the memory itself.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import drgn

from memcgctl.kernel import compressed, corefile, kdump, vmcoreinfo
from memcgctl.kernel.corefile import CoreFile, read_file
from memcgctl.kernel.errors import KernelError, first_line
from memcgctl.kernel.trouble import Trouble
from memcgctl.kernel.vmcoreinfo import NOTE_SIZE, Vmcoreinfo

Progress = Callable[[str, int, int], None]
Notify = Callable[[str], None]

_BLOCK = 4 << 20
_UTS_SIZE = 512
_REHEARSAL_SECONDS = 60
_MAX_MESSAGE = 300
# It knows slab pages, free ones and user data by how kernels up to its own time mark
# them: a kernel that marks them otherwise loses pages of its own structures.
_FILTERED = (
    "makedumpfile left pages out of this dump (level {}), and some of them had the "
    "kernel's own structures: it is too old for this kernel. Dump with a newer one, "
    "or with -d 0"
)
_INCOMPLETE = "the dump is incomplete: makedumpfile had no room for all pages"

_ARCHITECTURES = {
    "x86_64": drgn.Architecture.X86_64,
    "aarch64": drgn.Architecture.AARCH64,
}

# libkdumpfile reads no memory, not even physical, of a file without VMCOREINFO.
_MAKESHIFT = (
    b"OSRELEASE=6.0.0\nPAGESIZE=%d\nSYMBOL(swapper_pg_dir)=ffffffff81000000\n"
    b"NUMBER(VA_BITS)=48\nNUMBER(kimage_voffset)=0xffff800000000000\n"  # arm64
)


@dataclass(frozen=True)
class Dump:
    """A dump whose memory drgn reads, and what there is to say about it.

    ``size_bytes`` is what its file takes on the disk.
    """

    prog: drgn.Program
    info: Vmcoreinfo
    missing: int
    trouble: Trouble
    size_bytes: int


def open_dump(
    path: Path, given: Path | None, progress: Progress, notify: Notify
) -> Dump:
    """Open a core, with the VMCOREINFO in the file ``given`` if there is one.

    Raises KernelError with one clear line.
    """
    magic = read_file(path, 16)
    source = path
    if compressed.is_compressed(magic):
        source = compressed.unpacked(path, magic, progress=progress, notify=notify)
    core = None
    try:
        core = corefile.inspect(source)
        if core.incomplete:  # said now: libkdumpfile may fail at the first lost page
            notify(f"{path}: {_INCOMPLETE}")
        if given is None:
            return _open_by_itself(core, progress, notify)
        return _open(core, vmcoreinfo.parse(read_file(given, vmcoreinfo.MAX_SIZE)))
    except OSError as error:
        raise KernelError(f"{path}: {error.strerror}") from error
    except KernelError as error:
        with_file = f" with {given}" if given else ""
        why = "; the dump is incomplete" if core and core.incomplete else ""
        raise KernelError(f"{path}{with_file}: {error}{why}") from error


def _open_by_itself(core: CoreFile, progress: Progress, notify: Notify) -> Dump:
    try:
        if core.format == "elf" and core.note is None:
            raise KernelError("has no VMCOREINFO note")
        return _open(core, vmcoreinfo.parse(core.note) if core.note else None)
    except KernelError as error:
        problem = error
    notify(f"{core.path}: {problem}; looking for VMCOREINFO in its memory")
    for info in vmcoreinfo.search(_blocks(core, progress)):
        try:
            dump = _open(core, info)
        except KernelError:
            continue
        dump.trouble.note(
            None, f"VMCOREINFO was found in memory, since the core {problem}"
        )
        return dump
    if core.missing:
        raise KernelError(f"is truncated, {core.missing} bytes are missing: {problem}")
    raise KernelError(
        f"{problem}, and there is none in its memory that fits; "
        "--vmcoreinfo takes it from a file, if this is a dump of Linux at all"
    )


def _open(core: CoreFile, info: Vmcoreinfo | None) -> Dump:
    """Open with this VMCOREINFO, or with what libkdumpfile finds in the file."""
    given = None if info is None else info.raw
    if core.format == "kdump":
        _rehearse(core, given)
    try:
        prog = _program(core, given)
        raw: bytes = prog["VMCOREINFO"].string_()
    except Exception as error:  # drgn and libkdumpfile have many
        raise KernelError(f"cannot be opened: {first_line(error)}") from error
    info = vmcoreinfo.parse(raw)
    _check_memory(prog, info)
    trouble = Trouble()
    if core.missing:
        trouble.note(None, f"the core is truncated: {core.missing} bytes are missing")
    if core.incomplete:
        trouble.note(None, _INCOMPLETE)
    elif core.dump_level:
        trouble.hint = _FILTERED.format(core.dump_level)
    held = core.path.stat().st_blocks * 512
    return Dump(prog, info, core.missing, trouble, held)


def _program(core: CoreFile, note: bytes | None) -> drgn.Program:
    # QEMU's files in kdump's format do not name the machine.
    platform = drgn.Platform(_ARCHITECTURES[core.machine])
    prog = drgn.Program(platform, vmcoreinfo=note)
    prog.set_core_dump(core.path)
    return prog


def _rehearse(core: CoreFile, note: bytes | None) -> None:
    """Let a copy of this process open the file first; raises KernelError if it fails.

    libkdumpfile's error paths are not safe: on damaged notes they can crash.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(_REHEARSAL_SECONDS)
            _program(core, note)
            os.write(writer, b"opened")
        except BaseException as error:
            os.write(writer, first_line(error).encode(errors="replace")[:_MAX_MESSAGE])
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as answers:
        answer = answers.read().decode()
    os.waitpid(child, 0)
    if answer != "opened":
        raise KernelError(f"cannot be opened: {answer or 'libkdumpfile crashed on it'}")


def _check_memory(prog: drgn.Program, info: Vmcoreinfo) -> None:
    """Whether the addresses in VMCOREINFO lead to the kernel that it speaks of."""
    try:
        uts: bytes = prog.read(info.symbols["init_uts_ns"], _UTS_SIZE)
    except Exception as error:
        raise KernelError(
            f"has a VMCOREINFO that leads nowhere: {first_line(error)}"
        ) from error
    if info.release.encode() not in uts:
        raise KernelError(
            f"has a VMCOREINFO of another boot, or a damaged one (of {info.release})"
        )


def _blocks(core: CoreFile, progress: Progress) -> Iterator[bytes]:
    """All of a dump's memory, in blocks that overlap by ``NOTE_SIZE`` bytes."""
    pieces = _elf_pieces(core) if core.format == "elf" else _kdump_pieces(core)
    size, done, tail, expected = core.path.stat().st_size, 0, b"", -1
    for address, data in pieces:
        if address != expected:
            tail = b""
        yield tail + data
        tail, expected = data[-NOTE_SIZE:], address + len(data)
        done += len(data)
        progress("looking for VMCOREINFO", min(done, size), size)


def _elf_pieces(core: CoreFile) -> Iterator[tuple[int, bytes]]:
    with core.path.open("rb") as file:
        for offset, size in core.data(_BLOCK):
            yield offset, os.pread(file.fileno(), size, offset)


def _kdump_pieces(core: CoreFile) -> Iterator[tuple[int, bytes]]:
    with core.path.open("rb") as file:
        dump = kdump.KdumpFile(file)
        makeshift = _MAKESHIFT % dump.block_size
        _rehearse(core, makeshift)
        prog = _program(core, makeshift)
        for address, size in dump.page_runs(_BLOCK):
            try:
                yield address, prog.read(address, size, True)
            except drgn.FaultError:
                continue
