"""What is to be done, and what came of it: ``memcgctl/plan``, ``memcgctl/result``."""

from __future__ import annotations

from typing import Literal, TypedDict

from memcgctl.report.documents.explain import Backing, Process
from memcgctl.report.documents.listing import Source, Source2


class Aim(TypedDict, total=False):
    """What a step acts on; what does not matter to it is left out."""

    file: Backing
    processes: list[Process]
    memcg_id: int
    memcg_path: str
    shown_ids: list[int]
    cpu: int
    device: str
    private_id: int
    swappiness: int
    page_out: bool
    unaimed: bool


class Step(TypedDict):
    """``n`` is null for a step that is left out."""

    n: int | None
    memcgs: list[int]
    action: str
    target: str
    command: str
    bytes: int
    charged_to: str | None
    collateral_bytes: int
    risk: str
    option: str
    charged: list[str]
    charged_bytes: list[int]
    frees: list[int]
    over_limit: list[str]
    aim: Aim


class Remaining(TypedDict):
    id: int
    why: str
    kinds: list[str]


class PlanPredicted(TypedDict):
    freed: list[int]
    remaining: list[Remaining]


class PlanTotals(TypedDict):
    offline: int
    freed: int
    freed_overhead_bytes: int
    bytes: int
    collateral_bytes: int


class Bill(TypedDict):
    leaves_memory: int
    to_swap: int
    comes_back: int
    others_at_most: int
    seconds: float


class _Plan(TypedDict):
    policy: str
    steps: list[Step]
    left_out: list[Step]
    predicted: PlanPredicted
    totals: PlanTotals
    warnings: list[str]


class Plan1(_Plan):
    schema: Literal["memcgctl/plan/1"]
    source: Source


class Plan2(_Plan):
    schema: Literal["memcgctl/plan/2"]
    source: Source2
    bill: Bill


class StepResult(TypedDict):
    n: int
    action: str
    target: str
    memcgs: list[int]
    status: Literal["done", "part", "failed", "skipped"]
    why: str | None
    bytes: int
    moved_bytes: int | None
    freed: list[int]
    seconds: float


class ResultPredicted(PlanPredicted):
    bytes: int
    collateral_bytes: int


class StillThere(Remaining):
    verdict: str | None


class Measured(TypedDict):
    freed: list[int]
    remaining: list[StillThere]
    bytes: int
    freed_overhead_bytes: int
    dying_before: int | None
    dying_after: int | None
    seconds: float


class Usage(TypedDict):
    path: str
    before_bytes: int | None
    after_bytes: int | None
    swap_before_bytes: int | None
    swap_after_bytes: int | None


class Harm(TypedDict):
    refaulted_file_pages: int | None
    refaulted_anon_pages: int | None
    file_before_bytes: int | None
    file_after_bytes: int | None


class Result(TypedDict):
    schema: Literal["memcgctl/result/1"]
    source: Source2
    policy: str
    complete: bool
    stopped: str | None
    steps: list[StepResult]
    predicted: ResultPredicted
    measured: Measured
    charged: list[Usage]
    harm: Harm
    journal: str
    warnings: list[str]
