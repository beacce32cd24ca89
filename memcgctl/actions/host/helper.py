"""A cgroup of our own for a moment, that nothing leaves behind.

``child.py``, in a session of its own, makes it, uses it and removes it: it finishes
even if we are killed. One whose maker is gone all the same is removed by the next run.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from memcgctl.actions.host.machine import ActionError, Machine, read_text

_NAME = "memcgctl."
_PROGRAM = Path(__file__).with_name("child.py")


def command(*words: str) -> list[str]:
    """What starts ``child.py`` as a program."""
    return [sys.executable, "-I", "-S", str(_PROGRAM), *words]


def probe(machine: Machine) -> str | None:
    """Whether a memcg can be made."""
    mount = machine.cgroup
    if mount is None:
        return "no cgroup file system with memory is mounted"
    if mount.read_only:
        return f"{mount.point} is mounted read-only"
    if not os.access(mount.point, os.W_OK):
        return f"{mount.point} may not be written to"
    return _full(Path(mount.point))


def _full(directory: Path) -> str | None:
    """Why the kernel lets nobody make a cgroup directly below one of v2, if so.

    As far as the limits of those above it can be seen from here, none of which are.
    """
    stat = dict(
        re.findall(r"^(\S+) (\d+)$", read_text(directory / "cgroup.stat"), re.M)
    )
    most = read_text(directory / "cgroup.max.descendants").strip()
    below = stat.get("nr_descendants")
    if below and most.isdecimal() and int(below) >= int(most):
        return f"cgroup.max.descendants of {directory} is reached: {below} of {most}"
    if read_text(directory / "cgroup.max.depth").strip() == "0":
        return f"cgroup.max.depth of {directory} is 0"
    return None


def use(machine: Machine, cpu: int | None = None) -> None:
    """Make a memcg and remove it; first, a process of it uses memory on a CPU."""
    assert machine.cgroup
    remove_stale(machine)
    name = f"{machine.cgroup.point}/{_NAME}"
    ran = subprocess.run(
        command("cgroup", name, *([] if cpu is None else [str(cpu)])),
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    if ran.returncode:
        last = ran.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise ActionError(
            f"{machine.cgroup.point}: {last or 'no cgroup could be used'}"
        )


def remove_stale(machine: Machine, path: str = "/") -> None:
    """Remove cgroups of ours whose maker was killed, those directly below a memcg."""
    if machine.cgroup is None:
        return
    directory = Path(machine.cgroup.point + path)
    with suppress(OSError):
        for name in os.listdir(directory):
            found = re.fullmatch(rf"{re.escape(_NAME)}(\d+)", name)
            if found and not (machine.proc / found[1]).exists():
                with suppress(OSError):
                    (directory / name).rmdir()
