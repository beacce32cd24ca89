"""Every reference of a memcg is either explained or counted as unexplained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memcgctl.census import folios
from memcgctl.census.holders import balance
from memcgctl.model import Charges, Holder, Memcg, Overhead
from tests.unit.fake_kernel import FakeKernel

REF = {"percpu_count_ptr": "u64", "data": "percpu_ref_data *"}
OLD = {  # folios hold the css (until 7.0), kernel pages an obj_cgroup (5.13 and later)
    "percpu_ref_data": {"gap": "u64", "count": "atomic"},
    "atomic": {"counter": "s64"},
    "percpu_ref": REF,
    "css": {"gap": "u64[3]", "refcnt": "percpu_ref", "cgroup": "cgroup *"},
    "cgroup": {"gap": "u64[2]", "kn": "kernfs_node *"},
    "kernfs_node": {"gap": "u64", "id": "u64"},
    "id_ref": {"refs": "id_count"},
    "id_count": {"counter": "s32"},
    "id": {"id": "u32", "ref": "id_ref"},
    "mem_cgroup": {"gap": "u64", "css": "css", "id": "id"},
    "mem_cgroup_per_node": {"memcg": "void *"},
    "page": {"flags": "u64", "memcg_data": "u64"},
}
OLDEST = {**OLD, "page": {"flags": "u64", "mem_cgroup": "u64"}}  # 5.10
NEW = {**OLD, "mem_cgroup_per_node": {"objcg_list": "u64[2]"}}  # since 7.1
DEAD = 3  # percpu_count_ptr of a killed reference: __PERCPU_REF_ATOMIC_DEAD

CHEAP = ("stock", "writeback", "css_set", "mm_list", "oom", "objcg")
COSTLY = ("fsnotify", "event", "socket", "kmalloc", "unlisted")


def memcg(fake: FakeKernel, refs: int | None, swap: int = 0, **known: Any) -> Memcg:
    """A memcg in memory with so many references, and as the census knows it."""
    data = fake.make("percpu_ref_data", {"count.counter": refs or 0})
    node = fake.make("kernfs_node", {"id": len(fake.memory)})
    values = {
        "css.cgroup": fake.make("cgroup", {"kn": node}),
        "css.refcnt.percpu_count_ptr": 0 if refs is None else DEAD,
        "css.refcnt.data": data,
        "id.ref.refs.counter": swap,
    }
    address = fake.make("mem_cgroup", values)
    plain = Memcg(
        id=int.from_bytes(fake.memory[node][8:], "little"),
        path="/x",
        state="offline",
        ancestor="/",
        refs=refs,
        children=0,
        usage_bytes=0,
        overhead=Overhead(0, 0, 0),
        address=address,
        private_id=0,
        charges=Charges(),
        swap=None,
    )
    return replace(plain, **known)


class Finders:
    """Stands in for the finders of holders; remembers who was asked for what."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.found: dict[str, list[tuple[int, Holder]]] = {}
        self.asked: dict[str, list[int]] = {}
        for kind in (*CHEAP, *COSTLY):
            patch.setattr(balance, f"{kind}_holders", self._finder(kind))
        patch.setattr(balance, "PAUSE", 0)

    def _finder(self, kind: str) -> Any:
        def find(_: object, wanted: Any, *__: object) -> Iterator[tuple[int, Holder]]:
            self.asked[kind] = [int(address) for address in wanted]
            yield from self.found.get(kind, ())

        return find


@pytest.fixture
def finders(monkeypatch: pytest.MonkeyPatch) -> Finders:
    return Finders(monkeypatch)


def look(
    fake: FakeKernel, memcgs: Sequence[Memcg]
) -> tuple[dict[int, tuple[tuple[Holder, ...], int | None]], tuple[str, ...]]:
    held = balance.holders(fake.kernel, memcgs)
    return held, fake.kernel.trouble.sentences()


FOLIOS = Charges(file_folios=5, shmem_folios=3, anon_folios=2, kernel_folios=7)


@pytest.mark.parametrize(
    ("structs", "expected", "left"),
    [
        (OLDEST, {"folio": 10, "kernel": 7, "swap": 1, "child": 2}, 0),
        (OLD, {"folio": 10, "swap": 1, "child": 2}, 7),
        (NEW, {"swap": 1, "child": 2}, 17),
    ],
    ids=["5.10", "6.1 to 7.0", "7.1 and later"],
)
def test_what_holds_the_css_depends_on_the_kernel(
    finders: Finders, structs: Any, expected: dict[str, int], left: int
) -> None:
    """Lost: the balance of every zombie of one generation of kernels."""
    fake = FakeKernel(structs)
    one = memcg(fake, 20, swap=640, charges=FOLIOS, children=2)
    held, unexplained = look(fake, [one])[0][one.address]
    assert {holder.kind: holder.count for holder in held} == expected
    assert unexplained == left


def test_swap_holds_one_reference_however_many_entries(finders: Finders) -> None:
    """Lost: 639 references that nobody has, or the number of entries in the text."""
    fake = FakeKernel(OLD)
    one = memcg(fake, 1, swap=640)
    assert look(fake, [one])[0][one.address] == (
        (Holder("swap", 1, "640 entries"),),
        0,
    )


