"""Every form of a core that people bring opens, and shows the same kernel.

The forms are made here from the cores in ``fixtures/``, by tests/cores/variants.py and,
where it is installed, by makedumpfile: what is read of them must be what is read of the
core itself, and its symbols what drgn's own reader finds.
"""

from __future__ import annotations

import gzip
import lzma
import os
import random
import shutil
import struct
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest
import zstandard
from drgn.helpers.linux.kallsyms import load_vmlinux_kallsyms
from drgn.helpers.linux.percpu import per_cpu

from memcgctl.kernel.errors import KernelError
from memcgctl.kernel.program import OpenedKernel, Sources, open_kernel
from memcgctl.linux.mmu import direct_map
from tests.cores import variants
from tests.cores.variants import Core

FIXTURES = Path(__file__).parents[2] / "fixtures"
PACKED = sorted(FIXTURES.glob("*.zst"))
# Oldest and newest: no kallsyms in VMCOREINFO, and the latest layout of everything.
ENDS = sorted({PACKED[0], PACKED[-1]}) if PACKED else []
of_all = pytest.mark.parametrize("packed", PACKED, ids=lambda path: path.stem)
of_ends = pytest.mark.parametrize("packed", ENDS, ids=lambda path: path.stem)

pytestmark = pytest.mark.skipif(not PACKED, reason="there are no cores in fixtures/")


@dataclass(frozen=True)
class Seen:
    """What a person would miss if a form of the core were read wrongly."""

    release: str
    task: bytes
    cpus: list[int]
    memory_map: int
    struct_page: int
    memory: tuple[bytes | None, ...]


def ram_of(kernel: OpenedKernel) -> int:
    """The physical address where memory begins: 1 GiB on QEMU's machine for arm64."""
    return 1 << 30 if "kimage_voffset" in kernel.numbers else 0


def look(kernel: OpenedKernel) -> Seen:
    with kernel:
        task = kernel.declare("init_task", "struct task_struct")
        runqueues = kernel.percpu("runqueues", "struct rq")
        cpus = kernel.declare("nr_cpu_ids", "unsigned int").value_()
        memory_map = kernel.prog["vmemmap"].value_()
        ram = ram_of(kernel)
        first_page = memory_map + ram // kernel.memory.page_size * 64
        mapped = (direct_map(kernel) + ram) % 2**64
        mm = kernel.declare("init_mm", "struct mm_struct")
        return Seen(
            kernel.release,
            task.comm.string_(),
            [per_cpu(runqueues, cpu).cpu.value_() for cpu in range(cpus)],
            memory_map,
            kernel.prog.type("struct page").size,
            (
                # The image, the memory map and the direct map.
                kernel.memory.try_read(kernel.symbol("init_uts_ns"), 512),
                kernel.memory.try_read(first_page + 0x1000 * 64, 1 << 16),
                kernel.memory.try_read(mm.pgd.value_(), 4096),
                kernel.memory.try_read(mapped + 0x100000, 4096),
            ),
        )


@pytest.fixture(scope="module", autouse=True)
def caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Unpack into a directory of the test's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@cache
def original(packed: Path) -> Seen:
    return look(open_kernel(Sources(core=packed)))


@cache
def core_of(packed: Path) -> Core:
    """The core's notes and memory."""
    return variants.read_elf(unpacked(packed))


@cache
def unpacked(packed: Path) -> Path:
    path = Path(os.environ["XDG_CACHE_HOME"]) / packed.stem
    with packed.open("rb") as source, path.open("wb") as target:
        zstandard.ZstdDecompressor().copy_stream(source, target)
    return path


def info_of(core: Core, key: str) -> int:
    """A number in VMCOREINFO."""
    value = core.notes.split(f"\n{key}=".encode())[1].split(b"\n")[0]
    return int(value, 16 if key.startswith(("SYMBOL", "KERNELOFF")) else 0)


def as_vmcore(packed: Path) -> Core:
    """As kdump's kernel shows it in /proc/vmcore."""
    core = core_of(packed)
    with open_kernel(Sources(core=packed)) as kernel:
        start, end = kernel.symbol("_text"), kernel.symbol("_end")
        page_offset = direct_map(kernel)
        if voffset := kernel.numbers.get("kimage_voffset"):  # arm64
            physical = (start - voffset) % 2**64
        else:
            physical = start - 0xFFFFFFFF80000000 + kernel.numbers["phys_base"]
    return variants.as_vmcore(core, page_offset, (start, physical, end - start))


