"""Plans: which interface, for whom, in which order, within which limits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from memcgctl.model import (
    Census,
    CgroupTarget,
    Charges,
    FileTarget,
    GenerationTarget,
    Holder,
    Limits,
    Memcg,
    Process,
    ProcessTarget,
    Step,
    SwapDeviceUse,
    SwapOwner,
    SwappedFileTarget,
    SwapUse,
)
from memcgctl.policy.interfaces import INTERFACES
from memcgctl.policy.plan import plan, work_out
from memcgctl.policy.policies import POLICIES
from tests.unit import zombies
from tests.unit.plans import (
    APP,
    CASES,
    FILE,
    HOLDER,
    PAGE,
    ROOT,
    TMPFS,
    USER,
    aim,
    held_by,
    online,
    swapped,
    world,
    zombie,
)
from tests.unit.plans import INTERFACES as INTERFACES_HERE

LEAST = POLICIES["least-harm"]
PAYS = "readers pay for readahead"
AIMED = tuple(name for name in INTERFACES_HERE if name != "memory.reclaim")


def steps(census: Census, **options: Any) -> list[Step]:
    return list(plan(census, LEAST, **options).steps)


def group(case: str, **changes: Any) -> Any:
    return zombies.group(**(CASES[case] | changes))


@pytest.mark.parametrize(
    ("case", "action"),
    [
        ("file-unmapped", "fadvise"),
        ("file-mapped", "pageout"),
        ("swap-backed-unmapped", "pageout-file"),
        ("swap-backed-mapped", "pageout"),
        ("swap", "swapin"),
        ("metadata", "flush-device"),
        ("writeback", "writeback-cleanup"),
        ("stock", "charge-on-cpu"),
    ],
)
def test_each_case_has_its_interface(case: str, action: str) -> None:
    """Lost: the aimed interface, and with it innocent memory."""
    made = plan(world(held_by(case)), LEAST)
    assert [step.action for step in made.steps] == [action]
    assert made.freed == (100,)
    assert made.steps[0].frees == (100,)


@pytest.mark.parametrize("case", [*CASES, "swap", "writeback", "stock"])
def test_without_its_interface_a_case_stays_and_says_why(case: str) -> None:
    """Lost: a plan that an old kernel cannot carry out."""
    made = plan(world(held_by(case), interfaces=("elsewhere",)), LEAST)
    if case in ("metadata", "stock"):  # every kernel has BLKFLSBUF and memcgs
        return
    assert (made.steps, made.freed) == ((), ())
    assert made.remaining[0].why
    assert made.remaining[0].kinds


def test_one_file_that_many_zombies_read_is_one_step() -> None:
    """Lost: five hundred pods, five hundred times the same command."""
    readers = [zombie(100 + n, group("file-unmapped")) for n in range(500)]
    made = plan(world(*readers), LEAST)
    (step,) = made.steps
    assert step.memcgs == tuple(range(100, 600))
    assert step.bytes == 500 * PAGE
    assert set(step.frees) == set(step.memcgs)


def test_files_of_the_same_number_on_other_devices_are_others() -> None:
    """Lost: a file dropped for its neighbour's inode number."""
    other = replace(FILE, device="254:1", path="/mnt/x")
    made = steps(
        world(
            zombie(100, group("file-unmapped")),
            zombie(101, group("file-unmapped", backing=other)),
        )
    )
    assert {aim(step, FileTarget).file for step in made} == {FILE, other}


def test_children_come_before_their_parents() -> None:
    """Lost: parents tried in vain, as a child holds each."""
    small = replace(TMPFS, inode=6, path="/mnt/child")
    census = world(
        zombie(100, group("swap-backed-unmapped")),
        zombie(
            101,
            group("swap-backed-unmapped", backing=small, bytes=64 * PAGE),
            parent_id=100,
        ),
    )
    made = plan(census, LEAST)
    assert [step.memcgs for step in made.steps] == [(101,), (100,)]
    assert made.freed == (101, 100)


def test_a_parent_goes_with_its_last_child() -> None:
    """Lost: the prediction for parents, which nothing but children hold."""
    census = world(
        zombie(100),
        zombie(101, group("file-unmapped"), parent_id=100),
        zombie(102, group("swap-backed-unmapped"), parent_id=100),
    )
    made = plan(census, LEAST)
    assert set(made.freed) == {100, 101, 102}
    assert 100 in made.steps[-1].frees


def test_a_parent_stays_with_its_child() -> None:
    """Lost: the reason, one level down."""
    census = world(
        zombie(100), zombie(101, holders=(Holder("socket", 1, ""),), parent_id=100)
    )
    made = plan(census, LEAST)
    assert not made.freed
    assert "child /app/z101 (id 101)" in made.remaining[0].why
    assert made.remaining[0].kinds == ("a child stays",)


def test_what_gives_back_most_for_what_it_disturbs_comes_first() -> None:
    """Lost: with a small budget, the zombies that cost least."""
    other = replace(FILE, inode=99, path="/big")
    census = world(
        zombie(100, group("file-unmapped", backing=other, bytes=1000 * PAGE)),
        zombie(101, group("file-unmapped")),
    )
    assert [step.memcgs for step in steps(census)] == [(101,), (100,)]
    made = plan(census, LEAST, max_bytes=10 * PAGE)
    assert made.freed == (101,)
    assert "--max-bytes" in made.remaining[0].why
    assert [step.memcgs for step in made.left_out] == [(100,)]


def test_the_budget_is_for_all_steps_together() -> None:
    """Lost: --max-bytes as a limit for each step, and none for all."""
    files = [replace(FILE, inode=n, path=f"/f{n}") for n in range(5)]
    held = [
        zombie(100 + n, group("file-unmapped", backing=file))
        for n, file in enumerate(files)
    ]
    assert len(plan(world(*held), LEAST, max_bytes=3 * PAGE).steps) == 3


@pytest.mark.parametrize("case", ["swap-backed-mapped", "swap-backed-unmapped"])
def test_swap_comes_in_before_pages_go_out(case: str) -> None:
    """Lost: zombies with pages in swap and in memory, charged for what is paged out."""
    census = world(zombie(100, group(case), swap=swapped()))
    first, second = plan(census, LEAST).steps
    assert first.action == "swapin"
    assert second.action in ("pageout", "pageout-file")
    assert second.frees == (100,)


