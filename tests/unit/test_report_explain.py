"""What explain and audit put on a screen, and what a program gets of them."""

from __future__ import annotations

import base64
import os
from dataclasses import replace
from typing import Any

import pytest
from rich.cells import cell_len

from memcgctl.model import (
    Charges,
    Coldness,
    Explanation,
    Frame,
    Frames,
    Inherited,
    SwapDeviceUse,
    SwapOwner,
    SwapUse,
)
from memcgctl.report import audit as audit_report
from memcgctl.report import explain as explain_report
from memcgctl.report import explain_json
from memcgctl.views.explain import audit, explain
from tests.schemas import read
from tests.unit.zombies import FILE, SLEEP, census, details, group, held, memcg

HOSTILE = "/app/\x1b[31m[bold]x[/]\u202e\udcff 漢字" + "y" * 200
ESCAPED = HOSTILE.replace("\udcff", "\\xff")
LEGACY = Inherited("/app/dead", 6, 3, 20, 336, 2, 8192)
ROOT = memcg(
    1,
    "/",
    state="online",
    parent_id=0,
    charges=Charges(file_bytes=8192),
    inherited=(LEGACY,),
)
CHILD = memcg(9, HOSTILE, parent_id=7)
MIXED = memcg(
    7,
    charges=Charges(file_bytes=179 * 4096, file_folios=179),
    swap=SwapUse(640, 640 * 4096),
    children=1,
    private_id=3,
    **held(
        ("folio", 179, ""),
        ("swap", 1, "640 entries"),
        ("stock", 1, "CPU 1"),
        ("child", 1, ""),
        unexplained=2,
        groups=(
            group(
                kind="anon",
                mapped=True,
                folios=2,
                bytes=8192,
                evictable_bytes=0,
                obstacles=(("locked", 8192),),
                backing=None,
                mappers=(SLEEP, replace(SLEEP, pid=78, memcg=HOSTILE, comm="\x1b[0m")),
            ),
            group(
                folios=177,
                bytes=177 * 4096,
                dirty_bytes=4096,
                backing=replace(FILE, path=HOSTILE, container_path="/in", deleted=True),
                openers=(replace(SLEEP, bytes=177 * 4096),),
                coldness=Coldness(4096, 0, 0, ((12.4, 4096), (None, 8192))),
            ),
        ),
        swap=(
            SwapDeviceUse(
                "zram0",
                640,
                (
                    SwapOwner(77, "sleep", "/holder", 9, 600, 100),
                    SwapOwner(None, "tmpfs inode 7", "", 0, 20),
                ),
            ),
        ),
    ),
)
ALL = census(ROOT, MIXED, CHILD, warnings=("raced",))


def mixed() -> Explanation:
    return explain(ALL, MIXED)


def test_every_number_is_on_the_screen() -> None:
    """Else a person sees less than was found out."""
    simple = replace(MIXED, path="/app/zombie")
    plain = explain_report.screen(
        explain(census(simple), simple), verbose=True, width=400
    ).plain
    _, drawn = plain.split("\n\n")
    tree = [line.lstrip("│├└─ ") for line in drawn.splitlines()]
    assert tree == [
        "/app/zombie (id 7, offline)",
        "struct mem_cgroup 0xffff888000007000, private id 3",
        "nearest online ancestor: /app",
        "overhead: 115 KiB per-CPU, 4.0 KiB structures",
        "references: 182 explained + 2 unexplained = 184 in all",
        "1 for the private id: 640 entries",
        "179 folios",
        "1 per-CPU charge stock: CPU 1",
        "1 child",
        "charges: 716 KiB in 179 folios",
        "file, unmapped: 177 folios, 708 KiB, 4.0 KiB of it evictable",
        "page cache of deleted /app/\\x1b[31m[bold]x[/]\\u202e\\xff 漢字"
        + "y" * 200
        + " (ext4 on 254:0), inode 12, 8.0 KiB in size",
        "in its container: /in",
        "dirty: 4.0 KiB",
        "last used: 4.0 KiB active, 4.0 KiB in a generation 12 s old, "
        "8.0 KiB in a generation of unknown age",
        "open in sleep (pid 77) in /holder: 708 KiB",
        "anon, mapped: 2 folios, 8.0 KiB, not evictable",
        "in the way: locked 8.0 KiB",
        "last used: neither active, referenced nor workingset",
        "mapped by sleep (pid 77) in /holder: 4.0 KiB",
        "mapped by \\x1b[0m (pid 78) in /app/\\x1b[31m[bold]x[/]\\u202e\\xff 漢字"
        + "y" * 200
        + ": 4.0 KiB",
        "swap: 640 entries, 2.5 MiB",
        "zram0: 640 entries",
        "600 entries of sleep (pid 77) in /holder",
        "20 entries of tmpfs inode 7",
        "20 entries of nobody that was found",
        "users",
        "/holder: 4.0 KiB mapped, 708 KiB open, 600 entries",
        "/app/\\x1b[31m[bold]x[/]\\u202e\\xff 漢字" + "y" * 200 + ": 4.0 KiB mapped",
    ]


