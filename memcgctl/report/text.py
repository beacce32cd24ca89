"""How do numbers and the kernel's names look on a screen?

A cgroup's name can hold any byte but ``/`` and NUL. On a screen every character that
could move the cursor, hide, reorder its neighbours or take another width than we
count is written as ``\\x1b`` or ``\\u200b``, a byte that is not UTF-8 as ``\\xff``.
"""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache

from rich.cells import cell_len

from memcgctl.model import Kernel, Topic

UNITS = "KMGTPEZY"
# Left-to-right letters, digits and neutral signs. The others (Hebrew, Arabic) would
# make a terminal that knows bidi show the numbers after them in reverse order.
STEADY_BIDI = frozenset({"L", "EN", "ES", "ET", "CS", "ON"})
# Characters that join with a neighbour although each has a width of its own:
# conjoining Hangul vowels, regional indicators (flags), emoji skin tones.
JOINING = (range(0x1160, 0x1200), range(0x1F1E6, 0x1F200), range(0x1F3FB, 0x1F400))


class Styled(list[tuple[str, str]]):
    """Text in pieces, each with rich's name of its style; rich is slow to import."""

    @property
    def plain(self) -> str:
        return "".join(text for text, _ in self)


@lru_cache(maxsize=4096)
def size(count_bytes: int | None, *, long: bool = False) -> str:
    """Bytes in at most five characters, ``115K``; ``long`` makes it ``115 KiB``.

    None, which is what was not measured, gives ``-``.
    """
    if count_bytes is None:
        return "-"
    value, unit = float(count_bytes), ""
    for larger in UNITS:
        if abs(value) < (1023.5 if unit else 1024):
            break
        value, unit = value / 1024, larger
    digits = f"{value:.1f}" if unit and abs(value) < 99.95 else f"{value:.0f}"
    if long:
        return f"{digits} {unit}iB" if unit else f"{digits} B"
    return f"{digits}{unit or 'B'}" if count_bytes else "0"


def count(number: int | None) -> str:
    """A count in at most seven characters; None gives ``-``."""
    if number is None:
        return "-"
    return str(number) if abs(number) < 10_000_000 else f"{number:.1e}"


def counted(number: int, noun: str) -> str:
    """``1 memcg``, ``2,000 memcgs``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def unread_words(unread: Collection[str], topics: Iterable[str]) -> str:
    """What of the ``topics`` is ``unread``, as a clause; empty if nothing is."""
    its = [f"the {topic.value}" for topic in map(Topic, topics) if topic in unread]
    return f"{' and '.join(its)} could not be read in full" if its else ""


def escape(text: str, encoding: str = "utf-8") -> str:
    """``text`` as one line that is safe on any terminal of this encoding."""
    return "".join(_pieces(text, encoding))


def shorten(text: str, width: int, encoding: str = "utf-8") -> str:
    """``text`` escaped and cut in the middle to at most ``width`` columns."""
    if len(text) <= width and text.isascii() and text.isprintable():
        return text
    pieces = _pieces(text, encoding)
    whole = "".join(pieces)
    if cell_count(whole) <= width:
        return whole
    mark = "…" if _encodable("…", encoding) else "..."
    if width <= len(mark):
        return mark[:width]
    head = _fitting(pieces, (width - len(mark)) // 2)
    tail = _fitting(pieces[::-1], width - len(mark) - cell_len("".join(head)))
    return "".join([*head, mark, *tail[::-1]])


def filled(escaped: str, width: int, first: int = 0, rest: int = 0) -> str:
    """Escaped text in lines of ``width``, these indented; a word is never cut."""
    return textwrap.fill(
        escaped,
        width,
        initial_indent=" " * first,
        subsequent_indent=" " * rest,
        break_long_words=False,
        break_on_hyphens=False,
    )


def cell_count(text: str) -> int:
    """How many columns escaped text takes on a terminal."""
    return len(text) if text.isascii() else sum(map(cell_len, text))


def _fitting(pieces: Sequence[str], width: int) -> list[str]:
    taken = []
    for piece in pieces:
        width -= cell_len(piece)
        if width < 0:
            break
        taken.append(piece)
    return taken


def _pieces(text: str, encoding: str) -> Sequence[str]:
    """One string for each character, escapes whole."""
    if text.isascii() and text.isprintable():
        return text
    return [_piece(char, encoding) for char in text]


@lru_cache(maxsize=4096)
def _piece(char: str, encoding: str) -> str:
    code = ord(char)
    if _is_steady(char) and _encodable(char, encoding):
        return char
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8, see os.fsdecode()
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def _is_steady(char: str) -> bool:
    if char.isascii():
        return char.isprintable()
    return (
        unicodedata.category(char)[0] in "LNPS"
        and unicodedata.bidirectional(char) in STEADY_BIDI
        and not any(ord(char) in joining for joining in JOINING)
        and cell_len(char) in (1, 2)
    )


def _encodable(char: str, encoding: str) -> bool:
    try:
        char.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def bare_words(kernel: Kernel) -> str:
    """Why the kernel counts more dying cgroups than there are zombies; "" if not."""
    number = kernel.bare_cgroups or 0
    if not number:
        return ""
    one = number == 1
    return (
        f"{counted(number, 'more dying cgroup')} {'has' if one else 'have'} no memcg: "
        f"the kernel counts {'it' if one else 'them'} too "
        f"({kernel.dying_cgroups:,} in all)."
    )
