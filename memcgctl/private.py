"""Could anybody else put another directory in the place of one of ours?

The directory itself can be ours alone, and still be renamed by whoever may write to
the one that it is in.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path


def exposed(path: Path) -> Path | None:
    """The nearest directory above ``path`` in which anybody may rename what is ours.

    Not one that is sticky, as /tmp: there only the owner may.
    """
    for above in path.absolute().parents:
        mode = os.stat(above).st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            return above
    return None
