"""``memcgctl help``: what does not fit into a command's own help?"""

from __future__ import annotations

from importlib import resources
from typing import Annotated

import typer

from memcgctl.cli.terminal import write


def topics() -> dict[str, str]:
    """Every topic's text by its name, as the package has them."""
    files = resources.files("memcgctl").joinpath("topics").iterdir()
    return {
        file.name.removesuffix(".md"): file.read_text(encoding="utf-8")
        for file in sorted(files, key=lambda file: file.name)
        if file.name.endswith(".md")
    }


def complete(incomplete: str) -> list[str]:
    """Topics that begin so, for a shell's completion."""
    return [name for name in topics() if name.startswith(incomplete)]


def show_help(
    context: typer.Context,
    topic: Annotated[
        str | None,
        typer.Argument(
            help="json, policies, actions, cores, numbers, metrics, kernels, glossary; "
            "a command; or an action of a plan.",
            show_default=False,
            autocompletion=complete,
        ),
    ] = None,
) -> None:
    """Explain a topic: formats, policies, actions, numbers, words."""
    known = topics()
    if topic is None:
        lines = [text.partition("\n")[0].lstrip("# ") for text in known.values()]
        width = max(map(len, known))
        write(
            "".join(
                f"{name.ljust(width)}  {line}\n"
                for name, line in zip(known, lines, strict=True)
            )
        )
    elif topic in known:
        write(known[topic])
    elif words := _action(topic):
        write(words)
    else:
        parent = context.parent
        group = parent.command if parent else None
        command = getattr(group, "commands", {}).get(topic)
        if parent is None or command is None:
            raise typer.BadParameter(
                f"no topic, command or action is '{topic}'; topics are "
                f"{', '.join(known)}."
            )
        with command.make_context(
            f"memcgctl {topic}", [], parent=parent, resilient_parsing=True
        ) as inner:
            write(f"{command.get_help(inner)}\n")


def _action(name: str) -> str | None:
    """What an action of a plan does and what it does not, each way of it."""
    from memcgctl.policy.interfaces import INTERFACES

    ways = [one for one in INTERFACES if one.name == name]
    texts = []
    for one in ways:
        rows = (
            ("charges", one.effect),
            ("touches", one.touches),
            ("leaves", one.cannot),
            ("needs", one.requires),
            ("seen on", ", ".join(one.seen)),
        )
        texts.append("".join(f"{key.ljust(8)} {text}\n" for key, text in rows))
    if not ways:
        return None
    return "\n".join([f"{name}: {ways[0].does}\n", *dict.fromkeys(texts)])
