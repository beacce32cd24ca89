"""The BTF reader against hand-made BTF, right and damaged.

The truth is the format as include/uapi/linux/btf.h describes it, written here a
second time by ``Blob``, and for bit-fields the C compiler's layout by ctypes.
"""

from __future__ import annotations

import ctypes
import gc
import struct
from collections.abc import Sequence
from contextlib import suppress

import drgn
import pytest
from drgn import TypeKind
from hypothesis import given, settings
from hypothesis import strategies as st

from memcgctl.kernel.btf import Btf, BtfError
from memcgctl.kernel.errors import KernelError

INT, PTR, ARRAY, STRUCT, UNION, ENUM, FWD, TYPEDEF = range(1, 9)
VOLATILE, CONST, RESTRICT, FUNC, FUNC_PROTO, VAR, DATASEC = range(9, 16)
FLOAT, DECL_TAG, TYPE_TAG, ENUM64 = range(16, 20)

X86_64 = drgn.Platform(drgn.Architecture.X86_64)
Members = Sequence[tuple[str, int, int]]


class Blob:
    """A BTF in the making; each method adds a type and returns its id."""

    def __init__(self) -> None:
        self.strings = b"\0"
        self.types: list[bytes] = []

    def string(self, name: str) -> int:
        if not name:
            return 0
        self.strings += name.encode() + b"\0"
        return len(self.strings) - len(name.encode()) - 1

    def add(
        self,
        kind: int,
        name: str = "",
        third: int = 0,
        tail: Sequence[int] = (),
        vlen: int = 0,
        flag: bool = False,
    ) -> int:
        info = flag << 31 | kind << 24 | vlen
        words = (self.string(name), info, third, *(w & 0xFFFFFFFF for w in tail))
        self.types.append(struct.pack(f"<{len(words)}I", *words))
        return len(self.types)

    def integer(
        self,
        name: str,
        size: int,
        encoding: int = 0,
        bits: int | None = None,
        offset: int = 0,
    ) -> int:
        bits = 8 * size if bits is None else bits
        return self.add(INT, name, size, [encoding << 24 | offset << 16 | bits])

    def array(self, element: int, count: int) -> int:
        return self.add(ARRAY, tail=[element, element, count])

    def compound(
        self,
        kind: int,
        name: str,
        size: int,
        members: Members,
        flag: bool = False,
    ) -> int:
        tail = [w for m, t, at in members for w in (self.string(m), t, at)]
        return self.add(kind, name, size, tail, len(members), flag)

    def structure(
        self, name: str, size: int, members: Members, flag: bool = False
    ) -> int:
        return self.compound(STRUCT, name, size, members, flag)

    def enum(
        self,
        name: str,
        values: Sequence[tuple[str, int]],
        size: int = 4,
        flag: bool = False,
    ) -> int:
        tail = [w for n, v in values for w in (self.string(n), v)]
        return self.add(ENUM, name, size, tail, len(values), flag)

    def enum64(
        self, name: str, values: Sequence[tuple[str, int]], flag: bool = False
    ) -> int:
        tail = [w for n, v in values for w in (self.string(n), v, v >> 32)]
        return self.add(ENUM64, name, 8, tail, len(values), flag)

    def proto(self, returns: int, parameters: Sequence[tuple[str, int]]) -> int:
        tail = [w for n, t in parameters for w in (self.string(n), t)]
        return self.add(FUNC_PROTO, "", returns, tail, len(parameters))

    def build(
        self,
        *,
        magic: int = 0xEB9F,
        version: int = 1,
        flags: int = 0,
        layout: bytes = b"",
    ) -> bytes:
        types = b"".join(self.types)
        sizes = [len(types), len(self.strings), len(layout)]
        offsets = [0, sizes[0], sizes[0] + sizes[1]]
        fields = [f for pair in zip(offsets, sizes, strict=True) for f in pair]
        fields = fields if layout else fields[:4]
        size = 8 + 4 * len(fields)
        header = struct.pack("<HBBI", magic, version, flags, size)
        header += struct.pack(f"<{len(fields)}I", *fields)
        return header + types + self.strings + layout


def load(blob: Blob) -> tuple[Btf, drgn.Program]:
    btf, prog = Btf(blob.build()), drgn.Program(X86_64)
    btf.register(prog)
    return btf, prog


