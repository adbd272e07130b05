"""What is to run as a job: the command, judged here as it will be judged on the cluster."""

from __future__ import annotations

import argparse
import contextlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from morel_core.errors import MorelError
from orchestrator.cluster import check_scaling, check_tracking
from orchestrator.commands.arguments import parser, split_overrides
from orchestrator.commands.common import place, settings
from orchestrator.config import RunConfig, compose
from orchestrator.messages.masking import masked_address
from orchestrator.settings.jobs import as_in_job, check_absolute, check_written
from orchestrator.settings.yaml_files import packaged
from orchestrator.tracking.records import new_name

if TYPE_CHECKING:
    from orchestrator.search.space import SearchConfig

RESUMED = ("train", "tune", "campaign")
"""Commands that go on where they stopped when they are given the same ``name=…``."""
WRITTEN = {"export": ("to",), "report": ("out",)}
"""Options of commands that say where a result is written."""
PLACED = ("evaluate", "export", "register", "fork", "reproduce")
"""Commands of whose settings only those of the place are judged here: the others are of a run."""

Plan = Callable[[float, float], list[str]]
"""``(CPUs, GPUs) -> `` what runs on them, for people; raises `ConfigError` if they do not do."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A command for a cluster, checked as far as is possible without one."""

    argv: list[str]
    """Behind ``python -m orchestrator``."""
    name: str | None
    """Of the run; None for a command that has none."""
    base: RunConfig | None
    """Of the run, or of the search's; None for a command that runs nothing."""
    plan: Plan

    def check(
        self, nodes: int, cpus: float, gpus: float, environment: Mapping[str, str]
    ) -> list[str]:
        """What runs on a cluster of so many nodes, CPUs and GPUs, as it is or can grow to.

        Args:
            environment: the cluster's.

        Raises:
            ConfigError: the resources do not do, or MLflow is SQLite on several nodes.
        """
        if self.base is not None:
            check_tracking(self.base, nodes, environment)
        return self.plan(cpus, gpus)


def read_command(argv: Sequence[str], folder: Path, uploaded: Mapping[str, int]) -> Asked:
    """The command of ``morel submit -- COMMAND …``.

    Args:
        argv: ``COMMAND …``, with or without ``morel`` before it.
        folder: what is uploaded, which the command finds as its working directory.
        uploaded: the files of it that are.

    Raises:
        MorelError: it could not run on any cluster.
    """
    argv = list(argv)
    argv = argv[1:] if argv[:1] == ["morel"] else argv
    if not argv:
        raise MorelError("morel submit: nothing to run: write morel submit -- tune demo …")
    name = argv[0]
    if name == "submit":
        raise MorelError("morel submit -- submit: give it the command that is to run")
    secret = next((argument for argument in argv if masked_address(argument) != argument), None)
    if secret is not None:
        key = masked_address(secret).partition("=")[0]
        raise MorelError(
            f"{key}: holds a password, and a job's command is shown to all who see "
            "the cluster: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (or "
            "MLFLOW_TRACKING_URI) where its head is started"
        )
    overrides, rest = split_overrides(argv)
    arguments = parser(defaultdict(lambda: _unused)).parse_args(rest)
    with contextlib.chdir(folder), as_in_job():
        for kind, path in _config_files(arguments):
            _check_uploaded(kind, path, folder, uploaded)
        check_absolute("--weights", getattr(arguments, "weights", None))
        for option in WRITTEN.get(name, ()):
            check_written(f"--{option}", getattr(arguments, option))
        base, plan = _plan(name, arguments, overrides)
    given = base.name if base is not None else None
    if name in RESUMED and given is None:  # a job that is submitted again must find its run
        given = new_name(Path(_file(arguments)).stem)
        argv.append(f"name={given}")
    return Asked(argv=argv, name=given, base=base, plan=plan)


def _unused(_arguments: argparse.Namespace, _overrides: list[str]) -> int:
    raise AssertionError("the command runs on the cluster")


def _file(arguments: argparse.Namespace) -> str:
    return next(
        str(getattr(arguments, key))
        for key in ("recipe", "space", "file")
        if hasattr(arguments, key)
    )


def _config_files(arguments: argparse.Namespace) -> list[tuple[str, str]]:
    """(folder of its kind here, name or path) of each config file that a command names."""
    named = [("recipes", "recipe"), ("search_spaces", "space"), ("search_spaces", "file")]
    return [(kind, getattr(arguments, key)) for kind, key in named if hasattr(arguments, key)]


def _check_uploaded(kind: str, path: str, folder: Path, uploaded: Mapping[str, int]) -> None:
    """Raise `MorelError` if a config file is here, but will not be there."""
    if path in packaged(kind) or not Path(path).expanduser().is_file():
        return
    if Path(path).expanduser().is_absolute() or Path(path).as_posix() not in uploaded:
        raise MorelError(
            f"{path}: is not among the files of {folder} that are uploaded: put it there, name it "
            "by its path in there, and see that no ignore file names it"
        )


def _plan(
    name: str, arguments: argparse.Namespace, overrides: list[str]
) -> tuple[RunConfig | None, Plan]:
    if name == "train":
        config = compose(arguments.recipe, overrides)
        return config, lambda cpus, gpus: _train_plan(config, cpus, gpus)
    if name == "tune":
        from orchestrator.search.space import load_search

        search = load_search(arguments.space, overrides)
        return search.base, lambda cpus, gpus: _search_plan([search], cpus, gpus)
    if name == "campaign":
        from orchestrator.campaign.definition import load_campaign

        campaign = load_campaign(arguments.file, overrides)
        searches = list(campaign.searches.values())
        return campaign.base, lambda cpus, gpus: _search_plan(searches, cpus, gpus)
    if name == "validate":
        from orchestrator.validate import validate

        validate(arguments.files, overrides)
    else:
        settings(place(overrides) if name in PLACED else overrides)
    return None, lambda _cpus, _gpus: []


def _train_plan(config: RunConfig, cpus: float, gpus: float) -> list[str]:
    asked = config.scaling
    beside = "evaluation.asynchronous" if config.evaluation.asynchronous else ""
    check_scaling(asked, cpus, gpus, beside=beside)
    return [
        f"{asked.in_words} worker(s) of {asked.cpus_per_worker} CPUs and "
        f"{asked.gpus_per_worker:g} GPUs; {cpus:g} CPUs and {gpus:g} GPUs are there"
    ]


def _search_plan(searches: Sequence[SearchConfig], cpus: float, gpus: float) -> list[str]:
    from orchestrator.search.dry_run import plan, plan_lines
    from orchestrator.search.space import check_resources

    for search in searches:
        check_resources(search, cpus, gpus)
    return plan_lines(plan(searches[0], (cpus, gpus)))
