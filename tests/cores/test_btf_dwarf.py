"""The types that a core's own BTF gives are those that the compiler made.

The truth in ``fixtures/dwarf`` was read from the kernel's debug package by
tests/lab/dwarf_truth.py. Debian has one for 5.10, 6.1, 6.12 and 7.3.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import drgn
import pytest
import zstandard

from memcgctl.kernel.program import Sources, open_kernel
from tests.lab.dwarf_truth import DIRECTORY, NAMES, describe

FIXTURES = DIRECTORY.parent
SUFFIX = ".json.zst"
TRUTHS = {path.name[: -len(SUFFIX)]: path for path in DIRECTORY.glob(f"*{SUFFIX}")}
CORES = sorted(FIXTURES.glob("*.zst"))
PACKAGE = Path(open_kernel.__code__.co_filename).parents[1]

# Read since the truths were made; the debug packages of their builds are gone from the
# mirror:
# put them into tests/lab/dwarf_truth.py when truths are made of newer builds.
LATER = {
    *("struct cgroup_freezer_state", "struct dma_buf", "struct kernfs_iattrs"),
    *("struct pipe_buffer", "struct scm_fp_list", "struct simple_xattr"),
    *("struct simple_xattrs", "struct sk_buff", "struct statx", "struct timekeeper"),
    *("struct tk_data", "struct udmabuf", "struct unix_skb_parms", "union swap_header"),
}

pytestmark = pytest.mark.skipif(not CORES, reason="there are no cores in fixtures/")


def truth_of(release: str) -> dict[str, Any]:
    raw = zstandard.ZstdDecompressor().decompress(TRUTHS[release].read_bytes())
    truth: dict[str, Any] = json.loads(raw)
    return truth


@cache
def programs() -> dict[str, drgn.Program]:
    """One core's program for each release among the fixtures."""
    found = {}
    for core in CORES:
        kernel = open_kernel(Sources(core=core))
        assert kernel.types == "btf", core
        found[kernel.release] = kernel.prog
    return found


@pytest.mark.parametrize("release", sorted(TRUTHS))
def test_btf_agrees_with_dwarf(release: str) -> None:
    """Lost: every number, read at a wrong place without anything being amiss."""
    assert release in programs(), "a truth without its core: make it again"
    truth = truth_of(release)
    found = {name: describe(programs()[release], name) for name in truth}
    assert {n for n in truth if found[n] != truth[n]} == set()


def test_the_truth_has_all_that_the_program_uses() -> None:
    """Lost: the test above, for structures that the program came to read later."""
    text = "".join(path.read_text() for path in sorted(PACKAGE.rglob("*.py")))
    # A type is named in a string that drgn is given, or in what is said about it.
    used = set(re.findall(r"\b(?:struct|union|enum) [a-z_]\w*", text))
    for release in TRUTHS:
        truth = truth_of(release)
        assert set(truth) == set(NAMES), f"make the truth of {release} again"
        missing = {n for n in used - set(truth) if describe(programs()[release], n)}
        assert missing <= LATER, "add these to tests/lab/dwarf_truth.py"