def members(type_: drgn.Type) -> list[tuple[str | None, int, str, int | None]]:
    return [
        (m.name, m.bit_offset, m.type.type_name(), m.bit_field_size)
        for m in type_.members or ()
    ]


# Each kind


def test_integers() -> None:
    """Lost: counters that go negative, flags that read as something else."""
    blob = Blob()
    ids = [
        blob.integer("long unsigned int", 8),
        blob.integer("int", 4, 1),
        blob.integer("_Bool", 1, 4),
        blob.integer("signed char", 1),  # as pahole 1.20 writes it for 5.10
        blob.integer("__int128", 16, 1),
        blob.add(FLOAT, "double", 8),
    ]
    btf, prog = load(blob)
    types = [btf.type_of(prog, i) for i in ids]
    assert [t.size for t in types] == [8, 4, 1, 1, 16, 8]
    assert [t.kind for t in types] == [
        TypeKind.INT,
        TypeKind.INT,
        TypeKind.BOOL,
        TypeKind.INT,
        TypeKind.INT,
        TypeKind.FLOAT,
    ]
    assert [types[i].is_signed for i in (0, 1, 3, 4)] == [False, True, True, True]
    # drgn's own spelling, by which its code asks
    names = ["unsigned long", "int", "_Bool", "signed char", "__int128", "double"]
    assert [t.type_name() for t in types] == names


def test_the_kernels_own_primitive_types() -> None:
    """Lost: the kernel's idea of a "long", to what drgn assumes without one."""
    blob = Blob()
    blob.integer("long unsigned int", 2)
    blob.integer("_Bool", 2, 4)
    _, prog = load(blob)
    assert prog.type("unsigned long").size == prog.type("long unsigned").size == 2
    assert prog.type("_Bool").size == 2


def test_structures_and_unions() -> None:
    """Lost: every number, since each is read at a member's offset."""
    blob = Blob()
    long = blob.integer("long unsigned int", 8)
    short = blob.integer("short unsigned int", 2)
    inner = blob.compound(UNION, "", 8, [("flags", long, 0), ("half", short, 0)])
    blob.structure("page", 24, [("", inner, 0), ("lru", long, 64), ("id", short, 128)])
    blob.structure("large", 0x100000, [("x", long, 0x7FFF80)], flag=True)
    _, prog = load(blob)
    page = prog.type("struct page")
    assert (page.kind, page.tag, page.size) == (TypeKind.STRUCT, "page", 24)
    assert [m[:2] for m in members(page)] == [(None, 0), ("lru", 64), ("id", 128)]
    assert page.member("half").type.type_name() == "unsigned short"
    assert drgn.offsetof(page, "id") == 16
    assert page.members is not None
    assert page.members[0].type.kind == TypeKind.UNION
    assert members(prog.type("struct large")) == [
        ("x", 0x7FFF80, "unsigned long", None)
    ]


def test_members_are_lazy() -> None:
    """Lost: a kernel that opens in a blink, and all of it to one bad member."""
    blob = Blob()
    long = blob.integer("long unsigned int", 8)
    bad = blob.add(FUNC, "not_a_type", 99)
    blob.types[-1] = blob.types[-1][:8] + struct.pack("<I", long)
    blob.structure("page", 16, [("flags", long, 0), ("bad", bad, 64), ("x", 77, 64)])
    _, prog = load(blob)
    page = prog.type("struct page")
    assert page.member("flags").type.size == 8
    for name in "bad", "x":
        with pytest.raises(BtfError):
            _ = page.member(name).type


class CompilerFields(ctypes.LittleEndianStructure):
    """The C compiler's own layout of some bit-fields."""

    _fields_ = (
        ("a", ctypes.c_uint, 3),
        ("b", ctypes.c_uint, 13),
        ("c", ctypes.c_int, 7),
        ("whole", ctypes.c_uint),
        ("d", ctypes.c_ushort, 5),
        ("e", ctypes.c_ushort, 11),
    )


