"""How are many small kernel structures read at once?

What the census modules share: records gathered by address and decoded with NumPy,
and values of global variables.
"""

from __future__ import annotations

from collections.abc import Sequence

import drgn
import numpy as np
from numpy.typing import NDArray

from memcgctl.kernel.layout import LayoutError, dtype_of, has_member, is_compound
from memcgctl.kernel.memory import Memory
from memcgctl.kernel.program import OpenedKernel

# So many structures are held as raw bytes at a time.
BATCH = 1024

Records = NDArray[np.void]


def present(prog: drgn.Program, type_name: str, paths: Sequence[str]) -> dict[str, str]:
    """The pointers and integers among ``paths`` that this kernel's type has.

    As ``dtype_of`` takes them: each field has the name of its path. A structure, as
    some kernels embed what others point to, is left out; LayoutError for all else.
    """
    return {path: path for path in paths if _is_scalar(prog, type_name, path)}


def _is_scalar(prog: drgn.Program, type_name: str, path: str) -> bool:
    try:
        dtype_of(prog, type_name, {path: path})
    except LookupError:
        return False
    except LayoutError:
        if is_compound(prog, type_name, path):
            return False
        raise
    return True


def first_member(prog: drgn.Program, type_name: str, *paths: str) -> str:
    """The first of several member paths that the type has; LookupError if none."""
    for path in paths:
        if has_member(prog, type_name, path):
            return path
    raise LookupError(f"{type_name} has none of the members {', '.join(paths)}")


def packed(dtype: np.dtype[np.void]) -> np.dtype[np.void]:
    """The fields of ``dtype`` without what lies between them."""
    return np.dtype([(name, dtype[name]) for name in dtype.names or ()])


def decode(parts: Sequence[bytes], dtype: np.dtype[np.void]) -> Records:
    """Structures of equal size as packed records: only the fields are kept."""
    return np.frombuffer(b"".join(parts), dtype).astype(packed(dtype))


def gather_records(
    memory: Memory, addresses: Sequence[int], dtype: np.dtype[np.void]
) -> tuple[Records, NDArray[np.bool_]]:
    """The structures at ``addresses``, and which of them could be read.

    What could not be read is all zeros.
    """
    zeros = bytes(dtype.itemsize)
    records, read = [decode((), dtype)], []
    for start in range(0, len(addresses), BATCH):
        found = memory.gather(addresses[start : start + BATCH], dtype.itemsize)
        read += [data is not None for data in found]
        records.append(decode([data or zeros for data in found], dtype))
    return np.concatenate(records), np.array(read, np.bool_)


def read_variable(kernel: OpenedKernel, name: str, size: int) -> int:
    """The unsigned integer or pointer of ``size`` bytes in a global variable.

    Raises LookupError without such a symbol, drgn.FaultError if it is unreadable.
    """
    return int.from_bytes(kernel.memory.read(kernel.symbol(name), size), "little")
