"""Nothing is there that nothing uses."""

from __future__ import annotations

from pathlib import Path

import vulture

TOP = Path(__file__).parents[2]
# What vulture does not see the use of, and why it is there.
USED = {
    "trace": "the arguments of __exit__",
    "lca": "a choice of --mapper, by its value",
    "unaimed": "a choice of --allow, by its value; a key of JSON",
    "drop_caches": "a choice of --allow, by its value",
    "temp_swap": "a choice of --allow, by its value",
    "pod": "a choice of --group-by, by its value",
    "INTERFACE": "found by being in its file",
    "AGAIN": "found by being in its file",
    "MAPPED": "found by being in its file",
    "NAME": "found by being in its file",
    "ALLOWED": "what tests of --allow go through",
    "NAMES": "tests hold the words of the planner against it",
    "full_pages": "read by unpacking its row",
    "min_bytes": "for who reads a saved census",
    "low_bytes": "for who reads a saved census",
    "numa_nodes": "of JSON's source, read by its name",
    # http.server and socketserver ask for these.
    **dict.fromkeys(
        (
            *("daemon_threads", "address_family", "server_bind", "server_name"),
            *("server_port", "timeout", "do_GET", "log_message"),
        ),
        "of Python's HTTP server",
    ),
    **dict.fromkeys(
        ("drgn_prog_set", "drgn_priority", "memcg_command", "open"),
        "drgn's plugins and the API",
    ),
    **dict.fromkeys(
        ("for_each_offline_memcg", "memcg_holders"), "helpers for drgn's shell"
    ),
    "collect": "Prometheus's registry asks for it",
}
# Keys of JSON documents, which are there for mypy and the schemas.
KEYS = "memcgctl/report/documents/"


def test_what_nothing_uses_has_a_reason() -> None:
    """Who reads the code would look for a use that there is not."""
    finder = vulture.Vulture()
    finder.scavenge([str(TOP / "memcgctl")])
    found = {
        one.name: f"{one.filename}:{one.first_lineno}"
        for one in finder.get_unused_code(min_confidence=60)
        if KEYS not in str(one.filename)
    }
    assert {name: at for name, at in found.items() if name not in USED} == {}
