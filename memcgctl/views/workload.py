"""What was a removed cgroup: whose pod, container, unit, session or job?

Its path says: each runtime names the cgroups that it makes by a rule of its own. The
rules are data, one row each, tried on every directory of a path from the root down, so
that a container's row adds to what its pod's row found. ``family`` is the name with
digits and hashes taken out: what one leak's zombies have in common.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

_HASH = r"[0-9a-f]{64}"
_UID = r"[0-9a-f]{8}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{12}"
# A static pod's uid is the hash of its manifest.
_POD = rf"(?:{_UID}|[0-9a-f]{{32}})"


@dataclass(frozen=True)
class Workload:
    """What a cgroup was made for; each field is None where its path does not say.

    ``runtime`` is one of the table's; ``pod_uid`` has dashes, whatever the path has;
    ``container_id`` is all of it. ``unit`` is systemd's name, ``session`` a login's
    number or a job's, ``name`` what the runtime calls it. ``invocation`` is systemd's
    invocation ID, 32 hexadecimal digits (an extended attribute, not the path).
    """

    runtime: str | None = None
    pod_uid: str | None = None
    container_id: str | None = None
    unit: str | None = None
    session: str | None = None
    name: str | None = None
    family: str | None = None
    invocation: str | None = None


class Rule(NamedTuple):
    """One way of one runtime to name a cgroup.

    ``pattern`` is matched against the end of a path, from a directory's begin: groups
    ``pod``, ``container``, ``session`` and ``name`` are what it tells.
    """

    runtime: str
    pattern: str


# Of those that match a directory, the one that begins furthest up counts, then the
# first in this table: the particular come before the general.
RULES: tuple[Rule, ...] = (
    # kubelet, --cgroup-driver=systemd: kubepods[-QOS]-podUID.slice, the UID's dashes as
    # underscores (pkg/kubelet/cm/cgroup_manager_linux.go, ToSystemd); kind puts
    # "kubelet-" before it.
    Rule("kubernetes", rf"(?:[\w-]+-)?kubepods(?:-\w+)?-pod(?P<pod>{_POD})\.slice"),
    # --cgroup-driver=cgroupfs: kubepods/[QOS/]podUID.
    Rule("kubernetes", rf"kubepods/(?:\w+/)?pod(?P<pod>{_POD})"),
    # kubelet with the systemd driver, containerd without: SLICE:cri-containerd:ID.
    Rule(
        "kubernetes",
        rf"(?:[\w-]+-)?kubepods(?:-\w+)?-pod(?P<pod>{_POD})\.slice:cri-containerd:"
        rf"(?P<container>{_HASH})",
    ),
    Rule("kubernetes", r"(?:[\w-]+-)?kubepods(?:-(?:burstable|besteffort))?\.slice"),
    Rule("kubernetes", r"kubepods(?:/(?:burstable|besteffort))?"),
    Rule("containerd", rf"cri-containerd-(?P<container>{_HASH})\.scope"),
    Rule("containerd", rf"nerdctl-(?P<container>{_HASH})\.scope"),
    Rule("cri-o", rf"crio-(?:conmon-)?(?P<container>{_HASH})(?:\.scope)?"),
    Rule("docker", rf"docker-(?P<container>{_HASH})\.scope"),
    Rule("docker", rf"docker/(?:buildkit/)?(?P<container>{_HASH})"),
    # Amazon's agent: ecs/TASK/CONTAINER, ecstasks-TASK.slice (docker-ID.scope below).
    Rule("ecs", rf"ecs/(?P<name>[0-9a-f-]+)/(?P<container>{_HASH})"),
    Rule("ecs", r"ecstasks-(?P<name>[0-9a-f]+)\.slice"),
    Rule("podman", r"(?:[\w-]+-)?libpod_pod_(?P<pod>[0-9a-f]{64})(?:\.slice)?"),
    Rule("podman", rf"libpod-(?:conmon-|payload-)?(?P<container>{_HASH})(?:\.scope)?"),
    # A pod's container by the cgroupfs driver is the bare ID.
    Rule("kubernetes", rf"pod{_POD}/(?P<container>{_HASH})"),
    Rule("lxc", r"lxc\.(?:payload|monitor|pivot)[./](?P<name>[^/]+)"),
    Rule("lxc", r"lxc/(?P<name>[^/]+)"),
    Rule("nspawn", r"systemd-nspawn@(?P<name>[^/]+)\.service"),
    Rule("libvirt", r"machine\.slice/machine-(?P<name>(?:qemu|lxc)\\x2d[^/]+)\.scope"),
    Rule("nspawn", r"machine\.slice/machine-(?P<name>[^/]+)\.scope"),
    Rule(
        "slurm", r"(?:slurm[^/]*/(?:uid_\d+/)?|slurmstepd\.scope/)job_(?P<session>\d+)"
    ),
    Rule("nomad", r"nomad\.slice/(?:\w+\.slice/)?(?P<name>[^/]+)\.scope"),
    Rule("yarn", r"(?P<name>container_(?:e\d+_)?\d+_\d+_\d+_\d+)"),
    # libprocessgroup: uid_UID/pid_PID, below apps/ or system/ in newer ones.
    Rule("android", r"uid_(?P<session>\d+)(?:/pid_(?P<name>\d+))?"),
    Rule("session", r"session-c?(?P<session>\d+)\.scope"),
    Rule("session", r"user@(?P<name>\d+)\.service"),
    Rule(
        "systemd",
        r"[^/]+\.(?:service|scope|socket|mount|swap|slice|timer|automount)",
    ),
)

GROUPS = ("pod", "container", "session", "name")
# A unit that processes run in; a slice is one only where there is no other.
_UNIT = re.compile(r"\.(?:service|scope|socket|mount|swap)$")


class Rules:
    """A table of rules as one expression, so that a directory is looked at once."""

    def __init__(self, rules: Iterable[Rule] = RULES) -> None:
        """Raises re.error if a rule is no regular expression."""
        self._use(tuple(rules))

    def put_first(self, rules: Iterable[Rule]) -> None:
        """Rules that count before all others from now on; raises re.error."""
        self._use((*rules, *self._rules))

    def _use(self, rules: tuple[Rule, ...]) -> None:
        self._rules = rules
        parts = []
        for number, (_, pattern) in enumerate(rules):
            for group in GROUPS:
                pattern = pattern.replace(f"(?P<{group}>", f"(?P<{group}_{number}>")
            parts.append(f"(?P<r{number}>{pattern})")
        self._find = re.compile(f"(?:^|/)(?:{'|'.join(parts)})$").search
        # Siblings have all but their last directory in common.
        self._known = lru_cache(1 << 12)(self._workload)

    def __call__(self, path: str, xattrs: Iterable[tuple[str, str]] = ()) -> Workload:
        """What the cgroup at ``path``, from the hierarchy's root, was."""
        above, _, name = path.rpartition("/")
        found = self._named(self._known(above), path) if name else Workload()
        found = replace(found, family=family(name))
        invocation = dict(xattrs).get("trusted.invocation_id", "")
        if re.fullmatch(r"[0-9a-f]{32}", invocation):
            found = replace(found, invocation=invocation)
        return found

    def _workload(self, path: str) -> Workload:
        above, _, name = path.rpartition("/")
        return self._named(self._known(above), path) if name else Workload()

    def _named(self, above: Workload, path: str) -> Workload:
        """What a directory is, given what the one above it is."""
        match = self._find(path)
        if not match:
            return above
        number = next(n for n in range(len(self._rules)) if match[f"r{n}"] is not None)
        tells = match.groupdict()
        told = {group: tells.get(f"{group}_{number}") for group in GROUPS}
        name, runtime = path.rpartition("/")[2], self._rules[number].runtime
        unit = above.unit
        if _UNIT.search(name):
            unit = name
        elif name.endswith(".slice"):
            if above.runtime not in (None, "systemd") and runtime == "systemd":
                return above  # a slice below a pod, a session: it tells nothing more
            if unit is None or unit.endswith(".slice"):
                unit = name
        return Workload(
            runtime=runtime,
            pod_uid=(told["pod"] or "").replace("_", "-") or above.pod_uid,
            container_id=told["container"] or above.container_id,
            unit=unit,
            session=told["session"] or above.session,
            name=unescape(told["name"]) if told["name"] else above.name,
        )


workload = Rules()


def unescape(unit: str) -> str:
    """What a unit's name was made of, before systemd-escape: ``\\x2d`` is a dash.

    >>> unescape(r"machine-qemu\\x2d1.scope")
    'machine-qemu-1.scope'
    """
    raw = re.sub(
        rb"\\x([0-9a-f]{2})",
        lambda match: bytes([int(match[1], 16)]),
        unit.encode(errors="surrogateescape"),
    )
    return raw.decode(errors="surrogateescape")


_VARIES = re.compile(
    rf"{_UID}|(?<![0-9A-Za-z])(?=[a-z-]*\d)[0-9a-f]{{8,}}(?![0-9A-Za-z])|(?<=pod){_POD}"
    r"|(?<=@)[^/@]+(?=\.\w+$)|\d+"
)


def family(name: str) -> str:
    """A directory's name with what differs between its like taken out.

    >>> family("session-412.scope"), family("backup@2026-11-27.service")
    ('session-*.scope', 'backup@*.service')
    """
    return re.sub(r"\*(?:[-_.:]?\*)+", "*", _VARIES.sub("*", unescape(name)))