@pytest.mark.parametrize("width", [40, 80, 132])
@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_it_fits_and_is_harmless(width: int, encoding: str) -> None:
    """Else a name chosen by a container draws on the administrator's terminal."""
    pages = [explain_report.screen(mixed(), width=width, encoding=encoding).plain]
    pages.append(audit_report.screen(audit(ALL), width=width, encoding=encoding).plain)
    for line in "\n".join(pages).splitlines():
        assert cell_len(line) <= width
        assert line.isprintable()
        assert line == line.rstrip()
        line.encode(encoding)


def tree_of(**changes: Any) -> list[str]:
    zombie = memcg(**changes)
    page = explain_report.screen(explain(census(zombie), zombie), width=200)
    return [line.lstrip("│├└─ ") for line in page.plain.splitlines()]


def test_children_are_named() -> None:
    """Else a person who sees 3 children does not know which."""
    page = explain_report.screen(mixed(), width=400).plain
    lines = [line.lstrip("│├└─ ") for line in page.splitlines()]
    after = lines[lines.index("1 child") + 1]
    assert after.endswith("yyy (id 9, offline)")
    assert page.count("(id 9, offline)") == 1


def test_what_may_pass_is_marked() -> None:
    """Else a reference that a worker holds for a moment is taken for the reason."""
    found = details(("stock", 1, "CPU 1"), ("event", 1, ""))
    stock, event = found.holders
    found = replace(found, holders=(replace(stock, transient=True), event))
    lines = tree_of(refs=2, details=found)
    assert "1 per-CPU charge stock: CPU 1 (just taken, may be gone soon)" in lines
    assert "1 cgroup v1 event" in lines


@pytest.mark.parametrize(
    ("evictable_bytes", "words"),
    [(8192, "evictable"), (4096, "4.0 KiB of it evictable"), (0, "not evictable")],
)
def test_how_much_is_evictable(evictable_bytes: int, words: str) -> None:
    """Else reclaim is tried where it cannot help, or not where it can."""
    found = group(bytes=8192, evictable_bytes=evictable_bytes)
    assert f"file, unmapped: 1 folio, 8.0 KiB, {words}" in tree_of(
        **held(groups=(found,))
    )
    zombie = memcg(**held(groups=(found,)))
    document = read(explain_json.to_json(explain(census(zombie), zombie)))
    assert document["charges"][0]["evictable"] is (words == "evictable")


def test_swap_entries_shared_by_processes() -> None:
    """Else entries that two processes share make a negative rest."""
    owners = tuple(SwapOwner(pid, "x", "/a", 1, 1) for pid in (1, 2))
    lines = tree_of(
        swap=SwapUse(1, 4096), **held(swap=(SwapDeviceUse("vdb", 1, owners),))
    )
    assert lines[lines.index("vdb: 1 entry") + 1 :] == [
        "1 entry of x (pid 1) in /a",
        "1 entry of x (pid 2) in /a",
        "users",
        "/a: 2 entries by 2 processes",
    ]


def test_as_many_lines_as_fit() -> None:
    """Else "1 more" takes the line of the one that it hides."""
    for number, shown in ((8, 8), (9, 7)):
        processes = tuple(replace(SLEEP, pid=1000 + pid) for pid in range(number))
        lines = tree_of(**held(groups=(group(mappers=processes),)))
        assert sum(line.startswith("mapped by sleep") for line in lines) == shown
        assert ("mapped by 2 more; --json shows all" in lines) is (number == 9)


def test_a_part_of_many_is_shown_and_the_rest_counted() -> None:
    """Else one libc.so mapped by 5,000 processes fills the terminal."""
    processes = tuple(replace(SLEEP, pid=pid) for pid in range(1000))
    zombie = memcg(**held(("folio", 1, ""), groups=(group(mappers=processes),)))
    plain = explain_report.screen(explain(census(zombie), zombie)).plain
    assert "mapped by 993 more; --json shows all" in plain
    assert plain.count("mapped by sleep") == 8  # one of them in the verdict


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (held(), "charges: none"),
        (held(), "swap: none"),
        (held(), "users: none"),
        ({**held(unexplained=None)}, "0 explained; the total could not be read"),
        ({**held(), "swap": None}, "swap: not looked at"),
        (held(groups=(group(),)), "nobody: 4.0 KiB neither mapped nor open"),
        (
            held(groups=(group(kind="kernel", backing=None),)),
            "kernel pages: 1 folio, 4.0 KiB",
        ),
    ],
)
def test_what_is_not_there_is_said(changes: dict[str, Any], line: str) -> None:
    """Else a person cannot tell nothing found from nothing looked for."""
    zombie = memcg(**changes)
    assert line in explain_report.screen(explain(census(zombie), zombie)).plain