@of_all
def test_a_core_is_all_that_is_needed(packed: Path) -> None:
    """Lost: the point of it all, a listing from nothing but a core."""
    with open_kernel(Sources(core=packed)) as kernel:
        assert kernel.kind == "vmcore"
        assert kernel.path == str(packed)
        assert kernel.types == "btf"
        assert kernel.trouble.sentences() == ()
        assert kernel.release.encode() in core_of(packed).notes
    seen = original(packed)
    assert seen.task == b"swapper/0"
    assert seen.cpus == list(range(len(seen.cpus)))
    assert None not in seen.memory


@of_all
def test_symbols_are_those_that_drgn_finds(packed: Path) -> None:
    """Lost: variables, read at wrong addresses."""
    core = core_of(packed)
    with open_kernel(Sources(core=packed)) as kernel:
        ours = kernel.prog.symbols
        known = [("_stext", info_of(core, "SYMBOL(_stext)"))]
        known += [("init_uts_ns", info_of(core, "SYMBOL(init_uts_ns)"))]
        if b"SYMBOL(kallsyms_names)" in core.notes:  # 6.0 on
            symbols = load_vmlinux_kallsyms(kernel.prog)(kernel.prog, None, None, False)
            assert len(symbols) > 50_000
            sample = random.Random(1).sample(symbols, 300)
            known += [(symbol.name, symbol.address) for symbol in sample]
        for name, address in known:
            assert address in [symbol.address for symbol in ours(name)], name


@of_all
def test_kallsyms_are_found_without_being_named(packed: Path, tmp_path: Path) -> None:
    """Lost: kernels whose VMCOREINFO does not say where their kallsyms are."""
    core = core_of(packed)
    notes = core.notes.replace(b"\nSYMBOL(kallsyms_", b"\nSYMBOL(forgotten_")
    variants.write_elf(replace(core, notes=notes), tmp_path / "core")
    assert look(open_kernel(Sources(core=tmp_path / "core"))) == original(packed)


@of_all
def test_proc_vmcore(packed: Path, tmp_path: Path) -> None:
    """Lost: cores that kdump saved with cp or scp, with virtual addresses in them."""
    variants.write_elf(as_vmcore(packed), tmp_path / "vmcore")
    assert look(open_kernel(Sources(core=tmp_path / "vmcore"))) == original(packed)


@of_all
def test_without_the_note(packed: Path, tmp_path: Path) -> None:
    """Lost: dumps that QEMU made without its vmcoreinfo device."""
    core = variants.without_note(core_of(packed))
    assert b"VMCOREINFO" not in core.notes
    variants.write_elf(core, tmp_path / "core")
    messages: list[str] = []
    kernel = open_kernel(Sources(core=tmp_path / "core"), notify=messages.append)
    assert "VMCOREINFO was found in memory" in " ".join(kernel.trouble.sentences())
    assert "looking for VMCOREINFO in its memory" in " ".join(messages)
    assert look(kernel) == original(packed)


@of_ends
@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress])
def test_compressed_as_a_whole(
    packed: Path, tmp_path: Path, pack: Callable[..., bytes]
) -> None:
    """Lost: cores that were compressed by another program than zstd."""
    data = unpacked(packed).read_bytes()
    level = {"compresslevel": 1} if pack is gzip.compress else {"preset": 0}
    (tmp_path / "core").write_bytes(pack(data, **level))
    assert look(open_kernel(Sources(core=tmp_path / "core"))) == original(packed)


KDUMPS: dict[str, Callable[[Core, Path], None]] = {
    "zlib": lambda core, path: variants.write_kdump(core, path),
    "zstd": lambda core, path: variants.write_kdump(core, path, variants.compress_zstd),
    "snappy": lambda core, path: variants.write_kdump(
        core, path, variants.compress_snappy
    ),
    "uncompressed": lambda core, path: variants.write_kdump(
        core, path, variants.compress_nothing
    ),
    "no machine": lambda core, path: variants.write_kdump(core, path, machine=b""),
    "no note": lambda core, path: variants.write_kdump(
        variants.without_note(core), path, machine=b""
    ),
}


@of_ends
@pytest.mark.parametrize("form", KDUMPS)
@pytest.mark.parametrize("flat", [False, True], ids=["plain", "flattened"])
def test_kdump_compressed(packed: Path, tmp_path: Path, form: str, flat: bool) -> None:
    """Lost: what kdump saves by default on most systems, and QEMU's kdump-zlib."""
    path = tmp_path / "dump"
    KDUMPS[form](core_of(packed), path)
    if flat:
        path.write_bytes(b"".join(variants.flattened(path.read_bytes())))
    kernel = open_kernel(Sources(core=path))
    assert bool(kernel.trouble.sentences()) == (form == "no note")
    assert look(kernel) == original(packed)


ARM64 = [path for path in PACKED if "arm64" in path.stem]