@pytest.mark.parametrize("kind_flag", [True, False])
def test_bit_fields(kind_flag: bool) -> None:
    """Lost: state kept in bit-fields (swap clusters, sockets, cgroup flags)."""
    layout = (
        ("a", 3, 0, "unsigned int", 4, 0),
        ("b", 13, 3, "unsigned int", 4, 0),
        ("c", 7, 16, "int", 4, 1),
        ("whole", 0, 32, "unsigned int", 4, 0),
        ("d", 5, 64, "short unsigned int", 2, 0),
        ("e", 11, 69, "short unsigned int", 2, 0),
    )
    blob = Blob()
    fields = []
    for name, bits, at, int_name, size, encoding in layout:
        if kind_flag or not bits:
            base = blob.integer(int_name, size, encoding)
            fields.append((name, base, at | (bits << 24 if kind_flag else 0)))
        else:
            # The older form: an int of that many bits, under a typedef, which may
            # carry a part of the offset (here, 1 bit of each but the first).
            shift = min(at, 1)
            base = blob.integer(int_name, size, encoding, bits, shift)
            alias = blob.add(TYPEDEF, "alias", base)
            fields.append((name, blob.add(CONST, "", alias), at - shift))
    blob.structure("fields", 12, fields, kind_flag)
    _, prog = load(blob)

    truth = CompilerFields(5, 0x1234, -21, 0xDEADBEEF, 17, 0x5A5)
    raw = bytes(truth)
    prog.add_memory_segment(0, len(raw), lambda at, size, *_: raw[at : at + size])
    found = drgn.Object(prog, "struct fields", address=0)
    for name, bits, *_ in layout:
        assert found.member_(name).bit_field_size_ == (bits or None)
        assert found.member_(name).value_() == getattr(truth, name), name


def test_enumerations() -> None:
    """Lost: page flags and node states by name, which move between kernels."""
    blob = Blob()
    blob.enum("pageflags", [("PG_locked", 0), ("PG_high", 0x80000000)])
    blob.enum("minus", [("MINUS", -5), ("PLUS", 5)], flag=True)
    blob.enum("small", [("ONE", 1)], size=1)
    blob.enum64("wide", [("TOP", 1 << 63), ("LOW", 3)])
    blob.enum64("wide_signed", [("BOTTOM", -(1 << 63))], flag=True)
    _, prog = load(blob)
    found = {
        name: (
            t.type.type_name() if t.type else "",
            [(e.name, e.value) for e in t.enumerators or ()],
        )
        for name in ("pageflags", "minus", "small", "wide", "wide_signed")
        for t in [prog.type(f"enum {name}")]
    }
    assert found == {
        "pageflags": ("unsigned int", [("PG_locked", 0), ("PG_high", 0x80000000)]),
        "minus": ("int", [("MINUS", -5), ("PLUS", 5)]),
        "small": ("unsigned char", [("ONE", 1)]),
        "wide": ("unsigned long", [("TOP", 1 << 63), ("LOW", 3)]),
        "wide_signed": ("long", [("BOTTOM", -(1 << 63))]),
    }
    assert prog.constant("PG_high").value_() == 0x80000000
    assert prog["MINUS"].value_() == -5
    assert prog.constant("TOP").value_() == 1 << 63
    for lookup in prog.variable, prog.function:
        with pytest.raises(LookupError):
            lookup("PG_high")
    with pytest.raises(LookupError):
        prog.constant("PG_none")


def test_enumerations_before_they_told_their_sign() -> None:
    """Lost: negative enumerators on 5.10, whose BTF flags none."""
    blob = Blob()
    blob.enum("plain", [("ZERO", 0)])
    blob.enum("negative", [("MINUS", -1), ("ZERO2", 0)])
    _, prog = load(blob)
    assert prog.constant("MINUS").value_() == -1
    signs = [prog.type(f"enum {n}").type for n in ("plain", "negative")]
    assert [t.is_signed for t in signs if t] == [False, True]


def test_forward_declarations() -> None:
    """Lost: what a pointer to an undefined structure points to."""
    blob = Blob()
    fwd_struct = blob.add(FWD, "page")
    fwd_union = blob.add(FWD, "page", flag=True)
    fwd_enum = blob.enum("state", [])
    alone = blob.add(FWD, "elsewhere")
    blob.add(FWD, "elsewhere", flag=True)
    blob.enum("elsewhere", [])
    long = blob.integer("long unsigned int", 8)
    blob.compound(UNION, "page", 16, [("a", long, 0)])
    blob.structure("page", 8, [("a", long, 0)])
    blob.structure("page", 8, [("second", long, 0)])
    blob.enum("state", [("ON", 1)])
    holder = [("p", blob.add(PTR, "", fwd_struct), 0)]
    blob.structure("holder", 8, holder)
    btf, prog = load(blob)
    assert btf.type_of(prog, fwd_struct).size == 8
    assert btf.type_of(prog, fwd_union).size == 16
    assert btf.type_of(prog, fwd_enum).type is not None
    pointed = prog.type("struct holder").member("p").type.type
    assert members(pointed)[0][0] == "a"  # of two definitions the first
    incomplete = btf.type_of(prog, alone)
    assert (incomplete.size, incomplete.members) == (None, None)
    for name in "struct elsewhere", "union elsewhere", "enum elsewhere":
        assert not prog.type(name).is_complete()
        assert prog.type(name).type_name() == name


