"""Offsets and dtypes, from types made by hand."""

from __future__ import annotations

import drgn
import numpy as np
import pytest

from memcgctl.kernel.layout import LayoutError, dtype_of, has_member, offset_of
from tests.unit.fake_kernel import PLATFORM


@pytest.fixture
def prog() -> drgn.Program:
    """``struct folio`` with a typedef, an array, an anonymous union and a bit-field."""
    prog = drgn.Program(PLATFORM)
    long = prog.int_type("unsigned long", 8, False)
    int_ = prog.int_type("int", 4, True)
    byte = prog.bool_type("_Bool", 1)
    word = prog.typedef_type("word", long)
    inner = prog.union_type(
        None, 8, [drgn.TypeMember(word, "memcg_data"), drgn.TypeMember(long, "private")]
    )
    colour = prog.enum_type("colour", int_, [drgn.TypeEnumerator("RED", -1)])
    counter = prog.struct_type("counter", 4, [drgn.TypeMember(int_, "value")])
    members = [
        drgn.TypeMember(long, "flags", 0),
        drgn.TypeMember(inner, None, 64),
        drgn.TypeMember(prog.array_type(int_, 3), "counts", 128),
        drgn.TypeMember(counter, "refs", 256),
        drgn.TypeMember(
            lambda: drgn.Object(prog, long, bit_field_size=5), "order", 288
        ),
        drgn.TypeMember(prog.pointer_type(prog.void_type()), "next", 320),
        drgn.TypeMember(colour, "colour", 384),
        drgn.TypeMember(byte, "dirty", 416),
        drgn.TypeMember(counter, "counter", 448),
        drgn.TypeMember(prog.float_type("double", 8), "ratio", 512),
    ]
    types = {"folio": prog.struct_type("folio", 80, members), "int": int_}

    def find(
        _: drgn.Program, kinds: drgn.TypeKindSet, name: str, __: str | None
    ) -> drgn.Type | None:
        found = types.get(name)
        return found if found is not None and found.kind in kinds else None

    prog.register_type_finder("hand", find, enable_index=0)
    return prog


def test_dtype_reads_what_c_would(prog: drgn.Program) -> None:
    """Lost: all numbers, decoded at wrong places."""
    members = {
        "data": "memcg_data",
        "refs": "refs.value",
        "counts": "counts",
        "next": "next",
        "colour": "colour",
        "dirty": "dirty",
    }
    dtype = dtype_of(prog, "struct folio", members)
    assert dtype.itemsize == 80
    image = bytearray(160)
    image[80 + 8 : 80 + 16] = (0xFFFF888000001234).to_bytes(8, "little")
    image[80 + 16 : 80 + 28] = np.array([-1, 2, 3], "<i4").tobytes()
    image[80 + 32 : 80 + 36] = (-7).to_bytes(4, "little", signed=True)
    image[80 + 40 : 80 + 48] = (0xFFFFFFFF81000000).to_bytes(8, "little")
    image[80 + 48 : 80 + 52] = (-1).to_bytes(4, "little", signed=True)
    image[80 + 52] = 1
    empty, folio = np.frombuffer(bytes(image), dtype)
    assert empty["data"] == 0
    assert folio["data"] == 0xFFFF888000001234
    assert folio["counts"].tolist() == [-1, 2, 3]
    assert folio["refs"] == -7
    assert folio["next"] == 0xFFFFFFFF81000000
    assert folio["colour"] == -1
    assert folio["dirty"] == 1


def test_has_member_tells_the_shape(prog: drgn.Program) -> None:
    """Lost: a kernel is taken for an older or newer one."""
    assert has_member(prog, "struct folio", "memcg_data")  # in an anonymous union
    assert has_member(prog, "struct folio", "refs.value")
    assert has_member(prog, "struct folio", "order")  # a bit-field is a member, too
    assert not has_member(prog, "struct folio", "mem_cgroup")
    assert not has_member(prog, "struct folio", "refs.value.counter")
    assert not has_member(prog, "struct folio", "refs.other")
    assert not has_member(prog, "struct missing", "flags")


def test_offset_of(prog: drgn.Program) -> None:
    """Lost: as with dtype_of, for single reads."""
    assert offset_of(prog, "struct folio", "private") == 8
    assert offset_of(prog, "struct folio", "refs.value") == 32
    with pytest.raises(LookupError):
        offset_of(prog, "struct folio", "mem_cgroup")
    with pytest.raises(LayoutError, match="bit-field"):
        offset_of(prog, "struct folio", "order")


@pytest.mark.parametrize("member", ["ratio", "counter", "order"])
def test_what_is_no_integer_is_refused(prog: drgn.Program, member: str) -> None:
    """Lost: a structure or a float read as if it were a number."""
    with pytest.raises(LayoutError, match=r"integer|bit-field"):
        dtype_of(prog, "struct folio", {"x": member})