@pytest.mark.parametrize("packed", ARM64, ids=lambda path: path.stem)
@pytest.mark.parametrize("machine", [b"aarch64", b"Unknown"])
@pytest.mark.parametrize("note", [True, False])
def test_kdump_of_arm64(
    packed: Path, tmp_path: Path, machine: bytes, note: bool
) -> None:
    """Lost: what kdump saves there, and QEMU, which does not name the machine."""
    core, path = core_of(packed), tmp_path / "dump"
    core = core if note else variants.without_note(core)
    size = info_of(core_of(packed), "PAGESIZE")
    variants.write_kdump(core, path, machine=machine, size=size)
    if not note and machine == b"Unknown":
        # Nothing in it says of which machine it is.
        with pytest.raises(KernelError):
            open_kernel(Sources(core=path))
        return
    kernel = open_kernel(Sources(core=path))
    assert bool(kernel.trouble.sentences()) == (not note)
    assert look(kernel) == original(packed)


@of_ends
@pytest.mark.parametrize(
    "options", ["-c -d 0", "-c -d 31", "-l -d 31", "-E -d 31", "-c -F"]
)
def test_makedumpfile(packed: Path, tmp_path: Path, options: str) -> None:
    """Lost: the dumps of the program that most people make theirs with."""
    program = shutil.which("makedumpfile")
    if program is None:
        assert not os.environ.get("CI"), "makedumpfile is missing"
        pytest.skip("makedumpfile is not installed")
    source, path = tmp_path / "vmcore", tmp_path / "dump"
    variants.write_elf(as_vmcore(packed), source)
    command = [program, "--message-level", "1", *options.split(), str(source)]
    with path.open("wb") as output:
        if "-F" not in command:
            command.append(str(path) + "file")
        run = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    if "-F" not in command:
        path = path.with_name("dumpfile")
    seen, expected = look(open_kernel(Sources(core=path))), original(packed)
    assert seen.memory[:3] == expected.memory[:3]
    # With -d, pages of the direct map that are free or a user's are not in the dump;
    # an ELF core does not tell these from pages of zeros.
    assert seen.memory[3] in (expected.memory[3], None, bytes(4096))
    assert seen.release == expected.release
    assert (seen.task, seen.cpus) == (expected.task, expected.cpus)
    assert seen.memory_map == expected.memory_map


NAMES = ["_stext", "_text", "_end", "init_uts_ns", "init_task", "init_mm"]
NAMES += ["nr_cpu_ids", "vmemmap_populate", "mem_section", "page_offset_base"]


@of_ends
def test_help_from_files(packed: Path, tmp_path: Path) -> None:
    """Lost: --btf, --system-map, --vmcoreinfo, for cores without what they give."""
    core = core_of(packed)
    with open_kernel(Sources(core=packed)) as kernel:
        start, stop = kernel.symbol("__start_BTF"), kernel.symbol("__stop_BTF")
        (tmp_path / "btf").write_bytes(kernel.memory.read(start, stop - start))
        symbols = [
            (name, kernel.symbol(name) - info_of(core, "KERNELOFFSET"))
            for name in NAMES
        ]
        for name in ("runqueues", "__per_cpu_offset"):
            address = kernel.symbol(name)
            # Up to 6.14, per-CPU variables are offsets, which do not move.
            moves = address > 1 << 32
            symbols.append((name, address - moves * info_of(core, "KERNELOFFSET")))
    lines = [f"{address:016x} D {name}\n" for name, address in symbols]
    (tmp_path / "System.map").write_text("".join(lines))
    note = core.notes[core.notes.index(b"OSRELEASE=") :]
    (tmp_path / "vmcoreinfo").write_bytes(note)
    variants.write_elf(variants.without_note(core), tmp_path / "core")
    kernel = open_kernel(
        Sources(
            core=tmp_path / "core",
            btf=tmp_path / "btf",
            system_map=tmp_path / "System.map",
            vmcoreinfo=tmp_path / "vmcoreinfo",
        )
    )
    assert kernel.trouble.sentences() == ()
    assert look(kernel) == original(packed)


def refused(**sources: Path) -> str:
    with pytest.raises(KernelError) as caught:
        open_kernel(Sources(**sources))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.skipif(len(PACKED) < 2, reason="there are no two cores in fixtures/")