def test_a_parents_swap_comes_in_before_its_childs_pages_go_out() -> None:
    """Lost: the parent, which is charged for these as long as it has any in swap."""
    parent = zombie(100, swap=swapped())
    child = zombie(101, group("swap-backed-mapped"), parent_id=100)
    made = steps(world(parent, child))
    assert [(one.action, one.frees) for one in made] == [
        ("swapin", ()),
        ("pageout", (101, 100)),
    ]


def test_memory_min_stands_in_nobodys_way() -> None:
    """Lost: page cache that fadvise takes, as if only the kernel's reclaim could."""
    guarded = group(
        "file-unmapped",
        evictable_bytes=0,
        obstacles=(("memory.min protection", PAGE),),
    )
    assert plan(world(zombie(100, guarded)), LEAST).freed == (100,)


def test_shmem_without_a_file_is_not_always_in_the_swap_cache() -> None:
    """Told: it would go when memory is short, of what a driver has pinned."""
    pinned = group(
        "swap-backed-unmapped",
        backing=None,
        evictable_bytes=0,
        obstacles=(("pinned", PAGE),),
    )
    made = plan(world(zombie(100, pinned), interfaces=AIMED), LEAST)
    assert "swap cache" not in made.remaining[0].why
    assert "pinned" in made.remaining[0].why


def test_without_swap_nothing_waits_in_the_swap_cache() -> None:
    """Told: it waits until memory is short, where no memory is short enough."""
    held = group(
        "swap-backed-unmapped", evictable_bytes=0, obstacles=(("no swap", PAGE),)
    )
    census = world(zombie(100, held), swaps_at_once=False)
    (left,) = plan(census, LEAST).remaining
    assert "no swap" in left.why
    assert "swap cache" not in left.why


def test_each_living_memcg_below_loses_a_round_of_reclaim() -> None:
    """Lost: 15 MiB of sixty living siblings, swapped out for a zombie of 300 KiB."""
    mib = 1 << 20
    siblings = [
        online(1000 + n, f"/app/s{n}", APP, charges=Charges(anon_bytes=mib))
        for n in range(60)
    ]
    small = zombie(100, group("swap-backed-unmapped", bytes=75 * PAGE))
    here = (*AIMED, "memory.reclaim", "memory.reclaim swappiness")
    disk: dict[str, Any] = {"interfaces": here, "swaps_at_once": False}
    made = plan(world(*siblings, small, **disk), LEAST)
    assert not made.steps
    assert "would take living cgroups' memory" in made.remaining[0].why
    (step,) = plan(world(*siblings, small, **disk), LEAST, allow=["unaimed"]).steps
    assert step.collateral_bytes == 60 * mib
    (step,) = plan(world(siblings[0], small, **disk), LEAST).steps
    assert step.collateral_bytes == mib
    large = zombie(100, group("swap-backed-unmapped", bytes=64 * mib))
    assert plan(world(*siblings, large, **disk), LEAST).freed == (100,)


def test_hugetlb_pages_and_parts_of_large_folios_are_not_promised() -> None:
    """Lost: zombies that are said to go and stay, as these cannot be paged out."""
    huge = replace(FILE, kind="hugetlb", fs="hugetlbfs")
    mapped = group("file-mapped", backing=huge, mappers=(USER,))
    (left,) = plan(world(zombie(100, mapped), interfaces=AIMED), LEAST).remaining
    assert "hugetlb pages are not reclaimed" in left.why
    whole = group("file-mapped", folios=1, bytes=16 * PAGE, evictable_bytes=16 * PAGE)
    half = replace(whole, mappers=(replace(USER, bytes=8 * PAGE),))
    (left,) = plan(world(zombie(100, half), interfaces=AIMED), LEAST).remaining
    assert "mapped in part" in left.why
    every = replace(whole, mappers=(replace(USER, bytes=16 * PAGE),))
    assert plan(world(zombie(100, every)), LEAST).freed == (100,)


def test_a_file_of_btrfs_is_not_told_from_its_snapshots() -> None:
    """Lost: five promised, one freed; or a file that nobody named."""
    file = replace(FILE, fs="btrfs")
    held = zombie(100, group("file-unmapped", backing=file))
    made = plan(world(held, interfaces=AIMED), LEAST)
    assert not made.steps
    assert "subvolume" in made.remaining[0].why
    own = replace(file, inode=1, path=None)
    held = zombie(100, group("file-unmapped", backing=own))
    (left,) = plan(world(held, interfaces=AIMED), LEAST).remaining
    assert left.why.startswith("page cache of a block device: ")


def test_mapped_pages_with_entries_are_out_before_these_come_in() -> None:
    """Lost: zombies that are charged for the entries of what was paged out last."""
    held = zombie(100, in_swap_cache(6), swap=swapped(6))
    assert [one.action for one in steps(world(held))] == ["pageout", "swapin"]


def test_folios_in_the_swap_cache_are_not_moved_by_reading() -> None:
    """Lost: a zombie that is said to go and stays."""
    cached = zombies.group(kind="anon", backing=None, bytes=4 * PAGE)
    held = zombie(100, cached, swap=swapped(4))
    census = world(held, online(6, "/app/b", APP, charges=Charges(file_bytes=PAGE)))
    made = plan(census, POLICIES["mapper"])
    assert (made.steps, made.freed) == ((), ())
    assert "in the swap cache stays charged" in made.remaining[0].why


def test_folios_in_the_swap_cache_are_mapped_and_paged_out() -> None:
    """Lost: zombies that a page or two of read-ahead holds."""
    cached = zombies.group(
        kind="anon", backing=None, bytes=4 * PAGE, evictable_bytes=4 * PAGE
    )
    census = world(zombie(100, cached, group("swap-backed-mapped"), swap=swapped(6)))
    made = plan(census, LEAST)
    assert [(step.action, step.bytes) for step in made.steps] == [
        *[("swapin", 6 * PAGE), ("pageout", PAGE), ("pageout", 4 * PAGE)]
    ]
    assert made.freed == (100,)
    locked = replace(cached, evictable_bytes=0, obstacles=(("locked (mlock)", PAGE),))
    half = world(zombie(100, locked, swap=swapped(6)), interfaces=AIMED)
    assert not plan(half, LEAST).steps
    # A policy that leaves swap as it is has no way to them.
    assert len(plan(census, POLICIES["evict"]).steps) == 1
    # Only what is not in the cache is charged to who reads it.
    tight = online(HOLDER, "/holder", ROOT, limits=Limits(max_bytes=2 * PAGE))
    assert plan(world(tight, *census.memcgs[3:]), LEAST).freed == (100,)
    tighter = online(HOLDER, "/holder", ROOT, limits=Limits(max_bytes=PAGE))
    made = plan(world(tighter, *census.memcgs[3:]), POLICIES["least-harm"])
    assert [step.action for step in made.left_out] == ["swapin", "pageout"]
    assert not made.freed


