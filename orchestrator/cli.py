"""The ``morel`` command: arguments in, exit code out."""

from __future__ import annotations

import argparse
import json
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from morel_core.errors import MorelError

if TYPE_CHECKING:
    from rich.console import Console

    from orchestrator.config import RunConfig

OVERRIDE = re.compile(r"^[A-Za-z_][\w.]*=")
EXIT_CODES = """\
exit codes:
  0    done
  1    something failed that was not foreseen (--debug shows the traceback)
  2    wrong input or a missing resource: one line on standard error says what to do
  3    the run diverged, or no trial of the search was measured
  130  interrupted; the same command with the same name=… goes on
"""
OVERRIDES = """\
key=value changes any setting, as in
  training.epochs=5   attack.eps=8/255   objective.preference=[0.2,0.8]
  scaling.num_workers=2   storage_path=/data/runs   tracking.uri=http://host:5000   name=my-run
"""

Command = Callable[[argparse.Namespace, list[str]], int]


def entry() -> NoReturn:
    """The console script."""
    sys.exit(main(sys.argv[1:]))


def main(argv: Sequence[str]) -> int:
    """Run one command; returns its exit code."""
    # key=value may stand anywhere, also between options, which argparse does not allow.
    overrides = [argument for argument in argv if OVERRIDE.match(argument)]
    rest = [argument for argument in argv if not OVERRIDE.match(argument)]
    arguments = parser().parse_args(rest)
    if not arguments.debug:
        warnings.simplefilter("ignore")
    command: Command = arguments.command
    try:
        return command(arguments, overrides)
    except MorelError as error:
        return fail(arguments, str(error), 2)
    except KeyboardInterrupt:
        return fail(arguments, "interrupted; the same command with the same name resumes it", 130)
    except Exception as error:
        if arguments.debug:
            raise
        return fail(arguments, f"{type(error).__name__}: {first_line(error)} (see --debug)", 1)


def fail(arguments: argparse.Namespace, message: str, code: int) -> int:
    """One line on standard error (and the traceback with --debug); returns ``code``."""
    if arguments.debug and code == 2:
        import traceback

        traceback.print_exc()
    print(f"morel: {' '.join(message.splitlines())}", file=sys.stderr)
    return code