def test_pointers_typedefs_and_qualifiers() -> None:
    """Lost: types that print and compare as C has them."""
    blob = Blob()
    char = blob.integer("char", 1, 1)
    tagged = blob.add(TYPE_TAG, "user", char)
    const = blob.add(CONST, "", tagged)
    pointer = blob.add(PTR, "", const)
    restrict = blob.add(RESTRICT, "", pointer)
    both = blob.add(VOLATILE, "", blob.add(CONST, "", char))
    void_pointer = blob.add(PTR, "", 0)
    blob.add(TYPEDEF, "string_t", pointer)
    blob.add(DECL_TAG, "bpf_kfunc", char, [-1])
    btf, prog = load(blob)
    names = [btf.type_of(prog, i).type_name() for i in (restrict, both, void_pointer)]
    assert names == ["const char * restrict", "const volatile char", "void *"]
    assert str(prog.type("string_t")) == "typedef const char *string_t"
    assert drgn.sizeof(prog.type("string_t")) == 8
    assert btf.type_of(prog, 0).kind == TypeKind.VOID


def test_functions() -> None:
    """Lost: callbacks by their prototype, and structures that hold them."""
    blob = Blob()
    number = blob.integer("int", 4, 1)
    holder = len(blob.types) + 3  # the structure below: a cycle as C has them
    proto = blob.proto(number, [("self", holder + 1), ("n", number), ("", 0)])
    callback = blob.add(PTR, "", proto)
    assert blob.structure("work", 8, [("call", callback, 0)]) == holder
    blob.add(PTR, "", holder)
    blob.add(FUNC, "run", proto)
    void = blob.proto(0, [])
    broken = blob.proto(number, [("good", number), ("bad", callback + 3)])
    btf, prog = load(blob)
    call = prog.type("struct work").member("call").type
    assert call.type_name() == "int (*)(struct work *self, int n, ...)"
    parameters = call.type.parameters
    assert parameters is not None
    assert [p.name for p in parameters] == ["self", "n"]
    assert members(parameters[0].type.type)[0][0] == "call"
    assert btf.type_of(prog, void).type_name() == "void (void)"
    # One bad parameter, a FUNC, does not cost the others.
    good, bad = list(btf.type_of(prog, broken).parameters or ())
    assert good.type.type_name() == "int"
    with pytest.raises(BtfError, match="kind 12"):
        _ = bad.type


def test_arrays() -> None:
    """Lost: per-node and per-CPU tables, and the ends of flexible structures."""
    blob = Blob()
    long = blob.integer("long unsigned int", 8)
    table = blob.array(blob.array(long, 3), 2)
    empty = blob.array(long, 0)
    huge = blob.array(long, 0xFFFFFFFF)
    blob.structure(
        "flexible", 56, [("table", table, 0), ("a", long, 384), ("f", empty, 448)]
    )
    blob.structure("zero", 8, [("marker", empty, 0), ("a", long, 0)])
    blob.structure("only", 0, [("none", empty, 0)])
    blob.compound(UNION, "either", 8, [("a", long, 0), ("none", empty, 0)])
    btf, prog = load(blob)
    assert [m[2] for m in members(prog.type("struct flexible"))] == [
        "unsigned long [2][3]",
        "unsigned long",
        "unsigned long []",
    ]
    assert members(prog.type("struct zero"))[0][2] == "unsigned long [0]"
    assert members(prog.type("struct only"))[0][2] == "unsigned long [0]"
    assert members(prog.type("union either"))[1][2] == "unsigned long [0]"
    assert drgn.sizeof(btf.type_of(prog, table)) == 48
    assert drgn.sizeof(btf.type_of(prog, huge)) == 8 * 0xFFFFFFFF


