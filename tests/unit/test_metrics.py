"""What Prometheus is told: the numbers, what is not told, how it is served."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.parser import (
    text_string_to_metric_families as older_format,
)

from memcgctl.cli import metrics as command
from memcgctl.cli.metrics_server import Last
from memcgctl.kernel.errors import KernelError
from memcgctl.model import (
    Census,
    Charges,
    History,
    Memcg,
    Overhead,
    PastRun,
    PastStep,
    SwapUse,
    Topic,
)
from memcgctl.report.metrics import Families, Measured, families, unread
from memcgctl.snapshot import save
from tests.unit.zombies import KERNEL, census, details, held, memcg

MAIN = "from memcgctl.__main__ import main; main()"
OPENMETRICS = "application/openmetrics-text; version=1.0.0"
NOW = 1_000_000.0
AT = replace(KERNEL, taken_at=NOW, dying_cgroups=3)
ZOMBIE = memcg(
    20,
    "/pods/a",
    ancestor="/pods",
    charges=Charges(file_bytes=8192, sock_bytes=5),
    swap=SwapUse(2, 4096),
    overhead=Overhead(100, 50, 20),
    removed_at=NOW - 60,
    **held(("folio", 2, ""), ("swap", 1, "")),
)
LEAK = replace(
    ZOMBIE, id=21, removed_at=None, details=details(("stock", 1, ""), unexplained=4)
)

Samples = dict[tuple[str, tuple[str, ...]], float]


def taken(*memcgs: Memcg, **changes: Any) -> Samples:
    made: Census = census(*memcgs, **{"kernel": AT, **changes})
    return samples(families(Measured(made, 3, None, 1.5, NOW)).openmetrics())


def samples(text: bytes | str) -> Samples:
    """By name and labels' values, as OpenMetrics' own parser reads them."""
    text = text if isinstance(text, str) else text.decode()
    found: Samples = {}
    for family in text_string_to_metric_families(text):  # type: ignore[no-untyped-call]
        for sample in family.samples:
            key = (sample.name, tuple(sample.labels.values()))
            assert key not in found
            found[key] = sample.value
    return found


def of(name: str, found: Samples) -> dict[tuple[str, ...], float]:
    return {labels: value for (one, labels), value in found.items() if one == name}


def test_what_zombies_cost() -> None:
    """A fleet's dashboard would show other numbers than the machine's list."""
    found = taken(ZOMBIE, replace(ZOMBIE, id=22), replace(ZOMBIE, state="online"))
    assert of("memcgctl_offline_memcgs", found) == {("/pods",): 2, ("other",): 0}
    costs = of("memcgctl_offline_memcg_bytes", found)
    wanted = {"file": 16384, "sock": 10, "swap": 8192, "overhead": 240, "anon": 0}
    assert {kind: costs["/pods", kind] for kind in wanted} == wanted
    assert found["memcgctl_dying_cgroups", ()] == 3
    assert found["memcgctl_census_timestamp_seconds", ()] == NOW
    assert found["memcgctl_census_duration_seconds", ()] == 1.5
    assert found["memcgctl_census_success", ()] == 1


def test_references() -> None:
    """A leak in a kernel would raise no alert."""
    kinds = of("memcgctl_offline_memcg_references", taken(ZOMBIE, LEAK))
    assert kinds["folio",] == 2
    assert kinds["stock",] == 1
    assert kinds["unexplained",] == 4
    assert kinds["fsnotify",] == 0


@pytest.mark.parametrize(
    ("one", "gone"),
    [
        (replace(ZOMBIE, charges=None), ("memcgctl_offline_memcg_bytes", "file")),
        (
            replace(ZOMBIE, charges=Charges(sock_bytes=None)),
            ("memcgctl_offline_memcg_bytes", "sock"),
        ),
        (replace(ZOMBIE, swap=None), ("memcgctl_offline_memcg_bytes", "swap")),
        (
            replace(ZOMBIE, details=None),
            ("memcgctl_offline_memcg_references", "unexplained"),
        ),
        (
            replace(ZOMBIE, details=details(unexplained=None)),
            ("memcgctl_offline_memcg_references", "unexplained"),
        ),
        (
            replace(ZOMBIE, details=replace(details(), unread=(Topic.SLABS.value,))),
            ("memcgctl_offline_memcg_references", "unexplained"),
        ),
    ],
)
def test_what_was_not_read_has_no_sample(one: Memcg, gone: tuple[str, str]) -> None:
    """0 would be a number: no leak, no memory, all is well."""
    name, label = gone
    whole, found = (of(name, taken(memcg)) for memcg in (ZOMBIE, one))
    assert any(labels[-1] == label for labels in whole)
    assert not any(labels[-1] == label for labels in found if "other" not in labels)


def test_ages() -> None:
    """An age that nobody knows would be that of a zombie just removed."""
    old = replace(ZOMBIE, id=23, removed_at=NOW - 90_000)
    found = taken(ZOMBIE, old, LEAK)
    buckets = of("memcgctl_offline_memcg_age_seconds_bucket", found)
    assert (buckets["60.0",], buckets["86400.0",], buckets["+Inf",]) == (1, 1, 2)
    assert found["memcgctl_offline_memcg_age_seconds_sum", ()] == 90_060
    assert found["memcgctl_offline_memcgs_of_unknown_age", ()] == 1
    assert not of("memcgctl_offline_memcg_age_seconds_count", taken(LEAK))
    assert taken()["memcgctl_offline_memcg_age_seconds_count", ()] == 0


def test_series_are_bounded_and_nobodys_names_are_in_them() -> None:
    """A fleet's Prometheus would fill up with the names of what is gone."""
    many = [
        replace(ZOMBIE, id=100 + n, path=f"/x{n}/y", ancestor=f"/x{n % 60}")
        for n in range(300)
    ]
    found = taken(*many)
    assert len(of("memcgctl_offline_memcgs", found)) == 21
    assert of("memcgctl_offline_memcgs", found)["other",] == 200
    assert sum(of("memcgctl_offline_memcgs", found).values()) == 300
    assert len(found) < 21 * 9 + 50
    document = families(Measured(census(*many), 3, None, 1, NOW)).openmetrics().decode()
    labels = set(re.findall(r'[{,]([a-z_]+)="', document))
    assert labels <= {"ancestor", "class", "kind", "le", "version"}