def test_what_an_online_memcg_inherited() -> None:
    """Else what piles up on an ancestor, as zombies do no more, is not to be seen."""
    gone = replace(LEGACY, path=None, id=0, objcgs=1, refs=1, folios=0, charged_bytes=0)
    heir = replace(ROOT, inherited=(LEGACY, gone), details=details(unexplained=None))
    explanation = explain(census(heir), heir)
    plain = explain_report.screen(explanation, width=120).plain
    assert [line.lstrip("├└─ ") for line in plain.splitlines()[-3:]] == [
        "inherited from removed memcgs: 4 obj_cgroups with 2 folios (8.0 KiB), "
        "672 B for themselves",
        "of /app/dead (id 6): 3 obj_cgroups with 2 folios (8.0 KiB), 20 references",
        "of memcgs that are gone: 1 obj_cgroup, 1 reference",
    ]
    assert "0 explained; the total is kept per CPU" in plain
    document = read(explain_json.to_json(explanation))
    assert [legacy["objcgs"] for legacy in document["inherited"]] == [3, 1]


def test_json_by_the_contract() -> None:
    """Else programs written against memcgctl/explain/2 break."""
    document = read(explain_json.to_json(mixed()))
    assert document["schema"] == "memcgctl/explain/2"
    assert document["source"]["release"] == "6.12.1"
    assert document["memcg"]["id"] == 7
    assert document["verdict"].startswith("Held by 640 swap entries")
    assert document["warnings"] == ["raced"]
    assert document["options"] == []
    references = document["references"]
    assert (references["total"], references["explained"]) == (184, 182)
    assert references["unexplained"] == 2
    kinds = {h["kind"]: (h["count"], h["detail"]) for h in references["holders"]}
    assert kinds["stock"] == (1, "CPU 1")
    file, anon = document["charges"]
    assert (
        file.items()
        >= {
            "class": "file",
            "mapped": False,
            "folios": 177,
            "bytes": 177 * 4096,
            "evictable": False,
            "evictable_bytes": 4096,
            "obstacles": [],
            "mappers": [],
        }.items()
    )
    assert (
        file["backing"].items()
        >= {
            "fs": "ext4",
            "device": "254:0",
            "inode": 12,
            "path": ESCAPED,
        }.items()
    )
    assert file["coldness"]["generations"][0] == {"age_seconds": 12.4, "bytes": 4096}
    assert anon["obstacles"] == ["locked"]
    assert anon["backing"] is None
    assert (
        anon["mappers"][0].items()
        >= {
            "pid": 77,
            "comm": "sleep",
            "memcg": "/holder",
            "bytes": 4096,
        }.items()
    )
    (device,) = document["swap"]
    assert (device["device"], device["entries"]) == ("zram0", 640)
    assert device["unowned_entries"] == 20
    assert device["owners"][1].items() >= {"pid": None, "entries": 20}.items()
    assert [user["memcg"] for user in document["users"]] == ["/holder", ESCAPED]
    ((child, encoded),) = (
        (one, one.pop("path_base64")) for one in document["children"]
    )
    assert child == {"id": 9, "path": ESCAPED, "state": "offline"}
    assert os.fsdecode(base64.b64decode(encoded)) == HOSTILE


FRAMES = Frames(
    7,
    (
        Frame(
            0x7F3E, 1, "shmem", 10, 0, 1, 0, ("referenced", "uptodate", "dirty", "lru")
        ),
        Frame(0x8E00, 512, "anon", None, 3, 515, 2, ("active", "reserved" * 3, "head")),
        Frame(0x2C10, 1, "kernel", None, 0, 1, 0, ()),
    ),
)


def test_page_frames() -> None:
    """Else a person who goes on with crash does not know which page to look at."""
    zombie = memcg(**held())
    page = explain_report.screen(explain(census(zombie), zombie), FRAMES).plain
    assert page.split("\n\n")[-1].splitlines() == [
        "   pfn  pages   class  inode  maps  refs  pins  flags",
        "0x7f3e      1   shmem     10     0     1     0  referenced uptodate dirty lru",
        "0x8e00    512    anon      -     3   515     2  "
        "active reservedreservedreserved",
        "                                                head",
        "0x2c10      1  kernel      -     0     1     0",
        "4 more folios, not shown.",
    ]
    document = read(explain_json.to_json(explain(census(zombie), zombie), FRAMES))
    assert document["frames"]["total"] == 7
    assert document["frames"]["frames"][1] == {
        "pfn": 0x8E00,
        "pages": 512,
        "kind": "anon",
        "inode": None,
        "mapcount": 3,
        "refcount": 515,
        "pins": 2,
        "flags": ["active", "reservedreservedreserved", "head"],
    }
    whole = Frames(3, FRAMES.frames)
    page = explain_report.screen(explain(census(zombie), zombie), whole).plain
    assert "not shown" not in page
    assert "pfn" not in explain_report.screen(explain(census(zombie), zombie)).plain