def first_line(error: Exception) -> str:
    """The first line of an error's message."""
    return (str(error).strip().splitlines() or [""])[0]


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = argparse.ArgumentParser(
        prog="morel",
        description="Train, search and judge adversarially robust classifiers with MOREL.",
        epilog=f"{OVERRIDES}\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(metavar="COMMAND", required=True)

    train = add(commands, "train", train_command, "train one network on Ray, recorded in MLflow")
    train.add_argument("recipe", nargs="?", default="digits", help="name or file; default: digits")

    tune = add(commands, "tune", tune_command, "search over a space, recorded in MLflow")
    tune.add_argument("space", help="search space by name (demo, smoke, loss_weights, …) or file")

    evaluate = add(commands, "evaluate", evaluate_command, "measure a finished run or checkpoint")
    evaluate.add_argument("target", help="run name or id, or a checkpoint folder")
    evaluate.add_argument(
        "--attacks", nargs="+", default=["pgd20"], metavar="NAME",
        help="pgdN (pgd20), fgsm, autoattack, autoattack_plus; default: pgd20",
    )  # fmt: skip
    evaluate.add_argument("--split", choices=["test", "holdout"], default="test")
    evaluate.add_argument("--num-images", type=int, help="only the first so many")
    evaluate.add_argument("--device", default="cpu", help="cpu or cuda; default: cpu")

    compare = add(commands, "compare", compare_command, "table of recorded runs, from MLflow")
    compare.add_argument("experiment", nargs="?", help="MLflow experiment; default: morel")
    compare.add_argument("--search", help="only this search's trials")
    compare.add_argument(
        "--sort", default="robust_accuracy",
        help="robust_accuracy (default), clean_accuracy, name, epochs or seconds",
    )  # fmt: skip
    compare.add_argument("--format", choices=["table", "markdown", "csv"], default="table")

    validate = add(commands, "validate", validate_command, "check recipes and spaces, run nothing")
    validate.add_argument(
        "files", nargs="*", help="names or files; default: all that come with morel"
    )
    return top


def add(commands: Any, name: str, command: Command, summary: str) -> argparse.ArgumentParser:
    """A subcommand with the options that all share."""
    sub: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=f"{OVERRIDES}\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sub.set_defaults(command=command)
    sub.add_argument("--json", action="store_true", help="print one JSON document, nothing else")
    sub.add_argument("--debug", action="store_true", help="show tracebacks and warnings")
    return sub


def consoles(arguments: argparse.Namespace) -> tuple[Console, Console]:
    """(progress on standard error, results on standard output); both quiet with --json."""
    from rich.console import Console

    quiet = bool(arguments.json)
    # Where there is no terminal to ask for its width, tables would be folded to 80 columns.
    width = None if sys.stdout.isatty() else 150
    return Console(stderr=True, quiet=quiet), Console(quiet=quiet, width=width)


def settings(overrides: Sequence[str]) -> RunConfig:
    """A run config for commands that only look at what is recorded."""
    from orchestrator.config import RunConfig, build, parse_overrides, put

    mapping: dict[str, Any] = {}
    for key, value in parse_overrides(overrides).items():
        put(mapping, key, value)
    return build(RunConfig, mapping, source="the command line")


# --- commands ------------------------------------------------------------------------------------


def train_command(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """``morel train``."""
    from orchestrator.config import compose
    from orchestrator.progress import epoch_line, print_train, train_summary
    from orchestrator.train import train

    progress, results = consoles(arguments)

    def show(metrics: Any) -> None:
        progress.print(epoch_line(metrics), markup=False, highlight=False, soft_wrap=True)

    config = compose(arguments.recipe, overrides)

    def starting() -> None:
        workers = config.scaling.num_workers
        progress.print(f"{workers} worker(s); starting Ray", highlight=False)

    result = train(config, on_epoch=show, on_start=starting)
    if arguments.json:
        print(json.dumps(train_summary(result)))
    else:
        print_train(results, result)
    return 3 if result.diverged else 0


def tune_command(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """``morel tune``."""
    from orchestrator.progress import SearchProgress, print_search, search_summary
    from orchestrator.records import ladder_label
    from orchestrator.search_space import load_search
    from orchestrator.tune import tune

    progress, results = consoles(arguments)
    search = load_search(arguments.space, overrides)
    with SearchProgress(progress, ladder_label(search.base), search.total_trials) as view:
        result = tune(search, view=view)
    if arguments.json:
        print(json.dumps(search_summary(result)))
    else:
        print_search(results, result)
    return 0 if result.winner is not None else 3


def evaluate_command(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """``morel evaluate``."""
    from orchestrator.config import parse_overrides
    from orchestrator.evaluate import evaluate_target, find_target
    from orchestrator.progress import evaluation_table

    progress, results = consoles(arguments)
    target = find_target(arguments.target, settings(overrides), parse_overrides(overrides))

    def show(attack: str) -> None:
        what = f"evaluating {target.run_id or target.folder} with {attack}"
        progress.print(what, markup=False, highlight=False, soft_wrap=True)

    result = evaluate_target(
        target,
        arguments.attacks,
        split=arguments.split,
        num_images=arguments.num_images,
        device=arguments.device,
        on_attack=show,
    )
    if arguments.json:
        print(result.to_json())
    else:
        results.print(evaluation_table(result))
    return 0


def compare_command(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """``morel compare``."""
    from orchestrator import compare
    from orchestrator.config import tracking_uri

    _, results = consoles(arguments)
    config = settings(overrides)
    experiment = arguments.experiment or config.tracking.experiment
    runs = compare.load_runs(tracking_uri(config), experiment, arguments.search)
    table = compare.comparison_table(runs, arguments.sort)
    if arguments.json:
        print(compare.to_json(table))
    elif arguments.format == "csv":
        sys.stdout.write(compare.to_csv(table))
    elif arguments.format == "markdown":
        sys.stdout.write(compare.to_markdown(table))
    else:
        results.print(compare.render_rich(table, title=experiment))
    return 0


def validate_command(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """``morel validate``."""
    from orchestrator.validate import validate

    _, results = consoles(arguments)
    checked = validate(arguments.files, overrides)
    if arguments.json:
        print(json.dumps(checked))
    else:
        for item in checked:
            results.print(f"ok  {item['file']}: {item['summary']}", markup=False, soft_wrap=True)
    return 0
