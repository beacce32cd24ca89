"""A saved census is the census that was taken, and nothing else is taken for one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from memcgctl import bounded
from memcgctl.model import (
    Backing,
    Census,
    Charges,
    Coldness,
    Kernel,
    Memcg,
    Process,
    SwapDeviceUse,
    SwapOwner,
    SwapUse,
)
from memcgctl.snapshot import CensusError, dumps, load, loads, save
from tests.schemas import read
from tests.unit.zombies import FILE, SLEEP, census, details, group, memcg

NAMES = st.binary(max_size=20).map(os.fsdecode)
SMALL = census(
    memcg(1, "/", refs=None),
    memcg(
        7,
        "/a\udcff\n",
        details=details(
            ("folio", 1, "folios"),
            unexplained=-1,
            groups=(group(mappers=(SLEEP,), coldness=Coldness(1, 2, 3, ((0.5, 4),))),),
            swap=(SwapDeviceUse("zram0", 3, (SwapOwner(None, "", "/h", 9, 3),)),),
        ),
    ),
    warnings=("raced",),
)


def values_of(hint: Any, name: str = "") -> st.SearchStrategy[Any]:
    """Any value that the model's annotations allow."""
    origin, args = get_origin(hint), get_args(hint)
    if isinstance(hint, type) and is_dataclass(hint):
        hints = get_type_hints(hint)
        return st.builds(
            hint, **{f.name: values_of(hints[f.name], f.name) for f in fields(hint)}
        )
    if origin is tuple and args[-1] is Ellipsis:
        return st.lists(values_of(args[0]), max_size=3).map(tuple)
    if origin is tuple:
        return st.tuples(*map(values_of, args))
    if origin in (Union, types.UnionType):
        return st.one_of(*(values_of(arg, name) for arg in args))
    if origin is Literal:
        return st.sampled_from(args)
    if hint is int:
        low = -(2**63) if name in ("refs", "unexplained") else 0
        low = 1 if name == "page_size" else low
        return st.integers(low, 2**64 - 1)
    return {
        str: NAMES,
        bool: st.booleans(),
        float: st.floats(allow_nan=False, allow_infinity=False),
        type(None): st.none(),
    }[hint]


MEMCGS = st.lists(values_of(Memcg), max_size=4, unique_by=lambda m: m.address)
CENSUSES = st.builds(
    Census, values_of(Kernel), MEMCGS.map(tuple), st.lists(NAMES).map(tuple)
)


@given(CENSUSES)
@settings(max_examples=200, deadline=None)
def test_what_is_saved_is_loaded_again(original: Census) -> None:
    """Else explain on a saved census says something else than on the kernel."""
    assert loads(dumps(original)) == original


@given(st.data())
@settings(max_examples=2000, deadline=None)
def test_a_damaged_file_is_refused_or_a_census(data: st.DataObject) -> None:
    """Else a flipped bit on a disk ends in a traceback, or in garbage reported."""
    text = bytearray(dumps(SMALL))
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text)))
        end = start + data.draw(st.integers(0, 3))
        text[start:end] = data.draw(st.binary(max_size=3) | st.sampled_from(WORDS))
    loaded = census_or_line(bytes(text))
    assert loaded is None or loads(dumps(loaded)) == loaded


def census_or_line(data: bytes) -> Census | None:
    """What ``data`` holds; if it is refused, what is said is one short line."""
    try:
        return loads(data)
    except CensusError as caught:
        line = str(caught)
    assert line.isprintable()
    assert len(line) < 300
    return None


WORDS = [b"null", b"-1", b"[", b"]", b"1e999", b"NaN", b"0.5", b'"\\ud800"', b"true"]


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_a_damaged_compressed_file_is_refused_or_a_census(data: st.DataObject) -> None:
    """Else a broken download ends in a traceback."""
    packed = bytearray(
        zstandard.ZstdCompressor(write_checksum=True).compress(dumps(SMALL))
    )
    start = data.draw(st.integers(0, len(packed) - 1))
    packed[start : start + data.draw(st.integers(1, 9))] = data.draw(
        st.binary(max_size=9)
    )
    assert census_or_line(bytes(packed)) in (None, SMALL)


def changed(**keys: object) -> bytes:
    return json.dumps(read(dumps(SMALL)) | keys).encode()


