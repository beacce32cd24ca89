"""Each runtime's names for its cgroups, as its documentation or source has them."""

from __future__ import annotations

import pytest

from memcgctl.views.workload import RULES, Rule, Rules, Workload, family, workload

CONTAINER = "6b51d431df5d7f141cbececcf79edf3dd861c3b4069f0b11661a3eefacbba918"
POD = "c20ad4d7-6fe9-4775-9aa2-1a3c9bd6b6a1"
SLICE = f"pod{POD.replace('-', '_')}.slice"
STATIC = "0123456789abcdef0123456789abcdef"
INVOCATION = "3f1c2a9be0d74a6f8d1b5c7e9a0b2c4d"

# path, then runtime, pod, container[:8], unit, session, name
CASES = [
    # kubelet with the systemd driver: k8s.io/kubernetes pkg/kubelet/cm
    (
        f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-{SLICE}"
        f"/cri-containerd-{CONTAINER}.scope",
        ("containerd", POD, CONTAINER, f"cri-containerd-{CONTAINER}.scope", None, None),
    ),
    (
        f"/kubepods.slice/kubepods-{SLICE}/crio-{CONTAINER}.scope",
        ("cri-o", POD, CONTAINER, f"crio-{CONTAINER}.scope", None, None),
    ),
    (
        f"/kubepods.slice/kubepods-{SLICE}/docker-{CONTAINER}.scope",
        ("docker", POD, CONTAINER, f"docker-{CONTAINER}.scope", None, None),
    ),
    (
        f"/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice"
        f"/kubelet-kubepods-besteffort-{SLICE}/cri-containerd-{CONTAINER}.scope",
        ("containerd", POD, CONTAINER, f"cri-containerd-{CONTAINER}.scope", None, None),
    ),
    # the cgroupfs driver, a static pod, a container started with the other driver
    (
        f"/kubepods/burstable/pod{POD}/{CONTAINER}",
        ("kubernetes", POD, CONTAINER, None, None, None),
    ),
    (f"/kubepods/pod{POD}", ("kubernetes", POD, None, None, None, None)),
    (
        f"/kubepods/besteffort/pod{STATIC}/{CONTAINER}",
        ("kubernetes", STATIC, CONTAINER, None, None, None),
    ),
    (
        f"/system.slice/containerd.service/kubepods-burstable-{SLICE}"
        f":cri-containerd:{CONTAINER}",
        ("kubernetes", POD, CONTAINER, "containerd.service", None, None),
    ),
    # docker, podman, nerdctl
    (
        f"/system.slice/docker-{CONTAINER}.scope",
        ("docker", None, CONTAINER, f"docker-{CONTAINER}.scope", None, None),
    ),
    (f"/docker/{CONTAINER}", ("docker", None, CONTAINER, None, None, None)),
    (
        f"/machine.slice/libpod-{CONTAINER}.scope/container",
        ("podman", None, CONTAINER, f"libpod-{CONTAINER}.scope", None, None),
    ),
    (
        f"/machine.slice/machine-libpod_pod_{CONTAINER}.slice/libpod-{CONTAINER}.scope",
        ("podman", CONTAINER, CONTAINER, f"libpod-{CONTAINER}.scope", None, None),
    ),
    (
        f"/user.slice/user-1000.slice/user@1000.service/user.slice"
        f"/libpod-{CONTAINER}.scope",
        ("podman", None, CONTAINER, f"libpod-{CONTAINER}.scope", None, "1000"),
    ),
    # lxc, nspawn, libvirt
    ("/lxc.payload.web", ("lxc", None, None, None, None, "web")),
    ("/lxc/web", ("lxc", None, None, None, None, "web")),
    (
        "/machine.slice/systemd-nspawn@deb.service/payload",
        ("nspawn", None, None, "systemd-nspawn@deb.service", None, "deb"),
    ),
    (
        r"/machine.slice/machine-qemu\x2d1\x2dvm.scope",
        ("libvirt", None, None, r"machine-qemu\x2d1\x2dvm.scope", None, "qemu-1-vm"),
    ),
    # systemd
    (
        "/system.slice/nightly-backup.service",
        ("systemd", None, None, "nightly-backup.service", None, None),
    ),
    (
        "/system.slice/system-getty.slice/getty@tty1.service",
        ("systemd", None, None, "getty@tty1.service", None, None),
    ),
    ("/system.slice", ("systemd", None, None, "system.slice", None, None)),
    (
        "/user.slice/user-1000.slice/session-412.scope",
        ("session", None, None, "session-412.scope", "412", None),
    ),
    (
        "/user.slice/user-1000.slice/user@1000.service/app.slice/run-u12.scope",
        ("systemd", None, None, "run-u12.scope", None, "1000"),
    ),
    # Slurm by cgroup v1 and v2, Android, YARN, Amazon's agent, Nomad
    ("/slurm/uid_1000/job_123/step_0/task_0", ("slurm", None, None, None, "123", None)),
    (
        "/system.slice/slurmstepd.scope/job_77/step_batch/user/task_0",
        ("slurm", None, None, "slurmstepd.scope", "77", None),
    ),
    ("/apps/uid_10123/pid_456", ("android", None, None, None, "10123", "456")),
    (
        "/hadoop-yarn/container_e17_1410901177871_0001_01_000005",
        ("yarn",) + (None,) * 4 + ("container_e17_1410901177871_0001_01_000005",),
    ),
    (
        f"/ecs/9781c248-0edd-4cdb-9a93-f63cb662a5d3/{CONTAINER}",
        ("ecs", None, CONTAINER, None, None, "9781c248-0edd-4cdb-9a93-f63cb662a5d3"),
    ),
    (
        "/nomad.slice/share.slice/4ce3.web.scope",
        ("nomad", None, None, "4ce3.web.scope", None, "4ce3.web"),
    ),
    # nobody's
    ("/app/file-read", (None,) * 6),
    ("/", (None,) * 6),
    (f"/{CONTAINER}", (None,) * 6),
]