def test_names() -> None:
    """Lost: types whose name another kind has too, as tags and typedefs do."""
    blob = Blob()
    long = blob.integer("long unsigned int", 8)
    tag = blob.structure("page", 8, [("a", long, 0)])
    alias = blob.add(TYPEDEF, "page", tag)
    blob.add(TYPEDEF, "size_t", long)
    btf, prog = load(blob)
    assert btf.find("page", TypeKind.STRUCT) == tag
    assert btf.find("page", TypeKind.TYPEDEF) == alias
    assert btf.find("page", TypeKind.UNION) is None
    assert prog.type("page").kind == TypeKind.TYPEDEF
    assert prog.type("struct page").kind == TypeKind.STRUCT
    assert prog.type("size_t").type.type_name() == "unsigned long"
    with pytest.raises(LookupError):
        prog.type("struct page", "mm/page.c")
    with pytest.raises(LookupError):
        prog.type("struct none")


def test_the_btf_is_asked_first() -> None:
    """Lost: the core's own types, where drgn has found some other file's."""
    blob = Blob()
    blob.structure("page", 64, [])
    prog = drgn.Program(X86_64)
    other = prog.struct_type("page", 8, [])
    prog.register_type_finder("other", lambda *_: other, enable_index=0)
    Btf(blob.build()).register(prog)
    assert prog.type("struct page").size == 64


def living_programs() -> int:
    gc.collect()
    return sum(isinstance(o, drgn.Program) for o in gc.get_objects())


def test_two_programs_and_no_leak() -> None:
    """Lost: memory, a core at a time, in whoever opens many."""
    blob = Blob()
    long = blob.integer("long unsigned int", 8)
    blob.structure("page", 8, [("a", long, 0)])
    btf = Btf(blob.build())
    before = living_programs()
    programs = [drgn.Program(X86_64) for _ in range(2)]
    for prog in programs:
        btf.register(prog)
        assert prog.type("struct page").prog == prog
        assert members(prog.type("struct page"))[0][:2] == ("a", 0)
    programs.clear()
    del prog
    assert living_programs() == before


# What is refused


def test_what_is_not_a_kernels_btf() -> None:
    """Lost: a clear line instead of nonsense types."""
    blob = Blob()
    blob.integer("int", 4, 1)
    whole = blob.build()
    assert len(Btf(whole)) == 2
    endless = Blob()
    endless.strings = b"\0no end"
    module = Blob()
    module.strings = b"a_string_of_the_module\0"
    cases = {
        "not found here": [b"", b"\x7fELF" + whole, blob.build(magic=0x1234)],
        "big-endian": [blob.build(magic=0x9FEB)],
        "version 2": [blob.build(version=2)],
        "flags 0x1": [blob.build(flags=1)],
        "cut off": [whole[:12], whole[:-1], whole[:30]],
        "a header of": [whole[:4] + b"\x08" + whole[5:]],
        "ends within a record": [endless.build(), blob.build(layout=b"12345")],
        "split BTF": [module.build()],
    }
    for message, blobs in cases.items():
        for data in blobs:
            with pytest.raises(BtfError, match=message) as caught:
                Btf(data)
            assert isinstance(caught.value, KernelError)
            assert "\n" not in str(caught.value)


def test_records_out_of_bounds() -> None:
    """Lost: a clear line, where a flipped bit makes a record too long."""
    for kind, third, vlen in ((STRUCT, 8, 0xFFFF), (ENUM, 4, 0xFFFFFF), (ARRAY, 0, 0)):
        blob = Blob()
        blob.add(kind, "x", third, vlen=vlen)
        with pytest.raises(BtfError, match="type 1 is cut off"):
            Btf(blob.build())
    blob = Blob()
    blob.add(PTR, "", 2)
    with pytest.raises(BtfError, match="type 1 refers to a type out of bounds"):
        Btf(blob.build())
    blob = Blob()
    blob.integer("int", 4)
    blob.types[0] = struct.pack("<I", 1000) + blob.types[0][4:]
    with pytest.raises(BtfError, match="the name of type 1 is out of bounds"):
        Btf(blob.build())


def test_kinds_to_come() -> None:
    """Lost: kernels whose BTF has a new kind that they tell how to step over."""
    blob = Blob()
    blob.add(20, "novelty", 4, [1, 2, 3, 4, 5], vlen=2)
    long = blob.integer("long unsigned int", 8)
    blob.structure("page", 16, [("a", long, 0), ("new", 1, 64)])
    with pytest.raises(BtfError, match="type 1 is of an unknown kind, 20"):
        Btf(blob.build())
    # struct btf_layout: 4 bytes after the head, 8 for each element
    layout = struct.pack("<BBH", 0, 0, 0) * 20 + struct.pack("<BBH", 4, 8, 0)
    btf, prog = Btf(blob.build(layout=layout)), drgn.Program(X86_64)
    btf.register(prog)
    page = prog.type("struct page")
    assert page.member("a").type.size == 8
    with pytest.raises(BtfError, match="kind 20"):
        _ = page.member("new").type


