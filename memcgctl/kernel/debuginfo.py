"""Where do a kernel's types come from? From its own BTF, else from DWARF.

BTF lies in the kernel's memory between __start_BTF and __stop_BTF, or in a file given
by hand; DWARF comes from a vmlinux given by hand or found by drgn (installed debug
packages, debuginfod). Whatever it is, it must agree with the sizes and offsets that
the kernel's VMCOREINFO states.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import drgn

from memcgctl.kernel import elf, layout, live
from memcgctl.kernel.btf import Btf
from memcgctl.kernel.corefile import read_file
from memcgctl.kernel.errors import KernelError, first_line
from memcgctl.kernel.memory import Memory
from memcgctl.kernel.vmcoreinfo import Vmcoreinfo

_MAX_BTF = 64 << 20

Types = Literal["btf", "dwarf"]


def load_types(
    prog: drgn.Program,
    info: Vmcoreinfo,
    *,
    btf: Path | None,
    vmlinux: Path | None,
    notify: Callable[[str], None],
) -> Types:
    """Register the kernel's types; raises KernelError if there are none that fit."""
    if btf is not None:
        _register(prog, info, _btf_of_file(btf), str(btf))
        return "btf"
    if vmlinux is not None:
        return _load_vmlinux(prog, info, vmlinux)
    try:
        _register(prog, info, _own_btf(prog), "the kernel's BTF")
        return "btf"
    except KernelError as problem:
        find_debug_info(prog, info, f"{problem}", "--btf", notify)
        return "dwarf"


def find_debug_info(
    prog: drgn.Program,
    info: Vmcoreinfo,
    problem: str,
    option: str,
    notify: Callable[[str], None],
) -> None:
    """Let drgn's own finders look for the image's debug info (types and symbols).

    ``problem`` says why it is needed, ``option`` what would do as well. Raises
    KernelError if they find none.
    """
    notify(f"{problem}; looking for debug info")
    module = _main_module(prog)
    try:
        prog.load_module_debug_info(module)
    except Exception as error:
        raise KernelError(
            f"debug info cannot be loaded: {first_line(error)}"
        ) from error
    if module.debug_file_status != drgn.ModuleFileStatus.HAVE:
        raise KernelError(
            f"{problem}, and no debug info was found; "
            f"give {option} or --vmlinux of this very kernel"
        )
    check(prog, info, "the debug info")


def _own_btf(prog: drgn.Program) -> bytes:
    """The BTF in a kernel's memory, or what a live kernel shows of it."""
    if prog.flags & drgn.ProgramFlags.IS_LIVE and live.BTF.exists():
        return read_file(live.BTF, _MAX_BTF)
    try:
        start = prog.symbol("__start_BTF").address
        size = prog.symbol("__stop_BTF").address - start
    except LookupError:
        # CONFIG_DEBUG_INFO_BTF is not set, or its symbols are not known.
        raise KernelError("the kernel has no BTF") from None
    if not 0 < size <= _MAX_BTF:
        raise KernelError("the kernel's BTF is damaged")
    try:
        return Memory(prog).read(start, size)
    except drgn.FaultError:
        raise KernelError("the kernel's BTF is not in the dump") from None


def _btf_of_file(path: Path) -> bytes:
    """Raw BTF, or the .BTF section of an ELF file."""
    data = read_file(path, 16)
    if not data.startswith(elf.MAGIC):
        return read_file(path, _MAX_BTF)
    section = _section(path, b".BTF")
    if section is None:
        raise KernelError(f"{path}: has no .BTF section")
    return section


def _section(path: Path, name: bytes) -> bytes | None:
    try:
        with path.open("rb") as file:
            return elf.read(file).section(name)
    except KernelError as error:
        raise KernelError(f"{path}: {error}") from error
    except OSError as error:
        raise KernelError(f"{path}: {error.strerror}") from error


def _register(prog: drgn.Program, info: Vmcoreinfo, data: bytes, name: str) -> None:
    try:
        types = Btf(data)
    except KernelError as error:
        raise KernelError(f"{name} cannot be used: {error}") from error
    enabled = prog.enabled_type_finders(), prog.enabled_object_finders()
    types.register(prog)
    try:
        check(prog, info, name)
    except KernelError:
        prog.set_enabled_type_finders(enabled[0])
        prog.set_enabled_object_finders(enabled[1])
        raise


def _load_vmlinux(prog: drgn.Program, info: Vmcoreinfo, path: Path) -> Types:
    """DWARF of the file, else its BTF."""
    data = read_file(path, 16)
    if not data.startswith(elf.MAGIC):
        raise KernelError(f"{path}: is not an ELF file (an uncompressed vmlinux)")
    module = _main_module(prog)
    try:
        module.try_file(path)
        if module.debug_file_status == drgn.ModuleFileStatus.HAVE:
            check(prog, info, str(path))
            return "dwarf"
    except KernelError:
        raise
    except Exception as error:  # drgn's DWARF reader has many
        raise KernelError(f"{path}: {first_line(error)}") from error
    section = _section(path, b".BTF")
    if section is None:
        raise KernelError(
            f"{path}: is not of this kernel ({info.release}), or has no debug info"
        )
    _register(prog, info, section, str(path))
    return "btf"


def _main_module(prog: drgn.Program) -> drgn.MainModule:
    try:
        for module, _ in prog.loaded_modules():
            if isinstance(module, drgn.MainModule):
                return module
    except Exception as error:
        raise KernelError(
            f"debug info cannot be loaded: {first_line(error)}"
        ) from error
    raise KernelError("debug info cannot be loaded: drgn knows no kernel image")


def check(prog: drgn.Program, info: Vmcoreinfo, name: str) -> None:
    """Raises KernelError if the types are not those that VMCOREINFO speaks of."""
    for key, value in info.values.items():
        match = re.fullmatch(r"(SIZE|OFFSET)\((\w+)\.?(\w*)\)", key)
        if not match or not re.fullmatch("[0-9]{1,18}", value):
            continue
        kind, type_name, member = match.groups()
        try:
            found = _measured(prog, kind, type_name, member)
        except (LookupError, SyntaxError, ValueError):  # no such name, or none at all
            continue
        except KernelError as error:
            raise KernelError(f"{name} cannot be used: {error}") from error
        if found is not None and found != int(value):
            raise KernelError(
                f"{name} is not of this kernel: {key} is {found} there, "
                f"{value} in VMCOREINFO"
            )


def _measured(prog: drgn.Program, kind: str, type_name: str, member: str) -> int | None:
    if not type_name.endswith("_t"):
        type_name = f"struct {type_name}"
    if kind == "OFFSET":
        return layout.offset_of(prog, type_name, member)
    size: int = drgn.sizeof(prog.type(type_name))
    return size
