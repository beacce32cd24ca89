"""reclaim --dry-run, simulate and explain's options as a shell sees them."""

from __future__ import annotations

import fcntl
import os
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from memcgctl.actions.host.machine import ActionError
from memcgctl.actions.run.lock import Locked, locked, must_be_alone
from memcgctl.cli import app
from memcgctl.snapshot import save
from tests.schemas import read
from tests.unit import zombies
from tests.unit.plans import CASES, held_by, online, swapped, world, zombie
from tests.unit.test_cli_census import run


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A saved census: a file's reader, a swapped one below an online memcg."""
    path = tmp_path / "my census.json.zst"
    census = world(
        zombie(100, zombies.group(**CASES["file-unmapped"])),
        online(6, "/app/on", 5),
        zombie(101, swap=swapped(), parent_id=6, path="/app/on/z"),
    )
    save(census, str(path))
    return path


def test_a_dry_run_plans_for_all(file: Path) -> None:
    """Lost: the plan, or the knowledge that it is the whole one."""
    done = run("reclaim", "--dry-run", "--census", file)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\n2 of 2 zombies can be freed in 2 steps" in done.stdout
    assert "--steps" in done.stdout
    done = run("reclaim", "--dry-run", "--steps", "--census", file)
    assert "dd if=/var/log/x iflag=nocache" in done.stdout


def test_a_script_of_the_steps(file: Path, tmp_path: Path) -> None:
    """Lost: a file that was there, or a script that anybody could have changed."""
    script = tmp_path / "steps.sh"
    done = run("reclaim", "--census", file, "--commands", script)
    assert (done.returncode, done.stdout) == (0, "")
    assert "dd if=/var/log/x iflag=nocache" in script.read_text()
    assert script.stat().st_mode & 0o777 == 0o700
    assert run("reclaim", "--census", file, "--commands", script).returncode == 1


def test_nobody_else_can_take_the_lock(tmp_path: Path) -> None:
    """Any user could keep root from acting, or choose which file root writes to."""
    lock = tmp_path / "state/lock"

    def refused(message: str) -> None:
        for use in (must_be_alone, lambda path: locked(path).__enter__()):
            with pytest.raises(ActionError, match=message) as caught:
                use(lock)
            assert "\n" not in str(caught.value)

    with locked(lock):
        pass
    lock.chmod(0o666)
    refused("lock can be written to by others")
    lock.chmod(0o600)
    lock.parent.chmod(0o777)
    refused("state can be written to by others")
    lock.parent.chmod(0o700)
    with pytest.MonkeyPatch.context() as patch:
        me = os.geteuid()
        if me == 0:
            os.chown(lock.parent, 1, -1)
        else:
            patch.setattr(os, "geteuid", lambda: me + 1)
        refused(f"state belongs to uid {me or 1}, not to you")
        if me == 0:
            os.chown(lock.parent, 0, -1)
    lock.unlink()
    lock.symlink_to(tmp_path / "else")
    refused("lock is a symbolic link")
    assert not (tmp_path / "else").exists()
    lock.unlink()
    lock.parent.rename(tmp_path / "other")
    lock.parent.symlink_to(tmp_path / "other")
    refused("state is a symbolic link")


@pytest.mark.parametrize(
    ("wanted", "freed"),
    [(["100"], [100]), (["/app/on"], [101]), (["/app"], [101, 100]), (["z101"], [])],
)
def test_only_what_is_named(file: Path, wanted: list[str], freed: list[int]) -> None:
    """Lost: a plan for what nobody asked for."""
    done = run("reclaim", "--dry-run", *wanted, "--census", file, "--json")
    if not freed:
        assert (done.returncode, done.stdout) == (2, "")
        assert "no memcg is 'z101'" in done.stderr
        return
    assert set(read(done.stdout)["predicted"]["freed"]) == set(freed)


def test_without_dry_run_nothing_is_done_yet(file: Path) -> None:
    """Lost: a machine, to a command that was to say what it would do."""
    done = run("reclaim", "--census", file)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1


