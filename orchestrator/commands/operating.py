"""Commands that look after what runs, and after what it leaves."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import sys
from typing import TYPE_CHECKING

from morel_core.errors import MorelError
from orchestrator.commands.common import consoles, settings
from orchestrator.messages.masking import masked

if TYPE_CHECKING:
    pass


def status_command(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """``morel status``."""
    from orchestrator.campaign import searches
    from orchestrator.search.operations import look
    from orchestrator.search.status_view import print_status

    _, results = consoles(arguments)
    name, config = arguments.name, settings(overrides)
    campaign = searches.look(name, config)
    found = look(name, config) if campaign is None else campaign
    if arguments.json:
        print(json.dumps(found))
    elif campaign is not None:
        print("\n".join(searches.lines(campaign)))
    else:
        print_status(results, found)
    return 0


def top_command(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """``morel top``."""
    from orchestrator.search.operations import look
    from orchestrator.search.status_view import show_live

    config = settings(overrides)
    if arguments.json:
        print(json.dumps(look(arguments.name, config)))
    else:
        show_live(consoles(arguments)[1], lambda: look(arguments.name, config))
    return 0


def logs_command(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """``morel logs``."""
    from orchestrator.search.operations import error_text, logs

    name, number, config = arguments.name, arguments.trial, settings(overrides)
    lines = logs(name, number, config)
    error = None if number is None else error_text(name, number, config)
    if arguments.json:
        print(json.dumps({"events": [vars(line) for line in lines], "error": error}))
        return 0
    for line in lines:
        print(line)
    if error:
        print(f"\n{masked(error.rstrip())}")
    return 0


def stop_command(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """``morel stop``."""
    from orchestrator.search.operations import stop

    asked = stop(arguments.name, arguments.trials, settings(overrides))
    print(json.dumps({"asked": asked}) if arguments.json else "\n".join(asked))
    return 0


def clean_command(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """``morel clean``."""
    from orchestrator.cleaning import clean, folder_of

    config = settings(overrides)
    folder = folder_of(arguments.name, config)
    found = clean(folder, arguments.keep, delete=arguments.yes, seconds=config.cluster.lease_s)
    size = sum(doomed.size for doomed in found)
    if arguments.json:
        paths = [vars(doomed) for doomed in found]
        print(
            json.dumps({"folder": folder, "bytes": size, "deleted": arguments.yes, "gone": paths})
        )
        return 0
    for doomed in found:
        print(f"{doomed.size / 2**20:10.1f} MiB  {doomed.path}  ({doomed.why})")
    done = "deleted" if arguments.yes else "would be freed; --yes deletes"
    print(f"{size / 2**20:10.1f} MiB  in {len(found)} checkpoints: {done}")
    return 0


def sync_command(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """``morel sync``."""
    from orchestrator.settings.yaml_files import parse_overrides
    from orchestrator.tracking.sync import sync

    config, given = settings(overrides), parse_overrides(overrides)
    done = sync(arguments.targets, config, given, dry_run=arguments.dry_run)
    if arguments.json:
        print(json.dumps([vars(item) for item in done]))
    else:
        print("\n".join(str(item) for item in done) or f"no journals in {config.storage_path}")
    return 0


def submit_command(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """``morel submit``."""
    from orchestrator.submission.submit import Request, submit

    if arguments.misplaced:
        command = shlex.join([*arguments.misplaced, *overrides])
        raise MorelError(f"-- comes before the command: write morel submit -- {command}")
    if overrides:
        raise MorelError(f"{overrides[0]}: settings stand with the command, behind --")
    log = sys.stderr if arguments.json else sys.stdout

    def out(text: str) -> None:
        print(text, end="", file=log, flush=True)

    def say(line: str) -> None:
        print(f"morel submit: {line}", file=sys.stderr, flush=True)

    request = Request(
        argv=arguments.remote,
        address=arguments.address,
        working_dir=arguments.working_dir,
        retries=arguments.retries,
        wait_s=arguments.wait,
        watch=arguments.watch,
    )
    done = submit(request, out=out, say=say)
    if arguments.json:
        print(json.dumps(dataclasses.asdict(done)))
    return done.exit_code
