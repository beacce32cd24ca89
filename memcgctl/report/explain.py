"""What does ``memcgctl explain`` show? The verdict, then a tree.

The tree has four branches: references, charges, swap, users. Lines are wrapped to the
width at hand, never cut, as a path that was cut in the middle helps nobody here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from rich.console import Console, Group
from rich.text import Text
from rich.tree import Tree

from memcgctl.model import (
    HOLDERS,
    MAPPERS,
    OPENERS,
    OWNERS,
    Backing,
    ChargeGroup,
    Coldness,
    Details,
    Explanation,
    Frames,
    Holder,
    Inherited,
    Keeper,
    Memcg,
    Plan,
    Process,
    Prospect,
    SwapDeviceUse,
    SwapOwner,
    Topic,
    User,
)
from memcgctl.report.frames import frames_table
from memcgctl.report.parts import unowned
from memcgctl.report.text import counted, escape, size, unread_words
from memcgctl.report.verdict import (
    backing_words,
    holders_words,
    keeper_words,
    legacy_words,
    process_words,
    verdict,
)
from memcgctl.report.way_out import cost, to_do, verdict_of

CLASSES = {
    "file": "file",
    "shmem": "shmem",
    "anon": "anon",
    "kernel": "kernel pages",
    "hugetlb": "hugetlb",
}
SHOWN = 8
CHARGES = (Topic.MEMORY_MAP,)
USERS = tuple(dict.fromkeys((*OPENERS, *OWNERS)))

Item = TypeVar("Item")
# A line, and the branches below it.
Branch = tuple[str, Sequence[Any]]
_Twigs = Iterator[Branch]


def screen(
    explanation: Explanation,
    frames: Frames | None = None,
    options: Sequence[Prospect] = (),
    following: str = "",
    *,
    plan: Plan | None = None,
    verbose: bool = False,
    width: int = 80,
    encoding: str = "utf-8",
) -> Text:
    """The explanation as a person reads it, in lines of at most ``width`` columns.

    ``following`` is the command to type next, which stands alone in the last line;
    ``plan`` is what would free this one: it tells the verdict. ``verbose`` adds
    addresses, private ids and generations.
    """
    memcg, details = explanation.memcg, explanation.memcg.details
    name = f"{memcg.path} (id {memcg.id}, {memcg.state})"
    tree = Tree(Text(escape(name, encoding), "bold"))
    if details:
        for branch in (
            *([_identity(memcg)] if verbose else []),
            _references(explanation, details),
            _charges(explanation, details, verbose),
            _swap(explanation, details),
            _users(explanation),
        ):
            _grow(tree, branch, encoding)
    if memcg.inherited:
        _grow(tree, _inherited(memcg.inherited), encoding)
    if options:
        _grow(tree, ("options", [_option(option) for option in options]), encoding)
    words = verdict(explanation, costs=plan is None)
    if plan and memcg.state == "offline":
        words = f"{verdict_of(memcg, plan)} {cost(memcg)}\n{words}"
        if way := to_do(memcg, plan):
            words += "\nTo free it: " + "; ".join(way) + "."
        following = following if memcg.id in plan.freed else ""
    said = Text(
        "".join(f"{escape(line, encoding)}\n" for line in words.split("\n")), "bold"
    )
    console = Console(width=width, force_terminal=False)
    layout = replace(console.options, encoding=encoding)
    text = Text()
    for segment in console.render(Group(said, tree), layout):
        text.append(segment.text, segment.style)
    lines = text.split(allow_blank=True)
    for line in lines:
        line.rstrip()
    text = Text("\n").join(lines)
    if frames:
        text.append("".join(f"{line}\n" for line in frames_table(frames, width)))
    if following:
        text.append(f"\nNext: {escape(following, encoding)}\n", "bold")
    return text


def _grow(tree: Tree, branch: Branch, encoding: str) -> None:
    line, below = branch
    grown = tree.add(Text(escape(line, encoding)))
    for twig in below:
        _grow(grown, twig, encoding)


def _identity(memcg: Memcg) -> Branch:
    private = f", private id {memcg.private_id}" if memcg.private_id else ""
    overhead = memcg.overhead
    costs = f"overhead: {_sized(overhead.percpu_bytes)} per-CPU"
    below = [
        (f"nearest online ancestor: {memcg.ancestor}", ()),
        (f"{costs}, {_sized(overhead.structs_bytes)} structures", ()),
    ]
    return f"struct mem_cgroup {memcg.address:#x}{private}", below


def _references(explanation: Explanation, details: Details) -> Branch:
    explained, unexplained = explanation.explained, details.unexplained
    if unexplained is not None:
        line = f"references: {explained:,} explained + {unexplained:,} unexplained"
        line += f" = {explained + unexplained:,} in all"
    elif explanation.memcg.state == "online":
        line = f"references: {explained:,} explained; the total is kept per CPU"
    else:
        line = f"references: {explained:,} explained; the total could not be read"
    below: list[Branch] = []
    for holder in details.holders:
        children = explanation.children if holder.kind == "child" else ()
        named = _some(children, lambda c: (f"{c.path} (id {c.id}, {c.state})", ()))
        detail = f": {holder.detail}" if holder.detail else ""
        detail += " (just taken, may be gone soon)" if holder.transient else ""
        number = _reference_words(holder)
        below.append((f"{number}{detail}", named))
    if (unexplained or 0) > 0:
        below += _maybe_more("holders", explanation.unread, HOLDERS)
    return line, below


def _maybe_more(what: str, unread: Collection[str], topics: Sequence[str]) -> _Twigs:
    """A line that says what may be missing, if any of the ``topics`` is unread."""
    if why := unread_words(unread, topics):
        yield f"{what} may be missing: {why}", ()


def _none(what: str, unread: Collection[str], topics: Sequence[str]) -> Branch:
    """That there is none of it, or that none was found where not all was read."""
    why = unread_words(unread, topics)
    return (f"{what}: none found; {why}" if why else f"{what}: none"), ()


def _reference_words(holder: Holder) -> str:
    if holder.kind == "swap":  # however many entries there are
        return f"{holder.count:,} for the private id"
    return holders_words(holder.count, holder.kind)


def _charges(explanation: Explanation, details: Details, verbose: bool) -> Branch:
    groups, unread = details.charge_groups, explanation.unread
    sock = [(line, ()) for line in _socket_memory(explanation)]
    if not groups:
        line, below = _none("charges", unread, CHARGES)
        return line, [*below, *sock]
    folios, total = sum(g.folios for g in groups), sum(g.bytes for g in groups)
    line = f"charges: {_sized(total)} in {counted(folios, 'folio')}"
    more = _maybe_more("folios", unread, CHARGES)
    return line, [*_some(groups, lambda g: _group(g, unread, verbose)), *sock, *more]


def _socket_memory(explanation: Explanation) -> Iterator[str]:
    """Told where there is any, or nobody knows."""
    charges = explanation.memcg.charges
    if charges is None or charges.sock_bytes == 0:
        return
    if charges.sock_bytes is None:
        yield "socket memory: not known"
        return
    line = f"socket memory: {_sized(charges.sock_bytes)}"
    if "folios go to the parent" in explanation.kernel.interfaces:
        line += " when it was removed (later changes count at the ancestor)"
    yield f"{line}, until it is read or the sockets are closed"


def _group(group: ChargeGroup, unread: Collection[str], verbose: bool) -> Branch:
    where = (
        "" if group.kind == "kernel" else ", mapped" if group.mapped else ", unmapped"
    )
    line = f"{CLASSES[group.kind]}{where}: {counted(group.folios, 'folio')}, "
    line += f"{_sized(group.bytes)}, {_evictable(group)}"
    below: list[Branch] = []
    if group.backing:
        below += _backing(group.backing)
    if group.obstacles:
        named = (f"{name} {_sized(part)}" for name, part in group.obstacles)
        below.append((f"in the way: {', '.join(named)}", ()))
    if group.dirty_bytes:
        below.append((f"dirty: {_sized(group.dirty_bytes)}", ()))
    if group.kind != "kernel":
        below.append((f"last used: {_coldness(group.coldness, verbose)}", ()))
    for how, processes in (("mapped by", group.mappers), ("open in", group.openers)):
        below += [(f"{how} {line}", ()) for line, _ in _some(processes, _process)]
    if group.mapper_missing_bytes:
        missing = f"mapped by somebody who was not found: {_missing(group)}"
        why = unread_words(unread, MAPPERS)
        below.append((f"{missing}{why and f'; {why}'}", ()))
    return line, [*below, *_some(group.keepers, _keeper)]


def _keeper(keeper: Keeper) -> Branch:
    return f"{keeper_words(keeper)}: {_sized(keeper.process.bytes)}", ()


def _missing(group: ChargeGroup) -> str:
    return _sized(group.mapper_missing_bytes)


def _evictable(group: ChargeGroup) -> str:
    if group.evictable_bytes >= group.bytes:
        return "evictable"
    if not group.evictable_bytes:
        return "not evictable"
    return f"{_sized(group.evictable_bytes)} of it evictable"


def _backing(backing: Backing) -> Iterable[Branch]:
    line = f"{backing_words(backing)}, inode {backing.inode}"
    yield f"{line}, {_sized(backing.size_bytes)} in size", ()
    if backing.container_path:
        yield f"in its container: {backing.container_path}", ()


def _coldness(coldness: Coldness, verbose: bool) -> str:
    marks = (
        ("active", coldness.active_bytes),
        ("referenced", coldness.referenced_bytes),
        ("workingset", coldness.workingset_bytes),
    )
    words = [f"{_sized(part)} {name}" for name, part in marks if part]
    for age, part in coldness.generations if verbose else ():
        old = "of unknown age" if age is None else f"{age:,.0f} s old"
        words.append(f"{_sized(part)} in a generation {old}")
    return ", ".join(words) or "neither active, referenced nor workingset"


def _process(process: Process) -> Branch:
    return f"{process_words(process)}: {_sized(process.bytes)}", ()


def _swap(explanation: Explanation, details: Details) -> Branch:
    swap, unread = explanation.memcg.swap, explanation.unread
    if swap is None:
        return "swap: not looked at", ()
    if not swap.entries:
        return _none("swap", unread, [Topic.SWAP_MAP])
    line = f"swap: {_entries(swap.entries)}, {_sized(swap.bytes)}"
    if swap.zswap_entries is None:
        line += "; what of it is in zswap is not known"
    elif swap.zswap_entries:
        line += (
            f"; {_entries(swap.zswap_entries)} in zswap, where they take "
            f"{_sized(swap.zswap_bytes or 0)} of memory"
        )
    devices = [_device(device, unread) for device in details.swap_devices]
    return line, [*devices, *_maybe_more("entries", unread, [Topic.SWAP_MAP])]


def _device(device: SwapDeviceUse, unread: Collection[str]) -> Branch:
    below = list(_some(device.owners, lambda owner: (_owner(owner), ())))
    if left := unowned(device):
        why = unread_words(unread, OWNERS)
        nobody = f"{_entries(left)} of nobody that was found"
        below.append((f"{nobody}{why and f'; {why}'}", ()))
    line = f"{device.device}: {_entries(device.entries)}"
    if device.zswap_entries:
        line += f", {device.zswap_entries:,} of them in zswap and not on it"
    return line, below


def _owner(owner: SwapOwner) -> str:
    return f"{_entries(owner.entries)} of {process_words(owner)}"


def _users(explanation: Explanation) -> Branch:
    below = list(_some(explanation.users, lambda user: (_user(user), ())))
    if unused := explanation.unused_bytes - explanation.unfound_bytes:
        why = unread_words(explanation.unread, OPENERS)
        nobody = "nobody that was found" if why else "nobody"
        below.append((f"{nobody}: {_sized(unused)} neither mapped nor open", ()))
    if explanation.unfound_bytes:
        unfound = _sized(explanation.unfound_bytes)
        below.append((f"not found: who has {unfound} of files without a name", ()))
    missing = sum(group.mapper_missing_bytes for group in _groups(explanation))
    if missing:
        below.append((f"somebody who was not found: {_sized(missing)} mapped", ()))
    if not below:
        return _none("users", explanation.unread, USERS)
    return "users", [*below, *_maybe_more("users", explanation.unread, USERS)]


def _groups(explanation: Explanation) -> Sequence[ChargeGroup]:
    details = explanation.memcg.details
    return details.charge_groups if details else ()


def _user(user: User) -> str:
    parts = (
        (_sized(user.mapped_bytes) + " mapped", user.mapped_bytes),
        (_sized(user.open_bytes) + " open", user.open_bytes),
        (_sized(user.kept_bytes) + " otherwise", user.kept_bytes),
        (_entries(user.swap_entries), user.swap_entries),
    )
    named = ", ".join(words for words, part in parts if part)
    least = "" if user.exact else "at least "
    by = f" by {user.processes} processes" if user.processes > 1 else ""
    return f"{user.memcg}: {least}{named}{by}"


def _option(option: Prospect) -> Branch:
    """``evict: 4.0 KiB by fadvise``, and what becomes of it."""
    if option.supported:
        line = f"{option.option}: {_sized(option.bytes)} by {option.how}"
    else:
        line = f"{option.option}: {option.how}"
    return line, [(option.effect, ())] if option.effect else []


def _inherited(inherited: Sequence[Inherited]) -> Branch:
    costs = _sized(sum(legacy.structs_bytes for legacy in inherited))
    line = f"inherited from removed memcgs: {legacy_words(inherited)}"
    return f"{line}, {costs} for themselves", _some(inherited, _legacy)


def _legacy(legacy: Inherited) -> Branch:
    origin = "memcgs that are gone" if legacy.path is None else legacy.path
    number = "" if legacy.path is None else f" (id {legacy.id})"
    words = legacy_words([legacy])
    return f"of {origin}{number}: {words}, {counted(legacy.refs, 'reference')}", ()


def _some(items: Sequence[Item], branch: Callable[[Item], Branch]) -> list[Branch]:
    """The first of many, and how many more there are."""
    shown = items if len(items) <= SHOWN else items[: SHOWN - 1]
    branches = [branch(item) for item in shown]
    if len(shown) < len(items):
        branches.append((f"{len(items) - len(shown):,} more; --json shows all", ()))
    return branches


def _entries(number: int) -> str:
    return f"{number:,} {'entry' if number == 1 else 'entries'}"


def _sized(number_bytes: int) -> str:
    return size(number_bytes, long=True)
