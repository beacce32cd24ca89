"""The page frames that a memcg is charged for, as a table: ``explain --folios``."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from memcgctl.model import Frames
from memcgctl.report.listing import right_aligned
from memcgctl.report.text import counted


def frames_table(frames: Frames, width: int) -> Iterator[str]:
    """A table of page frames; flags go on in a second line where one is too short."""
    rows = [("pfn", "pages", "class", "inode", "maps", "refs", "pins")]
    for frame in frames.frames:
        inode = "-" if frame.inode is None else str(frame.inode)
        counts = (str(frame.mapcount), str(frame.refcount), str(frame.pins))
        rows.append((f"{frame.pfn:#x}", str(frame.pages), frame.kind, inode, *counts))
    columns = [right_aligned(cells) for cells in zip(*rows, strict=True)]
    lines = ["  ".join(cells) for cells in zip(*columns, strict=True)]
    yield f"\n{lines[0]}  flags"
    under = "\n" + " " * len(f"{lines[0]}  ")
    for line, frame in zip(lines[1:], frames.frames, strict=True):
        flags = textwrap.wrap(" ".join(frame.flags), max(width - len(under), 16))
        yield "  ".join([line, under.join(flags)]).rstrip()
    if more := frames.total - len(frames.frames):
        yield f"{counted(more, 'more folio')}, not shown."
