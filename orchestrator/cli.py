"""The ``morel`` command: arguments in, exit code out."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from morel_core.errors import ConfigError, MorelError
from orchestrator.arguments import Command, parser, split_command, split_overrides
from orchestrator.ending import terminable
from orchestrator.failures import failure_reason
from orchestrator.masking import masked

if TYPE_CHECKING:
    from rich.console import Console

    from orchestrator.config import RunConfig
    from orchestrator.search.space import SearchConfig
    from orchestrator.train import TrainResult

INTERRUPTED = 130


def entry() -> NoReturn:
    """The console script."""
    sys.exit(main(sys.argv[1:]))


def main(argv: Sequence[str]) -> int:
    """Run one command; returns its exit code."""
    own, remote = split_command(argv)
    overrides, rest = split_overrides(own)
    commands = {
        "train": train_command,
        "tune": tune_command,
        "campaign": campaign_command,
        "status": status_command,
        "top": top_command,
        "logs": logs_command,
        "stop": stop_command,
        "clean": clean_command,
        "sync": sync_command,
        "submit": submit_command,
        "evaluate": evaluate_command,
        "compare": compare_command,
        "report": report_command,
        "export": export_command,
        "register": register_command,
        "reproduce": reproduce_command,
        "fork": fork_command,
        "validate": validate_command,
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
        return fail(arguments, f"{type(error).__name__}: {first_line(error)} (see --debug)", 1)


def fail(arguments: argparse.Namespace, message: str, code: int) -> int:
    """One line on standard error (and the traceback with --debug); returns ``code``."""
    if arguments.debug and code != INTERRUPTED:
        import traceback

        print(masked(traceback.format_exc()), file=sys.stderr)
    print(f"morel: {' '.join(masked(message).splitlines())}", file=sys.stderr)
    return code


def first_line(error: Exception) -> str:
    """The first line of an error's message; of one that is a whole traceback, what it ends in."""
    line = (str(error).strip().splitlines() or [""])[0]
    return failure_reason(str(error)) if line.startswith("Traceback") else line


def consoles(arguments: argparse.Namespace) -> tuple[Console, Console]:
    """(progress on standard error, results on standard output); both quiet with --json."""
    from rich.console import Console

    quiet = bool(arguments.json)
    # Where there is no terminal to ask for its width, tables would be folded to 80 columns.
    width = None if sys.stdout.isatty() else 150
    return Console(stderr=True, quiet=quiet), Console(quiet=quiet, width=width)


def settings(overrides: Sequence[str]) -> RunConfig:
    """A run config for commands that only look at what is recorded."""
    from orchestrator.building import build
    from orchestrator.config import RunConfig, put
    from orchestrator.yaml_files import parse_overrides

    mapping: dict[str, Any] = {}
    for key, value in parse_overrides(overrides).items():
        put(mapping, key, value)
    return build(RunConfig, mapping, source="the command line")


def place(overrides: Sequence[str]) -> list[str]:
    """Those that say where a run lies: the others may be of a model that the default is not."""
    from orchestrator.config import NOT_SCIENTIFIC

    return [o for o in overrides if o.partition("=")[0].partition(".")[0] in NOT_SCIENTIFIC]


# --- commands ------------------------------------------------------------------------------------