def row_changed(column: str, value: object) -> bytes:
    document = read(dumps(SMALL))
    index = document["columns"]["Memcg"].index(column)
    document["memcgs"][0][index] = value
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not a saved census"),
        (b"\x7fELF\x02", "not a saved census"),
        (b"[" * 100_000, "not a saved census"),
        (b"[]", "not a saved census"),
        (b'{"schema": "memcgctl/list/1"}', "its schema is 'memcgctl/list/1'"),
        (b'{"schema": ["memcgctl/census/1"]}', "not a saved census"),
        (changed(schema="memcgctl/census/2"), "newer memcgctl: 'memcgctl/census/2'"),
        (dumps(SMALL)[:-9], "damaged"),
        (b'{"schema":1,"schema":1}', "'schema' twice"),
        (changed(strings=["\ud800"] * 30), "no kernel can hold"),
        (changed(strings=["x" * (1 << 20 | 1)] * 30), "too long"),
        (changed(strings=[]), "refers to nothing"),
        (changed(shared=[]), "no shared rows"),
        (changed(shared={}), "refers to nothing"),
        (changed(columns={}), "not a row of Kernel"),
        (changed(memcgs=read(dumps(SMALL))["memcgs"] * 2), "two memcgs"),
        (row_changed("id", -1), "range"),
        (row_changed("id", 1 << 64), "range"),
        (row_changed("id", True), "range"),
        (row_changed("id", 1.0), "range"),
        (row_changed("refs", "1"), "range"),
        (row_changed("state", 0), "unknown here"),
        (row_changed("charges", [1, 2]), "not a row of Charges"),
        (row_changed("details", {}), "not a row of Details"),
    ],
)
def test_what_is_no_census_is_refused_in_one_clear_line(
    data: bytes, reason: str
) -> None:
    """Else a person cannot tell a wrong file from a bug."""
    with pytest.raises(CensusError) as caught:
        loads(data)
    assert reason in str(caught.value)
    assert census_or_line(data) is None


def test_columns_of_a_later_version_are_ignored_and_new_ones_have_defaults() -> None:
    """Else the next release cannot read what this one saved, or the other way."""
    document = read(dumps(SMALL))
    document["later"] = {"a": 1}
    document["columns"]["Memcg"].insert(0, "later")
    document["columns"]["Later"] = ["x"]
    for row in document["memcgs"]:
        row.insert(0, {"anything": [1]})
    index = document["columns"]["Memcg"].index("parent_id")
    document["columns"]["Memcg"][index] = "renamed"
    loaded = loads(json.dumps(document).encode())
    assert loaded == replace(
        SMALL, memcgs=tuple(replace(m, parent_id=0) for m in SMALL.memcgs)
    )


def test_a_file_without_an_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else ``--census /dev/zero`` takes a machine down."""
    monkeypatch.setattr(bounded, "MAX_BYTES", 4 << 20)
    with pytest.raises(CensusError, match="larger than 4 MiB"):
        load("/dev/zero")


def with_key(text: bytes) -> bytes:
    """A census in whose file there is one more key, that is ``text``."""
    head, line_break, rest = dumps(SMALL).partition(b"\n")
    return head + line_break + b'"x":' + text + b",\n" + rest


def with_memcgs(text: bytes) -> bytes:
    mark = b'\n"memcgs":[\n'
    return dumps(SMALL).partition(mark)[0] + mark + text + b"]}"


BOMBS = {
    "spaces": (b" " * (20 << 20) + dumps(SMALL), "not a saved census"),
    "deep": (with_key(b"[" * 900 + b"]" * 900), "nested more than"),
    "many": (with_key(b"[" + b"[[]]," * 1_300_000 + b"1]"), "too much for one value"),
    "long": (with_key(b'"' + b"a" * (15 << 20) + b'"'), "text that is too long"),
    "astral": (
        with_key(b'["\xf0\x9f\x92\xa5",' + b'"a",' * (4 << 20) + b"1]"),
        "too much for one value",
    ),
    "lists": (with_memcgs(b"[],\n" * 2_000_000 + b"[]"), "not a row of Memcg"),
    "ones": (with_memcgs(b"[" + b"1," * (2 << 20) + b"1]"), "not a row of Memcg"),
    "digits": (with_memcgs(b"9" * 5000), "a number of more than 64 digits"),
    "backslashes": (with_key(b'"' + b"\\" * (7 << 20) + b'"'), "text that is too long"),
    "quotes": (with_key(b"[" + b'"",' * (5 << 20) + b'""]'), ""),
}
PROBE = """
import resource, sys
from memcgctl.snapshot import CensusError, load
resource.setrlimit(resource.RLIMIT_AS, (600 << 20, 600 << 20))
try:
    load(sys.argv[1])
