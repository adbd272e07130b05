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
  3    the run diverged, no trial of the search was measured, or a campaign lacks replicates
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
    force_option(train)

    tune = add(commands, "tune", tune_command, "search over a space, recorded in MLflow")
    tune.add_argument("space", help="search space by name (demo, smoke, loss_weights, …) or file")
    force_option(tune)

    campaign = add(
        commands, "campaign", campaign_command, "compare methods: tune each, replicate, test"
    )
    campaign.add_argument("file", help="campaign by name (paper_comparison, ablation) or file")
    campaign.add_argument(
        "--dry-run", action="store_true", help="print methods, trials and replicates, start nothing"
    )
    force_option(campaign)

    evaluate_options(
        add(commands, "evaluate", evaluate_command, "measure the robust accuracy of a network")
    )

    compare = add(commands, "compare", compare_command, "table of recorded runs, from MLflow")
    compare.add_argument("experiment", nargs="?", help="MLflow experiment; default: morel")
    compare.add_argument("--search", help="only the trials of this search or campaign")
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


def force_option(sub: argparse.ArgumentParser) -> None:
    """What commands that resume take."""
    sub.add_argument(
        "--force-code", action="store_true",
        help="resume under other code than the run's own; recorded as morel.code_changes",
    )  # fmt: skip


def evaluate_options(sub: argparse.ArgumentParser) -> None:
    """What ``morel evaluate`` takes."""
    sub.add_argument(
        "target",
        help="run name or id (of a search: its winner), checkpoint folder, or a model's name with "
        "--weights, as in torchvision/resnet18, timm/resnet18, digits_cnn",
    )
    sub.add_argument(
        "--weights", metavar="FILE",
        help="state dict (.pt or .safetensors) of a plain model; data.name=…, model.mean=[…] and "
        "model.std=[…] say what it was trained on",
    )  # fmt: skip
    what = sub.add_argument_group("what is measured")
    what.add_argument(
        "--attacks", nargs="+", default=[], metavar="NAME",
        help="pgdN, cwN (pgd20; pgd20x5: 5 restarts; pgd20_worst: worst iterate), fgsm, apgd-ce, "
        "apgd-t, fab-t, square, autoattack, autoattack_plus; default: pgd20",
    )  # fmt: skip
    what.add_argument(
        "--preset", choices=["quick", "paper", "standard"],
        help="a set of attacks: quick, paper (as published), standard (AutoAttack at 8/255)",
    )  # fmt: skip
    what.add_argument(
        "--eps", nargs="+", type=radius, default=[], metavar="EPS",
        help="radii to sweep, as in 2/255 4/255 8/255; default: evaluation.attack.eps",
    )  # fmt: skip
    what.add_argument(
        "--transfer-from", metavar="SOURCE",
        help="also try the images that each pgdN makes on this run or checkpoint",
    )  # fmt: skip
    what.add_argument(
        "--against", metavar="OTHER",
        help="measure this run or checkpoint on the same images too, and test the difference",
    )  # fmt: skip
    what.add_argument("--split", choices=["test", "holdout"], default="test")
    what.add_argument("--num-images", type=int, metavar="N", help="only the first so many")
    what.add_argument("--seed", type=int, help="of the noise; default: evaluation.seed")
    what.add_argument(
        "--no-checks", dest="checks", action="store_false",
        help="do not look for signs that the numbers deceive",
    )  # fmt: skip
    where = sub.add_argument_group("where it runs")
    where.add_argument(
        "--workers", type=int, default=0, metavar="N",
        help="Ray tasks at a time, on this machine or the cluster at cluster.address; default: "
        "this process alone. Chunks of evaluation.batch_size images are divided among them",
    )  # fmt: skip
    where.add_argument(
        "--gpus-per-worker", type=float, metavar="G", help="default: 0 (cpu), 1 (cuda)"
    )
    where.add_argument("--device", default="cpu", help="cpu or cuda; default: cpu")


def radius(text: str) -> float:
    """``8/255`` or ``0.03`` as a number."""
    from orchestrator.config import number

    try:
        return float(number(text))
    except MorelError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


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

    result = train(config, on_epoch=show, on_start=starting, force_code=arguments.force_code)
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
        result = tune(search, view=view, force_code=arguments.force_code)
    if arguments.json:
        print(json.dumps(search_summary(result)))
    else:
        print_search(results, result)
    return 0 if result.winner is not None else 3


def campaign_command(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """``morel campaign``."""
    from orchestrator.campaign import view
    from orchestrator.campaign.definition import load_campaign, plan
    from orchestrator.campaign.run import run_campaign

    progress, results = consoles(arguments)
    campaign = load_campaign(arguments.file, overrides)
    if arguments.dry_run:
        planned = plan(campaign)
        print(json.dumps(planned)) if arguments.json else view.print_plan(results, planned)
        return 0
    shown = view.CampaignProgress(progress)
    result = run_campaign(campaign, view=shown, force_code=arguments.force_code)
    if arguments.json:
        print(json.dumps(view.campaign_summary(result)))
    else:
        view.print_report(results, result)
    return 0 if result.report.complete else 3


def evaluate_command(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """``morel evaluate``."""
    from orchestrator.against import compare_targets
    from orchestrator.config import parse_overrides
    from orchestrator.evaluate import Request, evaluate_target
    from orchestrator.evaluation_view import EvaluationProgress, print_done
    from orchestrator.targets import find_target

    progress, results = consoles(arguments)
    tracking, values = settings(overrides), parse_overrides(overrides)
    target = find_target(arguments.target, tracking, values, arguments.weights)
    other, source = (
        find_target(name, tracking, values) if name else None
        for name in (arguments.against, arguments.transfer_from)
    )
    fields = ("attacks", "preset", "eps", "split", "num_images", "seed", "checks")
    fields += ("workers", "gpus_per_worker", "device")
    request = Request(transfer_from=source, **{key: getattr(arguments, key) for key in fields})
    with EvaluationProgress(progress) as view:
        if other is None:
            done = evaluate_target(target, request, view)
        else:
            done = compare_targets(target, other, request, view)
    if arguments.json:
        print(json.dumps(done.record(), indent=2))
    else:
        print_done(results, done)
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
