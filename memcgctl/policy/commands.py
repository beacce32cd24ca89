"""What would a person type to do what a step does?

Every command works as it stands in a root shell (bash, zsh or busybox), needs nothing
of memcgctl, and is ASCII whatever the names in it are. Those that need system calls
without a program of their own are one line of Python.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from functools import cache

# include/uapi: the same on all architectures but alpha
PROCESS_MADVISE = 440
MADV_COLD = 20
MADV_PAGEOUT = 21
MADV_COLLAPSE = 25


def quote(text: str) -> str:
    """``text`` as one word of a shell, in ASCII."""
    if text.isascii() and text.isprintable():
        return shlex.quote(text)
    escaped = "".join(
        f"\\x{byte:02x}" if not 0x20 <= byte < 0x7F else _plain(chr(byte))
        for byte in text.encode("utf-8", "surrogateescape")
    )
    return f"$'{escaped}'"


def _plain(char: str) -> str:
    return f"\\{char}" if char in "\\'" else char


def file_of(pid: int, inode: int) -> str:
    """A word that opens a file without a path: by a process that uses it."""
    where = f"/proc/{pid}/fd /proc/{pid}/map_files"
    # Not deeper: a process can have the root directory open.
    return f'"$(find -L {where} -maxdepth 1 -inum {inode} -print -quit)"'


def forget_file(file: str, *, dirty: bool) -> str:
    """Write a file back and drop its page cache (``POSIX_FADV_DONTNEED``)."""
    forget = f"dd if={file} iflag=nocache count=0 status=none"
    return f"sync {file} && {forget}" if dirty else forget


def page_out_file(
    file: str, page_size: int, directories: Iterable[str] = (), key: str = ""
) -> str:
    """Map a file of shmem, touch what of it is no hole, page it out.

    A hole that is touched gets a page: a sparse file could use up all memory. For
    ``directories`` and ``key`` see ``_let_go``.
    """
    python, places = _page_out_file(page_size, tuple(directories), key)
    return f"{python} {file}{places}"


@cache
def _page_out_file(
    page_size: int, directories: tuple[str, ...], key: str
) -> tuple[str, str]:
    """What comes before and after the file in that command."""
    touch = (
        'f=open(sys.argv[1],"rb");m=mmap.mmap(f.fileno(),0,prot=1);'
        "s=ctypes.CDLL(None).lseek;s.restype=l=ctypes.c_long;"
        f"[m[x]for x in range(0,len(m),{page_size})if s(f.fileno(),l(x),3)==x];"
    )
    page_out = f"m.madvise({MADV_PAGEOUT})"
    places = "".join(f" {quote(f'{one}/memory.reclaim')}" for one in directories)
    if not places:
        return f"python3 -c 'import ctypes,mmap,sys;{touch}{page_out}'", ""
    script = (
        f"import ctypes,mmap,os,sys,time;{touch}{_READ}"
        "i=str(os.fstat(f.fileno()).st_ino);"
        f'a,z=[int(x,16)//{page_size} for l in open("/proc/self/maps")'
        'if l.split()[4]==i for x in l.split()[0].split("-")][:2];'
        'p=os.pread(os.open("/proc/self/pagemap",0),8*(z-a),8*a);'
        'n=[t&(1<<55)-1 for t in memoryview(p).cast("Q")if t>>63];'
        f"{page_out};{_let_go(2, page_size, key)}"
    )
    return f"python3 -c '{script}'", places


# Python for ``g``: what /proc/kpagecgroup (k) and /proc/kpageflags (l) have of a frame.
_READ = (
    'o=lambda n:os.open("/proc/"+n,0);k,l=o("kpagecgroup"),o("kpageflags");'
    'g=lambda d,n:int.from_bytes(os.pread(d,8,n*8),"little");'
)


def _let_go(first: int, page_size: int, key: str) -> str:
    """Python that has shmem of the page frames ``n`` leave the swap cache.

    What a device has not yet written when MADV_PAGEOUT returns stays there (a flag in
    /proc/kpageflags), charged as before. Touched, it would leave the swap cache and be
    dirty again; only the kernel's own reclaim finds it: that of the memcgs it is shown
    for, whose memory.reclaim files are the arguments from ``first`` on. It is asked,
    with this ``key``, when all is written and no CPU's batch holds it, and never for
    more than there is (but SWAP_CLUSTER_MAX): it would turn to living memcgs for that.
    """
    return (
        "[time.sleep(.1)for _ in zip(range(50),"
        "iter(lambda:any(g(l,x)>>8&1 for x in n),False))];"
        "[(os.sched_setaffinity(0,{c}),"
        f"mmap.mmap(-1,{page_size}).madvise({MADV_COLD}))"
        "for c in os.sched_getaffinity(0)];"
        "sys.unraisablehook=id;"  # EAGAIN: it did not get as much as that
        f'[open(d,"w").write(f"{{max(32,b//2)*{page_size}}}{key}")'
        f"for d in sys.argv[{first}:]for i in[os.stat(os.path.dirname(d)).st_ino]"
        "for _,b in zip(range(9),iter("
        "lambda:sum(g(l,x)>>13&1 and g(k,x)==i for x in n),0))]"
    )


def _advise(
    pid: int,
    memcg_ids: Iterable[int],
    advice: int,
    page_size: int,
    directories: Iterable[str] = (),
    key: str = "",
) -> str:
    """Advise on the pages of a process that /proc/kpagecgroup shows under some ids.

    In three rounds: anonymous memory that a device has not yet written when
    MADV_PAGEOUT returns stays in the swap cache, charged as before, until it is mapped
    and paged out again. For shmem, ``directories`` and ``key`` see ``_let_go``.
    """
    ids = ",".join(map(str, sorted(memcg_ids)))
    script = (
        "import ctypes as c,itertools as i,mmap,os,sys,time;"
        f'{_pages(pid, page_size)}{_READ}m=o("PID/mem");'
        "a=[(x,t&(1<<55)-1,t>>61&1)for x,t in e if t>>63];"
        f"a=[x for x in a if g(k,x[1])in({ids},)];"
        "r=[[x for _,(x,*_)in y]for _,y in i.groupby(enumerate(a),"
        f"lambda x:x[1][0]-x[0]*{page_size})];"
        "f=os.pidfd_open(PID);s=c.CDLL(None).syscall;"
        "[([os.pread(m,1,x)for x,n,h in a if not h and g(l,n)>>13&1],"
        f"[s({PROCESS_MADVISE},f,(c.c_ulong*2)(x[0],len(x)*{page_size}),"
        f"c.c_long(1),{advice},0)for x in r],time.sleep(1))for _ in range(3)]"
    ).replace("PID", str(pid))
    places = [quote(f"{directory}/memory.reclaim") for directory in directories]
    if places:
        script += f";n=[n for _,n,h in a if h];{_let_go(1, page_size, key)}"
    return " ".join([f"python3 -c '{script}'", *places])


def page_out(
    pid: int,
    memcg_ids: Iterable[int],
    page_size: int,
    directories: Iterable[str] = (),
    key: str = "",
) -> str:
    """``process_madvise(MADV_PAGEOUT)`` on what a process maps of some memcgs.

    These are online: the kernel shows the nearest online ancestor for a zombie's page.
    """
    return _advise(pid, memcg_ids, MADV_PAGEOUT, page_size, directories, key)


def collapse(pid: int, memcg_ids: Iterable[int], page_size: int) -> str:
    """The same with ``MADV_COLLAPSE``, which copies pages to a new huge page."""
    return _advise(pid, memcg_ids, MADV_COLLAPSE, page_size)


def swap_in(pid: int, directory: str, page_size: int) -> str:
    """Fault in all addresses of a process that are in swap, from within its memcg.

    What is read ahead of a disk is charged to whoever reads (``get_mem_cgroup_from_mm``
    without an mm, 5.14+), so that it has to be of the same memcg. It is a write fault,
    as a read one leaves the page in the swap cache and its entry charged; nothing is
    written, since there is nothing to read from. Up to 6.13 a CPU keeps the last 64
    freed entries charged: as many others are freed after them.
    """
    script = (
        "import ctypes as c,mmap,os,sys,time;"
        f"{_pages(pid, page_size)}"
        "os.sched_setaffinity(0,{min(os.sched_getaffinity(0))});"
        'open(sys.argv[1],"w").write("0");'
        "w=lambda n:(c.c_ulong*2)(n,1);u=c.c_ulong;v=c.CDLL(None).process_vm_writev;"
        f"[v({pid},w({page_size}),u(1),w(x),u(1),u(0))for x,t in e if t>>62&1];"
        f"n=128*{page_size};f=mmap.mmap(-1,n);f[:]=os.urandom(n);"
        f"f.madvise({MADV_PAGEOUT});time.sleep(1);f[:]=bytes(n)"
    )
    return f"python3 -c '{script}' {quote(f'{directory}/cgroup.procs')}"


def swap_in_file(
    file: str,
    directory: str,
    page_size: int,
    *,
    own: bool,
    again: bool,
    reclaim: Iterable[str],
    key: str,
) -> str:
    """Read a file of shmem from within a memcg, then page it out if it is to go again.

    With an ``own`` memcg below that one where it can have no processes itself. Freed
    entries are made way for from outside, as in ``swap_in``: entries of its own would
    have the memcg that was made for this pay for all.
    """
    make = 't+="/memcgctl.%d"%os.getpid();os.mkdir(t);' if own else ""
    script = (
        "import mmap,os,sys,time;f=os.open(sys.argv[1],0);t=sys.argv[2];"
        f"os.sched_setaffinity(0,{{min(os.sched_getaffinity(0))}});{make}p=os.fork();"
        'p or(open(t+"/cgroup.procs","w").write("0"),[os.pread(f,1,x)for x in '
        f"range(0,os.fstat(f).st_size,{page_size})],os._exit(0));os.waitpid(p,0);"
        f"n=128*{page_size};m=mmap.mmap(-1,n);m[:]=os.urandom(n);"
        f"m.madvise({MADV_PAGEOUT});time.sleep(1);m[:]=bytes(n)"
        f"{';os.rmdir(t)' if own else ''}"
    )
    out = f" && {page_out_file(file, page_size, reclaim, key)}" if again else ""
    return f"python3 -c '{script}' {file} {quote(directory)}{out}"


def _pages(pid: int, page_size: int) -> str:
    """Python for ``e``: addresses and pagemap entries of a process."""
    return (
        f'p=os.open("/proc/{pid}/pagemap",0);'
        f'v=[[int(x,16)//{page_size} for x in l.split()[0].split("-")]'
        f'for l in open("/proc/{pid}/maps")];'
        f"e=[((b+j)*{page_size},t)for s,z in v for b in range(s,z,512)"
        'for j,t in enumerate(memoryview(os.pread(p,8*min(512,z-b),8*b)).cast("Q"))'
        "if t>>62];"
    )


# As ``actions.sync``, each file system of a disk for itself: ``sync`` alone would wait
# for network file systems and FUSE, too. Of what is mounted at one place, the last.
_SYNC = (
    "awk '{t[$5]=/ - btrfs /||$3!~/^0:/&&!/ - fuse/}END{for(m in t)if(t[m])print m}' "
    """/proc/self/mountinfo|while read -r m;do sync -f "$(printf %b "$m")";done"""
)


def sync_and_remove_a_cgroup(mount: str) -> str:
    """Write all back; then a memcg goes offline, and others' writeback with it."""
    return f'{_SYNC}; rmdir "$(mktemp -d {quote(mount)}/memcgctl.XXXXXX)"'


