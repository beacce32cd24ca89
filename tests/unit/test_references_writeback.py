"""Writeback of devices made by hand: which wb holds which memcg, by which inodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from memcgctl.census.holders.writeback import writeback_holders
from memcgctl.kernel.layout import offset_of
from memcgctl.model import Holder
from tests.unit.fake_kernel import FakeKernel

COMMON = {
    "list_head": {"next": "void *", "prev": "void *"},
    "css": {"gap": "u64"},
    "mem_cgroup": {"gap": "u64[4]", "css": "css"},
    "kobject": {"name": "void *"},
    "device": {"gap": "u64", "kobj": "kobject"},
    "backing_dev_info": {
        "id": "u64",
        "bdi_list": "list_head",
        "wb_list": "list_head",
        "dev_name": "u8[64]",
        "owner": "device *",
    },
    "inode": {
        "gap": "u64",
        "i_ino": "u64",
        "i_wb": "void *",
        "i_sb": "super_block *",
        "i_io_list": "list_head",
        "i_sb_list": "list_head",
    },
    "super_block": {
        "s_dev": "u32",
        "x": "u32",
        "s_list": "list_head",
        "s_inodes": "list_head",
    },
}
WB = {
    "bdi": "backing_dev_info *",
    "b_dirty": "list_head",
    "b_io": "list_head",
    "b_more_io": "list_head",
    "b_dirty_time": "list_head",
    "bdi_node": "list_head",
    "memcg_css": "css *",
}
OLD = {**COMMON, "bdi_writeback": WB}  # until 5.13
NEW = {
    **COMMON,
    "bdi_writeback": {**WB, "b_attached": "list_head", "offline_node": "list_head"},
}


class Devices:
    """Devices with wbs, inodes and super blocks, put together link by link."""

    def __init__(self, structs: Mapping[str, Mapping[str, str]]) -> None:
        self.fake = FakeKernel(structs)
        self.fs = 0
        for name in ("bdi_list", "offline_cgwbs", "super_blocks"):
            self.fake.symbols[name] = self.fake.make("list_head")
            self.chain(self.fake.symbols[name], [])

    def chain(self, head: int, nodes: Sequence[int]) -> None:
        for before, after in zip([head, *nodes], [*nodes, head], strict=True):
            memory = self.fake.memory
            owner = next(a for a in memory if a <= before < a + len(memory[a]))
            memory[owner][before - owner : before - owner + 8] = after.to_bytes(
                8, "little"
            )

    def at(self, address: int, struct: str, member: str) -> int:
        return address + offset_of(self.fake.prog, f"struct {struct}", member)

    def put(self, head: int, struct: str, link: str, members: Sequence[int]) -> None:
        self.chain(head, [self.at(member, struct, link) for member in members])

    def device(self, name: bytes, wbs: Sequence[int], disk: bool = True) -> int:
        bdi = self.fake.make("backing_dev_info")
        if disk:
            text = self.fake.allocate(name + b"\0")
            owner = self.fake.make("device", {"kobj.name": text})
            self.fake.put(bdi, "backing_dev_info", {"owner": owner})
        else:
            place = self.at(bdi, "backing_dev_info", "dev_name") - bdi
            self.fake.memory[bdi][place : place + len(name)] = name
        for wb in wbs:
            self.fake.put(wb, "bdi_writeback", {"bdi": bdi})
        self.put(
            self.at(bdi, "backing_dev_info", "wb_list"),
            "bdi_writeback",
            "bdi_node",
            wbs,
        )
        return bdi

    def wb(self, memcg: int, **lists: Sequence[int]) -> int:
        css = self.at(memcg, "mem_cgroup", "css")
        wb = self.fake.make("bdi_writeback", {"memcg_css": css})
        for name in self.fake.structs["bdi_writeback"]:
            if name.startswith("b_"):
                inodes = lists.get(name, ())
                self.put(
                    self.at(wb, "bdi_writeback", name), "inode", "i_io_list", inodes
                )
                for inode in inodes:
                    self.fake.put(inode, "inode", {"i_wb": wb})
        return wb

    def inode(self, number: int) -> int:
        """Of one file system, that of 254:17."""
        if not self.fs:
            self.fs = self.fake.make("super_block", {"s_dev": 254 << 20 | 17})
        return self.fake.make("inode", {"i_ino": number, "i_sb": self.fs})

    def find(self, *memcgs: int) -> tuple[list[tuple[int, Holder]], tuple[str, ...]]:
        found = writeback_holders(self.fake.kernel, frozenset(memcgs))
        return list(found), self.fake.kernel.trouble.sentences()


@pytest.mark.parametrize("structs", [OLD, NEW], ids=["until 5.13", "since 5.14"])
def test_one_holder_a_wb_with_its_device_and_inodes(
    structs: Mapping[str, Mapping[str, str]],
) -> None:
    """Lost: which file system to sync, and whether that would help."""
    world = Devices(structs)
    one, other = (world.fake.make("mem_cgroup") for _ in range(2))
    inodes = [world.inode(n) for n in (30, 12, 41)]
    dirty = world.wb(one, b_dirty=inodes[:1], b_io=inodes[1:2], b_dirty_time=inodes[2:])
    empty = world.wb(one)
    foreign = world.wb(other)
    disk = world.device(b"vda", [dirty, foreign])
    network = world.device(b"0:42", [empty], disk=False)
    world.put(
        world.fake.symbols["bdi_list"], "backing_dev_info", "bdi_list", [disk, network]
    )
    found, warnings = world.find(one)
    detail = "vda: inodes 12, 30 dirty; inode 41 with dirty time stamps"
    assert found == [
        (one, Holder("writeback", 1, detail, devices=("254:17",))),
        (one, Holder("writeback", 1, "0:42: no inode listed", devices=())),
    ]
    assert not warnings


def test_clean_inodes_of_5_10_are_found_in_their_super_block() -> None:
    """Lost: the file that keeps a zombie on 5.10, which lists only dirty ones."""
    world = Devices(OLD)
    memcg = world.fake.make("mem_cgroup")
    clean, dirty, other = (world.inode(n) for n in (8, 9, 10))
    wb = world.wb(memcg, b_more_io=[dirty])
    world.fake.put(clean, "inode", {"i_wb": wb})
    bdi = world.device(b"vda", [wb])
    world.put(world.fake.symbols["bdi_list"], "backing_dev_info", "bdi_list", [bdi])
    sb = world.fake.make("super_block")
    inodes = world.at(sb, "super_block", "s_inodes")
    world.put(inodes, "inode", "i_sb_list", [clean, dirty, other])
    world.put(world.fake.symbols["super_blocks"], "super_block", "s_list", [sb])
    ((_, holder),), warnings = world.find(memcg)
    assert holder.detail == "vda: inode 9 dirty; inode 8 attached"
    assert not warnings


def test_a_wb_whose_device_is_gone_counts_once() -> None:
    """Lost: the reference of an unplugged disk; or it is counted by two lists."""
    world = Devices(NEW)
    memcg = world.fake.make("mem_cgroup")
    attached = [world.inode(n) for n in range(1, 10)]
    gone, listed = world.wb(memcg, b_attached=attached), world.wb(memcg)
    world.device(b"gone", [gone])
    bdi = world.device(b"vda", [listed])
    world.put(world.fake.symbols["bdi_list"], "backing_dev_info", "bdi_list", [bdi])
    offline = world.fake.symbols["offline_cgwbs"]
    world.put(offline, "bdi_writeback", "offline_node", [gone, listed])
    found, _ = world.find(memcg)
    assert sorted(holder.detail for _, holder in found) == [
        "gone: inodes 1, 2, 3, 4, 5, 6 and 3 more attached",
        "vda: no inode listed",
    ]


def test_a_kernel_without_cgroup_writeback() -> None:
    """Lost: all output on kernels built without CONFIG_CGROUP_WRITEBACK."""
    world = Devices({**COMMON, "bdi_writeback": {"bdi_node": "list_head"}})
    bdi = world.fake.make("backing_dev_info")
    wb = world.fake.make("bdi_writeback")
    wbs = world.at(bdi, "backing_dev_info", "wb_list")
    world.put(wbs, "bdi_writeback", "bdi_node", [wb])
    devices = world.fake.symbols["bdi_list"]
    world.put(devices, "backing_dev_info", "bdi_list", [bdi])
    assert world.find(world.fake.make("mem_cgroup")) == ([], ())
