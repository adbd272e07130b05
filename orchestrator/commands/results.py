"""Commands for what came out, and for checking what goes in."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from morel_core.errors import ConfigError
from orchestrator.commands.common import consoles, place, settings
from orchestrator.settings.jobs import check_written


def evaluate_command(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """``morel evaluate``."""
    from orchestrator.settings.yaml_files import parse_overrides

    tracking, values = settings(place(overrides)), parse_overrides(overrides)

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

    if arguments.sort and arguments.group_by:
        allowed = "not with --group-by, whose lines are sorted by robust accuracy: leave one out"
        raise ConfigError("--sort", arguments.sort, allowed)
    _, results = consoles(arguments)
    config = settings(overrides)
    experiments = arguments.experiments or [config.tracking.experiment]
    runs = compare.load_all(tracking_uri(config), experiments, arguments.search or ())
    runs = compare.pick(runs, arguments.where)
    title, form = ", ".join(experiments), "json" if arguments.json else arguments.format
    if arguments.group_by:
        grouped = compare.group_runs(runs, arguments.group_by, arguments.baseline, arguments.attack)
        text = compare.groups_as_text(grouped, form)
        table = compare.groups_to_rich(grouped, title=title) if text is None else None
    elif arguments.baseline:
        raise ConfigError("--baseline", arguments.baseline, "a group, so only with --group-by")
    else:
        sort = arguments.sort or "robust_accuracy"
        compared = compare.comparison_table(runs, sort, arguments.attack)
        text = compare.as_text(compared, form)
        table = compare.render_rich(compared, title=title) if text is None else None
    results.print(table) if text is None else print(text.rstrip("\n"))
    return 0


def report_command(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """``morel report``."""
    from orchestrator.config import tracking_uri
    from orchestrator.report.page import write_report

    check_written("--out", arguments.out)
    _, results = consoles(arguments)
    config = settings(overrides)
    written = write_report(
        tracking_uri(config),
        arguments.experiment or config.tracking.experiment,
        search=arguments.search,
        out=Path(arguments.out).expanduser() if arguments.out else None,
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
    check_written("--to", arguments.to)
    from orchestrator.settings.yaml_files import parse_overrides

    tracking, values = settings(place(overrides)), parse_overrides(overrides)

    from orchestrator.evaluation.targets import find_target
    from orchestrator.evaluation.view import evaluation_table
    from orchestrator.taking_home.export import export

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

    tracking, values = settings(place(overrides)), parse_overrides(overrides)

    from orchestrator.taking_home.registration import register

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
