"""What looks at a tree, one after the other, show: counts, rates, families, ages."""

from __future__ import annotations

from dataclasses import replace

from memcgctl.model import Census, Memcg
from memcgctl.report.text import cell_count
from memcgctl.report.watch import line, rows_of, screen
from memcgctl.views.watch import Watch, Watched
from tests.unit.plans import world, zombie


def census(*zombies: Memcg, at: float = 1_000_000.0) -> Census:
    made = world(*zombies)
    return replace(made, kernel=replace(made.kernel, taken_at=at, dying_cgroups=None))


def named(number: int, name: str, removed_at: float | None = None) -> Memcg:
    path = f"/app/{name}"
    return replace(zombie(number), path=path, removed_at=removed_at)


def looks() -> Watched:
    watch = Watch()
    first = [named(100, "job-1.service", 999_000.0), named(101, "session-7.scope")]
    watch.see(census(*first), 50.0)
    # 101 went, three of one family came; 102's id was given once more.
    then = [first[0], *(named(n, f"job-{n}.service") for n in (102, 103, 104))]
    watch.see(census(*then, at=1_000_030.0), 80.0)
    again = replace(named(102, "job-102.service"), address=1 << 63)
    return watch.see(census(*then[:1], again, *then[2:], at=1_000_060.0), 110.0)


def test_births_and_deaths_are_counted_from_look_to_look() -> None:
    """Lost: how fast they come; a steady number hides as many that come as go."""
    seen = looks()
    assert (seen.looks, seen.offline, seen.first) == (3, 4, 2)
    assert (seen.born, seen.gone) == (4, 2)
    assert seen.per_minute(seen.born) == 4.0


def test_the_fastest_growing_family_comes_first() -> None:
    """Lost: the leak's signature, below a family that is large and steady."""
    seen = looks()
    assert [(one.name, one.now, one.more) for one in seen.families] == [
        ("job-*.service", 4, 3)
    ]
    assert [(memcg.id, age) for memcg, age in seen.oldest] == [(100, 1060.0)]


def test_a_first_look_promises_no_rate() -> None:
    """Lost: "none came", of what nobody has waited for."""
    seen = Watch().see(census(named(100, "a")), 5.0)
    assert seen.per_minute(seen.born) is None
    assert "next look" in screen(seen, 10).plain
    assert "none came" not in screen(seen, 10).plain


def test_it_fits_any_terminal() -> None:
    """Lost: a screen that scrolls, or breaks its lines, at 3 a.m. on a serial line."""
    watch = Watch()
    many = [named(100 + n, f"{'é' * n}x.service", float(n)) for n in range(60)]
    seen = watch.see(census(*many), 1.0, rows_of(24))
    seen = replace(seen, warnings=("the tree changed", "and again"))
    for width, height in ((80, 24), (40, 24), (132, 50), (80, 16)):
        shown = watch.see(census(*many), 2.0, rows_of(height))
        lines = screen(shown, 10, width=width, height=height).plain.splitlines()
        assert len(lines) <= height
        assert max(map(cell_count, lines)) <= width
    assert "warning: the tree changed (1 more warning)" in screen(seen, 10).plain


def test_a_line_a_look_in_a_pipe() -> None:
    """Lost: a log that awk can read."""
    words = line(looks()).split()
    assert words[0] == "1970-01-12T13:47:40Z"
    assert words[1:4] == ["zombies=4", "born=4", "gone=2"]


def test_a_tree_that_was_read_in_part_tells_nobody_is_gone() -> None:
    """Lost: a torn look at a busy tree, told as zombies that went and came again."""
    watch = Watch()
    every = [named(100 + n, f"job-{n}.service") for n in range(3)]
    watch.see(census(*every), 0.0)
    torn = replace(
        census(*every[:1]), unread=("cgroup tree",), warnings=("a part is unread",)
    )
    seen = watch.see(torn, 30.0)
    assert (seen.offline, seen.whole) == (1, False)
    assert (seen.born, seen.gone) == (0, 0)
    assert "at least 1 zombie cgroup" in screen(seen, 10).plain
    assert "came" not in screen(seen, 10).plain
    assert "whole=no" in line(seen)
    after = watch.see(census(*every), 60.0)
    assert (after.born, after.gone, after.whole) == (0, 0, True)
    assert "none seen to come, none to go" in screen(after, 10).plain
    assert "whole=yes" in line(after)


def test_growth_is_counted_from_the_first_whole_look() -> None:
    """Lost: all zombies there are, told as so many that came."""
    watch = Watch()
    every = [named(100 + n, f"job-{n}.service") for n in range(3)]
    watch.see(replace(census(*every[:1]), unread=("cgroup tree",)), 0.0)
    seen = watch.see(census(*every), 30.0)
    assert (seen.first, seen.born, seen.seconds) == (3, 0, 0.0)
    assert [one.more for one in seen.families] == [0]
