"""A kernel made by hand: a few structures, some memory and some symbols.

Structures have the members that the census reads, in an order and with gaps of their
own: nothing that holds for a real kernel's layout holds here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import drgn

from memcgctl.kernel.layout import offset_of
from memcgctl.kernel.memory import Memory
from memcgctl.kernel.program import OpenedKernel
from memcgctl.kernel.trouble import Trouble

PLATFORM = drgn.Platform(
    drgn.Architecture.X86_64,
    drgn.PlatformFlags.IS_64_BIT | drgn.PlatformFlags.IS_LITTLE_ENDIAN,
)
BASE = 0xFFFF888000000000
PAGE = 4096

# Members by name: "u64" and the like are integers, "s64" is signed, "X" is structure
# X, "X *" a pointer to it ("void *" to anything), "u64[3]" an array.
Members = Mapping[str, str]
_MEMBER = re.compile(r"(\w+)( \*)?(?:\[(\d+)\])?")


_UNREAD = re.compile(r"a part of .* cannot be read(?: \(([\d,]+) times\))?")


def faults(trouble: Trouble) -> int:
    """How many faults a person is told of."""
    told = map(_UNREAD.fullmatch, trouble.sentences())
    return sum(int((match[1] or "1").replace(",", "")) for match in told if match)


class FakeKernel:
    """Types by name, memory to be written to, symbols; ``kernel`` is it opened."""

    def __init__(
        self,
        structs: Mapping[str, Members],
        enums: Mapping[str, Sequence[str]] | None = None,
        *,
        live: bool = False,
        platform: drgn.Platform = PLATFORM,
    ) -> None:
        self.prog = drgn.Program(platform)
        self.structs = structs
        self.enums = enums or {}
        self.symbols: dict[str, int] = {}
        self.variables = {"PAGE_SIZE": PAGE, "PAGE_SHIFT": 12, "SECTION_SIZE_BITS": 27}
        self.memory: dict[int, bytearray] = {}
        self._types: dict[str, drgn.Type] = {}
        self._next = BASE
        prog = self.prog
        prog.register_type_finder("fake", self._find_type, enable_index=0)
        prog.register_object_finder("fake", self._find_object, enable_index=0)
        prog.register_symbol_finder("fake", self._find_symbol, enable_index=0)
        self.kernel = OpenedKernel(
            prog=prog,
            kind="live" if live else "vmcore",
            path=None,
            release="0",
            types="btf",
            memory=Memory(prog),
        )

    def allocate(self, data: bytes | int, at: int | None = None) -> int:
        """Memory with ``data``, or so many zeros; nothing is right behind it."""
        content = bytearray(data)
        address = self._next if at is None else at
        self._next = max(self._next, (address + len(content) + 127) & ~63)

        def read(_: int, count: int, offset: int, __: bool) -> bytes:
            return bytes(content[offset : offset + count])

        self.memory[address] = content
        self.prog.add_memory_segment(address, len(content), read)
        return address

    def make(
        self, name: str, values: Mapping[str, int] | None = None, tail: int = 0
    ) -> int:
        """A new structure and ``tail`` bytes; the address."""
        size = drgn.sizeof(self.prog.type(f"struct {name}"))
        address = self.allocate(size + tail)
        self.put(address, name, values or {})
        return address

    def put(self, address: int, name: str, values: Mapping[str, int]) -> None:
        """Set members (paths) of the structure at ``address``."""
        for path, value in values.items():
            offset = offset_of(self.prog, f"struct {name}", path)
            member = drgn.Object(self.prog, f"struct {name}", address=address)
            for part in path.split("."):
                member = member.member_(part)
            size = drgn.sizeof(member)
            data = (value % (1 << 8 * size)).to_bytes(size, "little")
            self.memory[address][offset : offset + size] = data

    def global_variable(self, name: str, value: int, size: int = 8) -> None:
        self.symbols[name] = self.allocate(value.to_bytes(size, "little"))

    def _find_type(
        self,
        prog: drgn.Program,
        kinds: frozenset[drgn.TypeKind],
        name: str,
        filename: str | None,
    ) -> drgn.Type | None:
        if drgn.TypeKind.STRUCT in kinds and name in self.structs:
            return self._struct(name)
        if drgn.TypeKind.ENUM in kinds and name in self.enums:
            values = enumerate(self.enums[name])
            return prog.enum_type(
                name,
                prog.int_type("int", 4, True),
                [drgn.TypeEnumerator(item, value) for value, item in values],
            )
        if drgn.TypeKind.TYPEDEF in kinds and name == "nodemask_t":
            return prog.typedef_type(name, self._struct(name))
        if drgn.TypeKind.INT in kinds and name == "unsigned long":
            return self._scalar("u64")
        return None

    def _struct(self, name: str) -> drgn.Type:
        if name not in self._types:
            members, end = [], 0
            for member, text in self.structs[name].items():
                type_ = self._member(text)
                members.append(drgn.TypeMember(type_, member, 8 * end))
                end += drgn.sizeof(type_)
            self._types[name] = self.prog.struct_type(name, end, members)
        return self._types[name]

    def _member(self, text: str) -> drgn.Type:
        match = _MEMBER.fullmatch(text)
        assert match, text
        name, pointer, length = match.groups()
        if name == "void":
            type_ = self.prog.void_type()
        elif name in self.structs:
            type_ = self._struct(name)
        else:
            type_ = self._scalar(name)
        if pointer:
            type_ = self.prog.pointer_type(type_)
        return self.prog.array_type(type_, int(length)) if length else type_

    def _scalar(self, name: str) -> drgn.Type:
        return self.prog.int_type(name, int(name[1:]) // 8, name[0] == "s")

    def _find_object(
        self,
        prog: drgn.Program,
        name: str,
        flags: drgn.FindObjectFlags,
        filename: str | None,
    ) -> drgn.Object | None:
        if name not in self.variables:
            return None
        return drgn.Object(prog, self._scalar("u64"), self.variables[name])

    def _find_symbol(
        self, prog: drgn.Program, name: str | None, address: int | None, one: bool
    ) -> list[drgn.Symbol]:
        if name is None or name not in self.symbols:
            return []
        return [
            drgn.Symbol(
                name,
                self.symbols[name],
                0,
                drgn.SymbolBinding.GLOBAL,
                drgn.SymbolKind.OBJECT,
            )
        ]
