"""The walk over a tree of memcgs that was made by hand, sound and damaged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext

import pytest

from memcgctl.census.tree import CSS_ONLINE, Tree, read_tree
from memcgctl.kernel.errors import KernelError
from memcgctl.kernel.layout import offset_of
from memcgctl.kernel.memory import Memory
from memcgctl.linux.records import BATCH
from tests.unit.fake_kernel import BASE, PAGE, FakeKernel, Members

STATE = {
    "cgroup": "void *",
    "ss": "void *",
    "refcnt": "percpu_ref",
    "sibling": "list_head",
    "children": "list_head",
    "flags": "u32",
    "gap": "u32",
    "parent": "void *",
}
STRUCTS = {
    "list_head": {"next": "void *", "prev": "void *"},
    "percpu_ref": {"percpu_count_ptr": "u64", "data": "percpu_ref_data *"},
    "percpu_ref_data": {"gap": "u64", "count": "atomic_long"},
    "atomic_long": {"counter": "s64"},
    "cgroup_subsys_state": STATE,
    "mem_cgroup_id": {"gap": "u32", "id": "s32"},
    "page_counter": {"gap": "u64", "usage": "atomic_long", "parent": "void *"},
    "mem_cgroup": {
        "gap": "u64[3]",
        "css": "cgroup_subsys_state",
        "id": "mem_cgroup_id",
        "memory": "page_counter",
    },
    "cgroup": {
        "gap": "u64",
        "self": "cgroup_subsys_state",
        "level": "u32",
        "gap2": "u32",
        "kn": "void *",
        "root": "void *",
    },
    "kernfs_node": {
        "gap": "u64",
        "id": "u64",
        "name": "void *",
        "parent": "void *",
    },
}
NODE_RCU = {"id": "u64", "__parent": "void *", "name": "void *", "gap": "u64"}
CSS = 24  # in struct mem_cgroup
SIBLING, CHILDREN = 32, 48  # in struct cgroup_subsys_state
MEMORY_SS = 0xFFFFFFFF81000040
DEFAULT_ROOT = 0xFFFFFFFF82000000
NAME_SIZE = 256


class Forest:
    """Memcgs in a fake kernel, the root first."""

    def __init__(
        self,
        structs: Mapping[str, Members] = STRUCTS,
        enums: Mapping[str, Sequence[str]] | None = None,
        *,
        version: int = 2,
        live: bool = False,
        rcu: bool = False,
    ) -> None:
        nodes = {"kernfs_node": NODE_RCU} if rcu else {}
        self.fake = FakeKernel({**structs, **nodes}, enums, live=live)
        self.node_parent = "__parent" if rcu else "parent"
        self.fake.symbols["cgrp_dfl_root"] = DEFAULT_ROOT
        self.hierarchy = DEFAULT_ROOT if version == 2 else DEFAULT_ROOT + PAGE
        self.nodes: dict[int, int] = {0: 0}
        self.children: dict[int, list[int]] = {}
        self.root = self.memcg(0, b"", online=True, refs=None)
        self.fake.global_variable("root_mem_cgroup", self.root)

    def memcg(
        self,
        parent: int,
        name: bytes,
        *,
        online: bool = False,
        refs: int | None = 1,
    ) -> int:
        """A new memcg, last in the list of its parent's children."""
        fake = self.fake
        node = {
            "id": 100 + len(self.nodes),
            "name": fake.allocate((name + b"\0").ljust(NAME_SIZE, b"x")),
            self.node_parent: self.nodes[parent],
        }
        cgroup = fake.make("cgroup", {"root": self.hierarchy})
        memcg = fake.make(
            "mem_cgroup",
            {
                "css.cgroup": cgroup,
                "css.ss": MEMORY_SS,
                "css.parent": parent + CSS if parent else 0,
                "css.flags": CSS_ONLINE if online else 0,
                "css.refcnt.percpu_count_ptr": 0x1000 | (refs is not None),
                "css.refcnt.data": fake.make(
                    "percpu_ref_data", {"count.counter": refs or 0}
                ),
                "memory.usage.counter": 5,
            },
        )
        self.nodes[memcg] = fake.make("kernfs_node", node)
        fake.put(cgroup, "cgroup", {"self.cgroup": cgroup, "kn": self.nodes[memcg]})
        self.children[memcg] = []
        self.link(memcg)
        if parent:
            self.children[parent].append(memcg)
            self.link(parent)
        return memcg

    def link(self, parent: int) -> None:
        """Write the list of children."""
        place, path = parent, "css.children.next"
        for child in self.children[parent]:
            self.fake.put(place, "mem_cgroup", {path: child + CSS + SIBLING})
            place, path = child, "css.sibling.next"
        self.fake.put(place, "mem_cgroup", {path: parent + CSS + CHILDREN})

    def tree(self) -> tuple[Tree, tuple[str, ...]]:
        tree = read_tree(self.fake.kernel)
        return tree, self.fake.kernel.trouble.sentences()


