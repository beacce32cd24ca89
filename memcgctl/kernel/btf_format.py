"""The layout of BTF: its header, its sections and the records of its types.

Source: include/uapi/linux/btf.h, as of 7.3.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from memcgctl.kernel.errors import KernelError

MAGIC = 0xEB9F
_HEADER = struct.Struct("<HBBIIIII")
_HEADER_LAYOUT = struct.Struct("<II")  # the header's last two fields, since 7.2
_LAYOUT = struct.Struct("<BBH")

INT, PTR, ARRAY, STRUCT, UNION, ENUM, FWD, TYPEDEF = range(1, 9)
VOLATILE, CONST, RESTRICT, FUNC, FUNC_PROTO, VAR, DATASEC = range(9, 16)
FLOAT, DECL_TAG, TYPE_TAG, ENUM64 = range(16, 20)

# Words (4 bytes) of a record: those after its three-word head, and those of each
# of its vlen elements.
_EXTRA_WORDS = {INT: 1, ARRAY: 3, VAR: 1, DECL_TAG: 1}
_ELEMENT_WORDS = {
    STRUCT: 3,
    UNION: 3,
    ENUM: 2,
    FUNC_PROTO: 2,
    DATASEC: 3,
    ENUM64: 3,
}


class BtfError(KernelError):
    """The BTF is damaged, or of a form that cannot be used."""


def sections(data: bytes) -> tuple[bytes, bytes, bytes]:
    """Contents of the sections: types, strings, layout (7.2, may be left out).

    :raises BtfError: damaged, big-endian, split (a module's), or of a newer version
    """
    if data[:2] == MAGIC.to_bytes(2, "big"):
        raise BtfError("BTF: big-endian, of a machine that is not supported")
    if data[:2] != MAGIC.to_bytes(2, "little"):
        raise BtfError("BTF: not found here (wrong magic number)")
    if len(data) < _HEADER.size:
        raise BtfError("BTF: cut off in the header")
    _, version, flags, header_size, *fields = _HEADER.unpack_from(data)
    if version != 1 or flags:
        raise BtfError(f"BTF: version {version} (flags {flags:#x}) is not supported")
    if header_size < _HEADER.size or header_size > len(data):
        raise BtfError(f"BTF: a header of {header_size} bytes")
    if header_size >= _HEADER.size + _HEADER_LAYOUT.size:
        fields += _HEADER_LAYOUT.unpack_from(data, _HEADER.size)
    else:
        fields += 0, 0
    parts = []
    for offset, size in zip(fields[::2], fields[1::2], strict=True):
        start = header_size + offset
        if start + size > len(data):
            raise BtfError("BTF: cut off, or damaged in the header")
        parts.append(data[start : start + size])
    types, strings, layout = parts
    if not strings or strings[0]:
        raise BtfError("BTF: of a module (split BTF); the kernel's own is needed")
    if strings[-1] or len(types) % 4 or len(layout) % _LAYOUT.size:
        raise BtfError("BTF: damaged: a section ends within a record")
    return types, strings, layout


def walk(types: bytes, layout: bytes) -> list[int]:
    """Index of the first word of each record.

    :raises BtfError: a record is cut off, or of an unknown kind
    """
    fixed, each = _record_words(layout)
    words = memoryview(types).cast("I")
    # An unknown kind jumps past the end, where it is noticed.
    steps = [step or len(words) + 1 for step in fixed] * 2
    each = each * 2
    starts: list[int] = []
    append: Callable[[int], None] = starts.append
    at, end = 0, len(words) - 2
    while at < end:
        append(at)
        info = words[at + 1]
        kind = info >> 24
        at += steps[kind] + each[kind] * (info & 0xFFFFFF)
    if at != len(words):
        kind = words[starts[-1] + 1] >> 24 & 0x7F if starts else 0
        raise BtfError(
            f"BTF: type {len(starts)} is cut off"
            if fixed[kind]
            else f"BTF: type {len(starts)} is of an unknown kind, {kind}"
        )
    return starts


def _record_words(layout: bytes) -> tuple[list[int], list[int]]:
    """Words of a record's fixed part and of each element, by kind (0 to 127).

    A kind of which nothing is known has a fixed part of 0 words.
    """
    fixed, each = [0] * 128, [0] * 128
    for kind in range(INT, ENUM64 + 1):
        fixed[kind] = 3 + _EXTRA_WORDS.get(kind, 0)
        each[kind] = _ELEMENT_WORDS.get(kind, 0)
    # struct btf_layout tells how to step over kinds that came later.
    for kind, (info, element, _) in enumerate(_LAYOUT.iter_unpack(layout)):
        if ENUM64 < kind < 128 and info % 4 == element % 4 == 0:
            fixed[kind], each[kind] = 3 + info // 4, element // 4
    return fixed, each