def train_command(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """``morel train``."""
    from orchestrator.config import compose

    config = compose(arguments.recipe, overrides)  # a mistake is named before torch is imported

    from orchestrator.train import train

    progress, _ = consoles(arguments)

    def starting() -> None:
        workers = config.scaling.in_words
        progress.print(f"{workers} worker(s); starting Ray", highlight=False)

    result = train(
        config,
        on_epoch=epoch_printer(progress),
        on_start=starting,
        force_code=arguments.force_code,
    )
    return trained(arguments, result)


def epoch_printer(progress: Console) -> Callable[[Any], None]:
    """Prints a line for each epoch."""
    from orchestrator.progress import epoch_line

    def show(metrics: Any) -> None:
        progress.print(epoch_line(metrics), markup=False, highlight=False, soft_wrap=True)

    return show


def trained(arguments: argparse.Namespace, result: TrainResult) -> int:
    """Tell how a training run ended; the exit code."""
    from orchestrator.progress import print_train, train_summary

    if arguments.json:
        print(json.dumps(train_summary(result)))
    else:
        print_train(consoles(arguments)[1], result)
    return 3 if result.diverged else 0


def fork_command(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """``morel fork``."""
    from orchestrator.yaml_files import parse_overrides

    values = parse_overrides(overrides)

    from orchestrator.reproduce import fork

    progress, _ = consoles(arguments)
    result = fork(
        arguments.run,
        settings(place(overrides)),
        values,
        on_epoch=epoch_printer(progress),
        on_start=lambda config: progress.print(f"{config.name}: {arguments.run} with {values}"),
    )
    return trained(arguments, result)


def reproduce_command(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """``morel reproduce``."""
    from orchestrator.yaml_files import parse_overrides

    tracking, values = settings(place(overrides)), parse_overrides(overrides)

    from orchestrator.progress import print_train
    from orchestrator.reproduce import plan_reproduction, reproduce

    progress, results = consoles(arguments)
    plan = plan_reproduction(arguments.run, tracking, values)
    for line in plan.lines():
        progress.print(line, markup=False, highlight=False, soft_wrap=True)
    if arguments.check:
        if arguments.json:
            print(json.dumps(plan.record()))
        return 3 if plan.differences else 0
    done = reproduce(plan, on_epoch=epoch_printer(progress))
    if arguments.json:
        print(json.dumps(done.record()))
    else:
        print_train(results, done.result)
        results.print(f"{plan.run.run_id} once more: {done.verdict}", markup=False, soft_wrap=True)
    return 3 if done.unequal else 0


def tune_command(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """``morel tune``."""
    from orchestrator.search.space import load_search

    search = load_search(arguments.space, overrides)
    if arguments.dry_run:
        return dry_tune(arguments, search)

    from orchestrator.progress import SearchProgress, print_search, search_summary
    from orchestrator.records import ladder_label
    from orchestrator.tune import tune

    progress, results = consoles(arguments)
    with SearchProgress(progress, ladder_label(search.base), search.total_trials) as view:
        result = tune(search, view=view, force_code=arguments.force_code)
    if arguments.json:
        print(json.dumps(search_summary(result)))
    else:
        print_search(results, result)
    return 0 if result.winner is not None else 3


def dry_tune(arguments: argparse.Namespace, search: SearchConfig) -> int:
    """``morel tune --dry-run``."""
    from orchestrator.search.dry_run import dry_run, lines

    found = dry_run(search)
    print(json.dumps(found) if arguments.json else "\n".join(lines(found)))
    return 0


def campaign_command(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """``morel campaign``."""
    from orchestrator.campaign.definition import load_campaign, plan

    campaign = load_campaign(arguments.file, overrides)

    from orchestrator.campaign import view
    from orchestrator.campaign.run import run_campaign

    progress, results = consoles(arguments)
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


def status_command(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """``morel status``."""
    from orchestrator.search.operations import look
    from orchestrator.search.status_view import print_status

    _, results = consoles(arguments)
    found = look(arguments.name, settings(overrides))
    if arguments.json:
        print(json.dumps(found))
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
    from orchestrator.sync import sync
    from orchestrator.yaml_files import parse_overrides

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


def evaluate_command(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """``morel evaluate``."""
    from orchestrator.yaml_files import parse_overrides

    tracking, values = settings(overrides), parse_overrides(overrides)

    from orchestrator.evaluate import Request, evaluate_target
    from orchestrator.evaluation.against import compare_targets
    from orchestrator.evaluation.targets import find_target
    from orchestrator.evaluation.view import EvaluationProgress, print_done

    progress, results = consoles(arguments)
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
    experiments = arguments.experiments or [config.tracking.experiment]
    runs = [
        run
        for experiment in experiments
        for search in arguments.search or [None]
        for run in compare.load_runs(tracking_uri(config), experiment, search)
    ]
    runs = compare.pick(runs, arguments.where)
    title, form = ", ".join(experiments), "json" if arguments.json else arguments.format
    if arguments.group_by:
        grouped = compare.group_runs(runs, arguments.group_by, arguments.baseline)
        text = compare.groups_as_text(grouped, form)
        table = compare.groups_to_rich(grouped, title=title) if text is None else None
    elif arguments.baseline:
        raise ConfigError("--baseline", arguments.baseline, "a group, so only with --group-by")
    else:
        compared = compare.comparison_table(runs, arguments.sort)
        text = compare.as_text(compared, form)
        table = compare.render_rich(compared, title=title) if text is None else None
    results.print(table) if text is None else print(text.rstrip("\n"))
    return 0


def report_command(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """``morel report``."""
    from orchestrator.config import tracking_uri
    from orchestrator.report.page import write_report

    _, results = consoles(arguments)
    config = settings(overrides)
    written = write_report(
        tracking_uri(config),
        arguments.experiment or config.tracking.experiment,
        search=arguments.search,
        out=Path(arguments.out) if arguments.out else None,
        pictures=arguments.pictures,
    )
    if arguments.json:
        print(json.dumps({**vars(written), "path": str(written.path)}))
        return 0
    place = f", also in MLflow on the run {written.recorded}" if written.recorded else ""
    line = f"{written.path}: {written.size / 1e6:.2f} MB in {written.seconds:.1f} s{place}"
    for text in (line, *written.missing):
        results.print(text, markup=False, highlight=False, soft_wrap=True)
    return 0


def export_command(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """``morel export``."""
    from orchestrator.yaml_files import parse_overrides

    tracking, values = settings(overrides), parse_overrides(overrides)

    from orchestrator.evaluation.targets import find_target
    from orchestrator.evaluation.view import evaluation_table
    from orchestrator.export import export

    progress, results = consoles(arguments)
    done = export(
        find_target(arguments.run, tracking, values),
        Path(arguments.to).expanduser(),
        num_images=arguments.num_images,
        onnx=arguments.onnx,
        say=progress.print,
    )
    if arguments.json:
        print(json.dumps(done.record(), indent=2))
        return 0
    results.print(evaluation_table(done.result))
    results.print(f"{done.folder}: {', '.join(done.files)}", markup=False, soft_wrap=True)
    return 0


def register_command(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """``morel register``."""
    from orchestrator.config import parse_overrides

    tracking, values = settings(overrides), parse_overrides(overrides)

    from orchestrator.registration import register

    done = register(arguments.run, arguments.model, tracking, values, champion=arguments.champion)
    if arguments.json:
        print(json.dumps(vars(done)))
        return 0
    line = f"{done.model} version {done.version} is {done.run_id}; champion: {done.champion}"
    consoles(arguments)[1].print(line, markup=False, highlight=False, soft_wrap=True)
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
