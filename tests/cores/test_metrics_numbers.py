"""What Prometheus is told of a core: the same numbers as ``list --json``."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

from prometheus_client.openmetrics.parser import text_string_to_metric_families

from tests.schemas import read

CORE = Path(__file__).parents[2] / "fixtures" / "6.12-named.zst"
MAIN = "from memcgctl.__main__ import main; main()"


def run(*arguments: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", MAIN, *arguments, "--core", str(CORE)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=120,
    ).stdout


def test_the_numbers_are_those_of_list() -> None:
    """A dashboard and the machine's own list would tell different stories."""
    listed = read(run("list", "--json"))
    found = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(run("metrics"))  # type: ignore[no-untyped-call]
        for sample in family.samples
    }
    zombies = listed["memcgs"]
    wanted: Counter[tuple[str, ...]] = Counter()
    for one in zombies:
        ancestor = one["ancestor"]
        wanted["memcgctl_offline_memcgs", ancestor] += 1
        size = "memcgctl_offline_memcg_bytes"
        for kind in ("file", "shmem", "anon", "kernel", "sock", "hugetlb"):
            wanted[size, ancestor, kind] += one["charged"][kind]
        wanted[size, ancestor, "swap"] += one["swap"]["bytes"]
        wanted[size, ancestor, "overhead"] += sum(
            one["overhead"][part] for part in ("percpu", "structs")
        )
    assert len(wanted) > 20
    rest = "other"
    told = {key: found[key] for key in found if key[0] in {k[0] for k in wanted}}
    assert {key: n for key, n in told.items() if key[1] != rest} == dict(wanted)
    assert not any(n for key, n in told.items() if key[1] == rest)
    assert found["memcgctl_dying_cgroups",] == listed["totals"]["dying_cgroups"]
    assert found["memcgctl_offline_memcg_age_seconds_count",] == len(zombies)
    assert found["memcgctl_census_warnings",] == len(listed["warnings"])
    references = sum(one["refs"] for one in zombies)
    kinds = [n for k, n in found.items() if k[0] == "memcgctl_offline_memcg_references"]
    assert sum(kinds) == references
    assert ("memcgctl_journal_runs",) not in found
