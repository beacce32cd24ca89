"""Why a live kernel cannot be read, which only a few machines let a test see."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from memcgctl.kernel import live
from memcgctl.kernel.errors import KernelError
from memcgctl.kernel.program import Sources, open_kernel


class Forbidden:
    """A /proc/kcore that this process may not open."""

    def open(self, mode: str) -> None:
        raise PermissionError(1, "Operation not permitted")

    def __str__(self) -> str:
        return "/proc/kcore"


def why(monkeypatch: pytest.MonkeyPatch, kcore: object) -> str:
    monkeypatch.setattr(live, "KCORE", kcore)
    with pytest.raises(KernelError) as caught:
        open_kernel(Sources())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lost: a person does not learn what to do in a container."""
    message = why(monkeypatch, tmp_path / "kcore")
    assert "is missing" in message
    assert "CONFIG_PROC_KCORE" in message
    assert "container" in message
    assert "--core" in message


def test_not_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lost: a person does not learn that root is needed."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "not root; run memcgctl as root" in why(monkeypatch, Forbidden())


@pytest.mark.parametrize("mode", ["integrity", "confidentiality"])
def test_locked_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """Lost: root is told to become root."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    lockdown = tmp_path / "lockdown"
    modes = ["none", "integrity", "confidentiality"]
    lockdown.write_text(" ".join(f"[{m}]" if m == mode else m for m in modes))
    monkeypatch.setattr(live, "LOCKDOWN", lockdown)
    message = why(monkeypatch, Forbidden())
    # Only the stricter mode forbids /proc/kcore.
    assert ("is locked down" in message) == (mode == "confidentiality")
    assert ("CAP_SYS_RAWIO" in message) == (mode == "integrity")


def test_masked_by_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lost: "not an ELF file" for what is a container's /dev/null."""
    assert "is masked, as in a container" in why(monkeypatch, Path("/dev/null"))


def test_of_another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lost: the same clear line for a live kernel as for a core."""
    kcore = tmp_path / "kcore"
    kcore.write_bytes(b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + b"\4\0\xf3\0" * 20)
    assert "of another machine, riscv" in why(monkeypatch, kcore)


@pytest.mark.parametrize(
    ("text", "known"),
    [
        ("ffffffff81000000 T _stext\n", True),
        ("0000000000000000 T _stext\n", False),  # kernel.kptr_restrict=2
        ("", False),
        ("what\n", False),
    ],
)
def test_hidden_addresses_are_no_symbols(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, known: bool
) -> None:
    """Lost: everything is read at address 0 where kptr_restrict hides addresses."""
    kallsyms = tmp_path / "kallsyms"
    kallsyms.write_text(text)
    monkeypatch.setattr(live, "KALLSYMS", kallsyms)
    assert (live.read_symbols() is not None) == known
