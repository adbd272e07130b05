"""The ``morel`` command: arguments in, exit code out."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from typing import NoReturn

from morel_core.errors import MorelError
from orchestrator.commands import operating, results, searching, training
from orchestrator.commands.arguments import Command, parser, split_command, split_overrides
from orchestrator.driver.ending import terminable
from orchestrator.messages.failures import failure_reason
from orchestrator.messages.masking import masked

UNFORESEEN = 1
INTERRUPTED = 130


def entry() -> NoReturn:
    """The console script."""
    sys.exit(main(sys.argv[1:]))


def main(argv: Sequence[str]) -> int:
    """Run one command; returns its exit code."""
    own, remote = split_command(argv)
    overrides, rest = split_overrides(own)
    commands = {
        "train": training.train_command,
        "tune": searching.tune_command,
        "campaign": searching.campaign_command,
        "status": operating.status_command,
        "top": operating.top_command,
        "logs": operating.logs_command,
        "stop": operating.stop_command,
        "clean": operating.clean_command,
        "sync": operating.sync_command,
        "submit": operating.submit_command,
        "evaluate": results.evaluate_command,
        "compare": results.compare_command,
        "report": results.report_command,
        "export": results.export_command,
        "register": results.register_command,
        "reproduce": training.reproduce_command,
        "fork": training.fork_command,
        "validate": results.validate_command,
    }
    arguments = parser(commands).parse_args(rest, argparse.Namespace(remote=remote))
    if not arguments.debug:
        warnings.simplefilter("ignore")
    command: Command = arguments.command
    try:
        with terminable():
            return command(arguments, overrides)
    except MorelError as error:
        return fail(arguments, str(error), 2)
    except KeyboardInterrupt as error:
        reason = str(error) or "interrupted; the same command with the same name resumes it"
        return fail(arguments, reason, INTERRUPTED)
    except Exception as error:
        return fail(arguments, f"{type(error).__name__}: {first_line(error)}", UNFORESEEN)


def fail(arguments: argparse.Namespace, message: str, code: int) -> int:
    """One line on standard error, the last of it; returns ``code``.

    Before it the traceback of what nobody foresaw, which may not happen again, or with --debug.
    """
    if (arguments.debug or code == UNFORESEEN) and code != INTERRUPTED:
        import traceback

        print(masked(traceback.format_exc()), file=sys.stderr)
    print(f"morel: {' '.join(masked(message).splitlines())}", file=sys.stderr)
    return code


def first_line(error: Exception) -> str:
    """The first line of an error's message; of one that is a whole traceback, what it ends in."""
    line = (str(error).strip().splitlines() or [""])[0]
    return failure_reason(str(error)) if line.startswith("Traceback") else line
