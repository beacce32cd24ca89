"""Where are the members of a kernel structure? Asks the kernel's own types.

Code that depends on the shape of a structure asks here (``has_member``) instead of
comparing releases, and bulk readers get NumPy dtypes with the kernel's offsets.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import drgn
import numpy as np

_INTEGERS = (drgn.TypeKind.INT, drgn.TypeKind.BOOL)


def _bare(type_: drgn.Type) -> drgn.Type:
    while type_.kind == drgn.TypeKind.TYPEDEF:
        type_ = type_.type
    return type_


def _member(prog: drgn.Program, type_name: str, path: str) -> tuple[drgn.Type, int]:
    """Type and byte offset of the member at ``path`` ("a.b.c").

    Raises LookupError if there is no such member or type, ValueError if it is a
    bit-field.
    """
    type_, bits = prog.type(type_name), 0
    for name in path.split("."):
        type_ = _bare(type_)
        if type_.kind not in (
            drgn.TypeKind.STRUCT,
            drgn.TypeKind.UNION,
            drgn.TypeKind.CLASS,
        ):
            raise LookupError(f"{type_name} has no member {path}")
        member = type_.member(name)
        if member.bit_field_size is not None:
            raise ValueError(f"{type_name}.{path} is a bit-field")
        type_, bits = member.type, bits + member.bit_offset
    return type_, bits // 8


def has_member(prog: drgn.Program, type_name: str, path: str) -> bool:
    """Whether the kernel has the type and in it a member (or bit-field) ``path``."""
    try:
        _member(prog, type_name, path)
    except LookupError:
        return False
    except ValueError:
        return True
    return True


def offset_of(prog: drgn.Program, type_name: str, path: str) -> int:
    """Offset in bytes of the member ``path``; raises LookupError if there is none."""
    return _member(prog, type_name, path)[1]


def _scalar(type_: drgn.Type) -> Any:
    """What NumPy calls a C integer, pointer or (nested) array of these."""
    type_ = _bare(type_)
    if type_.kind == drgn.TypeKind.ARRAY and type_.length is not None:
        return (_scalar(type_.type), (type_.length,))
    if type_.kind == drgn.TypeKind.ENUM and type_.type is not None:
        type_ = _bare(type_.type)
    if type_.kind == drgn.TypeKind.POINTER:
        code = "u"
    elif type_.kind in _INTEGERS:
        signed = type_.kind == drgn.TypeKind.INT and type_.is_signed
        code = "i" if signed else "u"
    else:
        raise ValueError(f"{type_.type_name()} is not an integer")
    if type_.size not in (1, 2, 4, 8):
        raise ValueError(f"{type_.type_name()} has {type_.size} bytes")
    order = "<" if type_.byteorder == "little" else ">"
    return f"{order}{code}{type_.size}"


def dtype_of(
    prog: drgn.Program, type_name: str, members: Mapping[str, str]
) -> np.dtype[np.void]:
    """A NumPy dtype for an array of ``type_name`` as it lies in kernel memory.

    ``members`` maps field names to C member paths ("a.b.c"; members of anonymous
    structures are found). Offsets and itemsize are those of the kernel's type.
    Raises LookupError for a missing member, ValueError for one that is not an
    integer, a pointer or an array of these.
    """
    found = [_member(prog, type_name, path) for path in members.values()]
    size = prog.type(type_name).size
    if size is None:
        raise LookupError(f"{type_name} is incomplete")
    return np.dtype(
        {
            "names": list(members),
            "formats": [_scalar(type_) for type_, _ in found],
            "offsets": [offset for _, offset in found],
            "itemsize": size,
        }
    )
