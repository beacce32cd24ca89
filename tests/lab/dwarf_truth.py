"""What the compiler says about the kernel's structures: the truth for the BTF reader.

    python -m tests.lab.dwarf_truth VMLINUX RELEASE

reads a debug vmlinux by drgn's own DWARF reader and writes the size and members of
``STRUCTURES`` to ``fixtures/dwarf/RELEASE.json.zst``; tests/cores compares them with
the BTF of a core of the same build. It also compares, here and now, every structure
and enumeration of that vmlinux' own BTF section with its DWARF, and tells the count.
"""

from __future__ import annotations

import json
import struct
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import drgn
import zstandard
from drgn import TypeKind

from memcgctl.kernel.btf import Btf, BtfError

DIRECTORY = Path(__file__).parents[2] / "fixtures" / "dwarf"
X86_64 = drgn.Platform(drgn.Architecture.X86_64)

# Every structure that the program or a drgn helper under it reads, on any kernel.
STRUCTURES = """
    address_space address_space_operations anon_vma anon_vma_chain anon_vma_name
    backing_dev_info backing_file bdev_inode bdi_writeback bio bio_vec
    block_device bpf_cgroup_storage bpf_map bpf_prog btf_header btf_layout
    buffer_head callback_head cftype cgroup cgroup_base_stat cgroup_bpf
    cgroup_file cgroup_namespace cgroup_root cgroup_rstat_base_cpu
    cgroup_rstat_cpu cgroup_subsys cgroup_subsys_state cgrp_cset_link
    clocksource cpu_fbatches cpumask cred css_rstat_cpu css_set delayed_work
    dentry device epitem eventfd_ctx eventpoll fdtable file file_operations
    file_system_type files_struct folio folio_batch folio_queue fown_struct
    free_area fs_context fs_struct fsnotify_group fsnotify_mark
    fsnotify_mark_connector gendisk hd_struct hlist_bl_head hlist_bl_node
    hlist_head hlist_node hlist_nulls_head hlist_nulls_node hstate
    hugepage_subpool idr inet_bind_bucket inet_bind_hashbucket inet_ehash_bucket
    inet_hashinfo inet_listen_hashbucket inet_sock inet_timewait_sock inode
    inotify_group_private_data inotify_inode_mark io_kiocb io_mapped_ubuf
    io_ring_ctx io_rsrc_data io_rsrc_node iomap_folio_state kernfs_elem_dir
    kernfs_node kernfs_root kmem_cache kmem_cache_cpu kmem_cache_node
    kmem_cache_order_objects kobject kref list_head list_lru list_lru_memcg
    list_lru_node list_lru_one llist_head llist_node lru_gen_folio lru_gen_memcg
    lru_gen_mm_list lru_gen_mm_state lru_gen_mm_walk lru_gen_struct lru_pvecs
    lru_rotate lruvec lruvec_stats lruvec_stats_percpu maple_alloc
    maple_arange_64 maple_metadata maple_node maple_range_64 maple_tree
    mem_cgroup mem_cgroup_event mem_cgroup_id mem_cgroup_per_node
    mem_cgroup_private_id mem_cgroup_reclaim_iter mem_cgroup_threshold
    mem_cgroup_threshold_ary mem_cgroup_thresholds mem_section mem_section_usage
    memcg_cgwb_frn memcg_padding memcg_stock_pcp memcg_vmstats
    memcg_vmstats_percpu memory_tier mempolicy mlock_fbatch mlock_pvec mm_struct
    mnt_namespace mount mountpoint net netlink_sock netlink_table netns_ipv4
    new_utsname ns_common ns_tree nsproxy obj_cgroup obj_stock_pcp oom_control
    page page_counter pagevec path per_cpu_nodestat per_cpu_pages percpu_cluster
    percpu_swap_cluster
    percpu_counter percpu_ref percpu_ref_data perf_event pglist_data pid
    pid_namespace pipe_inode_info proc_dir_entry proc_inode proto psi_group
    psi_group_cpu ptdesc qstr raw_hashinfo rb_node rb_root rb_root_cached
    request_queue request_sock resv_map rw_semaphore scan_control seq_file shmem_falloc
    shmem_inode_info shmem_sb_info shrinker shrinker_info shrinker_info_unit
    sighand_struct signal_struct slab sock sock_cgroup_data sock_common socket
    socket_alloc static_key super_block super_operations swap_cgroup swap_cgroup_ctrl
    swap_cluster_info swap_cluster_list swap_info_struct swap_memcg_table
    swap_sequential_cluster swap_slots_cache swap_table task_struct tcp_sock
    tty_struct udp_hslot udp_sock udp_table unix_sock upid uprobes_state
    user_struct uts_namespace vfsmount vm_area_struct vm_operations_struct
    vm_struct vma_lock vmap_area vmpressure wait_queue_entry wait_queue_head
    wb_completion wb_domain work_struct xa_node xarray zone zonelist zoneref
    zswap_entry zswap_lruvec_state zswap_pool
"""
ENUMERATIONS = """
    bh_state_bits cgroup_subsys_id inode_i_mutex_lock_class kernfs_node_flag
    lru_list maple_type mapping_flags mem_cgroup_events_target
    memcg_memory_event memcg_stat_item migratetype node_stat_item node_states
    objext_flags page_memcg_data_flags pageflags pagetype pid_type vm_event_item
    wb_stat_item zone_stat_item zone_type
"""
NAMES = [f"struct {name}" for name in STRUCTURES.split()]
NAMES += [f"enum {name}" for name in ENUMERATIONS.split()]