except CensusError as error:
    print(error)
status = open("/proc/self/status").read()
print(int(status.split("VmHWM:")[1].split()[0]) >> 10)
"""


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("packed", [True, False], ids=["zst", "json"])
def test_a_bomb_is_refused_before_it_fills_the_memory(
    bomb: str, packed: bool, tmp_path: Path
) -> None:
    """Else a file of a few KiB, attached to a bug report, takes a machine down."""
    data, reason = BOMBS[bomb]
    path = tmp_path / "census"
    path.write_bytes(zstandard.ZstdCompressor().compress(data) if packed else data)
    ran = subprocess.run(
        [sys.executable, "-c", PROBE, path],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    *lines, peak_mib = ran.stdout.splitlines()
    assert lines or bomb in ("quotes", "spaces")  # which are large, but censuses
    assert not lines or reason in lines[0] or "unpacks to" in lines[0]
    assert int(peak_mib) < 300


def test_a_saved_census_is_valid_utf8_and_keeps_every_byte() -> None:
    """Else jq changes a cgroup's name in it, and others refuse the whole file."""
    document = read(dumps(SMALL))
    read(document)
    index = document["strings"].index("/a\\xff\n")
    assert document["strings_base64"] == {str(index): "L2H/Cg=="}
    assert loads(json.dumps(document, ensure_ascii=False).encode()) == SMALL
    document["strings_base64"] = {str(index): "L2IK"}
    with pytest.raises(CensusError, match="do not spell"):
        loads(json.dumps(document).encode())


def test_a_census_that_0_1_0_saved_is_loaded() -> None:
    """Else what was kept of a crash cannot be read any more."""
    document = read(dumps(SMALL))
    index = document["strings"].index("/a\\xff\n")
    document["strings"][index] = "/a\udcff\n"
    del document["strings_base64"]
    memcgs = document.pop("memcgs")
    rows = ",\n".join(json.dumps(row, separators=(",", ":")) for row in memcgs)
    order = ("schema", "kernel", "warnings", "memcgs", "shared", "columns", "strings")
    lines = (
        f'"memcgs":[\n{rows}]'
        if key == "memcgs"
        else f'"{key}":{json.dumps(document[key])}'
        for key in order
    )
    assert loads(("{" + ",\n".join(lines) + "}\n").encode()) == SMALL


def test_numbers_that_no_kernel_has_are_refused() -> None:
    """Else a damaged file ends in a traceback: float() of 400 digits overflows."""
    document = read(dumps(SMALL))
    index = document["columns"]["Coldness"].index("generations")
    text = json.dumps(document)
    assert "[0.5, 4]" in text
    for number in ("1e999", "-1e999", "9" * 60, "9" * 400, "NaN", "Infinity"):
        data = text.replace("[0.5, 4]", f"[{number}, 4]").encode()
        assert census_or_line(data) is None
    assert index >= 0


