"""Explain says in its first line why a memcg is there, audit what does not add up."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from memcgctl.model import (
    Charges,
    Inherited,
    Memcg,
    Overhead,
    Process,
    SwapDeviceUse,
    SwapOwner,
    SwapUse,
    User,
)
from memcgctl.report.verdict import verdict
from memcgctl.views.explain import audit, descendants, explain
from tests.unit.zombies import (
    FILE,
    KERNEL,
    METADATA,
    SLEEP,
    census,
    details,
    group,
    held,
    memcg,
)

PAGE = Charges(file_bytes=4096, file_folios=1)
WAIT = "115 KiB of per-CPU memory wait for"


def said(zombie: Memcg, *others: Memcg, **changes: Any) -> str:
    return verdict(explain(census(zombie, *others, **changes), zombie))


def test_one_folio_of_filesystem_metadata() -> None:
    """The sentence that a person at 3 a.m. came for."""
    zombie = memcg(
        charges=PAGE, **held(("folio", 1, ""), groups=(group(backing=METADATA),))
    )
    assert said(zombie) == (
        "Held by 1 folio: filesystem metadata of vda in the block device's page cache. "
        f"{WAIT} 4.0 KiB."
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "page cache of /var/log/x (ext4 on 254:0)"),
        (
            {"backing": replace(FILE, path=None, deleted=True)},
            "page cache of deleted inode 12 (ext4 on 254:0)",
        ),
        ({"backing": replace(FILE, kind="tmpfs")}, "tmpfs file /var/log/x"),
        ({"backing": replace(FILE, kind="memfd", path="/m")}, "memfd /m"),
        ({"backing": replace(FILE, kind="sysv")}, "SysV shared memory /var/log/x"),
        (
            {"backing": replace(FILE, kind="shared-anon", path=None)},
            "shared anonymous memory inode 12",
        ),
        ({"backing": replace(FILE, kind="hugetlb")}, "hugetlb file /var/log/x"),
        ({"backing": None}, "page cache"),
        ({"backing": None, "kind": "anon"}, "anonymous memory in the swap cache"),
        ({"backing": None, "kind": "anon", "mapped": True}, "anonymous memory"),
        (
            {"backing": None, "kind": "anon", "mapped": True, "mappers": (SLEEP,) * 3},
            "anonymous memory, mapped by sleep (pid 77) in /holder and 2 others",
        ),
        (
            {"openers": (SLEEP,)},
            "page cache of /var/log/x (ext4 on 254:0), "
            "open in sleep (pid 77) in /holder",
        ),
    ],
)
def test_what_the_folios_are(changes: dict[str, Any], words: str) -> None:
    """Else a person does not know which file or process to look at."""
    zombie = memcg(charges=PAGE, **held(("folio", 1, ""), groups=(group(**changes),)))
    assert said(zombie).startswith(f"Held by 1 folio: {words}. ")


@pytest.mark.parametrize(
    ("holders", "words"),
    [
        ([("kernel", 3, "")], "3 kernel pages"),
        ([("writeback", 1, "vda")], "1 cgroup writeback: vda"),
        (
            [("stock", 1, "CPU 1"), ("stock", 1, "CPU 0")],
            "2 per-CPU charge stocks: CPU 1 and CPU 0",
        ),
        ([("socket", 2, "nc (pid 4)")], "2 sockets: nc (pid 4)"),
        ([("fsnotify", 1, "tail (pid 5)")], "1 fsnotify group: tail (pid 5)"),
        ([("event", 1, "")], "1 cgroup v1 event"),
        ([("objcg", 2, "")], "2 obj_cgroups"),
        ([("other", 1, "")], "1 other reference"),
        (
            [("stock", 1, f"CPU {cpu}") for cpu in range(64)],
            "64 per-CPU charge stocks: CPU 0, CPU 1 and 62 more",
        ),
        (
            [("stock", 1, f"CPU {cpu}") for cpu in range(3)],
            "3 per-CPU charge stocks: CPU 0, CPU 1 and CPU 2",
        ),
        ([("stock", 1, "CPU 1"), ("event", 2, "")], None),
    ],
)
def test_what_else_holds_it(holders: list[Any], words: str | None) -> None:
    """Else a reference that is no folio is not understood."""
    words = words or "2 cgroup v1 events and 1 per-CPU charge stock (CPU 1)"
    zombie = memcg(**held(*holders))
    references = sum(number for _, number, _ in holders)
    plural = "s" if references > 1 else ""
    assert said(zombie) == f"Held by {words}. {WAIT} {references} reference{plural}."


LAB = SwapOwner(176, "lab", "/holder", 9, 600, 100)
SHMEM = SwapOwner(None, "tmpfs file /tmp/t1", "", 0, 30)


@pytest.mark.parametrize(
    ("devices", "words"),
    [
        ((), "640 swap entries"),
        ((SwapDeviceUse("zram0", 640, ()),), "640 swap entries on zram0"),
        (
            (SwapDeviceUse("a", 640, (), zswap_entries=640),),
            "640 swap entries in zswap",
        ),
        (
            (SwapDeviceUse("a", 640, (), zswap_entries=40),),
            "640 swap entries on a and in zswap",
        ),
        (
            (SwapDeviceUse("a", 10, ()), SwapDeviceUse("b", 630, (SHMEM, LAB))),
            "640 swap entries on b and a: swapped memory of lab (pid 176) in /holder "
            "and 1 other",
        ),
        (
            (SwapDeviceUse("a", 640, (SHMEM,)),),
            "640 swap entries on a: tmpfs file /tmp/t1",
        ),
    ],
)
def test_swap_is_counted_in_entries(
    devices: tuple[SwapDeviceUse, ...], words: str
) -> None:
    """Else 640 swap entries look like one reference, and nobody drains the swap."""
    zombie = memcg(
        swap=SwapUse(640, 640 * 4096), **held(("swap", 1, "640 entries"), swap=devices)
    )
    assert said(zombie) == f"Held by {words}. {WAIT} 2.5 MiB of swap."


def test_the_largest_reason_comes_first() -> None:
    """Else a person begins with the stock, and not with the gigabyte."""
    zombie = memcg(
        charges=PAGE,
        swap=SwapUse(640, 640 * 4096),
        **held(
            ("stock", 1, "CPU 1"),
            ("folio", 1, ""),
            ("child", 2, ""),
            ("swap", 1, ""),
            groups=(group(),),
        ),
    )
    assert said(zombie).startswith(
        "Held by 640 swap entries, "
        "1 folio (page cache of /var/log/x (ext4 on 254:0)) and 2 more. "
    )


def test_all_is_in_the_order_of_its_size() -> None:
    """Else what matters most is hidden behind --json."""
    zombie = memcg(
        charges=Charges(file_bytes=4096, kernel_bytes=8192),
        **held(
            ("event", 1, ""),
            ("socket", 2, ""),
            ("folio", 9, ""),
            ("kernel", 2, ""),
            groups=(
                group(bytes=1, openers=(replace(SLEEP, memcg="/open", bytes=1),)),
                group(bytes=4, mappers=(replace(SLEEP, memcg="/little", bytes=4),)),
                group(bytes=9, mappers=(replace(SLEEP, memcg="/much", bytes=9),)),
                group(bytes=2, openers=(replace(SLEEP, memcg="/read", bytes=2),)),
            ),
            swap=(
                SwapDeviceUse("a", 3, (SwapOwner(1, "x", "/few", 1, 3),)),
                SwapDeviceUse("b", 4, (SwapOwner(1, "x", "/many", 1, 4),)),
            ),
        ),
    )
    explanation = explain(census(zombie), zombie)
    assert explanation.memcg.details
    holders = [holder.kind for holder in explanation.memcg.details.holders]
    assert holders == ["kernel", "folio", "socket", "event"]
    assert [g.bytes for g in explanation.memcg.details.charge_groups] == [9, 4, 2, 1]
    assert [d.device for d in explanation.memcg.details.swap_devices] == ["b", "a"]
    users = [user.memcg for user in explanation.users]
    assert users == ["/much", "/little", "/many", "/few", "/read", "/open"]


def test_the_largest_group_of_folios_is_named() -> None:
    """Else the file that holds almost everything is not the one that is named."""
    large = group(folios=99, bytes=99 * 4096, backing=replace(FILE, path="/large"))
    zombie = memcg(charges=PAGE, **held(("folio", 100, ""), groups=(group(), large)))
    assert said(zombie).startswith(
        "Held by 100 folios: most of all page cache of /large (ext4 on 254:0). "
    )


def test_children_alone_are_followed_to_what_really_holds() -> None:
    """Else a person goes down the tree by hand, one explain a level."""
    top = memcg(7, "/top", children=1, **held(("child", 1, "")))
    middle = memcg(8, "/top/m", parent_id=7, children=2, **held(("child", 2, "")))
    small = memcg(9, "/top/m/s", parent_id=8, **held(("stock", 1, "CPU 0")))
    large = memcg(
        10,
        "/top/m/l",
        parent_id=8,
        charges=PAGE,
        **held(("folio", 1, ""), groups=(group(kind="shmem", backing=None),)),
    )
    assert said(top, middle, small, large, memcg(11, "/top/no")) == (
        "Held by 1 child. What really holds it is below: /top/m/l (id 10), held by "
        f"1 folio (shmem). {WAIT} 1 reference."
    )
    assert descendants(census(top, middle, small, large), middle) == (small, large)


@pytest.mark.parametrize(
    ("unexplained", "kind", "words"),
    [
        (
            2,
            "vmcore",
            "2 references that nobody accounts for: a kernel bug or a holder memcgctl "
            "doesn't know.",
        ),
        (1, "live", "doesn't know, or one that is already gone."),
        (-1, "live", "1 holder more than references: it changed while it was read."),
        (-2, "vmcore", "2 holders more than references: a kernel bug or memcgctl's."),
        (None, "vmcore", "How many references it has in all could not be read."),
    ],
)
def test_what_nobody_accounts_for(
    unexplained: int | None, kind: Any, words: str
) -> None:
    """Else a leaked reference, the kernel bug to be found, goes by unseen."""
    zombie = memcg(**held(("event", 4, ""), unexplained=unexplained))
    paragraph = said(zombie, kernel=replace(KERNEL, kind=kind))
    assert paragraph.startswith("Held by 4 cgroup v1 events. ")
    assert words in paragraph


def test_references_without_any_holder() -> None:
    """Else a memcg that only a bug holds is said to be held by nothing."""
    assert said(memcg(**held(unexplained=1))).startswith("1 reference that nobody")
    assert said(memcg(**held())) == "Nothing holds it any more."


def test_an_online_memcg_is_no_zombie() -> None:
    """Else a person goes looking for what is wrong with a healthy cgroup."""
    online = memcg(
        5, "/app", state="online", charges=PAGE, details=details(unexplained=None)
    )
    zombies = (memcg(6), memcg(7))
    held_below = explain(census(online, *zombies), online).keeper
    assert held_below is None
    assert said(online, *zombies) == (
        "Online, so no zombie: 4.0 KiB charged, 2 children offline."
    )
    gone = Inherited(None, 0, 3, 20, 300, 12, 1 << 20)
    heir = replace(online, inherited=(gone, replace(gone, folios=0, charged_bytes=0)))
    assert said(heir) == (
        "Online, so no zombie: 4.0 KiB charged. Inherited from removed memcgs: "
        "6 obj_cgroups with 12 folios (1.0 MiB)."
    )
    none = replace(online, inherited=(replace(gone, objcgs=1, folios=0),))
    assert said(none).endswith("Inherited from removed memcgs: 1 obj_cgroup.")


def test_what_is_in_the_way_of_eviction() -> None:
    """Else a person waits for reclaim to take what is locked."""
    zombie = memcg(
        charges=PAGE,
        **held(
            ("folio", 3, ""),
            groups=(
                group(obstacles=(("dirty", 4096),)),
                group(obstacles=(("locked", 12288), ("dirty", 4096))),
            ),
        ),
    )
    assert "In the way of eviction: locked 12.0 KiB and dirty 8.0 KiB." in said(zombie)


def test_what_is_not_known_is_left_out() -> None:
    """Else a folio on its way out, or a memcg that just went, stops the explanation."""
    assert said(memcg(charges=PAGE, **held(("folio", 3, "")))).startswith(
        "Held by 3 folios. "
    )
    unread = memcg(8, "/child", parent_id=7)
    assert "it is below: /child (id 8). " in said(
        memcg(**held(("child", 1, ""))), unread
    )
    free = memcg(overhead=Overhead(0, 0, 0), **held(("event", 1, "")))
    assert said(free) == "Held by 1 cgroup v1 event."


def test_a_leak_is_not_blamed_on_children() -> None:
    """Else what really holds a leaked parent is looked for below it."""
    child = memcg(8, parent_id=7, **held(("folio", 1, "")))
    leaked = memcg(7, **held(("child", 1, ""), unexplained=1))
    assert explain(census(leaked, child), leaked).keeper is None
    fine = memcg(7, **held(("child", 1, "")))
    assert explain(census(fine, child), fine).keeper == child
    unread = replace(fine, details=None)
    assert explain(census(unread, child), unread).keeper is None


def test_without_details_nothing_is_claimed() -> None:
    """Else a census that did not look says that nothing holds the memcg."""
    assert (
        said(memcg(refs=1)) == f"What holds it was not looked at. {WAIT} 1 reference."
    )


def test_users_are_summed_by_memcg_and_shared_bytes_count_once() -> None:
    """Else a shared file is charged in full to each of its mappers in the report."""
    other = replace(SLEEP, pid=78)
    elsewhere = replace(SLEEP, pid=5, memcg="/b", memcg_id=2)
    zombie = memcg(
        **held(
            groups=(
                group(
                    mapped=True,
                    bytes=8192,
                    mappers=(replace(SLEEP, bytes=8192), other, elsewhere),
                ),
                group(bytes=8192, openers=(replace(other, bytes=8192),)),
                group(bytes=12288),
                group(kind="anon", backing=None),
                group(kind="kernel", backing=None),
            ),
            swap=(
                SwapDeviceUse(
                    "vdb",
                    9,
                    (
                        SwapOwner(5, "sleep", "/b", 2, 4, 100),
                        SwapOwner(None, "tmpfs inode 7", "", 0, 3),
                        SwapOwner(5, "sleep", "/b", 2, 3, 100),
                    ),
                ),
            ),
        )
    )
    explanation = explain(census(zombie), zombie)
    assert explanation.users == (
        User("/holder", 9, 2, 8192, 8192, 0, True),
        User("/b", 2, 1, 4096, 0, 7, True),
    )
    assert explanation.unused_bytes == 12288


@pytest.mark.parametrize(
    ("size", "parts", "expected"),
    [
        (4096, {"/a": [4096]}, {"/a": (4096, True)}),
        (4096, {"/a": [4096, 4096]}, {"/a": (4096, True)}),
        (8192, {"/a": [4096, 4096]}, {"/a": (8192, True)}),
        (12288, {"/a": [8192, 8192]}, {"/a": (12288, True)}),
        (12288, {"/a": [4096, 4096]}, {"/a": (4096, False)}),
        (4096, {"/a": [4096], "/b": [4096]}, {"/a": (4096, True), "/b": (4096, True)}),
        (
            12288,
            {"/a": [8192, 8192], "/b": [8192]},
            {"/a": (8192, False), "/b": (8192, True)},
        ),
        (
            12288,
            {"/a": [4096, 4096], "/b": [4096]},
            {"/a": (8192, True), "/b": (4096, True)},
        ),
    ],
)
def test_a_part_is_exact_or_a_lower_bound(
    size: int, parts: dict[str, list[int]], expected: dict[str, tuple[int, bool]]
) -> None:
    """Else a memcg is said to use what only its neighbour uses."""
    mappers = tuple(
        Process(pid, "x", path, 0, part)
        for path, sizes in parts.items()
        for pid, part in enumerate(sizes)
    )
    zombie = memcg(**held(groups=(group(bytes=size, mappers=mappers),)))
    users = explain(census(zombie), zombie).users
    assert {u.memcg: (u.mapped_bytes, u.exact) for u in users} == expected


def test_audit_shows_first_what_does_not_balance() -> None:
    """Else the one leak among 3,000 zombies is on the last page."""
    root = memcg(1, "/", state="online", parent_id=0)
    fine = memcg(
        2, "/fine", **held(("folio", 100, ""), ("stock", 1, ""), ("stock", 1, ""))
    )
    leak = memcg(3, "/leak", **held(("folio", 1, ""), unexplained=2))
    short = memcg(4, "/short", **held(("swap", 3, ""), unexplained=-1))
    unread = memcg(5, "/unread", refs=None)
    audited = audit(census(root, fine, leak, short, unread))
    paths = [account.memcg.path for account in audited.accounts]
    assert paths == ["/leak", "/short", "/unread", "/fine"]
    assert audited.accounts[3].held == {"folio": 100, "stock": 2}
    assert audited.held == {"folio": 101, "stock": 2, "swap": 3}
    assert (audited.unexplained, audited.missing, audited.unknown) == (2, 1, 1)
    leaks = audit(census(leak, replace(leak, details=details(unexplained=1))))
    assert (leaks.unexplained, leaks.missing) == (3, 0)
    assert audited.root == root