def test_one_that_is_being_removed_holds_itself(finders: Finders) -> None:
    """Lost: two references of a memcg that rmdir has begun to take down."""
    fake = FakeKernel(OLD)
    one = memcg(fake, 2, swap=1, state="online")
    held, left = look(fake, [one])[0][one.address]
    assert [(h.kind, h.detail) for h in held] == [
        ("swap", "0 entries"),
        ("other", "is being removed"),
    ]
    assert left == 0


@pytest.mark.parametrize(
    ("refs", "known"), [(None, {"state": "online"}), (5, {"charges": None})]
)
def test_what_nobody_counted_is_not_zero(
    finders: Finders, refs: int | None, known: dict[str, Any]
) -> None:
    """Lost: the difference between balanced and not known."""
    fake = FakeKernel(OLD)
    one = memcg(fake, refs, **known)
    assert look(fake, [one])[0][one.address][1] is None


KINDS = st.sampled_from(
    ["stock", "writeback", "socket", "fsnotify", "event", "css_set"]
)


@settings(max_examples=50)
@given(
    st.lists(st.tuples(st.integers(0, 2), KINDS, st.integers(1, 9)), max_size=8),
    st.lists(st.integers(0, 40), min_size=3, max_size=3),
)
def test_the_account_is_always_whole(
    holdings: list[tuple[int, Any, int]], refs: list[int]
) -> None:
    """Lost: a leaked reference, or a holder too many: what audit is for."""
    with pytest.MonkeyPatch.context() as patch:
        finders = Finders(patch)
        fake = FakeKernel(OLD)
        memcgs = [memcg(fake, count) for count in refs]
        for place, kind, count in holdings:
            holder = Holder("other", count, kind)
            finders.found.setdefault(kind, []).append((memcgs[place].address, holder))
        found, _ = look(fake, memcgs)
    for one, count in zip(memcgs, refs, strict=True):
        held, left = found[one.address]
        assert left is not None
        assert sum(holder.count for holder in held) + left == count


def test_files_and_sockets_are_read_only_for_those_that_miss_some(
    finders: Finders,
) -> None:
    """Lost: the time to read all files of a machine, for nothing."""
    fake = FakeKernel(OLD)
    whole = memcg(fake, 1, children=1)
    look(fake, [whole])
    assert "socket" not in finders.asked
    lacking = memcg(fake, 3, children=1)
    look(fake, [whole, lacking])
    assert [finders.asked[kind] for kind in COSTLY] == [[lacking.address]] * 5


def test_a_kind_that_cannot_be_read_spares_the_others(
    finders: Finders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lost: the whole answer, because one symbol is missing."""

    def broken(*_: object) -> Iterator[tuple[int, Holder]]:
        raise LookupError("no such symbol: bdi_list")

    monkeypatch.setattr(balance, "writeback_holders", broken)
    fake = FakeKernel(OLD)
    one = memcg(fake, 3, children=1)
    finders.found["stock"] = [(one.address, Holder("stock", 1, "CPU 0: 3 pages"))]
    found, warnings = look(fake, [one])
    assert found[one.address][1] == 1
    (warning,) = warnings
    assert warning.startswith("writeback cannot be looked for: ")


def test_a_live_kernel_is_looked_at_twice(
    finders: Finders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lost: which holders pass by themselves, on a machine that is at work."""
    fake = FakeKernel(OLD, live=True)
    one = memcg(fake, 2, children=1)
    looks = iter(["CPU 0: 3 pages", "CPU 0: 9 pages"])

    def stocks(*_: object) -> Iterator[tuple[int, Holder]]:
        detail = next(looks)
        yield one.address, Holder("stock", 1, detail)
        if detail == "CPU 0: 9 pages":
            yield one.address, Holder("stock", 1, "CPU 1: 2 pages")

    monkeypatch.setattr(balance, "stock_holders", stocks)
    held, left = look(fake, [one])[0][one.address]
    assert [(h.detail, h.transient) for h in held if h.kind == "stock"] == [
        ("CPU 0: 9 pages", False),
        ("CPU 1: 2 pages", True),
    ]
    assert left == -1  # the count in memory is still 2


def test_one_that_goes_away_holds_nothing(finders: Finders) -> None:
    """Lost: trust in audit on a machine at work, where cgroups come and go."""
    fake = FakeKernel(OLD, live=True)
    one, other = memcg(fake, 3, children=1), memcg(fake, 1, children=1)
    gone = replace(one, id=one.id + 1)  # its memory is another's by now
    found, warnings = look(fake, [gone, other])
    assert found[gone.address] == ((), 0)
    assert found[other.address][1] == 0
    assert warnings == ("a memcg went away before its holders were found",)


def test_folios_of_a_live_kernel_are_counted_again(
    finders: Finders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lost: the balance, where folios came or went since the scan."""
    fake = FakeKernel(OLD, live=True)
    one = memcg(fake, 6, charges=Charges(file_folios=9))
    counts = np.array([[6, 0, 0, 0, 0], [0, 0, 0, 0, 0]])
    monkeypatch.setattr(
        folios, "count_folios", lambda *_: SimpleNamespace(folios=counts)
    )
    assert look(fake, [one])[0][one.address] == ((Holder("folio", 6, ""),), 0)


def test_no_memcg_at_all(finders: Finders) -> None:
    """Lost: the happy end of a machine without zombies."""
    assert look(FakeKernel(OLD), []) == ({}, ())
