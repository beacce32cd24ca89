"""What does ``memcgctl audit`` show? A headline and one account a memcg; or JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from rich.text import Text

from memcgctl import utf8
from memcgctl.model import HOLDERS, Account, Audit, Topic
from memcgctl.report.listing import aligned
from memcgctl.report.parts import inherited_json
from memcgctl.report.schemas import memcg_json, source_json
from memcgctl.report.text import count, counted, escape, size, unread_words
from memcgctl.report.verdict import legacy_words

SCHEMA = "memcgctl/audit/1"
# Few enough columns for 80 characters, with the rare kinds of holders in one.
KINDS = ("folio", "kernel", "swap", "child", "writeback", "stock")
MAX_KINDS = 5
BUG = "a kernel bug or a holder memcgctl doesn't know"


def screen(
    audit: Audit, *, limit: int | None = None, width: int = 80, encoding: str = "utf-8"
) -> Text:
    """The audit as a person reads it, at most ``limit`` accounts of it."""
    text = Text()
    for line in headline(audit):
        text.append(textwrap.fill(escape(line, encoding), width) + "\n", "bold")
    if audit.accounts:
        head, *rows, total = _table(audit, audit.accounts[:limit], width, encoding)
        text.append(f"\n{head}\n", "bold")
        text.append("".join(f"{row}\n" for row in rows))
        text.append(f"{total}\n", "bold")
        if omitted := len(audit.accounts) - len(rows):
            text.append(f"{counted(omitted, 'more memcg')}, not shown.\n")
    return text


def headline(audit: Audit) -> list[str]:
    """Does every account balance, and what has piled up at the root?"""
    memcgs = counted(len(audit.accounts), "offline memcg")
    references = counted(_explained(audit.held) + audit.unexplained, "reference")
    lines = []
    if not audit.accounts:
        why = unread_words(audit.unread, [Topic.MEMCGS])
        so = f"found: {why}" if why else ", so no reference to account for"
        lines.append(f"No offline memcgs{' ' if why else ''}{so}.")
    elif not (audit.unexplained or audit.missing or audit.unknown):
        lines.append(f"{memcgs}, {references}: all of them accounted for.")
    if audit.unexplained:
        why = unread_words(audit.unread, HOLDERS)
        lines.append(
            f"{audit.unexplained:,} of {references} of {memcgs} that nobody accounts "
            f"for: {why or BUG}."
        )
    if audit.missing:
        lines.append(
            f"{counted(audit.missing, 'holder')} more than references: the kernel "
            "changed while it was read, or a bug, the kernel's or memcgctl's."
        )
    if audit.unknown:
        lines.append(
            f"The references of {counted(audit.unknown, 'memcg')} are unknown."
        )
    return lines + _root(audit)


def _root(audit: Audit) -> list[str]:
    if not (root := audit.root):
        return []
    piled = legacy_words(root.inherited) if root.inherited else "nothing"
    lines = [f"Piled up at the root by reparenting: {piled}."]
    if root.charges:
        own = size(root.charges.total_bytes, long=True)
        lines.append(f"Charged to the root itself: {own}.")
    return lines


def _table(
    audit: Audit, accounts: Sequence[Account], width: int, encoding: str
) -> list[str]:
    """Title line, one line an account, totals line."""
    shown = [kind for kind in KINDS if kind in audit.held]
    rare = [kind for kind in audit.held if kind not in KINDS]
    if len(shown) + len(rare) <= MAX_KINDS:
        shown, rare = shown + rare, []

    def cells(held: dict[str, int], unexplained: int | None) -> list[str]:
        total = None if unexplained is None else _explained(held) + unexplained
        kinds = [count(held.get(kind, 0)) for kind in shown]
        others = [count(sum(held.get(kind, 0) for kind in rare))] if rare else []
        return [count(total), *kinds, *others, count(unexplained)]

    titles = ["id", "refs", *shown, *(["others"] if rare else []), "unexplained"]
    rows = [[str(a.memcg.id), *cells(a.held, a.unexplained)] for a in accounts]
    total = ["", *cells(audit.held, audit.unexplained - audit.missing)]
    columns = list(zip(titles, *rows, total, strict=True))
    paths = ["path", *(account.memcg.path for account in accounts), "total"]
    return aligned(columns, paths, 1, width, encoding)


def _explained(held: dict[str, int]) -> int:
    return sum(held.values())


def to_json(audit: Audit) -> str:
    """``memcgctl/audit/1``; ASCII, names as ``utf8`` has them."""
    explained = _explained(audit.held)
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "source": source_json(audit.kernel),
        "totals": {
            "offline": len(audit.accounts),
            "explained": explained,
            "unexplained": audit.unexplained,
            "missing": audit.missing,
            "unknown": audit.unknown,
            "holders": audit.held,
        },
        "memcgs": [_account_json(account) for account in audit.accounts],
        "root": audit.root
        and {
            **memcg_json(audit.root),
            "inherited": inherited_json(audit.root.inherited),
        },
        "unread": audit.unread,
        "warnings": audit.warnings,
    }
    return utf8.dumps(document, indent=1) + "\n"


def _account_json(account: Account) -> dict[str, Any]:
    explained, unexplained = _explained(account.held), account.unexplained
    return {
        "id": account.memcg.id,
        "path": account.memcg.path,
        "ancestor": account.memcg.ancestor,
        "references": None if unexplained is None else explained + unexplained,
        "explained": explained,
        "unexplained": unexplained,
        "holders": account.held,
    }