def test_names_of_any_bytes() -> None:
    """One odd name, or two that look alike when escaped, would end all scrapes."""
    odd = ["/\udcff", "/\\xff", '/"\n\x1b[0m', "/é"]
    found = taken(*(replace(ZOMBIE, id=n, ancestor=a) for n, a in enumerate(odd, 1)))
    counts = of("memcgctl_offline_memcgs", found)
    assert counts == {
        ("/\\xff",): 2,
        ('/"\\x0a\\x1b[0m',): 1,
        ("/é",): 1,
        ("other",): 0,
    }


def test_the_journal() -> None:
    """Lost: whether reclaim still works out there."""
    step = PastStep(1, "fadvise", "/x", "failed", "", None, None)
    run = PastRun("a", "", 1, "", "", 1, (step,), True, "", 0, 7, 0)
    history = History("/j", (run, replace(run, ended=False, freed=None)), 2)
    found = samples(families(Measured(None, 3, history, 1, None)).openmetrics())
    assert found["memcgctl_journal_runs", ()] == 2
    assert found["memcgctl_journal_unended_runs", ()] == 1
    assert found["memcgctl_journal_freed_memcgs", ()] == 7
    assert found["memcgctl_journal_failed_steps", ()] == 2
    assert found["memcgctl_journal_damaged_lines", ()] == 2


