"""What ``memcgctl list`` shows: the table, JSON and CSV of hand-made memcgs."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from memcgctl.model import Charges, Listing, Memcg, Overhead, SwapUse
from memcgctl.report.listing import screen, to_csv, to_json
from memcgctl.views.listing import select
from tests.schemas import read
from tests.unit.zombies import census, memcg

BIG = st.integers(0, (1 << 64) - 1)
MEMCGS = st.builds(
    memcg,
    BIG,
    st.binary(max_size=300).map(lambda name: "/" + name.decode("utf-8", "replace"))
    | st.text(max_size=300),
    state=st.sampled_from(["offline", "online"]),
    ancestor=st.text(max_size=300),
    refs=st.none() | BIG,
    children=BIG,
    overhead=st.builds(Overhead, BIG, BIG, BIG),
    charges=st.none() | st.builds(Charges, *[BIG] * 8),
    swap=st.none() | st.builds(SwapUse, BIG, BIG),
)


def lines(listing: Listing, **options: Any) -> list[str]:
    return screen(listing, **options).plain.splitlines()


@given(st.lists(MEMCGS, max_size=5), st.sampled_from([80, 81, 100, 200]))
def test_any_listing_fits(memcgs: list[Memcg], width: int) -> None:
    """Garbage in one memcg would make the whole table unreadable."""
    for online, by_ancestor in ((False, False), (True, False), (False, True)):
        listing = select(census(*memcgs), online=online, by_ancestor=by_ancestor)
        shown = lines(listing, width=width, online=online)
        assert max(map(cell_len, shown)) <= width


def test_garbage_in_every_column_fits() -> None:
    """One torn memcg would wrap every line of the screen."""
    worst = (1 << 64) - 1
    torn = memcg(
        worst,
        "/" + "n" * 255,
        refs=worst,
        children=worst,
        charges=Charges(*[1023 << 20] * 8),
        swap=SwapUse(worst, 1023 << 30),
        overhead=Overhead(1000 << 10, 0, 0),
    )
    shown = lines(select(census(torn), online=True), online=True)
    assert max(map(cell_len, shown)) <= 80
    assert shown[-2].split()[0] == str(worst)


def test_numbers_stand_under_their_titles() -> None:
    """Numbers that are cut or moved would be read as another memcg's."""
    names = ["/a", "/漢字" * 30, "/" + "n" * 255, "/\x1b[31m\n", "/\udcff", "/[b]x"]
    charges = Charges(file_bytes=5 << 20, shmem_bytes=6144, anon_bytes=1)
    memcgs = [
        memcg(i, name, refs=123, children=4, charges=charges, swap=SwapUse(1, 4096))
        for i, name in enumerate(names)
    ]
    head, *rows, total = lines(select(census(*memcgs)))[3:]
    ends = {title: head.index(title) + len(title) for title in head.split()[2:]}
    for row in rows:
        words = dict(zip(ends, row.split()[-len(ends) :], strict=True))
        assert list(words.values()) == [
            *("123", "4", "5.0M", "6.0K", "1B", "4.0K", "119K")
        ]
        for title, word in words.items():
            back = cell_len(row) - ends[title]
            assert row[: len(row) - back].endswith(word)
    assert total.split() == ["total", "30.0M", "36.0K", "6B", "24.0K", "714K"]


def test_the_headline_says_what_it_costs_and_why() -> None:
    """The one line that a person reads would be wrong."""
    memcgs = [
        memcg(1, charges=Charges(file_bytes=4096)),
        memcg(2, charges=Charges(file_bytes=8192)),
        memcg(3, swap=SwapUse(1, 4096)),
        memcg(4, children=1),
        memcg(5, state="online", charges=Charges(anon_bytes=1 << 30)),
    ]
    assert lines(select(census(*memcgs)))[:2] == [
        "4 offline memcgs: 492 KiB in all, 476 KiB of it overhead.",
        "Largest reason: file folios (2 of 4 offline memcgs, 250 KiB).",
    ]
    assert lines(select(census(memcgs[3])))[:2] == [
        "1 offline memcg: 119 KiB in all, 119 KiB of it overhead.",
        "Largest reason: offline children (all, 119 KiB).",
    ]
    assert lines(select(census(memcgs[4]))) == ["No offline memcgs."]


def test_what_was_not_scanned_is_not_zero() -> None:
    """With --no-scan a person would believe that nothing is charged."""
    listing = select(census(memcg(charges=None, swap=None, usage_bytes=4096)))
    shown = lines(listing)
    assert shown[0] == (
        "1 offline memcg: 119 KiB overhead, 4.0 KiB on their counters, not scanned."
    )
    assert shown[-2].split()[-5:] == ["-", "-", "-", "-", "119K"]
    document = read(to_json(listing))
    assert document["totals"]["charged_bytes"] is None
    assert document["totals"]["swap_bytes"] is None
    assert [document["memcgs"][0][key] for key in ("charged", "folios", "swap")] == [
        None
    ] * 3
    (row,) = csv.DictReader(io.StringIO(to_csv(listing).decode()))
    assert (row["charged_file"], row["swap_bytes"], row["usage_bytes"]) == (
        *("", ""),
        "4096",
    )


def test_kernel_pages_are_shown_where_there_are_any() -> None:
    """On 5.10 page tables can be all that holds a memcg."""
    with_kernel = memcg(charges=Charges(kernel_bytes=8192, kernel_folios=2))
    assert "kernel" in lines(select(census(with_kernel)))[3].split()
    assert "kernel" not in lines(select(census(memcg())))[3].split()


