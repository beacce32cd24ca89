"""What would a person type to do what a step does?

Every command works as it stands in a root shell (bash, zsh or busybox), needs nothing
of memcgctl, and is ASCII whatever the names in it are. Those that need system calls
without a program of their own are one line of Python.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable

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


# Python for ``g``: what /proc/kpagecgroup (k) and /proc/kpageflags (l) have of a frame.
READ = (
    'o=lambda n:os.open("/proc/"+n,0);k,l=o("kpagecgroup"),o("kpageflags");'
    'g=lambda d,n:int.from_bytes(os.pread(d,8,n*8),"little");'
)


def let_go(first: int, page_size: int, key: str) -> str:
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


def advise(
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
    and paged out again. For shmem, ``directories`` and ``key`` see ``let_go``.
    """
    ids = ",".join(map(str, sorted(memcg_ids)))
    script = (
        "import ctypes as c,itertools as i,mmap,os,sys,time;"
        f'{pages(pid, page_size)}{READ}m=o("PID/mem");'
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
        script += f";n=[n for _,n,h in a if h];{let_go(1, page_size, key)}"
    return " ".join([f"python3 -c '{script}'", *places])


def pages(pid: int, page_size: int) -> str:
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
SYNC = (
    "awk '{t[$5]=/ - btrfs /||$3!~/^0:/&&!/ - fuse/}END{for(m in t)if(t[m])print m}' "
    """/proc/self/mountinfo|while read -r m;do sync -f "$(printf %b "$m")";done"""
)
