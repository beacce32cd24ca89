"""Rows of many machines, asked by the queries that ``memcgctl help fleet`` shows."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pytest

from memcgctl.model import Census
from memcgctl.report.listing import to_ndjson
from memcgctl.views.listing import select
from memcgctl.views.overview import overview
from tests.schemas import read
from tests.unit.plans import world, zombie

TOPIC = Path(__file__).parents[2] / "memcgctl/topics/fleet.md"
MACHINES = 200
POD = "5f0c4a3e-6f0f-4a54-9d4e-0d8c2b1a7e11"


def queries() -> dict[str, str]:
    """By their title."""
    found = {}
    for section in TOPIC.read_text().split("\n## ")[1:]:
        title, _, body = section.partition("\n")
        lines = [line[4:] for line in body.splitlines() if line.startswith("    ")]
        found[title] = "\n".join(lines)
    return found


def census(machine: int) -> Census:
    """A node with as many zombies of a job as its number ends in, and one pod's."""
    slice_ = f"kubepods-burstable-pod{POD.replace('-', '_')}.slice"
    zombies = [
        replace(zombie(100 + n), path=f"/app/job-{machine}{n}.service", removed_at=50.0)
        for n in range(machine % 10)
    ]
    zombies.append(replace(zombie(99), path=f"/kubepods.slice/{slice_}/\udcffx"))
    made = world(*zombies)
    kernel = replace(
        made.kernel,
        host=f"node-{machine}",
        boot_id=f"boot-{machine}",
        release="6.12.1" if machine % 2 else "6.1.9",
        taken_at=100.0 + machine,
    )
    return replace(made, kernel=kernel)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("fleet") / "rows"
    directory.mkdir()
    for machine in range(MACHINES):
        taken = census(machine)
        found = overview(taken, taken.memcgs)
        listing = select(taken, online=False, sort="id")
        text = to_ndjson(listing, {row.memcg.address: row for row in found.rows})
        (directory / f"{machine}.ndjson").write_text(text)
    return directory


def ask(rows: Path, title: str) -> list[tuple[Any, ...]]:
    query = queries()[title].replace("rows/*", f"{rows}/*")
    return duckdb.connect().execute(query).fetchall()


def test_each_line_is_a_document_that_is_documented(rows: Path) -> None:
    """Lost: a fleet's answers, to one line that an engine cannot read."""
    lines = (rows / "9.ndjson").read_text().splitlines()
    assert len(lines) == 10
    for line in lines:
        assert read(line)["schema"] == "memcgctl/row/1"
    assert "path_base64" in json.loads(lines[0])


def test_the_queries_answer_for_all_machines(rows: Path) -> None:
    """Lost: which workload to look at, of a thousand nodes."""
    jobs = Counter({machine: machine % 10 for machine in range(MACHINES)})
    family, zombies, hosts, charged, overhead = ask(rows, "Which workloads leak most")[
        0
    ]
    assert (family, zombies, hosts) == ("job-*.service", jobs.total(), 180)
    assert charged == 0
    assert overhead > 0
    pods = ask(rows, "Which pods, on how many machines")
    assert [(str(pod), *counts) for pod, *counts in pods] == [(POD, MACHINES, MACHINES)]
    kernels = {row[0]: row[1:] for row in ask(rows, "Which kernels")}
    odd = sum(n for machine, n in jobs.items() if machine % 2)
    assert kernels["6.12.1"] == (odd + 100, 100, (odd + 100) / 100)
    ages = {row[0]: row[1:] for row in ask(rows, "How old, by ancestor")}
    assert ages["/app"][0] == jobs.total()
    assert 200 < ages["/app"][1] <= 50 + MACHINES
    assert ask(rows, "What cannot go, and why") == []


def test_no_query_is_left_out(rows: Path) -> None:
    """Lost: a query in the help that no engine takes."""
    assert len(queries()) == 5
    for title in queries():
        ask(rows, title)