_COMPOUND = (TypeKind.STRUCT, TypeKind.UNION)
_TAGGED = (*_COMPOUND, TypeKind.ENUM)

Description = dict[str, Any] | None


# What BTF, as pahole writes it, cannot tell, and so is not compared: an array of
# several dimensions is one of their product ("[3][1]" is "[3]"), and a flexible
# array is one of length 0. Neither moves a member.


def describe(prog: drgn.Program, name: str) -> Description:
    """A type in terms of JSON; ``None`` where the kernel has it not."""
    try:
        return _describe(prog.type(name))
    except LookupError:
        return None


def _describe(type_: drgn.Type) -> Description:
    if type_.kind == TypeKind.ENUM:
        values = type_.enumerators
        return {"values": values and {e.name: e.value for e in values}}
    members: list[list[Any]] = []
    for member in type_.members or ():
        inner, count = member.type, 1
        while inner.kind == TypeKind.ARRAY:
            count *= inner.length or 0
            inner = inner.type
        name = inner.type_name()
        if inner is not member.type:
            name += f" [{count}]"
        size = drgn.sizeof(inner) * count
        row = [member.name, member.bit_offset, member.bit_field_size, name, size]
        while inner.kind == TypeKind.TYPEDEF:
            inner = inner.type
        if inner.kind in _COMPOUND and inner.tag is None:
            row.append(_describe(inner))
        members.append(row)
    return {"size": type_.size, "members": members}


def by_dwarf(vmlinux: Path) -> drgn.Program:
    """A program that knows nothing but the vmlinux' debug information."""
    prog = drgn.Program(X86_64)
    module = prog.extra_module("vmlinux", create=True)
    module.try_file(vmlinux, force=True)
    return prog


def by_btf(data: bytes) -> drgn.Program:
    """A program that knows nothing but the types of the BTF."""
    prog = drgn.Program(X86_64)
    Btf(data).register(prog)
    return prog


def btf_section(vmlinux: Path) -> bytes:
    """Contents of the ``.BTF`` section of a 64-bit ELF file."""
    with vmlinux.open("rb") as file:
        header = file.read(64)
        (table,) = struct.unpack_from("<Q", header, 40)
        _, count, names = struct.unpack_from("<HHH", header, 58)
        file.seek(table)
        sections = list(struct.iter_unpack("<II4Q2I2Q", file.read(64 * count)))
        file.seek(sections[names][4])
        strings = file.read(sections[names][5])
        for name, _, _, _, offset, size, *_ in sections:
            if strings[name:].startswith(b".BTF\0"):
                file.seek(offset)
                return file.read(size)
    raise LookupError(f"{vmlinux} has no .BTF section")


def compare_all(vmlinux: Path) -> tuple[int, list[str]]:
    """How many types of the BTF were compared with the DWARF, and which differ.

    Left out are names that stand for several types, since nothing tells which is
    which, and types that drgn's DWARF reader does not know by name (those declared
    within a function).
    """
    btf, own = Btf(btf_section(vmlinux)), drgn.Program(X86_64)
    btf.register(own)
    named: dict[str, list[drgn.Type]] = {}
    for type_id in range(len(btf)):
        with suppress(BtfError):  # functions and variables
            type_ = btf.type_of(own, type_id)
            complete = type_.kind in _TAGGED and type_.tag and type_.is_complete()
            if complete and not type_.qualifiers.value:
                named.setdefault(type_.type_name(), []).append(type_)
    unique = {name: types[0] for name, types in named.items() if len(types) == 1}
    dwarf = by_dwarf(vmlinux)
    truth = {name: describe(dwarf, name) for name in unique}
    known = [name for name in unique if truth[name] is not None]
    return len(known), [n for n in known if _describe(unique[n]) != truth[n]]


def main(vmlinux: str, release: str) -> None:
    prog = by_dwarf(Path(vmlinux))
    truth = {name: describe(prog, name) for name in NAMES}
    raw = json.dumps(truth, separators=(",", ":")).encode()
    DIRECTORY.mkdir(exist_ok=True)
    target = DIRECTORY / f"{release}.json.zst"
    target.write_bytes(zstandard.compress(raw, 19))
    there = sum(description is not None for description in truth.values())
    print(f"{target.name}: {there} types of {len(NAMES)}")
    count, differing = compare_all(Path(vmlinux))
    print(f"{count} types compared with the same file's BTF, {len(differing)} differ")
    print("\n".join(differing[:50]))


if __name__ == "__main__":
    main(*sys.argv[1:])