class TestHeadroom:
    """Steps that could push a memcg over a limit, an OOM kill out of the blue."""

    def census(self, limits: Limits, entries: int = 10, usage: int = 0) -> Census:
        holder = online(
            HOLDER, "/holder", ROOT, limits=limits, usage_bytes=usage * PAGE
        )
        return world(holder, zombie(100, swap=swapped(entries)))

    @pytest.mark.parametrize("kind", ["max_bytes", "high_bytes"])
    def test_left_out_beyond_a_limit(self, kind: str) -> None:
        """Lost: a process killed, or stalled, for somebody else's memory."""
        census = self.census(Limits(**{kind: 15 * PAGE}), usage=6)
        made = plan(census, LEAST)
        (left,) = made.left_out
        assert (made.steps, made.freed) == ((), ())
        assert left.over_limit == ("/holder",)
        assert "/holder would be pushed over a limit" in made.remaining[0].why

    def test_up_to_the_limit_it_is_in(self) -> None:
        """Lost: the last page of room."""
        assert plan(self.census(Limits(max_bytes=16 * PAGE), usage=6), LEAST).freed

    def test_marked_where_it_is_allowed(self) -> None:
        """Lost: the warning, with the choice."""
        census = self.census(Limits(max_bytes=PAGE))
        made = plan(census, LEAST, allow=["over-limit"])
        assert made.freed == (100,)
        assert made.steps[0].over_limit == ("/holder",)

    def test_an_ancestors_limit_counts(self) -> None:
        """Lost: the limit of the slice above."""
        above = online(HOLDER, "/holder", ROOT, limits=Limits(max_bytes=3 * PAGE))
        below = online(10, "/holder/below", HOLDER)
        (device,) = swapped(10)
        owner = replace(device.owners[0], memcg="/holder/below", memcg_id=10)
        device = replace(device, owners=(owner,))
        made = plan(world(above, below, zombie(100, swap=(device,))), LEAST)
        assert made.left_out[0].over_limit == ("/holder",)

    def test_two_steps_share_one_room(self) -> None:
        """Lost: each fits alone, both together do not."""
        holder = online(HOLDER, "/holder", ROOT, limits=Limits(max_bytes=15 * PAGE))
        (one,) = swapped(10)
        two = replace(one, owners=(replace(one.owners[0], pid=78),))
        census = world(holder, zombie(100, swap=(one,)), zombie(101, swap=(two,)))
        made = plan(census, LEAST)
        assert (len(made.steps), len(made.left_out)) == (1, 1)

    def test_what_is_left_out_takes_no_room(self) -> None:
        """Lost: small steps that fit, behind a large one that does not."""
        holder = online(HOLDER, "/holder", ROOT, limits=Limits(max_bytes=15 * PAGE))
        (small,) = swapped(10)
        owner = replace(small.owners[0], pid=78, entries=20)
        large = replace(small, entries=20, owners=(owner,))
        cheap = zombies.memcg().overhead
        dear = replace(cheap, percpu_bytes=1 << 30)
        census = world(
            holder,
            zombie(100, swap=(large,), overhead=dear),
            zombie(101, swap=(small,)),
        )
        made = plan(census, LEAST)
        assert (made.freed, len(made.left_out)) == ((101,), 1)

    def test_v1_counts_memory_and_swap_together(self) -> None:
        """Lost: memory.memsw.limit_in_bytes."""
        limits = Limits(memsw_max_bytes=9 * PAGE)
        holder = online(HOLDER, "/holder", ROOT, limits=limits)
        census = world(holder, zombie(100, swap=swapped(10)), cgroup_version=1)
        assert plan(census, LEAST).left_out[0].over_limit == ("/holder",)

    def test_limits_that_are_not_known_are_said(self) -> None:
        """Lost: trust in a check that was not made."""
        census = self.census(Limits())
        memcgs = tuple(replace(memcg, limits=None) for memcg in census.memcgs)
        made = plan(replace(census, memcgs=memcgs), LEAST)
        assert any("limits" in warning for warning in made.warnings)


def test_freed_entries_are_no_process() -> None:
    """Lost: a promise; a CPU keeps them, whoever's page tables are read.

    Two processes that share five entries have ten, but not the three beside them.
    """
    users = [SwapOwner(pid, "user", "/holder", HOLDER, 5, 100) for pid in (77, 78)]
    freed = SwapOwner(None, "freed entries in a cache of CPU 1", "", 0, 3)
    swap = (SwapDeviceUse("/dev/zram0", 8, (*users, freed), synchronous=True),)
    made = plan(world(zombie(100, swap=swap)), LEAST)
    assert not made.freed
    assert "a CPU's cache" in made.remaining[0].why
    alone = (SwapDeviceUse("/dev/zram0", 5, tuple(users), synchronous=True),)
    assert plan(world(zombie(100, swap=alone)), LEAST).freed == (100,)


class TestUnaimed:
    """What cannot be aimed is not taken while it can hit a living cgroup."""

    KINDS = ("memory.reclaim",)

    def census(self, living: int) -> Census:
        charges = Charges(file_bytes=living)
        cached = zombies.group(kind="anon", backing=None)
        below = online(6, "/app/busy", APP, charges=charges)
        return world(below, zombie(100, cached), interfaces=self.KINDS)

    def test_taken_where_nobody_else_is(self) -> None:
        """Lost: zombies that can go at nobody's cost."""
        (step,) = steps(self.census(0))
        assert (step.action, step.collateral_bytes) == ("memory.reclaim", 0)
        assert aim(step, CgroupTarget).memcg_path == "/app"

    def test_left_where_others_are_swapped_in_before(self) -> None:
        """Lost: what a step brings back to the living; and the zombie stays for it."""
        census = self.census(0)
        users = (SwapOwner(77, "user", "/app/busy", 6, 3, 100),)
        swap = (SwapDeviceUse("/dev/zram0", 3, users, synchronous=True),)
        again = replace(census, memcgs=(*census.memcgs, zombie(101, swap=swap)))
        assert [step.action for step in steps(census)] == ["memory.reclaim"]
        made = plan(again, LEAST)
        assert "memory.reclaim" not in [step.action for step in made.steps]
        assert 100 not in made.freed

    def test_left_where_living_memcgs_are_in_its_reach(self) -> None:
        """Lost: other people's page cache."""
        made = plan(self.census(7 * PAGE), LEAST)
        assert not made.steps
        assert "living cgroups" in made.remaining[0].why

    def test_counts_what_is_in_its_reach(self) -> None:
        """Lost: how much other people's page cache."""
        (step,) = steps(self.census(7 * PAGE), allow=["unaimed"])
        assert step.collateral_bytes == 7 * PAGE

    def test_drop_caches_only_if_asked_for(self) -> None:
        """Lost: the machine's page cache."""
        census = world(held_by("file-unmapped"), interfaces=("drop_caches",))
        assert not steps(census)
        (step,) = steps(census, allow=["drop-caches"])
        assert step.action == "drop_caches"


