"""A child of ours that reads what is in swap, in batches of offsets or addresses.

``child.py`` in a session of its own does the reading, from within the memcg that is to
be charged for it.
"""

from __future__ import annotations

import select
import struct
import subprocess
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from functools import partial

from memcgctl.actions.host import helper
from memcgctl.actions.host.machine import ActionError
from memcgctl.actions.host.pages import U64

_PATIENCE = 20.0


@contextmanager
def reader(
    *words: str, pass_fds: Collection[int] = ()
) -> Iterator[Callable[[U64], None]]:
    """Start ``child.py`` with these words; what is given has it read there.

    That raises ActionError if it does not.
    """
    child = subprocess.Popen(
        helper.command(*words),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=pass_fds,
        # A Ctrl-C is for us alone; a cgroup of its own is removed whatever we come to.
        start_new_session=True,
    )
    try:
        yield partial(_tell, child)
    finally:
        _finish(child)


def _tell(child: subprocess.Popen[bytes], offsets: U64) -> None:
    assert child.stdin
    assert child.stdout
    assert child.stderr
    with suppress(BrokenPipeError):
        child.stdin.write(struct.pack("=Q", len(offsets)) + offsets.tobytes())
        child.stdin.flush()
        if not select.select([child.stdout], [], [], _PATIENCE)[0]:
            raise ActionError("the process that reads from swap hangs: is it frozen?")
        if child.stdout.read(1):
            return
    last = child.stderr.read().decode(errors="replace").strip().rpartition("\n")[2]
    raise ActionError(f"reading from swap: {last or 'the reader was killed'}")


def _finish(child: subprocess.Popen[bytes]) -> None:
    """Let it end by itself, or else end it."""
    with suppress(BrokenPipeError):
        assert child.stdin
        child.stdin.close()
    try:
        child.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        child.kill()
        # One that cannot even be killed (v1 freezer) goes when it is let.
        with suppress(subprocess.TimeoutExpired):
            child.wait(_PATIENCE)
    for pipe in (child.stdout, child.stderr):
        assert pipe
        pipe.close()