def test_another_run_is_told_of_before_anything_else(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A person would read a whole plan, and say yes to it, for nothing."""
    lock = tmp_path / "lock"
    lock.touch(0o600)
    monkeypatch.setattr("memcgctl.actions.run.lock.lock_path", lambda: lock)
    command = sys.modules["memcgctl.cli.reclaim"]  # the name is the function's
    monkeypatch.setattr(command, "opened", lambda _: pytest.fail("opened"))
    with lock.open("w") as holder:
        holder.write("4711\n")
        holder.flush()
        fcntl.flock(holder, fcntl.LOCK_EX)
        done = CliRunner().invoke(app, ["reclaim", "--yes"])
        assert (done.exit_code, done.stdout) == (1, "")
        said = f"memcgctl: error: pid 4711 is at work: it holds {lock}\n"
        assert done.stderr == said
        words = ["reclaim", "--dry-run", "--census", str(file)]
        assert CliRunner().invoke(app, words).exit_code == 0


def test_who_looks_is_in_nobodys_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run would be refused for one that does not act, or look at a lock for ever."""
    lock = tmp_path / "state/lock"
    must_be_alone(lock)  # there never was a run
    assert not lock.parent.exists()
    lock.parent.mkdir(0o700)
    lock.touch(0o600)
    with lock.open("w") as looker:
        fcntl.flock(looker, fcntl.LOCK_SH)
        must_be_alone(lock)
        monkeypatch.setattr(time, "sleep", lambda _: looker.close())
        with locked(lock), pytest.raises(Locked, match=f"pid {os.getpid()} is at"):
            must_be_alone(lock)
    must_be_alone(lock)
    must_be_alone(lock / "no directory")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--policy", "nonsense"], "'nonsense' is neither a policy"),
        (["--max-bytes", "many"], "'many' is no size"),
        (["--mapper", "last"], "'last'"),
        (["--allow", "everything"], "'everything'"),
        (["--allow", "unverified"], "'unverified'"),
    ],
)
def test_wrong_usage_is_said(file: Path, arguments: list[str], said: str) -> None:
    """Lost: why nothing came out."""
    done = run("reclaim", "--dry-run", "--census", file, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in " ".join(done.stderr.split())


def test_options_reach_the_plan(file: Path, tmp_path: Path) -> None:
    """Lost: a policy or a budget that is read and forgotten."""
    policy = tmp_path / "mine.toml"
    policy.write_text("[cases]\nswap = 'recharge-mapper'\n")
    done = run("reclaim", "--dry-run", "--census", file, "--policy", policy, "--json")
    document = read(done.stdout)
    assert (document["policy"], document["predicted"]["freed"]) == ("mine", [101])
    done = run("reclaim", "--dry-run", "--census", file, "--max-bytes", "1K", "--json")
    assert read(done.stdout)["steps"] == []


@pytest.mark.parametrize(
    ("named", "status", "freed", "said"),
    [
        (["101"], 0, [101], ""),
        (["10"], 2, None, "no memcg has id 10"),
        (["z10"], 2, None, "no memcg is 'z10'; it is a part of these (--match"),
        (["--match", "10"], 0, [100], "memcgctl:   100 offline /app/z100\n"),
        (["--match", "nothing"], 2, None, "no memcg is 'nothing'"),
    ],
)
def test_only_what_was_named_is_acted_on(
    file: Path, named: list[str], status: int, freed: list[int] | None, said: str
) -> None:
    """Another zombie, with these digits in its name, would go for one that is gone."""
    done = run("reclaim", "--dry-run", "--census", file, "--json", *named)
    assert done.returncode == status
    assert said in done.stderr
    if freed is not None:
        assert read(done.stdout)["predicted"]["freed"] == freed


def test_what_could_not_be_read_is_warned_of(tmp_path: Path) -> None:
    """Lost: why a plan is empty."""
    path = tmp_path / "old.json"
    save(world(held_by("swap"), interfaces=()), str(path))
    done = run("reclaim", "--dry-run", "--census", path)
    assert "does not tell which interfaces" in done.stderr


def test_policies_are_compared(file: Path, tmp_path: Path) -> None:
    """Lost: the comparison that a discussion needs."""
    done = run("simulate", "--census", file)
    assert (done.returncode, done.stderr) == (0, "")
    assert "proposal evict parent mapper deferred least-harm" in done.stdout
    policy = tmp_path / "mine.toml"
    policy.write_text("[cases]\nswap = 'recharge-parent'\n")
    done = run(
        *("simulate", "--census", file, "--policy", policy),
        *("--policy", "parent", "--json"),
    )
    found = {one["policy"]: one["freed"] for one in read(done.stdout)["policies"]}
    assert found == {"mine": 1, "parent": 2}


def test_explain_ends_with_what_to_type_next(file: Path) -> None:
    """Lost: the way on, with the file that was read, quoted."""
    done = run("explain", "100", "--census", file)
    assert done.stdout.splitlines()[-1] == (
        f"Next: memcgctl reclaim --dry-run 100 --census '{file}'"
    )
    document = read(run("explain", "100", "--census", file, "--json").stdout)
    assert [one["option"] for one in document["options"]] == [
        *("evict", "recharge-parent", "recharge-mapper", "deferred")
    ]
    evict = document["options"][0]
    assert (evict["bytes"], evict["supported"], evict["how"]) == (4096, True, "fadvise")