def endless() -> dict[str, Blob]:
    """Types that hold, alias or point to themselves, as only damage makes them."""
    blobs = {
        name: Blob()
        for name in ("typedef", "const", "pointer", "array", "function", "deep")
    }
    blobs["typedef"].add(TYPEDEF, "t", 1)
    blobs["const"].add(CONST, "", 2)
    blobs["const"].add(VOLATILE, "", 1)
    blobs["pointer"].add(PTR, "", 1)
    blobs["array"].array(1, 2)
    blobs["function"].proto(1, [])
    for i in range(100):
        blobs["deep"].add(PTR, "", i + 2)
    blobs["deep"].integer("int", 4)
    return blobs


@pytest.mark.parametrize(("name", "blob"), endless().items())
def test_endless_types(name: str, blob: Blob) -> None:
    """Lost: the session, to a recursion error or a hang."""
    btf, prog = load(blob)
    with pytest.raises(BtfError, match="does not come to an end"):
        btf.type_of(prog, 1)


def test_structures_that_hold_themselves() -> None:
    """Lost: the session, when drgn lists the members of unnamed members."""
    blob = Blob()
    blob.compound(UNION, "self", 8, [("", 1, 0), ("", 1, 0)])
    inner = blob.compound(UNION, "level0", 8, [("x", blob.integer("long", 8), 0)])
    for level in range(1, 26):
        inner = blob.compound(UNION, f"level{level}", 8, [("", inner, 0)] * 2)
    _, prog = load(blob)
    for tag in "self", "level25":
        with pytest.raises(BtfError):
            prog.type(f"union {tag}")
    assert prog.type("union level4").has_member("x")


def test_nameless_types_that_come_back_to_themselves() -> None:
    """Lost: the session, when drgn prints a type where it is used."""
    blob = Blob()
    tagless = blob.structure("", 8, [("me", 2, 0)])
    blob.add(PTR, "", tagless)
    function = blob.proto(0, [("me", 4)])
    blob.add(PTR, "", function)
    fwd = blob.add(FWD, "page")
    blob.structure("page", 8, [("", fwd, 0)])
    # As C has it: a list through a structure that has no name of its own.
    link = len(blob.types) + 3
    blob.structure("", 8, [("next", link, 0)])
    blob.structure("list", 8, [("", link - 2, 0)])
    assert blob.add(PTR, "", link - 1) == link
    btf, prog = load(blob)
    for type_id in tagless, function, fwd:
        with pytest.raises(BtfError, match="nested too deeply"):
            btf.type_of(prog, type_id)
    assert prog.type("struct list").member("next").type.type_name() == "struct list *"


def test_members_that_do_not_fit() -> None:
    """Lost: reads far outside of a structure, and sizes that no memory has."""
    blob = Blob()
    long = blob.integer("long unsigned int", 8)
    number = blob.integer("int", 4, 1)
    fwd = blob.add(FWD, "unknown")
    proto = blob.proto(0, [])
    bad = [
        ("beyond", long, 32),
        ("negative", long, 640),
        ("huge", blob.array(blob.array(blob.array(long, 1 << 31), 1 << 31), 9), 0),
        ("incomplete", fwd, 0),
        ("function", proto, 0),
        ("nothing", 0, 0),
        ("bits", number, 33 << 24),
        ("pointer_bits", blob.add(PTR, "", number), 3 << 24),
    ]
    blob.structure("plain", 8, bad[:6])
    blob.structure("flagged", 8, bad[6:], True)
    blob.structure("giant", 0x7FFFFFFF, [])
    blob.add(TYPEDEF, "odd", blob.integer("odd_int", 3))
    blob.enum("odd_enum", [("X", 1)], size=16)
    _, prog = load(blob)
    for tag in "plain", "flagged":
        for member in prog.type(f"struct {tag}").members or ():
            with pytest.raises(BtfError):
                _ = member.type
    for name in "struct giant", "odd", "enum odd_enum":
        with pytest.raises(BtfError):
            prog.type(name)


