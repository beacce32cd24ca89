"""Two censuses side by side: what came, what went, what grew."""

from __future__ import annotations

from dataclasses import replace

from memcgctl.model import Charges, Kernel, Memcg, SwapUse
from memcgctl.report.diff import headline, screen, to_json
from memcgctl.views.diff import diff
from tests.schemas import read
from tests.unit.zombies import census, memcg

NONE = SwapUse(0, 0)


def at(kernel: Kernel, seconds: float | None, boot: str | None = "b") -> Kernel:
    return replace(kernel, taken_at=seconds, boot_id=boot)


def session(number: int, size: int = 4096, address: int = 0) -> Memcg:
    return memcg(
        number,
        f"/user.slice/session-{number}.scope",
        charges=Charges(file_bytes=size),
        swap=NONE,
        address=address or number << 12,
    )


OLD = census(session(1), session(2), session(3))
NEW = census(session(2), session(3, 8192), session(4), session(5))


def test_new_gone_and_grown() -> None:
    """Lost: whether a machine leaks, and what."""
    old = replace(OLD, kernel=at(OLD.kernel, 1e9))
    new = replace(NEW, kernel=at(NEW.kernel, 1e9 + 3600))
    found = diff(old, new)
    assert (found.same_boot, found.seconds) == (True, 3600)
    assert [one.id for one in found.new] == [4, 5]
    assert [one.id for one in found.gone] == [1]
    assert [(one.id, more) for one, more in found.grown] == [(3, 4096)]
    (family,) = found.families
    assert (family.name, family.before, family.after) == ("session-*.scope", 3, 4)
    assert (family.new, family.gone) == (2, 1)
    assert headline(found).startswith("4 zombie cgroups, +1 in 60m: 2 new, 1 gone")
    assert max(map(len, screen(found).plain.splitlines())) <= 80


def test_a_reused_id_is_another_zombie() -> None:
    """A cgroup id can have several memcgs: one would be told as grown."""
    again = census(session(1, 1 << 20, address=7 << 20))
    found = diff(census(session(1)), again)
    assert (len(found.new), len(found.gone), found.grown) == (1, 1, ())


def test_of_two_boots_only_names_are_compared() -> None:
    """Lost: trust, in zombies that are 'new' since the machine was booted anew."""
    old = replace(OLD, kernel=at(OLD.kernel, 1e9, "a"))
    new = replace(NEW, kernel=at(NEW.kernel, 2e9, "b"))
    found = diff(old, new)
    assert found.same_boot is False
    assert (found.new, found.gone, found.grown) == ((), (), ())
    assert [one.new for one in found.families] == [None]
    assert "only names are compared" in headline(found)


def test_what_is_not_told_is_null() -> None:
    """A census without a clock or boot ID is not of one boot for that."""
    found = diff(OLD, NEW)
    said = read(to_json(found))
    assert said["schema"] == "memcgctl/diff/1"
    assert said["same_boot"] is said["seconds"] is None
    assert "is not told" in screen(found).plain


def test_no_difference() -> None:
    """A table of what stayed as it was would hide what did not."""
    found = diff(OLD, OLD)
    assert (found.families, found.holders) == ((), ())