def test_audit_on_screen() -> None:
    """Else a leak is a number in a table that nobody reads."""
    fine = memcg(8, "/fine", **held(("folio", 3, "")))
    plain = audit_report.screen(audit(census(ROOT, MIXED, fine))).plain
    assert plain.splitlines() == [
        "2 of 187 references of 2 offline memcgs that nobody accounts for: "
        "a kernel bug",
        "or a holder memcgctl doesn't know.",
        "Piled up at the root by reparenting: 3 obj_cgroups with 2 folios (8.0 KiB).",
        "Charged to the root itself: 8.0 KiB.",
        "",
        "id  path         refs  folio  swap  child  stock  unexplained",
        " 7  /app/zombie   184    179     1      1      1            2",
        " 8  /fine           3      3     0      0      0            0",
        "    total         187    182     1      1      1            2",
    ]
    short = audit_report.screen(audit(census(MIXED, fine)), limit=1).plain
    assert short.splitlines()[-1] == "1 more memcg, not shown."
    assert "/fine" not in short


@pytest.mark.parametrize(
    ("memcgs", "line"),
    [
        ([], "No offline memcgs, so no reference to account for."),
        ([ROOT], "No offline memcgs, so no reference to account for."),
        (
            [memcg(**held(("folio", 3, "")))],
            "1 offline memcg, 3 references: all of them accounted for.",
        ),
        (
            [memcg(**held(("folio", 3, ""), unexplained=-1))],
            "1 holder more than references: the kernel changed while it was read, "
            "or a bug,",
        ),
        ([memcg(refs=None)], "The references of 1 memcg are unknown."),
    ],
)
def test_the_headline_of_audit(memcgs: list[Any], line: str) -> None:
    """Else a person has to add up columns to know that all is well."""
    assert audit_report.screen(audit(census(*memcgs))).plain.splitlines()[0] == line


def test_all_kinds_of_holders_fit_on_a_screen() -> None:
    """Else the memcg with the rarest holder is the one that cannot be read."""
    kinds = ("folio", "kernel", "swap", "child", "writeback", "stock", "socket")
    rare = ("fsnotify", "event", "objcg", "other")
    titles = "id path refs folio fsnotify event objcg other unexplained"
    few = memcg(**held(("folio", 1, ""), *((kind, 1, "") for kind in rare)))
    lines = audit_report.screen(audit(census(few))).plain.splitlines()
    assert titles.split() in [line.split() for line in lines]
    zombie = memcg(**held(*((kind, 11, "") for kind in (*kinds, *rare))))
    plain = audit_report.screen(audit(census(zombie, few))).plain
    assert max(map(len, plain.splitlines())) <= 80
    assert plain.splitlines()[-2].split()[-2:] == ["4", "0"]
    assert plain.splitlines()[-1].split()[1:] == [
        *("126", "12", *["11"] * 5, "59", "0"),
    ]


def test_audit_json() -> None:
    """Else monitoring cannot see a leak."""
    document = read(audit_report.to_json(audit(ALL)))
    assert document["schema"] == "memcgctl/audit/1"
    assert document["totals"] == {
        "offline": 2,
        "explained": 182,
        "unexplained": 2,
        "missing": 0,
        "unknown": 1,
        "holders": {"folio": 179, "swap": 1, "stock": 1, "child": 1},
    }
    leak, unknown = document["memcgs"]
    assert leak == {
        "id": 7,
        "path": "/app/zombie",
        "ancestor": "/app",
        "references": 184,
        "explained": 182,
        "unexplained": 2,
        "holders": {"folio": 179, "swap": 1, "stock": 1, "child": 1},
    }
    assert (unknown["path"], unknown["references"]) == (ESCAPED, None)
    assert document["root"]["charged"]["file"] == 8192
    assert document["root"]["inherited"] == [
        {
            "path": "/app/dead",
            "id": 6,
            "objcgs": 3,
            "refs": 20,
            "structs_bytes": 336,
            "folios": 2,
            "charged_bytes": 8192,
        }
    ]
    assert document["warnings"] == ["raced"]
