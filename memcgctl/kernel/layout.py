"""Where are the members of a kernel structure? Asks the kernel's own types.

Code that depends on the shape of a structure asks here (``has_member``) instead of
comparing releases, and bulk readers get NumPy dtypes with the kernel's offsets.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import drgn
import numpy as np

from memcgctl.kernel.errors import KernelError, first_line

_INTEGERS = (drgn.TypeKind.INT, drgn.TypeKind.BOOL)
_COMPOUND = (drgn.TypeKind.STRUCT, drgn.TypeKind.UNION, drgn.TypeKind.CLASS)
_SIZED = (*_INTEGERS, *_COMPOUND, drgn.TypeKind.POINTER)


class LayoutError(KernelError):
    """The kernel's types make no sense: a member is not what it is in any kernel."""


def _bare(type_: drgn.Type) -> drgn.Type:
    while type_.kind == drgn.TypeKind.TYPEDEF:
        type_ = type_.type
    return type_


def _member(prog: drgn.Program, type_name: str, path: str) -> tuple[drgn.Type, int]:
    """Type and byte offset of the member at ``path`` ("a.b.c").

    Raises LookupError if there is no such member or type, LayoutError if it is a
    bit-field.
    """
    type_, bits = prog.type(type_name), 0
    for name in path.split("."):
        type_ = _bare(type_)
        if type_.kind not in _COMPOUND:
            raise LookupError(f"{type_name} has no member {path}")
        member = type_.member(name)
        if member.bit_field_size is not None:
            raise LayoutError(f"{type_name}.{path} is a bit-field")
        type_, bits = member.type, bits + member.bit_offset
    return type_, bits // 8


def has_member(prog: drgn.Program, type_name: str, path: str) -> bool:
    """Whether the kernel has the type and in it a member (or bit-field) ``path``."""
    try:
        _member(prog, type_name, path)
    except LookupError:
        return False
    except LayoutError:
        return True
    return True


def is_compound(prog: drgn.Program, type_name: str, path: str) -> bool:
    """Whether a member that is no bit-field is a structure or union, or has such."""
    type_ = _bare(_member(prog, type_name, path)[0])
    while type_.kind == drgn.TypeKind.ARRAY:
        type_ = _bare(type_.type)
    return type_.kind in _COMPOUND


def offset_of(prog: drgn.Program, type_name: str, path: str) -> int:
    """Offset in bytes of the member ``path``; raises LookupError if there is none."""
    return _member(prog, type_name, path)[1]


def size_of(prog: drgn.Program, type_name: str) -> int:
    """Size of a type in bytes, never 0; LookupError if there is no such type."""
    type_ = _bare(prog.type(type_name))
    size: int | None = type_.size if type_.kind in _SIZED else None
    if not size:
        raise LayoutError(f"{type_name} has no size")
    return size


def length_of(prog: drgn.Program, type_name: str, path: str) -> int:
    """How many elements the array ``path`` has; LookupError if there is no such."""
    type_ = _bare(_member(prog, type_name, path)[0])
    if type_.kind != drgn.TypeKind.ARRAY or not type_.length:
        raise LayoutError(f"{type_name}.{path} is not an array")
    return int(type_.length)


def value_of(variable: drgn.Object, path: str = "") -> int:
    """The integer or pointer that a variable, or its member at ``path``, holds.

    Raises LookupError if there is no such member, drgn.FaultError if it is not in the
    dump, LayoutError if it is of another type.
    """
    try:
        for name in path.split(".") if path else ():
            variable = variable.member_(name)
        found = variable.value_()
    except (AttributeError, OverflowError, TypeError, ValueError) as error:
        raise LayoutError(f"{path or 'a variable'}: {first_line(error)}") from error
    except NotImplementedError as error:  # integers of more than 64 bits
        raise LayoutError(f"{path or 'a variable'}: {first_line(error)}") from error
    if not isinstance(found, int):
        raise LayoutError(f"{path or 'a variable'} is not an integer")
    return found


def size_behind(prog: drgn.Program, type_name: str, path: str) -> int:
    """Size of what the pointer at ``path`` points to; an integer's own, else 0."""
    type_ = _bare(_member(prog, type_name, path)[0])
    if type_.kind == drgn.TypeKind.POINTER:
        type_ = _bare(type_.type)
    elif type_.kind != drgn.TypeKind.INT:
        return 0
    return int(type_.size or 0) if type_.kind in _SIZED else 0


def members_of_type(prog: drgn.Program, type_name: str, wanted: str) -> list[int]:
    """Byte offsets of the members of a structure that are of the type ``wanted``."""
    return [
        member.bit_offset // 8
        for member in prog.type(type_name).members or ()
        if member.name and member.type.type_name() == wanted
    ]


def bit_field(prog: drgn.Program, type_name: str, name: str) -> tuple[int, int]:
    """(bit offset, bits) of a bit-field; LookupError if there is no such member."""
    type_ = _bare(prog.type(type_name))
    member = type_.member(name) if type_.kind in _COMPOUND else None
    if member is None or not member.bit_field_size:
        raise LayoutError(f"{type_name}.{name} is not a bit-field")
    return int(member.bit_offset), int(member.bit_field_size)


def _scalar(type_: drgn.Type, name: str, dimensions: int = 2) -> Any:
    """What NumPy calls a C integer, pointer or (nested) array of these."""
    type_ = _bare(type_)
    if type_.kind == drgn.TypeKind.ARRAY and type_.length is not None and dimensions:
        return (_scalar(type_.type, name, dimensions - 1), (type_.length,))
    if type_.kind == drgn.TypeKind.ENUM and type_.type is not None:
        type_ = _bare(type_.type)
    if type_.kind == drgn.TypeKind.POINTER:
        code = "u"
    elif type_.kind in _INTEGERS:
        signed = type_.kind == drgn.TypeKind.INT and type_.is_signed
        code = "i" if signed else "u"
    else:
        raise LayoutError(f"{name} is not an integer")
    if type_.size not in (1, 2, 4, 8):
        raise LayoutError(f"{name} has {type_.size} bytes")
    order = "<" if type_.byteorder == "little" else ">"
    return f"{order}{code}{type_.size}"


def dtype_of(
    prog: drgn.Program, type_name: str, members: Mapping[str, str]
) -> np.dtype[np.void]:
    """A NumPy dtype for an array of ``type_name`` as it lies in kernel memory.

    ``members`` maps field names to C member paths ("a.b.c"; members of anonymous
    structures are found). Offsets and itemsize are those of the kernel's type.
    Raises LookupError for a missing member, LayoutError for one that is not an
    integer, a pointer or an array of these.
    """
    formats, offsets = [], []
    for path in members.values():
        type_, offset = _member(prog, type_name, path)
        formats.append(_scalar(type_, f"{type_name}.{path}"))
        offsets.append(offset)
    return np.dtype(
        {
            "names": list(members),
            "formats": formats,
            "offsets": offsets,
            "itemsize": size_of(prog, type_name),
        }
    )
