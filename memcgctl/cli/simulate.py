"""``memcgctl simulate``: what would each policy do to the zombies?"""

from __future__ import annotations

from typing import Annotated

import typer

from memcgctl.cli.options import (
    BtfFile,
    CensusFile,
    Core,
    SystemMap,
    Vmcoreinfo,
    Vmlinux,
)
from memcgctl.cli.policy import Mapper, load_policy
from memcgctl.cli.reading import read_census, warn
from memcgctl.cli.terminal import shape, write


def simulate_policies(
    policy: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME|FILE",
            help="proposal, evict, parent, mapper, deferred, least-harm, or a TOML "
            "file with a policy; more than once for several. Without it, all six.",
            show_default=False,
        ),
    ] = None,
    mapper: Mapper = None,
    core: Core = None,
    vmlinux: Vmlinux = None,
    btf: BtfFile = None,
    system_map: SystemMap = None,
    vmcoreinfo: Vmcoreinfo = None,
    census: CensusFile = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Write JSON (memcgctl/simulation/1).")
    ] = False,
) -> None:
    """Compare policies: what would be freed, charged to whom, and left.

    Each policy is taken at its word, as if a kernel followed it; how many zombies user
    space can free with it on this kernel is told beside. Nothing is written.
    """
    from memcgctl.policy.policies import POLICIES

    chosen = [load_policy(name, mapper) for name in policy or POLICIES]
    paths = (core, vmlinux, btf, system_map, vmcoreinfo)
    taken = read_census(paths, census, details="offline")

    from memcgctl.policy.simulate import simulate
    from memcgctl.report.simulation import screen, to_json

    warn(taken)
    simulations = [simulate(taken, one) for one in chosen]
    if as_json:
        write(to_json(simulations, taken))
        return
    width, encoding = shape()
    write(screen(simulations, width=width, encoding=encoding))