@pytest.mark.parametrize(("path", "right"), CASES)
def test_what_a_path_tells(path: str, right: tuple[str | None, ...]) -> None:
    """Lost: whose zombie it is, or the wrong pod is blamed."""
    found = workload(path)
    assert (
        found.runtime,
        found.pod_uid,
        found.container_id,
        found.unit,
        found.session,
        found.name,
    ) == right


def test_every_rule_has_a_case() -> None:
    """Else a rule can be wrong, or never reached, and nobody sees it."""
    runtimes = {right[0] for _, right in CASES}
    assert {rule.runtime for rule in RULES} <= runtimes


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("session-412.scope", "session-*.scope"),
        (f"cri-containerd-{CONTAINER}.scope", "cri-containerd-*.scope"),
        (f"kubepods-burstable-{SLICE}", "kubepods-burstable-pod*.slice"),
        (f"pod{STATIC}", "pod*"),
        ("backup@2026-11-27.service", "backup@*.service"),
        ("nightly-backup.service", "nightly-backup.service"),
        ("worker-3-1", "worker-*"),
        (r"machine-qemu\x2d1\x2dvm.scope", "machine-qemu-*-vm.scope"),
        ("deadbeef", "deadbeef"),  # a word of letters is a name
        ("feedface", "feedface"),
    ],
)
def test_family(name: str, right: str) -> None:
    """Else a leak of a thousand sessions shows as a thousand leaks."""
    assert family(name) == right


def test_invocation() -> None:
    """systemd's attribute is shown only if it is one: it ends in a command line."""
    good = workload("/a.service", [("trusted.invocation_id", INVOCATION)])
    assert good.invocation == INVOCATION
    for bad in ("", "$(reboot)", "\udcff" * 16, f"{INVOCATION}0", f"{INVOCATION}\n"):
        assert (
            workload("/a.service", [("trusted.invocation_id", bad)]).invocation is None
        )


def test_own_rules() -> None:
    """A site's own names are known by a rule of its own, which comes first."""
    own = Rules([Rule("farm", r"render-(?P<session>\d+)\.scope"), *RULES])
    found = own("/farm.slice/render-17.scope")
    assert found == Workload(
        "farm", unit="render-17.scope", session="17", family="render-*.scope"
    )
