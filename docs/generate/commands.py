"""The reference of the command line, from the parser that reads it."""

from __future__ import annotations

import argparse
from collections import defaultdict

from orchestrator.commands.arguments import EXIT_CODES, OVERRIDES, parser

SHARED = ("--json", "--debug", "--help")


def page() -> str:
    """The whole page as Markdown."""
    whole = parser(defaultdict(lambda: lambda arguments, overrides: 0))
    commands = next(
        action for action in whole._actions if isinstance(action, argparse._SubParsersAction)
    )
    parts = [
        "# Command line\n",
        "Generated from the parser: what `morel COMMAND --help` says.\n",
        fenced(OVERRIDES),
        fenced(EXIT_CODES),
        "Every command takes `--json` (one JSON document on standard output, nothing else) and "
        "`--debug` (tracebacks and warnings).\n",
        *(section(name, sub) for name, sub in commands.choices.items()),
    ]
    return "\n".join(parts)


def section(name: str, sub: argparse.ArgumentParser) -> str:
    """One command: what it does, how it is called, its arguments."""
    usage = " ".join(sub.format_usage().split()).removeprefix("usage: ").replace(" [-h]", "")
    lines = [f"## morel {name}\n", f"{sub.description}\n", fenced(usage)]
    rows = [row(action) for action in sub._actions if not shared(action)]
    if rows:
        lines += ["| argument | |", "|---|---|", *rows, ""]
    return "\n".join(lines)


def shared(action: argparse.Action) -> bool:
    """Whether an option is of every command."""
    return any(option in SHARED for option in action.option_strings)


def row(action: argparse.Action) -> str:
    """An argument's line of the table."""
    value = str(action.metavar or action.dest)
    if action.choices:
        value = " or ".join(str(choice) for choice in action.choices)
    if action.option_strings:
        value = action.option_strings[-1] + ("" if action.nargs == 0 else f" {value}")
    more = " …" if action.nargs in ("+", "*") else ""
    told = (action.help or "").replace("|", "\\|")
    return f"| `{value}`{more} | {told} |"


def fenced(text: str) -> str:
    """As it stands."""
    return f"```text\n{text.rstrip()}\n```\n"
