"""What does ``memcgctl metrics`` say to Prometheus? A census and a journal as samples.

Pure: values in, metric families out. What was not read has no sample at all, since 0
would be a number. No label holds an id, a path of a zombie, a pod or a container: the
series stay few, however many zombies come and go.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from prometheus_client import exposition
from prometheus_client.core import (
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.openmetrics import exposition as openmetrics

from memcgctl.model import HOLDERS, Census, Group, History, Memcg
from memcgctl.report.text import escape
from memcgctl.version import __version__
from memcgctl.views.listing import group_by_ancestor, ordered, total
from memcgctl.views.overview import age

# Ancestors with series of their own, those whose zombies cost most. No path is "other".
ANCESTORS = 20
REST = "other"
CHARGED = ("file", "shmem", "anon", "kernel", "sock", "hugetlb")
# Of ``Holder.kind``: a kind that nobody is held by is 0, and its series does not end.
KINDS = (
    *("folio", "kernel", "swap", "child", "writeback", "stock", "socket", "fsnotify"),
    *("event", "objcg", "other"),
)
# A minute to a month.
AGES = (60, 600, 3600, 6 * 3600, 86_400, 7 * 86_400, 30 * 86_400)


@dataclass(frozen=True)
class Measured:
    """What was found, and how long it took.

    ``census`` is None where the kernel could not be read; then ``dying_cgroups`` is
    what it tells everybody, if it does. ``taken_at`` is in seconds since the epoch.
    ``history`` is None where the journal could not be read, or is another machine's.
    """

    census: Census | None
    dying_cgroups: int | None
    history: History | None
    seconds: float
    taken_at: float | None


@dataclass(frozen=True)
class Families:
    """Metric families as prometheus_client's encoders ask for them."""

    families: tuple[Metric, ...]

    def collect(self) -> Iterable[Metric]:
        return self.families

    def openmetrics(self) -> bytes:
        text: bytes = openmetrics.generate_latest(self)  # type: ignore[no-untyped-call]
        return text

    def text(self) -> bytes:
        """The older format, which is all that node_exporter reads of a file."""
        return exposition.generate_latest(self)


def families(found: Measured) -> Families:
    """Everything there is to say of one reading."""
    census = found.census
    parts = [_about(found)]
    if census:
        offline = [memcg for memcg in census.memcgs if memcg.state == "offline"]
        parts += [_ancestors(offline), _references(offline), _ages(census, offline)]
        parts.append(_trouble(census))
    if found.history:
        parts.append(_journal(found.history))
    return Families(tuple(family for part in parts for family in part))


def unread() -> Families:
    """What is said where not even an attempt came to its end."""
    return Families((_success(False), _build()))


def _about(found: Measured) -> Iterator[Metric]:
    yield _build()
    yield _success(found.census is not None)
    yield gauge(
        "memcgctl_census_duration_seconds",
        "How long the last census took, failed or not.",
        found.seconds,
    )
    yield from _known(
        "memcgctl_census_timestamp_seconds",
        "When the last census was taken, by the clock of its machine.",
        found.taken_at,
    )
    yield from _known(
        "memcgctl_dying_cgroups",
        "Removed cgroups that are still there, by the kernel's own count.",
        found.dying_cgroups,
    )


def _build() -> Metric:
    return InfoMetricFamily(
        "memcgctl_build", "Which memcgctl it is.", {"version": __version__}
    )


def _success(success: bool) -> Metric:
    return gauge(
        "memcgctl_census_success",
        "1 if the kernel's memory could be read, else 0.",
        int(success),
    )


def _ancestors(offline: Sequence[Memcg]) -> Iterator[Metric]:
    count = GaugeMetricFamily(
        "memcgctl_offline_memcgs",
        "Offline memcgs by nearest online ancestor: the 20 most expensive, and other.",
        labels=["ancestor"],
    )
    size = GaugeMetricFamily(
        "memcgctl_offline_memcg_bytes",
        "What offline memcgs cost, by class; the kernel's own structures are overhead.",
        labels=["ancestor", "class"],
    )
    for group in _largest(offline):
        count.add_metric([group.path], group.memcgs)
        for kind, value in _classes(group):
            if value is not None:
                size.add_metric([group.path, kind], value)
    yield count
    yield size