@pytest.mark.parametrize("rcu", [False, True])
def test_identity(rcu: bool) -> None:
    """Every memcg has its id, former path, state, parent and references."""
    forest = Forest(rcu=rcu)
    app = forest.memcg(forest.root, b"app", online=True, refs=None)
    outer = forest.memcg(app, b"outer", refs=1)
    inner = forest.memcg(outer, b"in ner\xff", refs=300)
    beside = forest.memcg(app, b"b" * 255, online=True, refs=2)
    tree, warnings = forest.tree()
    assert not warnings
    assert tree.cgroup_version == 2
    assert tree.address.tolist() == [forest.root, app, outer, beside, inner]
    assert tree.path == (
        "/",
        "/app",
        "/app/outer",
        "/app/" + "b" * 255,
        "/app/outer/in ner\udcff",
    )
    assert tree.id.tolist() == [101, 102, 103, 105, 104]
    assert tree.online.tolist() == [True, True, False, True, False]
    assert tree.parent.tolist() == [-1, 0, 1, 1, 2]
    assert tree.ancestor.tolist() == [-1, 0, 1, 1, 1]
    assert tree.children.tolist() == [1, 2, 1, 0, 0]
    assert tree.refs.tolist() == [-1, -1, 1, 2, 300]


def test_first_version() -> None:
    """A hierarchy of cgroup v1 is told from the default one."""
    assert Forest(version=1).tree()[0].cgroup_version == 1


def test_who_is_charged_without_use_hierarchy() -> None:
    """What is charged to the root would be asked of the parent, and nothing go."""
    forest = Forest(version=1)
    app = forest.memcg(forest.root, b"app", online=True)
    gone = forest.memcg(app, b"gone")
    below = forest.memcg(gone, b"below")
    counter = offset_of(forest.fake.kernel.prog, "struct mem_cgroup", "memory")
    for memcg in (app, gone, below):
        parent = {"memory.parent": forest.root + counter}
        forest.fake.put(memcg, "mem_cgroup", parent)
    tree, _ = forest.tree()
    assert tree.parent.tolist() == [-1, 0, 1, 2]
    assert tree.ancestor.tolist() == [-1, 0, 0, 0]
    forest.fake.put(below, "mem_cgroup", {"memory.parent": app + counter})
    assert forest.tree()[0].ancestor.tolist() == [-1, 0, 0, 1]


def test_references_while_they_are_summed_up() -> None:
    """A count with the bias still in it is not shown as billions of references."""
    forest = Forest()
    forest.memcg(forest.root, b"dying", refs=(1 << 63) + 3)
    assert forest.tree()[0].refs.tolist() == [-1, -1]


def test_many_levels() -> None:
    """Trees as deep as mkdir makes them are walked to the end."""
    forest = Forest()
    memcg = forest.root
    for _ in range(300):
        memcg = forest.memcg(memcg, b"d")
    tree, warnings = forest.tree()
    assert tree.path[-1] == "/d" * 300
    assert not warnings


