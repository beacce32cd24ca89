"""What has a file, or a page, that no descriptor and no page table shows?

Files that were sent over a UNIX socket and not yet received (``SCM_RIGHTS``,
``scm_fp_list`` in the skbs of ``sk_receive_queue``), and files registered with an
io_uring. Pages that wait in a pipe (``pipe_buffer``), that are a DMA buffer made of a
memfd (``udmabuf``), and an io_uring's rings and registered buffers. All of it is
reached from a file that a process has open.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple

import drgn
import numpy as np

from memcgctl.kernel.layout import has_member, offset_of, size_of, value_of
from memcgctl.kernel.trouble import Topic, reading
from memcgctl.linux.lists import list_walker, occupied
from memcgctl.linux.mmu import direct_map
from memcgctl.linux.structs import U64, addresses, read_pointers, read_structs, unique

if TYPE_CHECKING:
    from memcgctl.kernel.program import OpenedKernel

# ``struct file *`` with some ``struct file_operations``, and their ``private_data``.
OfKind = Callable[[str], tuple[U64, U64]]

SOCK, SKB, RING = "struct sock", "struct sk_buff", "struct io_ring_ctx"
AF_UNIX = 1
# The low bits of io_fixed_file.file_ptr and io_rsrc_node.file_ptr are flags.
FILE_POINTER = ~np.uint64(7)
# More pages of one pipe, buffers of one ring and so on are damage.
LIMIT = 1 << 20


How = Literal["in flight", "io_uring file", "pipe", "DMA buffer", "io_uring"]


class KeptFile(NamedTuple):
    """A ``struct file *``, and the file of the socket or io_uring that has it."""

    file: int
    how: How
    by: int


class KeptPages(NamedTuple):
    """Page frames, and each ``struct file *`` of what has them: a pipe has two."""

    pfn: U64
    how: How
    by: list[int]


@reading(Topic.FILES)
def kept_files(kernel: OpenedKernel, of_kind: OfKind) -> Iterator[KeptFile]:
    """The files that sockets and io_urings have; those of one may be many."""
    files, sockets = of_kind("socket_file_ops")
    socks = read_structs(kernel, "struct socket", sockets, {"sk": "sk"})["sk"]
    for file, sent in _in_flight(kernel, files, addresses(socks)):
        yield KeptFile(sent, "in flight", file)
    files, contexts = of_kind("io_uring_fops")
    for file, context in zip(files.tolist(), contexts.tolist(), strict=True):
        for kept in _attempt(kernel, partial(_fixed, kernel, context)).tolist():
            yield KeptFile(kept, "io_uring file", file)


@reading(Topic.FILES)
def kept_pages(kernel: OpenedKernel, of_kind: OfKind) -> Iterator[KeptPages]:
    """The pages that pipes, DMA buffers and io_urings have."""
    kinds: tuple[tuple[str, How, Callable[[OpenedKernel, int], U64]], ...] = (
        ("pipefifo_fops", "pipe", _in_pipe),
        ("dma_buf_fops", "DMA buffer", _in_dma_buffer),
        ("io_uring_fops", "io_uring", _in_ring),
    )
    for operations, how, pages in kinds:
        files, objects = of_kind(operations)
        for at in unique(objects).tolist():
            pfn = _attempt(kernel, partial(pages, kernel, at))
            if len(pfn):
                yield KeptPages(pfn, how, files[objects == at].tolist())


def _attempt(kernel: OpenedKernel, read: Callable[[], U64]) -> U64:
    """What ``read`` finds; nothing, and a note of it, where memory cannot be read."""
    try:
        return read()
    except (drgn.FaultError, LookupError, ValueError) as error:
        note = f"what a file keeps could not be read: {error}"
        kernel.trouble.note(Topic.FILES, note)
        return addresses([])


# --- files --------------------------------------------------------------------------


def _in_flight(
    kernel: OpenedKernel, files: U64, socks: U64
) -> Iterator[tuple[int, int]]:
    """(the receiver's file, the file sent) of all that UNIX sockets have."""
    family = read_structs(kernel, SOCK, socks, {"of": "__sk_common.skc_family"})["of"]
    files, socks = files[family == AF_UNIX], socks[family == AF_UNIX]
    queue = np.uint64(offset_of(kernel.prog, SOCK, "sk_receive_queue"))
    walk = list_walker(
        kernel, SKB, "next", {"cb": "cb", "sk": "sk"}, Topic.SOCKETS, limit=LIMIT
    )
    inside = offset_of(kernel.prog, "struct unix_skb_parms", "fp")
    for _ in range(2):  # the second time: what waits in connections not yet accepted
        some = occupied(kernel, socks + queue)
        below: list[tuple[int, int]] = []
        for file, sock in zip(files[some].tolist(), socks[some].tolist(), strict=True):
            _, skbs = walk(sock + int(queue))
            blocks = np.ascontiguousarray(skbs["cb"]).view(np.uint8)
            lists = np.ascontiguousarray(blocks[:, inside : inside + 8]).view("<u8")
            for sent in _sent(kernel, lists.ravel().astype(np.uint64)).tolist():
                yield file, sent
            others = unique(addresses(skbs["sk"]))
            below += [(file, other) for other in others.tolist() if other != sock]
        if not below:
            return
        columns = np.array(below, np.uint64)
        # Of a connected pair the skbs' owner is the sender, whose queue was walked.
        new = ~np.isin(columns[:, 1], socks)
        files, socks = columns[new, 0], columns[new, 1]


def _sent(
    kernel: OpenedKernel, fp: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
) -> U64:
    """The files of the ``struct scm_fp_list *`` in the control blocks of skbs."""
    lists = unique(np.ascontiguousarray(fp).view("<u8").ravel())
    rows = read_structs(kernel, "struct scm_fp_list", lists, {"n": "count", "fp": "fp"})
    slots = np.arange(rows["fp"].shape[-1]) < rows["n"][:, None].astype(np.int64)
    return unique(addresses(rows["fp"][slots]))


def _fixed(kernel: OpenedKernel, context: int) -> U64:
    """The files registered with a ``struct io_ring_ctx *``."""
    prog = kernel.prog
    if has_member(prog, RING, "file_table.data"):
        # Since Linux kernel commit 3597f2786b68 ("io_uring/rsrc: unify file and buffer
        # resource tables") (in v6.13).
        nodes = _nodes(kernel, context, "file_table.data")
        rows = read_structs(kernel, "struct io_rsrc_node", nodes, {"at": "file_ptr"})
        return unique(addresses(rows["at"]) & FILE_POINTER)
    if not has_member(prog, RING, "file_table.files"):
        return addresses([])
    ring = drgn.Object(prog, f"{RING} *", context)
    number = value_of(ring, "nr_user_files")
    table = value_of(ring, "file_table.files")
    if not table or not 0 < number < LIMIT:
        return addresses([])
    slots = table + 8 * np.arange(number, dtype=np.uint64)
    return unique(read_pointers(kernel, addresses(slots)) & FILE_POINTER)


def _nodes(kernel: OpenedKernel, context: int, member: str) -> U64:
    """The ``struct io_rsrc_node *`` in a table (``struct io_rsrc_data``) of a ring."""
    at = addresses([context])
    paths = {"number": f"{member}.nr", "nodes": f"{member}.nodes"}
    row = read_structs(kernel, RING, at, paths)[0]
    number = int(row["number"])
    if not int(row["nodes"]) or not 0 < number < LIMIT:
        return addresses([])
    slots = int(row["nodes"]) + 8 * np.arange(number, dtype=np.uint64)
    return unique(read_pointers(kernel, addresses(slots)))


# --- pages --------------------------------------------------------------------------


def _frames(kernel: OpenedKernel, pages: U64) -> U64:
    """The page frame numbers of ``struct page *`` or ``struct folio *``."""
    start = np.uint64(value_of(kernel.prog["vmemmap"]))
    size = np.uint64(size_of(kernel.prog, "struct page"))
    pages = unique(pages)
    return addresses((pages[pages >= start] - start) // size)


def _in_pipe(kernel: OpenedKernel, pipe: int) -> U64:
    """What is in a ``struct pipe_inode_info *``, and what it keeps for later."""
    members = {"bufs": "bufs", "size": "ring_size", "spare": "tmp_page"}
    (row,) = read_structs(kernel, "struct pipe_inode_info", addresses([pipe]), members)
    number = int(row["size"])
    if not 0 < number < LIMIT:
        return addresses([])
    step = size_of(kernel.prog, "struct pipe_buffer")
    at = int(row["bufs"]) + step * np.arange(number, dtype=np.uint64)
    rows = read_structs(
        kernel, "struct pipe_buffer", addresses(at), {"page": "page", "ops": "ops"}
    )
    # One, or an array of two (7.3).
    spare = np.atleast_1d(row["spare"])
    used = rows["page"][rows["ops"] != 0]
    return _frames(kernel, np.concatenate([addresses(used), addresses(spare)]))


def _in_dma_buffer(kernel: OpenedKernel, buffer: int) -> U64:
    """The pages of a ``struct dma_buf *``, if it was made of a memfd."""
    prog = kernel.prog
    try:
        operations = kernel.symbol("udmabuf_ops")
    except LookupError:  # CONFIG_UDMABUF is off
        return addresses([])
    (row,) = read_structs(
        kernel, "struct dma_buf", addresses([buffer]), {"ops": "ops", "its": "priv"}
    )
    if int(row["ops"]) != operations:
        return addresses([])
    # Folios since Linux kernel commit 5e72b2b41a21 ("udmabuf: convert udmabuf driver to
    # use folios") (in v6.12), pages before, and later again.
    name = "pages" if has_member(prog, "struct udmabuf", "pages") else "folios"
    members = {"number": "pagecount", "pages": name}
    folios = addresses([int(row["its"])])
    (its,) = read_structs(kernel, "struct udmabuf", folios, members)
    number = int(its["number"])
    if not 0 < number < LIMIT:
        return addresses([])
    slots = int(its["pages"]) + 8 * np.arange(number, dtype=np.uint64)
    return _frames(kernel, read_pointers(kernel, addresses(slots)))


def _in_ring(kernel: OpenedKernel, context: int) -> U64:
    """An io_uring's rings, where the kernel's pages are its own, and its buffers."""
    prog = kernel.prog
    found = [addresses([])]
    # Up to 6.3 pages of the direct map, charged to the memcg itself until Linux kernel
    # commit b4e0b68fbd9d ("mm: memcontrol: use obj_cgroup APIs to charge kmem pages")
    # (in v5.13).
    if has_member(prog, "struct page", "mem_cgroup"):
        members = {"rings": "rings", "entries": "sq_sqes"}
        (row,) = read_structs(kernel, RING, addresses([context]), members)
        start = direct_map(kernel)
        at = addresses([int(row["rings"]), int(row["entries"])])
        at = at[at >= np.uint64(start)]
        found.append((at - np.uint64(start)) // np.uint64(kernel.memory.page_size))
    for buffer in _buffers(kernel, context).tolist():
        found.append(_of_buffer(kernel, buffer))
    return np.concatenate(found)


def _buffers(kernel: OpenedKernel, context: int) -> U64:
    """The ``struct io_mapped_ubuf *`` registered with a ring."""
    prog = kernel.prog
    # Since Linux kernel commit 3597f2786b68 ("io_uring/rsrc: unify file and buffer
    # resource tables") (in v6.13), as for files.
    if has_member(prog, RING, "buf_table.nodes"):
        nodes = _nodes(kernel, context, "buf_table")
        return unique(
            read_structs(kernel, "struct io_rsrc_node", nodes, {"buf": "buf"})["buf"]
        )
    if not has_member(prog, RING, "user_bufs"):
        return addresses([])
    members = {"number": "nr_user_bufs", "table": "user_bufs"}
    (row,) = read_structs(kernel, RING, addresses([context]), members)
    number = int(row["number"])
    if not int(row["table"]) or not 0 < number < LIMIT:
        return addresses([])
    slots = int(row["table"]) + 8 * np.arange(number, dtype=np.uint64)
    return unique(read_pointers(kernel, addresses(slots)))


def _of_buffer(kernel: OpenedKernel, buffer: int) -> U64:
    """The first page of each ``struct bio_vec`` of a ``struct io_mapped_ubuf *``."""
    prog, name = kernel.prog, "struct io_mapped_ubuf"
    (row,) = read_structs(kernel, name, addresses([buffer]), {"number": "nr_bvecs"})
    number = int(row["number"])
    if not 0 < number < LIMIT:
        return addresses([])
    step = size_of(prog, "struct bio_vec")
    first = buffer + offset_of(prog, name, "bvec")
    at = first + step * np.arange(number, dtype=np.uint64)
    rows = read_structs(
        kernel,
        "struct bio_vec",
        addresses(at),
        {"page": "bv_page", "size": "bv_len", "offset": "bv_offset"},
    )
    page_size = kernel.memory.page_size
    end = rows["offset"].astype(np.int64) + rows["size"]
    pages = np.minimum(-(-end // page_size), LIMIT)
    size = size_of(prog, "struct page")
    pages = pages[np.cumsum(pages) <= LIMIT]
    step_in = np.arange(pages.sum()) - np.repeat(np.cumsum(pages) - pages, pages)
    every = np.repeat(addresses(rows["page"])[: len(pages)], pages)
    return _frames(kernel, every + addresses(size * step_in))