def test_others_pages_of_the_same_file_are_collateral() -> None:
    """Lost: who else rereads the file."""
    shared = replace(FILE, cached_bytes=9 * PAGE)
    census = world(
        zombie(100, group("file-unmapped", backing=shared)),
        zombie(101, group("file-unmapped", backing=shared)),
    )
    (step,) = steps(census)
    assert step.collateral_bytes == 7 * PAGE


def test_what_a_process_maps_of_the_ancestors_own_is_collateral() -> None:
    """Lost: living memory, as the kernel shows a zombie's under its ancestor's id."""
    app = online(APP, "/app", ROOT, charges=Charges(anon_bytes=5 * PAGE))
    (step,) = steps(world(app, held_by("file-mapped")))
    assert step.collateral_bytes == 5 * PAGE
    assert step.aim == ProcessTarget(replace(USER, bytes=PAGE), (APP,), FILE)


def test_pages_that_several_map_are_not_promised() -> None:
    """Lost: MADV_PAGEOUT passes by what is mapped twice."""
    other = Process(78, "other", "/holder", HOLDER, PAGE, 101)
    held = zombie(100, group("file-mapped", mappers=(USER, other)))
    made = plan(world(held, interfaces=AIMED), LEAST)
    assert not made.steps
    assert "several processes" in made.remaining[0].why


COLLAPSING = (*AIMED, "collapse")


def huge(size: int, full: int, **changes: Any) -> Any:
    """Anonymous memory, some of which fills huge pages' worth of addresses."""
    user = replace(USER, bytes=size, huge_bytes=full)
    values = {"bytes": size, "evictable_bytes": size, "mappers": (user,)}
    return group("swap-backed-mapped", **(values | changes))


def test_what_fills_huge_pages_is_charged_to_who_maps_it_before_the_rest_goes() -> None:
    """Lost: the one recharge to the mapper that user space has; pageout takes it."""
    made = plan(
        world(zombie(100, huge(520 * PAGE, 512 * PAGE)), interfaces=COLLAPSING), LEAST
    )
    assert [(step.action, step.bytes, step.charged_to) for step in made.steps] == [
        ("collapse", 512 * PAGE, ("/holder",)),
        ("pageout", 8 * PAGE, ("/app",)),
    ]
    assert made.freed == (100,)
    (alone,) = steps(world(zombie(100, huge(512 * PAGE, 0)), interfaces=COLLAPSING))
    assert alone.action == "pageout"
    old = steps(world(zombie(100, huge(520 * PAGE, 512 * PAGE)), interfaces=AIMED))
    assert [(step.action, step.bytes) for step in old] == [("pageout", 520 * PAGE)]


def test_a_huge_page_of_the_ancestors_own_is_not_made_to_be_paged_out() -> None:
    """Lost: 2 MiB of a living memcg to swap, which no step said (seen on 6.12)."""
    user = replace(USER, memcg="/app", memcg_id=APP, bytes=512 * PAGE)
    own = replace(user, huge_bytes=512 * PAGE)
    held = zombie(100, huge(512 * PAGE, 512 * PAGE, mappers=(own,)))
    (step,) = steps(world(held, interfaces=COLLAPSING))
    assert step.action == "pageout"


def test_who_has_no_room_for_it_has_it_paged_out() -> None:
    """Lost: zombies whose second half would push its user over a limit."""
    limits = Limits(max_bytes=600 * PAGE)
    holder = online(HOLDER, "/holder", ROOT, limits=limits)
    held = [zombie(100 + n, huge(512 * PAGE, 512 * PAGE)) for n in range(2)]
    made = plan(world(holder, *held, interfaces=COLLAPSING), LEAST)
    assert [step.action for step in made.steps] == ["collapse", "pageout"]
    assert made.freed == (101, 100)


def test_locked_memory_goes_to_who_maps_it_if_it_fills_huge_pages() -> None:
    """Lost: locked memory, which nothing else moves."""
    locked = {"evictable_bytes": PAGE, "obstacles": (("locked (mlock)", 512 * PAGE),)}
    census = world(
        zombie(100, huge(513 * PAGE, 512 * PAGE, **locked)), interfaces=COLLAPSING
    )
    made = plan(census, LEAST)
    assert [step.action for step in made.steps] == ["collapse", "pageout"]
    assert made.freed == (100,)
    pinned = {"evictable_bytes": PAGE, "obstacles": (("pinned", 512 * PAGE),)}
    held = zombie(100, huge(513 * PAGE, 512 * PAGE, **pinned))
    assert not plan(world(held, interfaces=COLLAPSING), LEAST).steps


def test_nobody_is_disturbed_for_a_zombie_that_stays() -> None:
    """Lost: a process paged out in vain."""
    locked = group(
        "swap-backed-mapped", evictable_bytes=0, obstacles=(("locked (mlock)", PAGE),)
    )
    held = zombie(100, locked, group("file-mapped"))
    made = plan(world(held), LEAST)
    assert not made.steps
    assert made.remaining[0].kinds == (
        "mapped shmem or anonymous memory: locked (mlock)",
    )
    assert plan(world(held), POLICIES["evict"]).steps


def test_a_file_without_a_path_is_reached_by_who_uses_it() -> None:
    """Lost: deleted files, memfds and what other mount namespaces hide."""
    hidden = replace(FILE, path=None, deleted=True)
    held = zombie(100, group("file-unmapped", backing=hidden, openers=(USER,)))
    (step,) = steps(world(held))
    assert "/proc/77/fd /proc/77/map_files -maxdepth 1 -inum 12" in step.command
    assert aim(step, FileTarget).users == (USER,)
    alone = zombie(100, group("file-unmapped", backing=hidden))
    made = plan(world(alone, interfaces=AIMED), LEAST)
    assert not made.steps
    assert "no path leads to its file" in made.remaining[0].why