def test_files_of_another_kernel_are_refused(tmp_path: Path) -> None:
    """Lost: a listing full of garbage, from the BTF of the kernel before the update."""
    one, other = PACKED[0], PACKED[-1]
    with open_kernel(Sources(core=other)) as kernel:
        start, stop = kernel.symbol("__start_BTF"), kernel.symbol("__stop_BTF")
        (tmp_path / "btf").write_bytes(kernel.memory.read(start, stop - start))
        (tmp_path / "map").write_text(f"{kernel.symbol('_stext'):x} T _stext\n")
        (tmp_path / "info").write_bytes(kernel.prog["VMCOREINFO"].string_())
    message = refused(core=one, btf=tmp_path / "btf")
    assert f"{tmp_path / 'btf'} is not of this kernel: " in message
    message = refused(core=one, system_map=tmp_path / "map")
    assert f"{tmp_path / 'map'}: is not of this kernel" in message
    message = refused(core=one, vmcoreinfo=tmp_path / "info")
    assert str(tmp_path / "info") in message


@of_ends
def test_a_truncated_core(packed: Path, tmp_path: Path) -> None:
    """Lost: a person looks for the fault in the kernel, not in the copy that broke."""
    path = tmp_path / "core"
    variants.write_elf(core_of(packed), path)
    whole = path.stat().st_size
    for size in (63, 100, 1000, 5000, whole // 100, whole // 4):
        with path.open("r+b") as file:
            file.truncate(size)
        assert "is truncated" in refused(core=path), size
        variants.write_elf(core_of(packed), path)
    # What is read to open it is in the rest: it opens, with a warning.
    os.truncate(path, whole - 4096)
    assert open_kernel(Sources(core=path)).trouble.sentences() == (
        "the core is truncated: 4096 bytes are missing",
    )


@of_ends
def test_a_truncated_kdump(packed: Path, tmp_path: Path) -> None:
    """Lost: the program, to a bus error in libkdumpfile."""
    path = tmp_path / "dump"
    variants.write_kdump(core_of(packed), path)
    data = path.read_bytes()
    for form in (data, b"".join(variants.flattened(data))):
        for size in (100, 5000, len(form) // 2, len(form) - 100):
            path.write_bytes(form[:size])
            assert "truncated" in refused(core=path) or size == 100


@of_ends
def test_what_is_not_in_the_dump_is_named(packed: Path, tmp_path: Path) -> None:
    """Lost: which of types, symbols and VMCOREINFO is missing, and what would help."""
    core, path = core_of(packed), tmp_path / "core"
    phys_base = info_of(core, "NUMBER(phys_base)")

    def without(start: int, end: int) -> str:
        variants.write_elf(core, path)
        with path.open("r+b") as file:
            for offset, physical, size in loads(path):
                low = max(start - 0xFFFFFFFF80000000 + phys_base, physical)
                high = min(end - 0xFFFFFFFF80000000 + phys_base, physical + size)
                if low < high:
                    file.seek(offset + low - physical)
                    file.write(bytes(high - low))
        return refused(core=path)

    with open_kernel(Sources(core=packed)) as kernel:
        btf = kernel.symbol("__start_BTF"), kernel.symbol("__stop_BTF")
        rodata = kernel.symbol("__start_rodata"), kernel.symbol("__end_rodata")
    message = without(*btf)
    assert "BTF" in message
    assert "--btf or --vmlinux" in message
    message = without(*rodata)
    assert "kallsyms" in message
    assert "--system-map or --vmlinux" in message
    page_tables = info_of(core, "SYMBOL(swapper_pg_dir)")
    assert "leads nowhere" in without(page_tables, page_tables + 4096)


def test_no_vmcoreinfo_at_all(tmp_path: Path) -> None:
    """Lost: a clear line for a dump of another system than Linux."""
    memory = memoryview(random.Random(1).randbytes(1 << 20))
    core = Core(b"", (variants.Load(0, memory),))
    variants.write_elf(core, tmp_path / "elf")
    variants.write_kdump(core, tmp_path / "kdump")
    for path in (tmp_path / "elf", tmp_path / "kdump"):
        message = refused(core=path)
        assert "VMCOREINFO" in message or "vmcoreinfo" in message
        assert "--vmcoreinfo takes it from a file" in message


def loads(path: Path) -> list[tuple[int, int, int]]:
    """(offset, physical address, size) of each PT_LOAD of an ELF core."""
    data = path.read_bytes()[: 1 << 20]
    count = struct.unpack_from("<H", data, 56)[0]
    headers = [struct.unpack_from("<IIQQQQ", data, 64 + 56 * n) for n in range(count)]
    return [(h[2], h[4], h[5]) for h in headers if h[0] == variants.PT_LOAD]


@of_ends
def test_plugins_of_drgn_are_left_alone(packed: Path) -> None:
    """Lost: a Ctrl-C, that drgn ignores while it loads them, and the time it takes."""
    code = f"""
        import sys
        from pathlib import Path
        from memcgctl.kernel.program import Sources, open_kernel
        open_kernel(Sources(core=Path({str(packed)!r})))
        print([name for name in sys.modules if "drgn.commands" in name])
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout == "[]\n"
