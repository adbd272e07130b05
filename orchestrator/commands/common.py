"""What commands share: where they print, and the settings of those that only look."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from orchestrator.config import RunConfig


def consoles(arguments: argparse.Namespace) -> tuple[Console, Console]:
    """(progress on standard error, results on standard output); both quiet with --json."""
    from rich.console import Console

    quiet = bool(arguments.json)
    # Where there is no terminal to ask for its width, tables would be folded to 80 columns.
    width = None if sys.stdout.isatty() else 150
    return Console(stderr=True, quiet=quiet), Console(quiet=quiet, width=width)


def settings(overrides: Sequence[str]) -> RunConfig:
    """A run config for commands that only look at what is recorded."""
    from orchestrator.config import RunConfig, put
    from orchestrator.settings.building import build
    from orchestrator.settings.yaml_files import parse_overrides

    mapping: dict[str, Any] = {}
    for key, value in parse_overrides(overrides).items():
        put(mapping, key, value)
    return build(RunConfig, mapping, source="the command line")


def place(overrides: Sequence[str]) -> list[str]:
    """Those that say where a run lies, and what is unknown: the others change its own settings."""
    import dataclasses

    from orchestrator.config import NOT_SCIENTIFIC, RunConfig

    its_own = {field.name for field in dataclasses.fields(RunConfig)} - {*NOT_SCIENTIFIC}
    return [o for o in overrides if o.partition("=")[0].partition(".")[0] not in its_own]
