"""Opens a kernel: where are its memory, its symbols and its types?

A live kernel or a core becomes an ``OpenedKernel``: a drgn program whose symbols come
from the kernel's own kallsyms and whose types come from its own BTF, so that nothing
but the core is needed; a System.map, BTF or vmlinux given by hand, or found by drgn's
debug info finders, steps in where the core does not carry them.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal

import drgn

from memcgctl.kernel import kallsyms, live, vmcoreinfo
from memcgctl.kernel.debuginfo import find_debug_info, load_types
from memcgctl.kernel.dump import Notify, Progress, open_dump
from memcgctl.kernel.errors import KernelError, understood
from memcgctl.kernel.kallsyms import NoSymbols
from memcgctl.kernel.memory import Memory
from memcgctl.kernel.symbols import Symbols, read_system_map
from memcgctl.kernel.trouble import Trouble
from memcgctl.kernel.vmcoreinfo import Vmcoreinfo

# drgn would print its warnings through Python's handler of last resort.
logging.getLogger("drgn").addHandler(logging.NullHandler())

# A program that gets its target loads drgn's plugins, the commands of drgn's own shell
# among them: 0.1 s, in which drgn ignores every exception, that of a Ctrl-C, too. One
# that is wanted can be named in DRGN_PLUGINS.
os.environ.setdefault("DRGN_DISABLE_PLUGINS", "*")

# BTF has no global variables; these are what drgn's own helpers look for.
_DECLARATIONS = {
    "__per_cpu_offset": "unsigned long []",
    "init_mm": "struct mm_struct",
    "init_pid_ns": "struct pid_namespace",
    "init_task": "struct task_struct",
    "jiffies_64": "unsigned long",
    # CONFIG_SPARSEMEM_EXTREME, which x86-64 always has.
    "mem_section": "struct mem_section **",
    "node_data": "struct pglist_data *[]",
    "nr_cpu_ids": "unsigned int",
    "page_offset_base": "unsigned long",
    "vmemmap_base": "unsigned long",
    "__cpu_online_mask": "struct cpumask",
    "__cpu_possible_mask": "struct cpumask",
}
# What drgn finds the direct map by where there is no page_offset_base.
_ARM64_DECLARATIONS = {"saved_command_line": "char *"}
_FUNCTIONS = ("vmemmap_populate",)


# Where an adopted program keeps what it became, and that we are opening one ourselves.
_ADOPTED = "memcgctl"
_opening: ContextVar[bool] = ContextVar("_opening", default=False)


@dataclass(frozen=True)
class Sources:
    """Where to read: the live kernel unless ``core`` is given, and what helps."""

    core: Path | None = None
    vmlinux: Path | None = None
    btf: Path | None = None
    system_map: Path | None = None
    vmcoreinfo: Path | None = None


@dataclass
class OpenedKernel:
    """A kernel whose memory, symbols and types can be read; a context manager."""

    prog: drgn.Program
    kind: Literal["live", "vmcore"]
    path: str | None
    release: str
    types: Literal["btf", "dwarf"]
    memory: Memory
    # The NUMBER() lines of VMCOREINFO.
    numbers: Mapping[str, int] = field(default_factory=dict)
    _declared: dict[str, str] = field(default_factory=lambda: dict(_DECLARATIONS))

    def __enter__(self) -> OpenedKernel:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pass

    @property
    def trouble(self) -> Trouble:
        """What could not be read, matched or understood."""
        return self.memory.trouble

    def symbol(self, name: str) -> int:
        """The symbol's kernel virtual address; raises LookupError if there is none."""
        address: int = self.prog.symbol(name).address
        return address

    def declare(self, name: str, type_name: str) -> drgn.Object:
        """The global variable ``name``, as ``type_name`` where the types have none.

        From now on ``prog[name]`` finds it too. Raises LookupError if there is no such
        symbol or type.
        """
        self._declared[name] = type_name
        return self.prog.variable(name)

    def percpu(self, name: str, type_name: str) -> drgn.Object:
        """The per-CPU variable ``name``, for drgn's ``per_cpu(variable, cpu)``."""
        return self.declare(name, type_name)

    def _find_object(
        self,
        prog: drgn.Program,
        name: str,
        flags: drgn.FindObjectFlags,
        filename: str | None,
    ) -> drgn.Object | None:
        """drgn's object finder for BTF, which has no variables."""
        try:
            if flags & drgn.FindObjectFlags.VARIABLE and name in self._declared:
                return drgn.Object(
                    prog, self._declared[name], address=self.symbol(name)
                )
            if flags & drgn.FindObjectFlags.FUNCTION and name in _FUNCTIONS:
                type_ = prog.function_type(prog.void_type(), [], False)
                return drgn.Object(prog, type_, address=self.symbol(name))
        except LookupError:
            return None
        return None


