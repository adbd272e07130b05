"""Commands that train one network."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from orchestrator.commands.common import consoles, place, settings

if TYPE_CHECKING:
    from rich.console import Console

    from orchestrator.training.result import TrainResult


def train_command(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """``morel train``."""
    from orchestrator.config import compose

    config = compose(arguments.recipe, overrides)  # a mistake is named before torch is imported

    from orchestrator.train import train

    progress, _ = consoles(arguments)

    def starting(name: str) -> None:
        workers = config.scaling.in_words
        progress.print(f"{name}: {workers} worker(s); starting Ray", highlight=False)

    result = train(
        config,
        on_epoch=epoch_printer(progress),
        on_start=starting,
        force_code=arguments.force_code,
    )
    return trained(arguments, result)


def epoch_printer(progress: Console) -> Callable[[Any], None]:
    """Prints a line for each epoch."""
    from orchestrator.training.view import epoch_line

    def show(metrics: Any) -> None:
        progress.print(epoch_line(metrics), markup=False, highlight=False, soft_wrap=True)

    return show


def trained(arguments: argparse.Namespace, result: TrainResult) -> int:
    """Tell how a training run ended; the exit code."""
    from orchestrator.training.view import print_train, train_summary

    if arguments.json:
        print(json.dumps(train_summary(result)))
    else:
        print_train(consoles(arguments)[1], result)
    return 3 if result.diverged else 0


def fork_command(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """``morel fork``."""
    from orchestrator.settings.yaml_files import parse_overrides

    values = parse_overrides(overrides)

    from orchestrator.taking_home.reproduce import fork

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
    from orchestrator.settings.yaml_files import parse_overrides

    tracking, values = settings(place(overrides)), parse_overrides(overrides)

    from orchestrator.taking_home.reproduce import plan_reproduction, reproduce
    from orchestrator.training.view import print_train

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