def test_more_than_a_batch() -> None:
    """Nothing is lost or swapped where structures are decoded in batches."""
    forest = Forest()
    names = [b"%d" % number for number in range(BATCH + 10)]
    children = [forest.memcg(0, name) for name in names]
    for child in children:
        node = {"parent": forest.nodes[forest.root]}
        forest.fake.put(forest.nodes[child], "kernfs_node", node)
        forest.fake.put(child, "mem_cgroup", {"css.parent": forest.root + CSS})
    forest.children[forest.root] = children
    forest.link(forest.root)
    tree, _ = forest.tree()
    assert tree.address.tolist() == [forest.root, *children]
    assert tree.path[1:] == tuple(f"/{name.decode()}" for name in names)


def test_name_at_the_end_of_memory() -> None:
    """A name is not lost because the page behind it is not in the dump."""
    forest = Forest()
    child = forest.memcg(forest.root, b"x")
    name = forest.fake.allocate(b"last\0", at=BASE + (1 << 30) - 5)
    forest.fake.put(forest.nodes[child], "kernfs_node", {"name": name})
    tree, warnings = forest.tree()
    assert tree.path == ("/", "/last")
    assert not warnings


def test_name_across_pages() -> None:
    """A name that goes on in the next page is read to its end."""
    forest = Forest()
    child = forest.memcg(forest.root, b"x")
    at = BASE + (1 << 30) - 3
    text = b"crossing\0"
    forest.fake.allocate(text.ljust(PAGE, b"y"), at=at)
    forest.fake.put(forest.nodes[child], "kernfs_node", {"name": at})
    assert forest.tree()[0].path == ("/", "/crossing")


@pytest.mark.parametrize("name", [b"", b"n" * 256, None])
def test_name_that_is_none(name: bytes | None) -> None:
    """A memcg whose name is damaged is listed all the same, with a warning."""
    forest = Forest()
    child = forest.memcg(forest.root, b"x")
    at = 0 if name is None else forest.fake.allocate(name.ljust(PAGE, b"\0"))
    forest.fake.put(forest.nodes[child], "kernfs_node", {"name": at})
    tree, warnings = forest.tree()
    assert tree.path == ("/", "/?")
    assert warnings == ("the name of a cgroup cannot be read",)


def test_cycle_of_names() -> None:
    """Names that lead in a circle end, instead of growing for ever."""
    forest = Forest()
    one = forest.memcg(forest.root, b"one")
    two = forest.memcg(one, b"two")
    forest.fake.put(forest.nodes[one], "kernfs_node", {"parent": forest.nodes[two]})
    assert forest.tree()[0].path == ("/", "/?/two/one", "/?/two")


LISTS = "a list of child memcgs is damaged or changes: some may be missing"


@pytest.mark.parametrize(
    "link",
    [
        0,  # no pointer at all
        1,  # not to a memcg
        "root",  # a cycle through the parent
        "first",  # a cycle among children
        "cousin",  # into another list
    ],
)
def test_damaged_list(link: int | str) -> None:
    """A list of children that leads astray is cut there, and that is said."""
    forest = Forest()
    first = forest.memcg(forest.root, b"first")
    last = forest.memcg(forest.root, b"last")
    cousin = forest.memcg(first, b"cousin")
    named = {"root": forest.root, "first": first, "cousin": cousin}
    to = named[link] + CSS + SIBLING if isinstance(link, str) else link
    forest.fake.put(last, "mem_cgroup", {"css.sibling.next": to})
    tree, warnings = forest.tree()
    assert tree.address.tolist() == [forest.root, first, last, cousin]
    assert warnings == (LISTS,)