def _largest(offline: Sequence[Memcg]) -> Iterator[Group]:
    """By the ancestor's name as it is shown: two series of one name are an error."""
    shown = [replace(memcg, ancestor=escape(memcg.ancestor)) for memcg in offline]
    groups = ordered(group_by_ancestor(shown), "cost")
    yield from groups[:ANCESTORS]
    few = {group.path for group in groups[:ANCESTORS]}
    yield total(REST, [memcg for memcg in shown if memcg.ancestor not in few])


def _classes(group: Group) -> Iterator[tuple[str, int | None]]:
    for kind in CHARGED if group.charges else ():
        yield kind, getattr(group.charges, f"{kind}_bytes")
    yield "swap", group.swap.bytes if group.swap else None
    yield "overhead", group.overhead.total_bytes


def _references(offline: Sequence[Memcg]) -> Iterator[Metric]:
    """By what holds them; ``unexplained`` only if all that could hold was read."""
    details = [memcg.details for memcg in offline if memcg.details]
    if len(details) < len(offline):
        return
    held = Counter(dict.fromkeys(KINDS, 0))
    for one in details:
        for holder in one.holders:
            held[holder.kind] += holder.count
    family = GaugeMetricFamily(
        "memcgctl_offline_memcg_references",
        "References that hold offline memcgs, by kind; unexplained: by nobody found.",
        labels=["kind"],
    )
    for kind, number in held.items():
        family.add_metric([kind], number)
    left = [one.unexplained for one in details]
    rests_on = {topic.value for topic in HOLDERS}
    if None not in left and not any(rests_on & {*one.unread} for one in details):
        family.add_metric(["unexplained"], sum(max(0, n) for n in left if n))
    yield family


def _ages(census: Census, offline: Sequence[Memcg]) -> Iterator[Metric]:
    found = [age(census.kernel, memcg) for memcg in offline]
    known = [one for one in found if one is not None]
    yield gauge(
        "memcgctl_offline_memcgs_of_unknown_age",
        "Offline memcgs of which the kernel does not tell when they were removed.",
        len(found) - len(known),
    )
    if known or not offline:
        within = Counter(bisect_left(AGES, seconds) for seconds in known)
        counts = accumulate(within[bucket] for bucket in range(len(AGES) + 1))
        bounds = [*(f"{bound:.1f}" for bound in AGES), "+Inf"]
        yield HistogramMetricFamily(
            "memcgctl_offline_memcg_age_seconds",
            "Since when the offline memcgs that are there now have been removed.",
            buckets=list(zip(bounds, counts, strict=True)),
            sum_value=sum(known),
            unit="seconds",
        )


def _trouble(census: Census) -> Iterator[Metric]:
    yield gauge(
        "memcgctl_census_warnings",
        "Warnings of the last census, which memcgctl list shows.",
        len(census.warnings),
    )
    yield gauge(
        "memcgctl_census_unread_topics",
        "Topics that were not read in full: what rests on them is a lower bound.",
        len(census.unread),
    )


def _journal(history: History) -> Iterator[Metric]:
    """Gauges, as a journal forgets: what it says is less after it was rotated."""
    runs = history.runs
    steps = [step for run in runs for step in run.steps]
    yield gauge("memcgctl_journal_runs", "Runs of reclaim in the journal.", len(runs))
    yield gauge(
        "memcgctl_journal_unended_runs",
        "Runs without an end in the journal: killed, or still at work.",
        sum(not run.ended for run in runs),
    )
    yield gauge(
        "memcgctl_journal_freed_memcgs",
        "Memcgs that the runs in the journal which ended have freed.",
        sum(run.freed or 0 for run in runs),
    )
    yield gauge(
        "memcgctl_journal_failed_steps",
        "Steps in the journal that failed.",
        sum(step.status == "failed" for step in steps),
    )
    yield gauge(
        "memcgctl_journal_damaged_lines",
        "Lines of the journal that could not be read.",
        history.damaged,
    )


def _known(name: str, help_text: str, value: float | None) -> Iterator[Metric]:
    if value is not None:
        yield gauge(name, help_text, value)


gauge: Callable[[str, str, float], Metric] = GaugeMetricFamily
