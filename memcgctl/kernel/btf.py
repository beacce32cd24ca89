"""The kernel's types from its BTF, as a drgn type finder.

BTF (Documentation/bpf/btf.rst, include/uapi/linux/btf.h) is the compact type
information that a kernel built with CONFIG_DEBUG_INFO_BTF keeps in its own
memory, between __start_BTF and __stop_BTF. Opening it walks the records once and
checks what they say about themselves; a type is built when somebody asks for it,
and a member's type when the member is touched.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property, partial

import drgn
import numpy as np
from drgn import Qualifiers, TypeKind
from numpy.typing import NDArray

from memcgctl.kernel.btf_format import (
    ARRAY,
    CONST,
    DECL_TAG,
    ENUM,
    ENUM64,
    FLOAT,
    FUNC,
    FUNC_PROTO,
    FWD,
    INT,
    PTR,
    RESTRICT,
    STRUCT,
    TYPE_TAG,
    TYPEDEF,
    UNION,
    VAR,
    VOLATILE,
    BtfError,
    sections,
    walk,
)

__all__ = ["Btf", "BtfError"]

# Kinds whose third word is a type id rather than a size.
_REFERRING = (
    PTR,
    TYPEDEF,
    VOLATILE,
    CONST,
    RESTRICT,
    FUNC,
    FUNC_PROTO,
    VAR,
    DECL_TAG,
    TYPE_TAG,
)
_QUALIFIERS = {
    VOLATILE: Qualifiers.VOLATILE,
    CONST: Qualifiers.CONST,
    RESTRICT: Qualifiers.RESTRICT,
}
_TRANSPARENT = (*_QUALIFIERS, TYPE_TAG, TYPEDEF)
_NAMED = (INT, STRUCT, UNION, ENUM, FWD, TYPEDEF, FLOAT, ENUM64)
_COMPOUND = (STRUCT, UNION)
_BIT_FIELDS = (INT, ENUM, ENUM64)
_INT_SIGNED, _INT_BOOL = 1, 4
_ENUM_BASE = {
    (1, False): "unsigned char",
    (1, True): "signed char",
    (2, False): "unsigned short",
    (2, True): "short",
    (4, False): "unsigned int",
    (4, True): "int",
    (8, False): "unsigned long",
    (8, True): "long",
}

# Bounds on what a damaged BTF can ask for. In Debian's kernels from 5.10 to 7.3
# the largest structure has 367,488 bytes.
_MAX_SIZE = 16 << 20
_MAX_CHAIN = 64
_MAX_DEPTH = 32
_MAX_WEIGHT = 1 << 12


class Btf:
    """The BTF of a kernel image (not of a module).

    Types are numbered from 1 as in the BTF; 0 is void.

    :param data: contents of the ``.BTF`` section, ``/sys/kernel/btf/vmlinux``, or
        the memory from ``__start_BTF`` to ``__stop_BTF``
    :raises BtfError: damaged, big-endian, split (a module's), or of a newer version
    """

    def __init__(self, data: bytes) -> None:
        types, self._strings, layout = sections(data)
        self._words: NDArray[np.uint32] = np.frombuffer(types, "<u4")
        at = np.array(walk(types, layout), np.int64)
        # One entry per type id; void is a record of zeros.
        self._at = np.concatenate(([0], at))
        self._names, self._info, self._third = (
            np.concatenate((np.zeros(1, np.uint32), self._words[at + word]))
            for word in range(3)
        )
        self._kinds = self._info >> 24 & 0x7F
        self._check_heads()
        self._weights: dict[int, int] = {}

    def __len__(self) -> int:
        """Number of types, void included."""
        return len(self._at)

    def register(self, prog: drgn.Program, name: str = "btf") -> None:
        """Make the types, and the enumerators as constants, known to a program.

        The type finder is asked before those enabled already, the finder of
        constants after them.
        """
        prog.register_type_finder(name, self._find_type, enable_index=0)
        prog.register_object_finder(name, self._find_constant, enable_index=-1)

    def find(self, name: str, *kinds: TypeKind) -> int | None:
        """Type id of a named type, or ``None``.

        Of several with the name, one that is complete; of these, the first.
        """
        found = [i for i in self._by_name.get(name, ()) if self._drgn_kind(i) in kinds]
        return next(filter(self._is_complete, found), found[0] if found else None)

    def type_of(self, prog: drgn.Program, type_id: int) -> drgn.Type:
        """The type with an id, built once for each program.

        :raises BtfError: no such type, or it is damaged
        """
        cache: dict[int, drgn.Type] = prog.cache.setdefault(self, {})
        if type_id in cache:
            return cache[type_id]
        target = prog.void_type()
        for link in reversed(self._chain(type_id)):
            if link not in cache:
                cache[link] = self._build(prog, link, target)
            target = cache[link]
        return target

    # Finding

    @cached_property
    def _by_name(self) -> dict[str, list[int]]:
        ids: dict[str, list[int]] = {}
        named = np.isin(self._kinds, _NAMED) & (self._names != 0)
        for type_id in np.flatnonzero(named).tolist():
            ids.setdefault(self._name(type_id), []).append(type_id)
        return ids

    @cached_property
    def _constants(self) -> dict[str, int]:
        """Enumerator to the enumeration that has it; of several, the first."""
        owners: dict[int, int] = {}
        for kind, words in ((ENUM, 2), (ENUM64, 3)):
            for type_id in np.flatnonzero(self._kinds == kind).tolist():
                for enumerator in self._elements(type_id, words):
                    owners.setdefault(enumerator[0], type_id)
        return {self._string(offset): type_id for offset, type_id in owners.items()}

    def _find_type(
        self,
        prog: drgn.Program,
        kinds: drgn.TypeKindSet,
        name: str,
        filename: str | None,
    ) -> drgn.Type | None:
        if filename:  # BTF does not know them
            return None
        type_id = self.find(name, *kinds)
        return None if type_id is None else self.type_of(prog, type_id)

    def _find_constant(
        self,
        prog: drgn.Program,
        name: str,
        flags: drgn.FindObjectFlags,
        filename: str | None,
    ) -> drgn.Object | None:
        if filename or drgn.FindObjectFlags.CONSTANT not in flags:
            return None
        if name not in self._constants:
            return None
        enum = self.type_of(prog, self._constants[name])
        return next(
            drgn.Object(prog, enum, e.value)
            for e in enum.enumerators or ()
            if e.name == name
        )

    def _is_complete(self, type_id: int) -> bool:
        """False for BTF_KIND_FWD and for its counterpart, an enum without values."""
        kind = self._kind(type_id)
        return kind != FWD and not (kind == ENUM and self._vlen(type_id) == 0)

    def _drgn_kind(self, type_id: int) -> TypeKind | None:
        kind = self._kind(type_id)
        if kind == INT and self._int(type_id)[0] & _INT_BOOL:
            return TypeKind.BOOL
        if kind == FWD:
            return TypeKind.UNION if self._flag(type_id) else TypeKind.STRUCT
        return {
            INT: TypeKind.INT,
            STRUCT: TypeKind.STRUCT,
            UNION: TypeKind.UNION,
            ENUM: TypeKind.ENUM,
            ENUM64: TypeKind.ENUM,
            TYPEDEF: TypeKind.TYPEDEF,
            FLOAT: TypeKind.FLOAT,
        }.get(kind)

    # Records

    def _check_heads(self) -> None:
        bad = self._names >= len(self._strings)
        if bad.any():
            raise BtfError(f"BTF: the name of type {bad.argmax()} is out of bounds")
        bad = np.isin(self._kinds, _REFERRING) & (self._third >= len(self))
        if bad.any():
            raise BtfError(f"BTF: type {bad.argmax()} refers to a type out of bounds")

    def _kind(self, type_id: int) -> int:
        if not 0 <= type_id < len(self):
            raise BtfError(f"BTF: type id {type_id} is out of bounds")
        return int(self._kinds[type_id])

    def _vlen(self, type_id: int) -> int:
        return int(self._info[type_id]) & 0xFFFFFF

    def _flag(self, type_id: int) -> bool:
        return bool(self._info[type_id] >> 31)

    def _name(self, type_id: int) -> str:
        return self._string(int(self._names[type_id]))

    def _string(self, offset: int) -> str:
        if offset >= len(self._strings):
            raise BtfError(f"BTF: string offset {offset:#x} is out of bounds")
        end = self._strings.index(b"\0", offset)
        return self._strings[offset:end].decode("ascii", "backslashreplace")

    def _tail(self, type_id: int, words: int) -> list[int]:
        """The words after the head of a record; ``walk`` has seen to its length."""
        start = int(self._at[type_id]) + 3
        tail: list[int] = self._words[start : start + words].tolist()
        return tail

    def _elements(self, type_id: int, words: int) -> Iterator[tuple[int, ...]]:
        tail = iter(self._tail(type_id, words * self._vlen(type_id)))
        return zip(*[tail] * words, strict=True)

    def _int(self, type_id: int) -> tuple[int, int, int]:
        """Encoding, bit offset and bits of a BTF_KIND_INT."""
        (data,) = self._tail(type_id, 1)
        return data >> 24 & 0xF, data >> 16 & 0xFF, data & 0xFF

    def _chain(self, type_id: int) -> list[int]:
        """A type, what it points to, qualifies or declares, and so on, but for void.

        Ends where a type stands on its own. Only a damaged BTF has a long or an
        endless one: real cycles go through members or parameters.
        """
        chain: list[int] = []
        while type_id:
            chain.append(type_id)
            kind = self._kind(type_id)
            if len(chain) > _MAX_CHAIN:
                raise BtfError(f"BTF: type {chain[0]} does not come to an end")
            if kind == ARRAY:
                type_id = self._tail(type_id, 1)[0]
            elif kind in (PTR, FUNC_PROTO, *_TRANSPARENT):
                type_id = int(self._third[type_id])
            else:
                type_id = 0 if self._is_complete(type_id) else self._complete(type_id)
        return chain

    def _complete(self, type_id: int) -> int:
        """The complete type that a forward declaration stands for, or 0."""
        name, kind = self._name(type_id), self._drgn_kind(type_id)
        found = self.find(name, kind) if name and kind else None
        return found if found and self._is_complete(found) else 0

    def _strip(self, type_id: int) -> int:
        """The type under typedefs, qualifiers and forward declarations."""
        chain = self._chain(type_id)
        for link in chain:
            if self._kind(link) not in _TRANSPARENT and (
                self._is_complete(link) or link == chain[-1]
            ):
                return link
        return 0

    # Building drgn types

    def _build(self, prog: drgn.Program, type_id: int, target: drgn.Type) -> drgn.Type:
        """The type with an id, given the next of its chain (or void)."""
        kind = self._kind(type_id)
        if not self._is_complete(type_id):
            declared = target.kind != TypeKind.VOID
            return target if declared else self._build_incomplete(prog, type_id)
        if kind == PTR:
            return prog.pointer_type(target)
        if kind == TYPEDEF:
            return prog.typedef_type(self._name(type_id), target)
        if kind in _QUALIFIERS:
            return target.qualified(target.qualifiers | _QUALIFIERS[kind])
        if kind == TYPE_TAG:
            return target
        if kind == ARRAY:
            # pahole writes several dimensions as one of their product.
            return prog.array_type(target, self._tail(type_id, 3)[2])
        if kind == FUNC_PROTO:
            return self._build_function(prog, type_id, target)
        make = {
            INT: self._build_int,
            FLOAT: self._build_float,
            STRUCT: self._build_compound,
            UNION: self._build_compound,
            ENUM: self._build_enum,
            ENUM64: self._build_enum,
        }.get(kind)
        if make is None:
            raise BtfError(f"BTF: type {type_id} of kind {kind} is used as a C type")
        return make(prog, type_id)

    def _size(self, type_id: int, allowed: tuple[int, ...] = ()) -> int:
        size = int(self._third[type_id])
        if size > _MAX_SIZE or (allowed and size not in allowed):
            raise BtfError(f"BTF: type {type_id} has a size of {size} bytes")
        return size

    def _build_int(self, prog: drgn.Program, type_id: int) -> drgn.Type:
        name = self._name(type_id)
        size = self._size(type_id, (1, 2, 4, 8, 16))
        encoding = self._int(type_id)[0]
        if encoding & _INT_BOOL:
            return prog.bool_type(name, size)
        # pahole of Debian's 5.10 (1.20) does not flag "signed char" as signed.
        signed = bool(encoding & _INT_SIGNED) or name == "signed char"
        return prog.int_type(name, size, signed)

    def _build_float(self, prog: drgn.Program, type_id: int) -> drgn.Type:
        size = self._size(type_id, (2, 4, 8, 12, 16))
        return prog.float_type(self._name(type_id), size)

    def _build_incomplete(self, prog: drgn.Program, type_id: int) -> drgn.Type:
        tag = self._name(type_id) or None
        if self._kind(type_id) == ENUM:
            return prog.enum_type(tag)
        return prog.union_type(tag) if self._flag(type_id) else prog.struct_type(tag)

    def _build_enum(self, prog: drgn.Program, type_id: int) -> drgn.Type:
        size = self._size(type_id, (1, 2, 4, 8))
        signed, values = self._enumerators(type_id)
        base = prog.int_type(_ENUM_BASE[size, signed], size, signed)
        return prog.enum_type(
            self._name(type_id) or None,
            base,
            [drgn.TypeEnumerator(self._string(name), value) for name, value in values],
        )

    def _enumerators(self, type_id: int) -> tuple[bool, list[tuple[int, int]]]:
        """Signedness, and (name offset, value) of each enumerator."""
        if self._kind(type_id) == ENUM64:
            bits = 64
            values = [
                (name, high << 32 | low)
                for name, low, high in self._elements(type_id, 3)
            ]
        else:
            bits = 32
            values = [(name, value) for name, value in self._elements(type_id, 2)]
        signed = self._flag(type_id) or (
            # Up to 5.19 (pahole before 1.24) nothing is flagged, and values are s32
            # as the header said then; those of 64 bits are cut off.
            not self._flags_signed_enums and any(v >> 31 for _, v in values)
        )
        if signed:
            values = [(n, v - (1 << bits) if v >> bits - 1 else v) for n, v in values]
        return signed, values

    @cached_property
    def _flags_signed_enums(self) -> bool:
        """Whether the encoder tells the signedness of enums (pahole 1.24 does)."""
        flagged = (self._kinds == ENUM) & (self._info >> 31 != 0)
        return bool(flagged.any() or (self._kinds == ENUM64).any())

    def _build_function(
        self, prog: drgn.Program, type_id: int, returns: drgn.Type
    ) -> drgn.Type:
        self._weigh(type_id)
        parameters = list(self._elements(type_id, 2))
        variadic = bool(parameters) and parameters[-1] == (0, 0)
        return prog.function_type(
            returns,
            [
                drgn.TypeParameter(
                    partial(self.type_of, prog, parameter),
                    self._string(name) or None,
                )
                for name, parameter in (parameters[:-1] if variadic else parameters)
            ],
            variadic,
        )

    def _build_compound(self, prog: drgn.Program, type_id: int) -> drgn.Type:
        self._weigh(type_id)
        size = self._size(type_id)
        members = list(self._members(type_id))
        # As in C: the last of several members, and not of a union.
        flexible = len(members) - 1 if self._kind(type_id) == STRUCT else 0
        ends = self._ends(type_id, members, 8 * size)
        make = prog.struct_type if self._kind(type_id) == STRUCT else prog.union_type
        return make(
            self._name(type_id) or None,
            size,
            [
                drgn.TypeMember(
                    partial(
                        self._build_member,
                        prog,
                        member,
                        bits,
                        ends[i] - offset,
                        i == flexible != 0,
                    ),
                    self._string(name) or None,
                    offset,
                )
                for i, (name, member, offset, bits) in enumerate(members)
            ],
        )

    def _ends(
        self, type_id: int, members: list[tuple[int, int, int, int]], size: int
    ) -> list[int]:
        """Where each member has to end: where the next one of a structure begins."""
        if self._kind(type_id) == UNION:
            return [size] * len(members)
        starts = sorted({offset for _, _, offset, _ in members})
        ends = dict(zip(starts, [*starts[1:], size], strict=False))
        return [min(ends[offset], size) for _, _, offset, _ in members]

    def _members(self, type_id: int) -> Iterator[tuple[int, int, int, int]]:
        """(name offset, type id, bit offset, bits of a bit-field or 0) of each."""
        split = self._flag(type_id)
        for name, member, offset in self._elements(type_id, 3):
            if split:
                yield name, member, offset & 0xFFFFFF, offset >> 24
            elif self._partial_ints:
                # Without kind_flag a bit-field's type is an int of so many bits.
                start, bits = self._partial_ints.get(self._strip(member), (0, 0))
                yield name, member, offset + start, bits
            else:
                yield name, member, offset, 0

    @cached_property
    def _partial_ints(self) -> dict[int, tuple[int, int]]:
        """Bit offset and bits of the ints that do not fill their bytes."""
        found = {}
        for type_id in np.flatnonzero(self._kinds == INT).tolist():
            _, offset, bits = self._int(type_id)
            if bits and (offset or bits != 8 * int(self._third[type_id])):
                found[type_id] = offset, bits
        return found

    def _build_member(
        self, prog: drgn.Program, member: int, bits: int, room: int, flexible: bool
    ) -> drgn.Type | drgn.Object:
        """A member's type, which has to fit into the bits left of the structure."""
        member_type = self.type_of(prog, member)
        if flexible and self._kind(member) == ARRAY and member_type.length == 0:
            return prog.array_type(member_type.type)
        try:
            size = 8 * drgn.sizeof(member_type)
        except (TypeError, OverflowError) as error:
            raise BtfError(f"BTF: a member of type {member}: {error}") from error
        if (bits or size) > room or bits > size:
            raise BtfError(f"BTF: a member of type {member} does not fit")
        if not bits:
            return member_type
        if self._kind(self._strip(member)) not in _BIT_FIELDS:
            raise BtfError(f"BTF: a bit-field of type {member}")
        return drgn.Object(prog, member_type, bit_field_size=bits)

    def _weigh(self, type_id: int, depth: int = 0) -> int:
        """Members or parameters of a type, with those of types that have no name.

        drgn lists the members of unnamed members with a structure's own, and prints
        types without a tag where they are used. In C this comes to an end; in a
        damaged BTF a type could come back to itself, or levels multiply.
        """
        if type_id in self._weights:
            return self._weights[type_id]
        if depth > _MAX_DEPTH:
            raise BtfError(f"BTF: type {type_id} is nested too deeply")
        weight = self._vlen(type_id)
        for inner in self._nameless(type_id):
            weight += self._weigh(inner, depth + 1)
            if weight > _MAX_WEIGHT:
                raise BtfError(f"BTF: type {type_id} is endless")
        self._weights[type_id] = weight
        return weight

    def _nameless(self, type_id: int) -> Iterator[int]:
        """Structures and functions that drgn takes as a part of one."""
        if self._kind(type_id) == FUNC_PROTO:
            used = [int(self._third[type_id])]
            used += [parameter for _, parameter in self._elements(type_id, 2)]
        else:
            used = []
            for name, member, _ in self._elements(type_id, 3):
                if not self._is_empty(name):
                    used.append(member)
                elif self._kind(self._strip(member)) in _COMPOUND:
                    yield self._strip(member)
            if not self._is_empty(int(self._names[type_id])):
                return
        for link in (link for start in used for link in self._chain(start)):
            kind = self._kind(link)
            tagless = kind in _COMPOUND and self._is_empty(int(self._names[link]))
            if tagless or kind == FUNC_PROTO:
                yield link

    def _is_empty(self, offset: int) -> bool:
        return self._strings[offset : offset + 1] == b"\0"