def open_kernel(
    sources: Sources,
    *,
    progress: Progress | None = None,
    notify: Notify | None = None,
) -> OpenedKernel:
    """Open what ``sources`` name; raises KernelError with one clear line.

    ``notify`` gets messages of one line, such as where a core is being unpacked to.
    """
    token = _opening.set(True)
    try:
        return _open(
            sources,
            progress or (lambda what, done, total: None),
            notify or (lambda message: None),
        )
    finally:
        _opening.reset(token)


def adopt(prog: drgn.Program) -> OpenedKernel | None:
    """The kernel of a program that somebody else has opened; each time the same.

    Its own debug info, loaded before or after, is asked first; the core's own symbols
    and types fill in what that has not. None while ``open_kernel`` opens it. Raises
    KernelError.
    """
    if _opening.get():
        return None
    known: OpenedKernel | None = prog.cache.get(_ADOPTED)
    if known is not None:
        return known
    with understood():
        if not prog.flags & drgn.ProgramFlags.IS_LINUX_KERNEL:
            raise KernelError("the program is no Linux kernel")
        info = vmcoreinfo.parse(prog["VMCOREINFO"].string_())
        types, symbols = prog.enabled_type_finders(), prog.enabled_symbol_finders()
        path = prog.core_dump_path
        sources = Sources(None if path is None else Path(os.fsdecode(path)))
        kernel = _complete(prog, info, sources, Trouble(), lambda message: None)
        ours = [one for one in prog.enabled_type_finders() if one not in types]
        prog.set_enabled_type_finders([*types, *ours])
        ours = [one for one in prog.enabled_symbol_finders() if one not in symbols]
        prog.set_enabled_symbol_finders([*symbols, *ours])
    prog.cache[_ADOPTED] = kernel
    return kernel


def _open(sources: Sources, progress: Progress, notify: Notify) -> OpenedKernel:
    if sources.core is None or sources.core == live.KCORE:
        prog, info = live.open_live()
        return _complete(prog, info, sources, Trouble(), notify)
    dump = open_dump(sources.core, sources.vmcoreinfo, progress, notify)
    try:
        kernel = _complete(dump.prog, dump.info, sources, dump.trouble, notify)
        kernel.memory.dump_bytes = dump.size_bytes
        return kernel
    except KernelError as error:
        if not dump.missing:
            raise
        raise KernelError(
            f"{sources.core}: is truncated, {dump.missing} bytes are missing: {error}"
        ) from error


def _complete(
    prog: drgn.Program,
    info: Vmcoreinfo,
    sources: Sources,
    trouble: Trouble,
    notify: Notify,
) -> OpenedKernel:
    """Symbols and types for a kernel whose memory can be read."""
    try:
        _find_symbols(prog, info, sources.system_map).register(prog)
    except NoSymbols as problem:
        if sources.vmlinux is None:  # debug info has symbols, too
            find_debug_info(prog, info, f"{problem}", "--system-map", notify)
    types = load_types(
        prog, info, btf=sources.btf, vmlinux=sources.vmlinux, notify=notify
    )
    alive = prog.flags & drgn.ProgramFlags.IS_LIVE
    kernel = OpenedKernel(
        prog,
        "live" if alive else "vmcore",
        None if alive else str(sources.core),
        info.release,
        types,
        Memory(prog, trouble),
        info.numbers,
    )
    if prog.platform and prog.platform.arch == drgn.Architecture.AARCH64:
        kernel._declared.update(_ARM64_DECLARATIONS)
    prog.register_object_finder("memcgctl", kernel._find_object, enable_index=-1)
    trouble.settle()
    return kernel


def _find_symbols(
    prog: drgn.Program, info: Vmcoreinfo, system_map: Path | None
) -> Symbols:
    """From the file given by hand, else from the kernel's own kallsyms.

    Raises NoSymbols if these cannot be used.
    """
    if system_map is not None:
        return read_system_map(system_map, info)
    symbols = _own_symbols(prog, info)
    # CONFIG_KALLSYMS_ALL is off: there are functions only.
    if symbols.find("init_uts_ns") is None:
        raise NoSymbols(
            "the kernel's kallsyms have no variables (CONFIG_KALLSYMS_ALL is off)"
        )
    return symbols


def _own_symbols(prog: drgn.Program, info: Vmcoreinfo) -> Symbols:
    if prog.flags & drgn.ProgramFlags.IS_LIVE and (symbols := live.read_symbols()):
        return symbols
    memory, stext = Memory(prog), info.symbols["_stext"]
    tables = kallsyms.tables_of_vmcoreinfo(info.symbols)
    if tables is None:
        return kallsyms.search_symbols(memory, stext)
    return kallsyms.read_symbols(memory, tables, stext)