def charge_on_cpu(cpu: int, mount: str) -> str:
    """Have another memcg's process charge memory on a CPU, which takes the stock."""
    return (
        f"d=$(mktemp -d {quote(mount)}/memcgctl.XXXXXX) && {{ "
        f"""taskset -c {cpu} sh -c 'echo $$ > "$1/cgroup.procs"; exec true' - "$d"; """
        'rmdir "$d"; }'
    )


def evict_generations(private_id: int, swappiness: int) -> str:
    """Have lru_gen evict files (0) or what is swap-backed first (200) of one memcg.

    In three rounds: what was used of late is taken later.
    """
    script = (
        'import re;p="/sys/kernel/debug/lru_gen";'
        'w=lambda*a:open(p,"w").write(" ".join(map(str,a)));'
        "l=lambda:[(n,max(int(x.split()[0])for x in r.splitlines()))for n,r in "
        r're.findall("node +([0-9]+)\n((?: +[0-9]+ .*\n)+)",'
        rf're.search("(?m)^memcg +{private_id} .*\n((?: .*\n)+)",open(p).read())[1])];'
        f'[[w("+",{private_id},n,g,1,1)and w("+",{private_id},n,g+1,1,1)and '
        f'w("-",{private_id},n,g,{swappiness})for n,g in l()]for _ in range(3)]'
    )
    return f"python3 -c '{script}'"


def flush_device(name: str) -> str:
    """Write a block device back and drop its page cache (``BLKFLSBUF``)."""
    return f"blockdev --flushbufs {quote(f'/dev/{name}')}"


def reclaim(directory: str, size_bytes: int) -> str:
    return f"echo {size_bytes} > {quote(f'{directory}/memory.reclaim')}"


def force_empty(directory: str) -> str:
    return f"echo > {quote(f'{directory}/memory.force_empty')}"


def drop_caches() -> str:
    return f"{_SYNC}; echo 1 > /proc/sys/vm/drop_caches"