# Damage at random


def of_every_kind() -> Blob:
    blob = Blob()
    long = blob.integer("long unsigned int", 8)
    number = blob.integer("int", 4, 1)
    blob.integer("_Bool", 1, 4)
    blob.add(FLOAT, "double", 8)
    blob.enum("flags", [("PG_locked", 0), ("PG_dirty", 4)])
    blob.enum("negative", [("MINUS", -1)], flag=True)
    blob.enum64("wide", [("TOP", 1 << 63)])
    inner = blob.compound(UNION, "", 8, [("a", long, 0), ("b", number, 0)])
    fwd = blob.add(FWD, "page")
    pointer = blob.add(PTR, "", blob.add(CONST, "", fwd))
    alias = blob.add(TYPEDEF, "alias", blob.add(VOLATILE, "", pointer))
    table = blob.array(alias, 4)
    call = blob.add(PTR, "", blob.proto(number, [("x", alias), ("", 0)]))
    blob.add(FUNC, "run", call - 1)
    blob.structure("page", 56, [("", inner, 0), ("t", table, 64), ("call", call, 320)])
    blob.structure(
        "bits", 8, [("p", number, 3 << 24), ("q", number, 3 | 9 << 24)], True
    )
    part = blob.integer("unsigned int", 4, 0, 5)
    blob.structure(
        "old", 16, [("p", part, 0), ("n", long, 64), ("f", blob.array(long, 0), 128)]
    )
    variable = blob.add(VAR, "stock", blob.add(TYPE_TAG, "percpu", long), [0])
    blob.add(DATASEC, ".data..percpu", 8, [variable, 0, 8], 1)
    blob.add(DECL_TAG, "tag", long, [-1])
    return blob


def touch_all(data: bytes) -> None:
    """Use every type in every way; whatever is wrong with one is a BtfError."""
    btf = Btf(data)
    prog = drgn.Program(X86_64)
    btf.register(prog)
    with suppress(BtfError, LookupError):
        prog.constant("PG_dirty")
    for name in "struct page", "struct bits", "struct old", "alias", "enum wide":
        with suppress(BtfError, LookupError):
            prog.type(name)
    for type_id in range(len(btf) + 1):
        with suppress(BtfError):
            touch(btf.type_of(prog, type_id))


def touch(type_: drgn.Type) -> None:
    # Incomplete, or an array larger than an address space: drgn's own errors.
    with suppress(TypeError, OverflowError):
        drgn.sizeof(type_)
    str(type_)
    if type_.kind in (TypeKind.STRUCT, TypeKind.UNION):
        type_.has_member("a")
        for member in type_.members or ():
            with suppress(BtfError):
                _ = member.type, member.bit_field_size
    if type_.kind == TypeKind.FUNCTION:
        for parameter in type_.parameters or ():
            with suppress(BtfError):
                _ = parameter.type
    if type_.kind == TypeKind.ENUM:
        _ = [e.value for e in type_.enumerators or ()]


WHOLE = of_every_kind().build()


def test_the_undamaged_one() -> None:
    """Lost: the test below, which proves nothing if everything is refused."""
    touch_all(WHOLE)
    btf, prog = Btf(WHOLE), drgn.Program(X86_64)
    bad = 0
    for type_id in range(len(btf)):
        try:
            btf.type_of(prog, type_id)
        except BtfError:
            bad += 1
    assert bad == 4  # FUNC, VAR, DATASEC, DECL_TAG are not C types


@settings(max_examples=1500, deadline=2000)
@given(
    flips=st.lists(st.integers(0, 8 * len(WHOLE) - 1), min_size=1, max_size=6),
    words=st.lists(
        st.tuples(
            st.integers(0, len(WHOLE) // 4 - 1),
            st.one_of(st.integers(0, 40), st.integers(0, 0xFFFFFFFF)),
        ),
        max_size=3,
    ),
    cut=st.one_of(st.just(len(WHOLE)), st.integers(0, len(WHOLE))),
)
def test_damage(flips: list[int], words: list[tuple[int, int]], cut: int) -> None:
    """Lost: the session, to a crash, hang or traceback on a damaged core."""
    data = bytearray(WHOLE)
    for bit in flips:
        data[bit // 8] ^= 1 << bit % 8
    for at, value in words:
        struct.pack_into("<I", data, 4 * at, value)
    with suppress(BtfError):
        touch_all(bytes(data[:cut]))
