"""What does drgn's own shell get of memcgctl? Types, symbols, ``%memcg``, helpers.

drgn loads this by its entry point ``drgn.plugins``. ``%memcg`` is ``memcgctl list``,
``%memcg ID`` is ``explain``, ``%memcg --audit`` is ``audit`` of the program at hand.
"""

from __future__ import annotations

import argparse
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import drgn
from drgn.commands import argument, command

# Importing our own opening of kernels keeps plugins from programs that it opens. What
# is started from this shell has its plugins.
_unset = "DRGN_DISABLE_PLUGINS" not in os.environ

from memcgctl.kernel.errors import KernelError  # noqa: E402
from memcgctl.kernel.program import OpenedKernel, adopt  # noqa: E402

if _unset:
    os.environ.pop("DRGN_DISABLE_PLUGINS", None)

_logger = logging.getLogger("drgn.plugins.memcgctl")


def drgn_prog_set(prog: drgn.Program) -> None:
    """Give a kernel the types and symbols that its own memory has."""
    if not prog.flags & drgn.ProgramFlags.IS_LINUX_KERNEL:
        return
    try:
        adopt(prog)
    except KernelError as error:  # drgn goes on without; %memcg says it again
        _logger.info("%s", error)


def _kernel(prog: drgn.Program) -> OpenedKernel:
    kernel = adopt(prog)
    if kernel is None:
        raise KernelError("the program is being opened")
    return kernel


@command(
    name="memcg",
    description="offline (zombie) memcgs: list them, explain some, or audit all",
    arguments=(
        argument("id", nargs="*", help="explain these: a cgroup id, a path, memcg:N"),
        argument("--audit", action="store_true", help="account for every reference"),
    ),
)
def memcg_command(
    prog: drgn.Program, name: str, args: argparse.Namespace, **_: Any
) -> None:
    """Run the command on the program's kernel; its errors are a line."""
    from memcgctl.cli.audit import audit_memcgs
    from memcgctl.cli.explain import explain_memcg
    from memcgctl.cli.list import list_memcgs
    from memcgctl.cli.reading import ADOPTED
    from memcgctl.cli.terminal import say

    try:
        kernel = _kernel(prog)
        core = Path(kernel.path) if kernel.path else None
        token = ADOPTED.set(kernel)
        try:
            if args.audit:
                audit_memcgs(core=core)
            elif args.id:
                explain_memcg(args.id, core=core)
            else:
                list_memcgs(core=core)
        finally:
            ADOPTED.reset(token)
    except KernelError as error:
        say(f"error: {error}")
    except SystemExit:  # said already; drgn's shell goes on
        pass


def for_each_offline_memcg(prog: drgn.Program) -> Iterator[drgn.Object]:
    """
    Iterate over all offline memory cgroups.

    :return: Iterator of ``struct mem_cgroup *`` objects.
    """
    from memcgctl.census.tree import read_tree

    tree = read_tree(_kernel(prog))
    for address, online in zip(
        tree.address.tolist(), tree.online.tolist(), strict=True
    ):
        if not online:
            yield drgn.Object(prog, "struct mem_cgroup *", address)


def memcg_holders(memcg: drgn.Object) -> list[tuple[str, int, str]]:
    """
    Get what holds references to an offline memory cgroup.

    :param memcg: ``struct mem_cgroup *``
    :return: For each holder its kind, how many references it has, and what it is.

    What could not be read, so that holders may be missing, is told by ``warnings``.
    """
    from memcgctl.census import take_census

    census = take_census(_kernel(memcg.prog_), details="offline")
    for warning in census.warnings:
        warnings.warn(warning, stacklevel=2)
    for found in census.memcgs:
        if found.address == memcg.value_() and found.details is not None:
            return [(one.kind, one.count, one.detail) for one in found.details.holders]
    raise LookupError("there is no such offline memcg")