def test_shmem_that_would_wait_in_the_swap_cache_is_not_promised() -> None:
    """Lost: half of a plan for a kernel that has no memory.reclaim, and a disk."""
    held = zombie(100, group("swap-backed-unmapped"))
    for at_once, freed in ((True, (100,)), (False, ()), (None, ())):
        made = plan(world(held, interfaces=AIMED, swaps_at_once=at_once), LEAST)
        assert made.freed == freed
    assert "swap cache" in made.remaining[0].why
    reclaiming = (*AIMED, "memory.reclaim")
    assert plan(
        world(held, interfaces=reclaiming, swaps_at_once=False), LEAST
    ).freed == (100,)


def test_mapped_shmem_that_would_wait_in_the_swap_cache_is_not_promised() -> None:
    """Lost: a zombie that a process's segment holds, said to go, on a disk."""
    held = zombie(100, group("swap-backed-mapped", mappers=(USER,), kind="shmem"))
    assert plan(world(held, interfaces=AIMED), LEAST).freed == (100,)
    made = plan(world(held, interfaces=AIMED, swaps_at_once=False), LEAST)
    assert not made.steps
    assert "swap cache" in made.remaining[0].why
    asked = (*AIMED, "memory.reclaim")
    assert plan(world(held, interfaces=asked, swaps_at_once=False), LEAST).steps


def test_shmem_directly_below_the_root_waits_for_a_disk() -> None:
    """Lost: a promise that no kernel can keep: the root has no memory.reclaim."""
    held = zombie(100, group("swap-backed-unmapped"), path="/alone", ancestor="/")
    assert plan(world(held), LEAST).freed == (100,)
    made = plan(world(held, swaps_at_once=False), LEAST, allow=["unaimed"])
    assert not made.steps
    assert "the root cannot be asked" in made.remaining[0].why


def test_what_its_memcg_has_in_swap_can_come_back_with_it() -> None:
    """Lost: the innocent bytes that reading a process's swap brings back."""
    holder = online(HOLDER, "/holder", ROOT, swap=SwapUse(7, 7 * PAGE))
    (step,) = steps(world(holder, zombie(100, swap=swapped(4))))
    assert step.collateral_bytes == 7 * PAGE


def test_a_folio_that_went_to_the_parent_stays_there_when_it_is_read() -> None:
    """Lost: who is charged from 7.1 on for what is in the swap cache."""
    (device,) = swapped(5)
    held = zombie(100, swap=(replace(device, parents_entries=2),))
    worked = work_out(world(held), LEAST)
    (step,) = worked.plan.steps
    assert (step.bytes, step.charged_to) == (5 * PAGE, ("/app", "/holder"))
    assert step.charged_bytes == (2 * PAGE, 3 * PAGE)
    (one,) = worked.effects[100]
    assert dict(one.charged) == {APP: 2 * PAGE, HOLDER: 3 * PAGE}


def shmem(number: int, pages: int) -> Memcg:
    file = replace(TMPFS, inode=number, path=f"/t/{number}")
    size = {"bytes": pages * PAGE, "evictable_bytes": pages * PAGE}
    return zombie(number, group("swap-backed-unmapped", backing=file, **size))


def test_shmem_goes_as_long_as_there_is_room_on_zram() -> None:
    """Lost: zombies that stay in the swap cache of a disk, against what was said."""
    user = replace(USER, bytes=4 * PAGE)
    size = {"bytes": 4 * PAGE, "evictable_bytes": 4 * PAGE}
    anon = zombie(99, group("swap-backed-mapped", mappers=(user,), **size))
    held = anon, shmem(100, 3), shmem(101, 2), shmem(102, 1)
    old: dict[str, Any] = {"interfaces": AIMED, "at_once_bytes": 4 * PAGE}
    made = plan(world(*held, **old), LEAST)
    assert [step.memcgs for step in made.steps] == [(102,), (101,), (99,)]
    assert made.freed == (102, 101, 99)
    (left,) = made.remaining
    assert (left.id, "wait in the swap cache" in left.why) == (100, True)
    for room in (10 * PAGE, None):  # for all: what gives back most comes first again
        made = plan(world(*held, **(old | {"at_once_bytes": room})), LEAST)
        assert [step.memcgs for step in made.steps] == [(102,), (101,), (100,), (99,)]
    less = zombie(99, group("swap-backed-mapped", mappers=(USER,)))
    made = plan(
        world(shmem(100, 3), less, **(old | {"at_once_bytes": 4 * PAGE})), LEAST
    )
    assert [step.memcgs for step in made.steps] == [(99,), (100,)]
    aimed = {**old, "interfaces": (*INTERFACES_HERE, "memory.reclaim swappiness")}
    assert len(plan(world(*held, **aimed), LEAST).freed) == 4


def test_what_there_is_no_room_for_on_zram_may_be_reclaimed() -> None:
    """Lost: what a person allowed."""
    living = online(HOLDER, "/app/b", APP, charges=Charges(file_bytes=90 * PAGE))
    held = living, shmem(100, 3), shmem(101, 2)
    for room, untargeted in ((5, False), (4, True)):
        census = world(*held, at_once_bytes=room * PAGE)
        steps = plan(census, LEAST, allow=["unaimed"]).steps
        assert [step.untargeted for step in steps] == [untargeted] * 2
    assert len(plan(census, LEAST).steps) == 1


def test_nothing_is_planned_that_nobody_has_seen_to_work() -> None:
    """Lost: a host to which an interface does something else than is said."""
    assert [one.name for one in INTERFACES if not one.seen] == []


def in_swap_cache(cached: int, mapped: bool = True, **changes: Any) -> Any:
    """Ten pages of anonymous memory, some of which have swap entries, too."""
    values = {
        "mapped": mapped,
        "mappers": (replace(USER, bytes=10 * PAGE),) if mapped else (),
        "bytes": 10 * PAGE,
        "evictable_bytes": 10 * PAGE,
        "swap_entry_bytes": cached * PAGE,
    }
    return group("swap-backed-mapped", **(values | changes))


