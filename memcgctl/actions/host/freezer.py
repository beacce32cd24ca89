"""Would a process of ours stop where it is to act? Asks the freezer of a cgroup.

cgroup v2 has ``cgroup.freeze`` in each cgroup but the root; it counts for all below. On
v1 the freezer is a hierarchy of its own, which a process of ours does not enter, unless
it is mounted together with memory: ``freezer.state`` then tells of those above as well.
"""

from __future__ import annotations

from pathlib import Path

from memcgctl.actions.host.machine import ActionError, Machine, read_text


def must_run(path: str, machine: Machine) -> None:
    """ActionError if the memcg with this path, or one above it, is frozen."""
    mount = machine.cgroup
    while mount and path.strip("/"):
        here = Path(mount.point + path)
        state = read_text(here / "freezer.state").strip() or "THAWED"
        if state != "THAWED" or read_text(here / "cgroup.freeze").strip() == "1":
            raise ActionError(f"{path} is frozen")
        path = path.rpartition("/")[0]
