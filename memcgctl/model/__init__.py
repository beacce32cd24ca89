"""The plain data that all parts of memcgctl speak.

A census is a value: frozen, free of drgn objects, comparable and serialisable.
Units are in the names: ``_bytes``, ``_pages``, ``_folios``. Kernel names are kept
as they are, bytes that are not UTF-8 as surrogates (``os.fsencode`` undoes it);
escaping is the report's business.
"""

from __future__ import annotations

from memcgctl.model.census import (
    Backing,
    Census,
    ChargeGroup,
    Charges,
    Coldness,
    Details,
    Holder,
    Inherited,
    Kernel,
    Limits,
    Memcg,
    Overhead,
    Process,
    SwapDeviceUse,
    SwapOwner,
    SwapUse,
    Topic,
    cost_bytes,
)
from memcgctl.model.plan import (
    Aim,
    Gain,
    Leftover,
    Plan,
    Prospect,
    Remaining,
    Simulation,
    Step,
)
from memcgctl.model.run import (
    Ability,
    Checkup,
    Harm,
    History,
    PastRun,
    PastStep,
    Result,
    StepResult,
    Usage,
)
from memcgctl.model.views import (
    Account,
    Audit,
    Explanation,
    Frame,
    Frames,
    Group,
    Listing,
    Reason,
    User,
)

__all__ = [
    "Ability",
    "Account",
    "Aim",
    "Audit",
    "Backing",
    "Census",
    "ChargeGroup",
    "Charges",
    "Checkup",
    "Coldness",
    "Details",
    "Explanation",
    "Frame",
    "Frames",
    "Gain",
    "Group",
    "Harm",
    "History",
    "Holder",
    "Inherited",
    "Kernel",
    "Leftover",
    "Limits",
    "Listing",
    "Memcg",
    "Overhead",
    "PastRun",
    "PastStep",
    "Plan",
    "Process",
    "Prospect",
    "Reason",
    "Remaining",
    "Result",
    "Simulation",
    "Step",
    "StepResult",
    "SwapDeviceUse",
    "SwapOwner",
    "SwapUse",
    "Topic",
    "Usage",
    "User",
    "cost_bytes",
]