@pytest.mark.parametrize(("cached", "charged"), [(0, (10,)), (6, (4,)), (10, ())])
def test_a_swap_entry_is_charged_once(cached: int, charged: tuple[int, ...]) -> None:
    """Lost: who is charged for what: its ancestor would seem to pay twice."""
    held = zombie(100, in_swap_cache(cached), swap=swapped(cached) if cached else ())
    # There is room for those that have no entry yet.
    census = world(held, swap_free_bytes=(10 - cached) * PAGE)
    made = work_out(census, LEAST)
    step = made.plan.steps[0]
    assert (step.action, step.bytes) == ("pageout", 10 * PAGE)
    assert step.charged_to == ("/app",) * len(charged)
    assert step.charged_bytes == tuple(n * PAGE for n in charged)
    assert aim(step, ProcessTarget).process == replace(USER, bytes=10 * PAGE)
    assert made.plan.freed == (100,)
    (one, *_) = made.effects[100]
    assert one.swapped_bytes == sum(charged) * PAGE
    tight = plan(world(held, swap_free_bytes=(9 - cached) * PAGE), LEAST)
    assert bool(tight.freed) is (cached == 10)


def test_what_is_left_out_is_left_whole() -> None:
    """Lost: bytes, to a step that is not done."""
    mappers = tuple(replace(USER, pid=77 + n, bytes=5 * PAGE) for n in range(2))
    census = world(zombie(100, in_swap_cache(2, mappers=mappers)))
    made = work_out(census, POLICIES["evict"], max_bytes=5 * PAGE)
    assert len(made.plan.left_out) == 1
    one = made.effects[100][0]
    moved = one.evicted_bytes, one.swapped_bytes, one.left_bytes
    assert moved == (0, 5 * PAGE, 5 * PAGE)


def test_what_stays_may_be_what_had_swap_entries() -> None:
    """Lost: a limit of swap, to an entry that was taken to be charged already."""
    pinned = in_swap_cache(
        6, evictable_bytes=8 * PAGE, obstacles=(("pinned", 2 * PAGE),)
    )
    held = zombie(100, pinned, swap=swapped(6))
    (step, *_) = plan(world(held), POLICIES["evict"]).steps
    assert (step.bytes, step.charged_bytes) == (8 * PAGE, (4 * PAGE,))


def test_what_two_map_of_the_swap_cache_adds_up() -> None:
    """Lost: bytes, or a charge, where several processes have a part each."""
    mappers = tuple(replace(USER, pid=77 + n, bytes=5 * PAGE) for n in range(2))
    held = zombie(100, in_swap_cache(6, mappers=mappers), swap=swapped(6))
    made = [one for one in steps(world(held)) if one.action == "pageout"]
    assert [one.bytes for one in made] == [5 * PAGE] * 2
    assert sum(sum(one.charged_bytes) for one in made) == 4 * PAGE
    assert {aim(one, ProcessTarget).process for one in made} == {*mappers}


def test_an_entry_that_was_read_has_to_be_charged_again() -> None:
    """Lost: swap that is used once more, when a page is paged out a second time."""
    held = zombie(100, in_swap_cache(10, mapped=False), swap=swapped(10))
    made = steps(world(held, interfaces=AIMED))
    assert [(one.action, one.charged_bytes) for one in made] == [
        ("swapin", ()),
        ("pageout", (10 * PAGE,)),
    ]


NAMED = (*AIMED, "lru_gen by private id")


def test_what_several_map_goes_by_the_memcgs_private_id() -> None:
    """Lost: libraries that many processes map, which MADV_PAGEOUT passes by."""
    other = Process(78, "other", "/holder", HOLDER, PAGE, 101)
    shared = group("file-mapped", mappers=(USER, other))
    held = zombie(100, shared, swap=swapped(), private_id=7)
    first, *_ = made = steps(world(held, interfaces=NAMED))
    assert [step.action for step in made] == ["lru_gen", "swapin"]
    assert first.aim == GenerationTarget(held.id, held.path, 7, 0)
    assert first.collateral_bytes == 0
    assert made[-1].frees == (100,)
    nameless = replace(held, private_id=0)
    assert not plan(world(nameless, interfaces=NAMED), LEAST).freed


def test_a_swap_cache_of_several_goes_before_its_entries_are_read() -> None:
    """Lost: zombies that are held by the swap cache of more than one process."""
    (device,) = swapped(2)
    owners = tuple(replace(device.owners[0], pid=pid, entries=1) for pid in (77, 78))
    cached = zombies.group(kind="anon", backing=None, bytes=2 * PAGE)
    swap = (replace(device, owners=owners),)
    held = zombie(100, replace(cached, evictable_bytes=2 * PAGE), swap=swap)
    held = replace(held, private_id=7)
    made = plan(world(held, interfaces=NAMED), LEAST)
    assert [step.action for step in made.steps] == ["lru_gen", "swapin", "swapin"]
    assert aim(made.steps[0], GenerationTarget).swappiness == 200
    assert made.freed == (100,)
    assert not plan(world(held, interfaces=AIMED), LEAST).freed


def test_what_nobody_can_do_to_a_process_is_not_promised() -> None:
    """Lost: trust, when a step waits for a frozen process, or finds it gone."""
    mapped = CASES["swap-backed-mapped"]
    headless = tuple(replace(one, tid=78) for one in mapped["mappers"])
    held = zombie(100, zombies.group(**{**mapped, "mappers": headless}))
    made = plan(world(held), LEAST, only=("pageout", "collapse"))
    assert not made.steps
    assert "the first thread of pid" in made.remaining[0].why
    census = world(zombie(100, swap=swapped()))
    assert plan(census, LEAST).freed == (100,)
    frozen = [replace(m, frozen=m.path == "/holder") for m in census.memcgs]
    made = plan(replace(census, memcgs=tuple(frozen)), LEAST)
    assert not made.steps
    assert "/holder is frozen" in made.remaining[0].why


def test_no_cgroup_is_made_where_ids_are_used_up() -> None:
    """Lost: trust, in a step that ends with an OSError: 3 promised, 1 freed."""
    held = zombie(100, holders=(Holder("stock", 1, "CPU 3: empty"),))
    assert plan(world(held), LEAST).freed == (100,)
    full = [zombies.memcg(n, private_id=1, state="online") for n in range(1000, 66535)]
    made = plan(world(held, *full), LEAST)
    assert not made.steps
    assert "memcg ids are used up: 65,535 of 65,535" in made.remaining[0].why