def test_what_could_not_be_loaded_is_not_saved(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Else it turns out when the kernel is gone that the census is of no use."""
    path = tmp_path / "census.json"
    twice = census(memcg(), memcg())
    with pytest.raises(CensusError, match="two memcgs at 0xffff888000007000"):
        save(twice, str(path))
    monkeypatch.setattr(bounded, "MAX_VALUES", 100)
    with pytest.raises(CensusError, match="more than 100 values"):
        save(SMALL, str(path))
    assert not path.exists()


@pytest.mark.parametrize("name", ["census.json", "census.json.zst"])
def test_a_file_is_a_census_of_its_own_name(name: str, tmp_path: Path) -> None:
    """Else a report does not say that it is of a file."""
    path = str(tmp_path / name)
    save(SMALL, path)
    loaded = load(path)
    assert loaded.kernel == replace(SMALL.kernel, kind="census", path=path)
    assert loaded.memcgs == SMALL.memcgs
    packed = Path(path).read_bytes().startswith(bounded.ZSTD_MAGIC)
    assert packed == name.endswith(".zst")


def test_what_was_there_stays_if_writing_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Else a full disk costs the last good census as well."""
    path = tmp_path / "census.json"
    path.write_text("old")

    def fail(_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        save(SMALL, str(path))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_links_stay_links_and_devices_devices(tmp_path: Path) -> None:
    """Else ``-o /dev/null`` replaces /dev/null by a file."""
    link, target, pipe = (tmp_path / name for name in ("link", "target", "pipe"))
    target.write_text("old")
    link.symlink_to(target)
    save(SMALL, str(link))
    assert link.is_symlink()
    assert load(str(link)).memcgs == load(str(target)).memcgs == SMALL.memcgs
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    save(SMALL, str(pipe))
    assert loads(os.read(reader, 1 << 16)) == SMALL
    os.close(reader)
    assert pipe.is_fifo()


@pytest.mark.parametrize("path", ["", "/", "missing", "a/b"])
def test_a_file_that_is_not_there_is_one_clear_line(path: str, tmp_path: Path) -> None:
    """Else a typing error in a path gives a traceback."""
    with pytest.raises(CensusError, match=r"No such file|Is a directory"):
        load(path if path in ("", "/") else str(tmp_path / path))


def test_a_census_of_3000_zombies_stays_small() -> None:
    """Else it cannot be attached to a bug report."""
    users = tuple(
        replace(SLEEP, pid=pid, bytes=pid * 4096) for pid in range(1000, 1020)
    )
    memcgs = [
        memcg(
            number,
            path
            := f"/kubepods.slice/kubepods-pod{number:032x}.slice/cri-{number:064x}",
            refs=500 + number,
            charges=Charges(4096 * number, 4096, 4096, 0, number, 1, 1, 0),
            swap=SwapUse(640, 640 * 4096),
            details=details(
                ("folio", 497 + number, "charged folios"),
                ("swap", 1, "640 swap entries by the private id"),
                ("stock", 1, "CPU 1"),
                ("writeback", 1, "vda, 3 inodes, attached only"),
                groups=tuple(
                    group(
                        folios=number,
                        backing=replace(
                            FILE, inode=number + n, path=f"{path}/rootfs/var/log/{n}"
                        ),
                        obstacles=(("dirty", 4096),),
                        mappers=users[: n * 3],
                        coldness=Coldness(1 << 20, 1 << 20, 0, ((12.5, 1 << 20),)),
                    )
                    for n in range(4)
                ),
                swap=(SwapDeviceUse("zram0", 640, (SwapOwner(9, "x", path, 1, 640),)),),
            ),
        )
        for number in range(10_000, 13_000)
    ]
    original = census(*memcgs)
    data = dumps(original)
    assert len(data) < 5_500_000
    assert loads(data) == original


def test_what_an_older_memcgctl_did_not_look_at_is_not_known() -> None:
    """A census of last year would say that no socket has any memory."""
    document = read(dumps(census(memcg(7, charges=Charges(sock_bytes=8)))))
    place = document["columns"]["Charges"].index("sock_bytes")
    del document["columns"]["Charges"][place]
    charges = document["columns"]["Memcg"].index("charges")
    del document["memcgs"][0][charges][place]
    (loaded,) = loads(json.dumps(document).encode()).memcgs
    assert loaded.charges == Charges(sock_bytes=None)


def test_shared_objects_are_equal_after_loading() -> None:
    """Else one file of 500 memcgs counts as 500 files."""
    original = census(*(memcg(n, details=details(groups=(group(),))) for n in (1, 2)))
    backings: set[Backing | None] = set()
    for loaded in loads(dumps(original)).memcgs:
        assert loaded.details is not None
        backings |= {found.backing for found in loaded.details.charge_groups}
    assert backings == {FILE}


def test_processes_keep_their_own_bytes() -> None:
    """Else every process that maps a file is said to map the same part of it."""
    users = (SLEEP, Process(77, "sleep", "/holder", 9, 8192, 100))
    original = census(memcg(details=details(groups=(group(mappers=users),))))
    assert loads(dumps(original)) == original