def test_socket_memory_is_shown_where_there_is_any() -> None:
    """12 MiB that nobody reads from a socket would not be in any sum."""
    zombie = memcg(charges=Charges(sock_bytes=12 << 20))
    shown = lines(select(census(zombie)))
    assert shown[:2] == [
        "1 offline memcg: 12.1 MiB in all, 119 KiB of it overhead.",
        "Largest reason: socket memory (all, 12.1 MiB).",
    ]
    assert "sock" in shown[3].split()
    assert "sock" not in lines(select(census(memcg())))[3].split()
    unread = select(census(zombie, memcg(8, charges=Charges(sock_bytes=None))))
    assert "Socket memory is not known, and not in it." in lines(unread)
    document = read(to_json(unread))
    assert [m["charged"]["sock"] for m in document["memcgs"]] == [12 << 20, None]


def test_limited_listing_says_what_it_leaves_out() -> None:
    """A person would take the ten largest for all there are."""
    listing = select(census(*(memcg(i) for i in range(12))), limit=10)
    shown = lines(listing)
    assert shown[-1] == "2 more memcgs, not shown."
    assert shown[0].startswith("12 offline memcgs: 1.4 MiB")
    assert read(to_json(listing))["totals"]["offline"] == 12


def test_json_is_the_contract() -> None:
    """Scripts that read the documented keys would break."""
    path = "/a\x1b\udcff\u202e[b]"
    charges = Charges(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11)
    zombie = memcg(7, path, charges=charges, swap=SwapUse(9, 10), private_id=11)
    text = to_json(select(census(zombie, memcg(8, state="online"), warnings=("w",))))
    assert text.isascii()
    assert read(text) == {
        "schema": "memcgctl/list/2",
        "source": {
            "kind": "vmcore",
            "path": "/tmp/core",
            "release": "6.12.1",
            "types": "btf",
            "cgroup_version": 2,
            "page_size": 4096,
            "possible_cpus": 2,
            "numa_nodes": 1,
            **dict.fromkeys(["host", "boot_id", "machine_id", "taken_at"]),
        },
        "totals": {
            "offline": 1,
            "dying_cgroups": None,
            "dying_without_memcg": None,
            "charged_bytes": 29,
            "swap_bytes": 10,
            "overhead_bytes": 121856,
        },
        "memcgs": [
            {
                "id": 7,
                "path": "/a\x1b\\xff\u202e[b]",
                "path_base64": "L2Eb/+KArltiXQ==",
                "state": "offline",
                "ancestor": "/app",
                "refs": 0,
                "children": 0,
                "charged": {
                    "file": 1,
                    "shmem": 2,
                    "anon": 3,
                    "kernel": 4,
                    "hugetlb": 10,
                    "sock": 9,
                },
                "folios": {
                    "file": 5,
                    "shmem": 6,
                    "anon": 7,
                    "kernel": 8,
                    "hugetlb": 11,
                },
                "swap": {
                    "entries": 9,
                    "bytes": 10,
                    "zswap_entries": 0,
                    "zswap_bytes": 0,
                },
                "overhead": {
                    "percpu": 117760,
                    "percpu_accounted": 102400,
                    "structs": 4096,
                },
                "usage_bytes": 0,
                "parent_id": 5,
                "private_id": 11,
                "address": "0xffff888000007000",
                "workload": {
                    **dict.fromkeys(
                        ["runtime", "pod_uid", "container_id", "unit", "session"]
                    ),
                    "name": None,
                    "family": "a\x1b\\xff\u202e[b]",
                    "family_base64": "YRv/4oCuW2Jd",
                    "invocation": None,
                },
                "created_at": None,
                "removed_at": None,
                "held_by": None,
                "freeable": "unknown",
                "why_not": None,
            }
        ],
        "warnings": ["w"],
    }


def test_groups_in_every_format() -> None:
    """``--group-by ancestor`` would give different sums on screen and to a script."""
    memcgs = [
        memcg(1, ancestor="/a", charges=Charges(file_bytes=4096)),
        memcg(2, ancestor="/b"),
        memcg(3, ancestor="/b"),
    ]
    listing = select(census(*memcgs), by_ancestor=True, sort="memcgs")
    assert [line.split() for line in lines(listing)[3:]] == [
        ["ancestor", "memcgs", "file", "shmem", "anon", "swap", "overhead"],
        ["/b", "2", "0", "0", "0", "0", "238K"],
        ["/a", "1", "4.0K", "0", "0", "0", "119K"],
        ["total", "3", "4.0K", "0", "0", "0", "357K"],
    ]
    document = read(to_json(listing))
    assert document["memcgs"] == []
    assert [(g["ancestor"], g["offline"]) for g in document["groups"]] == [
        ("/b", 2),
        ("/a", 1),
    ]
    assert document["groups"][1]["charged"]["file"] == 4096
    rows = list(csv.DictReader(io.StringIO(to_csv(listing).decode())))
    assert [(row["ancestor"], row["offline"]) for row in rows] == [
        ("/b", "2"),
        ("/a", "1"),
    ]


def test_csv_keeps_the_name() -> None:
    """A name with a newline, a quote or a raw byte would shift the columns."""
    path = '/a\n"b",\udcff,é'
    rows = csv.reader(
        io.StringIO(
            to_csv(select(census(memcg(7, path)))).decode("utf-8", "surrogateescape"),
            newline="",
        )
    )
    header, row = rows
    assert dict(zip(header, row, strict=True))["path"] == path


@pytest.mark.parametrize("width", [1, 20, 60])
def test_a_narrow_terminal_cuts_no_number(width: int) -> None:
    """A size without its unit is a lie; better that the terminal wraps the line."""
    zombie = memcg(7, refs=123, charges=Charges(file_bytes=5 << 20))
    row = lines(select(census(zombie)), width=width)[-2].split()
    assert (row[0], row[2:]) == (
        "7",
        ["123", "0", "5.0M", "0", "0", "0", "119K"],
    )