@pytest.mark.parametrize(
    ("limits", "why"),
    [
        (Limits(max_descendants=9, descendants=8, max_depth=1), ""),
        (
            Limits(max_descendants=9, descendants=9),
            "max.descendants of / is reached: 9",
        ),
        (Limits(max_depth=0), "cgroup.max.depth of / is reached"),
    ],
)
def test_no_cgroup_is_made_where_none_may_be(limits: Limits, why: str) -> None:
    """Lost: trust, in a step that ends with EAGAIN."""
    held = zombie(100, holders=(Holder("stock", 1, "CPU 3: empty"),))
    census = world(held)
    memcgs = [replace(m, limits=limits) if m.path == "/" else m for m in census.memcgs]
    made = plan(replace(census, memcgs=tuple(memcgs)), LEAST)
    assert made.freed == (() if why else (100,))
    assert all(why in left.why for left in made.remaining)


def test_a_device_is_no_disk_by_its_name() -> None:
    """Lost: who pays, where a swap file on a disk is called zram0.swap."""
    (device,) = swapped(4, device="/var/dev/zram0.swap")
    here = tuple(name for name in INTERFACES_HERE if name != PAYS)
    for known, payer in ((False, "/"), (None, "/"), (True, "/holder")):
        held = zombie(100, swap=(replace(device, synchronous=known),))
        (step,) = steps(world(held, interfaces=here))
        assert step.charged_to == (payer,)


def test_entries_that_outlive_their_reading_are_not_promised() -> None:
    """Lost: reading gigabytes from a disk for nothing, on 7.0 to 7.2."""
    held = zombie(100, swap=swapped(device="/dev/sda2"))
    assert plan(world(held, interfaces=AIMED), LEAST).freed == (100,)
    made = plan(world(held, interfaces=(*AIMED, "swap entries stay")), LEAST)
    assert not made.steps
    assert "keeps them" in made.remaining[0].why


def test_only_what_was_asked_for_and_what_is_below() -> None:
    """Lost: a careful person's plan for one zombie."""
    census = world(
        zombie(100, group("file-unmapped")),
        zombie(101, swap=swapped()),
        zombie(102, group("swap-backed-unmapped"), parent_id=101),
        online(6, "/app/on", APP),
        zombie(103, group("kernel"), parent_id=6),
        interfaces=AIMED,
    )
    made = plan(census, LEAST, [101])
    assert {one for step in made.steps for one in step.memcgs} == {101, 102}
    assert set(made.freed) | {one.id for one in made.remaining} == {101, 102}
    assert {one.id for one in plan(census, LEAST, [6]).remaining} == {103}
    whole = plan(census, LEAST, [APP])
    assert set(whole.freed) == {100, 101, 102}


def test_a_zombie_that_was_not_looked_at_says_so() -> None:
    """Lost: a plan from a census without a scan: no promise, and no traceback."""
    bare = replace(zombie(100), details=None, charges=None, swap=None)
    made = plan(world(bare), LEAST)
    assert (made.steps, made.freed) == ((), ())
    assert made.remaining[0].why == "its references and charges were not looked at"


def test_a_census_that_does_not_know_the_interfaces_says_so() -> None:
    """Lost: "nothing can be done" for "nobody looked"."""
    made = plan(world(held_by("swap"), interfaces=()), LEAST)
    assert any("interfaces" in warning for warning in made.warnings)


@pytest.mark.parametrize("number", [None, 3])
def test_references_that_nobody_accounts_for_keep_a_zombie(number: int | None) -> None:
    """Lost: a promise that a kernel bug breaks."""
    held = zombie(100, group("file-unmapped"))
    assert held.details
    held = replace(held, details=replace(held.details, unexplained=number))
    made = plan(world(held), LEAST)
    assert made.steps
    assert not made.freed


def test_swap_that_is_read_ahead_is_charged_by_the_kernels_rule() -> None:
    """Lost: who pays on kernels before 5.14: the root, unless it is zram."""
    old = tuple(name for name in INTERFACES_HERE if name != PAYS)

    def payer(device: str, interfaces: tuple[str, ...]) -> tuple[str, ...]:
        held = zombie(100, swap=swapped(4, device=device))
        (step,) = steps(world(held, interfaces=interfaces))
        return step.charged_to

    assert payer("/dev/zram0", old) == ("/holder",)
    assert payer("/dev/vdb", old) == ("/",)
    assert payer("/dev/vdb", INTERFACES_HERE) == ("/holder",)


def test_what_is_aimed_comes_before_what_is_not() -> None:
    """Lost: memory.reclaim that takes what another step would, and leaves its own."""
    cached = zombies.group(kind="anon", backing=None)
    census = world(
        zombie(100, cached), zombie(101, group("file-unmapped", bytes=90 * PAGE))
    )
    assert [step.action for step in steps(census)] == ["fadvise", "memory.reclaim"]


def test_names_of_interfaces_are_unique_and_all_is_told() -> None:
    """Lost: the table of what an interface needs, touches and cannot move."""
    names = [(one.name, one.cases, one.after) for one in INTERFACES]
    assert len(set(names)) == len(names)
    for one in INTERFACES:
        assert all((one.requires, one.effect, one.touches, one.cannot, one.cases))


def test_a_damaged_tree_is_no_traceback() -> None:
    """Lost: the plan for all others to two ids that are one, or to a circle."""
    many = zombie(100, group("file-unmapped"), group("metadata"), swap=swapped())
    same = replace(zombie(100), address=1)
    circle = [
        zombie(101, group("file-unmapped"), parent_id=102),
        zombie(102, group("file-unmapped"), parent_id=101),
        zombie(103, group("file-unmapped"), parent_id=103),
    ]
    made = plan(world(many, same, *circle), LEAST, [100, 101])
    assert {one for step in made.steps for one in step.memcgs} >= {100, 101}
    assert not {101, 102, 103} & set(made.freed)


def test_an_ancestor_that_is_not_in_the_census_takes_no_command() -> None:
    """Lost: a damaged census that makes memcgctl write to a wrong cgroup."""
    lost = replace(held_by("file-mapped"), ancestor="/gone")
    made = plan(world(lost), LEAST, allow=["unaimed"])
    assert not made.steps
    assert "ancestor" in made.remaining[0].why


@pytest.mark.parametrize(("living", "said"), [(PAGE, PAGE), (1 << 30, 1 << 20)])
def test_what_reclaim_takes_beside_is_collateral(living: int, said: int) -> None:
    """Lost: that a tmpfs file's last pages cost somebody else's page cache."""
    busy = online(6, "/app/busy", APP, charges=Charges(file_bytes=living))
    here = (*AIMED, "memory.reclaim", "memory.reclaim swappiness")
    (step,) = steps(world(busy, held_by("swap-backed-unmapped"), interfaces=here))
    assert step.collateral_bytes == said
    (step,) = steps(
        world(busy, held_by("swap-backed-unmapped"), interfaces=("pageout",))
    )
    assert step.collateral_bytes == 0
    assert "memory.reclaim" not in step.command