def test_a_kernel_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without root there would be nothing, or zeros that look like good news."""

    def refuse(*_: object, **__: object) -> Census:
        raise KernelError("/proc/kcore: no permission")

    monkeypatch.setattr(command, "read_census", refuse)
    found = samples(command.measured((None,) * 5, None).openmetrics())
    assert found["memcgctl_census_success", ()] == 0
    assert not of("memcgctl_offline_memcgs", found)
    assert not of("memcgctl_census_timestamp_seconds", found)
    with pytest.raises(KernelError):
        command.measured((Path("core"), None, None, None, None), None)


def test_alerts_name_metrics_that_are_there() -> None:
    """An alert on a metric that was renamed never fires."""
    history = History("/j", (), 0)
    text = families(Measured(census(ZOMBIE), 3, history, 1, NOW)).text().decode()
    written = set(re.findall(r"^(memcgctl_\w+)", text, re.M))
    rules = run("metrics", "--rules").stdout
    named = set(re.findall(r"memcgctl_\w+", rules))
    assert len(named) >= 4
    assert named <= written
    topic = run("help", "metrics").stdout
    families_ = {re.sub("_(bucket|sum|count)$", "", name) for name in written}
    short = {name.removeprefix("memcgctl_journal") for name in families_}
    assert all(f"`{a}`" in topic or a in topic for a in short)


# --- the command -------------------------------------------------------------------


def run(*arguments: str | Path, main: str = MAIN) -> Any:
    return subprocess.run(
        [sys.executable, "-c", main, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save(census(ZOMBIE, kernel=AT), str(tmp_path / "census"))
    return tmp_path / "census"


def test_without_its_extra() -> None:
    """A person would get a traceback instead of what to install."""
    main = f"import sys; sys.modules['prometheus_client'] = None; {MAIN}"
    done = run("metrics", main=main)
    assert done.returncode == 2
    assert "pip install 'memcgctl[metrics]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert run("--help", main=main).returncode == 0


def test_textfile_is_replaced_whole(saved: Path, tmp_path: Path) -> None:
    """node_exporter would read half a file, or none as it is root's."""
    place = tmp_path / "d" / "memcgctl.prom"
    done = run("metrics", "--census", saved, "--textfile", place)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    place.parent.mkdir()
    place.write_text("before\n")
    with open(place) as reader:
        done = run("metrics", "--census", saved, "--textfile", place)
        assert (done.returncode, done.stdout) == (0, "")
        assert reader.read() == "before\n"
    assert os.listdir(place.parent) == [place.name]
    assert place.stat().st_mode & 0o777 == 0o644
    names = {family.name for family in older_format(place.read_text())}
    assert "memcgctl_offline_memcgs" in names
    assert "memcgctl_build_info" in names


@contextmanager
def serving(*arguments: str | Path) -> Iterator[str]:
    """Its address, while it runs."""
    server = subprocess.Popen(
        [sys.executable, "-c", MAIN, "metrics", "--listen", ":0", *map(str, arguments)],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stderr
        line = server.stderr.readline()
        assert "http://127.0.0.1:" in line, line
        yield line.split()[-1]
        server.send_signal(signal.SIGTERM)
        assert server.wait(20) == 128 + signal.SIGTERM
    finally:
        server.kill()
        server.communicate()


def scrape(url: str, accept: str = OPENMETRICS) -> str:
    with urlopen(Request(url, headers={"Accept": accept}), timeout=30) as answer:
        assert accept.split(";")[0] in answer.headers["Content-Type"]
        return bytes(answer.read()).decode()


def test_server_answers_from_the_last_census(saved: Path) -> None:
    """Each scrape would read the whole memory map of a machine."""
    with serving("--census", saved) as url:
        saved.unlink()  # another census would fail
        first = scrape(url)
        assert samples(first)["memcgctl_offline_memcgs", ("/pods",)] == 1
        begin = time.monotonic()
        assert scrape(url) == first
        assert time.monotonic() - begin < 5
        assert "# TYPE memcgctl_build_info gauge" in scrape(url, "text/plain")


def test_server_takes_a_new_one_when_it_is_due(saved: Path) -> None:
    """It would answer with what was true when it was started, for good."""
    with serving("--census", saved, "--interval", "0") as url:
        save(census(ZOMBIE, replace(ZOMBIE, id=30, address=1 << 63)), str(saved))
        assert samples(scrape(url))["memcgctl_offline_memcgs", ("/pods",)] == 2
        saved.unlink()
        assert of("memcgctl_census_success", samples(scrape(url))) == {(): 0}
        assert not of("memcgctl_offline_memcgs", samples(scrape(url)))


def test_scrapes_at_once_share_one_census() -> None:
    """Ten scrapers would take ten censuses at once."""
    last = Last(unread(), 0)
    measured = []

    def measure() -> Families:
        time.sleep(0.3)
        measured.append(unread())
        return measured[-1]

    answers: list[Families] = []
    scrapes = [
        threading.Thread(target=lambda: answers.append(last.answer()))
        for _ in range(10)
    ]
    for one in scrapes:
        one.start()
    last.renew(measure)
    for one in scrapes:
        one.join(20)
    assert len(answers) == 10
    assert len(measured) == 1
    assert all(answer is measured[0] for answer in answers)


@pytest.mark.parametrize("text", ["foo", "1.2.3.4", "::1:x", ":70000", ""])
def test_no_address(text: str) -> None:
    """A server would listen elsewhere than was meant."""
    done = run("metrics", "--listen", text)
    assert done.returncode == 2