def test_foreign_css_in_the_list() -> None:
    """A css of another controller is not taken for a memcg."""
    forest = Forest()
    foreign = forest.memcg(forest.root, b"x")
    forest.fake.put(foreign, "mem_cgroup", {"css.ss": MEMORY_SS + 256})
    tree, warnings = forest.tree()
    assert tree.path == ("/",)
    assert warnings == (LISTS,)


def test_list_that_changes() -> None:
    """On a live kernel a list that was caught in a change is read again."""
    forest = Forest(live=True)
    one = forest.memcg(forest.root, b"one")
    two = forest.memcg(forest.root, b"two")
    forest.fake.put(one, "mem_cgroup", {"css.sibling.next": 8})

    class Mending(Memory):
        reads = 0

        def try_read(self, address: int, size: int) -> bytes | None:
            self.reads += 1
            if self.reads == 4:
                forest.link(forest.root)
            return super().try_read(address, size)

    forest.fake.kernel.memory = Mending(forest.fake.prog)
    tree, warnings = forest.tree()
    assert tree.address.tolist() == [forest.root, one, two]
    assert not warnings


def test_memcg_that_went_away() -> None:
    """What was freed while it was read is not shown with another one's data."""
    forest = Forest()
    app = forest.memcg(forest.root, b"app", online=True)
    forest.memcg(forest.root, b"beside", online=True)
    outer = forest.memcg(app, b"outer", online=True)
    inner = forest.memcg(outer, b"inner")
    other = forest.fake.make("cgroup", {"kn": forest.nodes[inner]})
    forest.fake.put(outer, "mem_cgroup", {"css.cgroup": other})
    tree, warnings = forest.tree()
    assert tree.path == ("/", "/app", "/beside", "/app/outer/inner")
    assert tree.parent.tolist() == [-1, 0, 0, 1]
    assert tree.ancestor.tolist() == [-1, 0, 0, 1]
    assert len(warnings) == 1


def test_more_memcgs_than_there_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """Damage that looks like an endless tree is cut off at a bound."""
    monkeypatch.setattr("memcgctl.census.tree.MAX_MEMCGS", 5)
    forest = Forest()
    one = forest.memcg(forest.root, b"one")
    for parent in (forest.root, one, one, one):
        forest.memcg(parent, b"more")
    tree, warnings = forest.tree()
    assert len(tree.path) == 5
    assert warnings == (LISTS,)


def test_no_tree() -> None:
    """Kernels without memcgs, and dumps without the root, get a line of their own."""
    fake = FakeKernel(STRUCTS)
    with pytest.raises(KernelError, match="CONFIG_MEMCG"):
        read_tree(fake.kernel)
    fake.global_variable("root_mem_cgroup", 0)
    with pytest.raises(KernelError, match="cgroup_disable"):
        read_tree(fake.kernel)
    fake.global_variable("root_mem_cgroup", BASE + (1 << 40))
    with pytest.raises(KernelError, match="not in the dump"):
        read_tree(fake.kernel)
    fake.symbols["root_mem_cgroup"] = 64
    with pytest.raises(KernelError, match="cannot be read"):
        read_tree(fake.kernel)


@pytest.mark.parametrize(("enabled", "off"), [(1, False), (0, True), (-1, False)])
def test_memory_cgroups_that_are_off(enabled: int, off: bool) -> None:
    """Lost: "No offline memcgs." where the kernel makes none; the root is there."""
    forest = Forest({**STRUCTS, "static_key": {"gap": "u32", "enabled": "s32"}})
    key = forest.fake.make("static_key", {"enabled": enabled})
    forest.fake.symbols["memory_cgrp_subsys_enabled_key"] = key
    with pytest.raises(KernelError, match="off") if off else nullcontext():
        read_tree(forest.fake.kernel)


def test_garbage_for_a_root() -> None:
    """A root that is no memcg is refused, not listed."""
    forest = Forest()
    forest.fake.put(forest.root, "mem_cgroup", {"css.cgroup": forest.root})
    with pytest.raises(KernelError, match="damaged"):
        forest.tree()