def test_reclaim_that_prefers_nothing_is_kept_from_the_living() -> None:
    """Lost: all page cache of a living cgroup, for a few pages of tmpfs (5.19-6.10)."""
    reclaiming = (*AIMED, "memory.reclaim")
    disk: dict[str, Any] = {"interfaces": reclaiming, "swaps_at_once": False}
    held = held_by("swap-backed-unmapped")
    alone = plan(world(held, **disk), LEAST)
    assert [step.untargeted for step in alone.steps] == [True]
    busy = online(6, "/app/busy", APP, charges=Charges(file_bytes=1 << 30))
    made = plan(world(busy, held, **disk), LEAST)
    assert not made.steps
    assert "memory.reclaim would take living cgroups' memory" in made.remaining[0].why
    (step,) = plan(world(busy, held, **disk), LEAST, allow=["unaimed"]).steps
    assert (step.untargeted, step.collateral_bytes) == (True, 1 << 30)
    zram = {**disk, "swaps_at_once": True}
    (step,) = plan(world(busy, held, **zram), LEAST).steps
    assert (step.untargeted, step.collateral_bytes) == (False, 0)
    assert "memory.reclaim" not in step.command


def test_all_who_share_swap_entries_read_them() -> None:
    """Lost: a zombie that the other half of a fork still holds."""
    (device,) = swapped(5)
    other = replace(device.owners[0], pid=78)
    held = zombie(100, swap=(replace(device, owners=(*device.owners, other)),))
    made = steps(world(held))
    assert sorted(
        (aim(step, ProcessTarget).process.pid, step.bytes) for step in made
    ) == [*[(77, 5 * PAGE), (78, 0)]]
    assert [step.frees for step in made] == [(), (100,)]


def test_swap_entries_of_a_file_are_read_from_within_the_ancestor() -> None:
    """Lost: zombies of swapped tmpfs files, which nobody maps."""
    held = zombie(100, swap=swapped(3, file=TMPFS))
    (step,) = steps(world(held))
    assert (step.action, step.bytes, step.frees) == ("swapin-file", 3 * PAGE, (100,))
    assert step.charged_to == ("/app",)
    target = aim(step, SwappedFileTarget)
    assert (target.file, target.memcg_id, target.memcg_path) == (TMPFS, APP, "/app")
    hidden = replace(TMPFS, path=None)
    made = plan(world(zombie(100, swap=swapped(3, file=hidden))), LEAST)
    assert not made.steps
    assert "no path leads" in made.remaining[0].why


def test_entries_of_files_and_of_processes_are_apart() -> None:
    """Lost: either half of a zombie's swap, and with it the zombie."""
    (of_process,), (of_file,) = swapped(4), swapped(3, file=TMPFS)
    owners = (*of_process.owners, *of_file.owners)
    held = zombie(100, swap=(replace(of_process, entries=7, owners=owners),))
    made = plan(world(held), LEAST)
    assert {step.action: step.bytes for step in made.steps} == {
        "swapin": 4 * PAGE,
        "swapin-file": 3 * PAGE,
    }
    assert made.freed == (100,)


def test_who_pays_for_a_file_is_the_kernels_rule() -> None:
    """Lost: the root's bill up to 5.13; a new zombie where nothing leaves a disk."""
    held = zombie(100, swap=swapped(3, file=TMPFS))
    aimed, old = AIMED, tuple(one for one in AIMED if one != PAYS)
    made = plan(world(held, interfaces=old, swaps_at_once=False), LEAST)
    assert made.steps[0].charged_to == ("/",)
    made = plan(world(held, interfaces=aimed, swaps_at_once=False), LEAST)
    assert "wait in the swap cache" in made.remaining[0].why
    # A process of cgroup v1 can be in any cgroup: none has to be made.
    v1 = plan(
        world(held, interfaces=aimed, swaps_at_once=False, cgroup_version=1), LEAST
    )
    assert v1.steps[0].charged_to == ("/app",)
    assert not aim(v1.steps[0], SwappedFileTarget).page_out
    new = (*INTERFACES_HERE, "folios go to the parent")
    for interfaces, again in ((INTERFACES_HERE, True), (new, False)):
        (step,) = steps(world(held, interfaces=interfaces))
        assert aim(step, SwappedFileTarget).page_out is again


def test_what_a_file_has_in_the_swap_cache_stays_where_it_is_not_paged_out() -> None:
    """Lost: a promise; read from the swap cache, a folio is charged as before."""
    waiting = group("swap-backed-mapped", mapped=False, mappers=())
    values = {"swap": swapped(3, file=TMPFS), "path": "/alone", "ancestor": "/"}
    assert plan(world(zombie(100, **values), interfaces=AIMED), LEAST).freed == (100,)
    made = plan(world(zombie(100, waiting, **values), interfaces=AIMED), LEAST)
    assert made.steps == ()
    assert "in the swap cache stays charged when read" in made.remaining[0].why


def test_shmem_is_not_evicted_by_its_memcgs_generations() -> None:
    """Lost: a zombie whose shmem became its own swap, and a step that freed nothing."""
    hidden = replace(TMPFS, path=None)
    held = zombie(100, group("swap-backed-unmapped", backing=hidden), private_id=7)
    made = plan(world(held, interfaces=NAMED), LEAST)
    assert made.steps == ()
    assert "no path leads to its file" in made.remaining[0].why


def test_a_device_without_a_name_cannot_be_flushed() -> None:
    """Lost: a command on /dev/254:0, which is no file."""
    unnamed = replace(CASES["metadata"]["backing"], device="254:0")
    held = zombie(100, group("metadata", backing=unnamed))
    made = plan(world(held, interfaces=AIMED), LEAST)
    assert made.steps == ()
    assert "its device has no name" in made.remaining[0].why


def test_what_others_have_counts_for_max_bytes() -> None:
    """Lost: gigabytes of a living memcg's page cache, where a megabyte was allowed."""
    shared = replace(FILE, cached_bytes=8 * PAGE)
    census = world(zombie(100, group("file-unmapped", backing=shared)))
    assert plan(census, LEAST, max_bytes=8 * PAGE).freed == (100,)
    made = plan(census, LEAST, max_bytes=7 * PAGE)
    assert (made.steps, len(made.left_out)) == ((), 1)
