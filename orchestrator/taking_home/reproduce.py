"""A recorded run once more: as it was (`morel reproduce`), or with other settings (`morel fork`).

What is there now is compared with what the run recorded before anything is trained, and the numbers
afterwards, epoch by epoch.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from morel_core.data import load_data
from morel_core.errors import ConfigError, MorelError
from orchestrator.compare import RunRecord
from orchestrator.compare.runs import LINEAGE
from orchestrator.config import RunConfig, tracking_uri, with_overrides
from orchestrator.evaluation.targets import find_run
from orchestrator.settings.building import build
from orchestrator.settings.yaml_files import read_yaml
from orchestrator.tracking import records
from orchestrator.tracking.connection import open_client
from orchestrator.train import MAY_CHANGE, OnEpoch, train
from orchestrator.training.result import TrainResult

REPRODUCES, FORKED = "morel.reproduces", "morel.forked_from"
OF_AN_EPOCH = ("holdout.", "loss.")
COMPARED = (*OF_AN_EPOCH, "best.holdout.", "test.")
SHOWN_PREFIXES = ("morel.commit", "morel.diff", "morel.python", "morel.version.")
DIGEST = 36
"""Characters of a fingerprint that MLflow keeps."""


@dataclass(frozen=True)
class Difference:
    """Something that is not as the run recorded it."""

    what: str
    then: str
    now: str

    def __str__(self) -> str:
        return f"{self.what}: {self.then or 'none'}, now {self.now or 'none'}"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What would be trained, and what differs from what the run recorded."""

    run: RunRecord
    config: RunConfig
    differences: list[Difference]

    def lines(self) -> list[str]:
        """For people, before anything starts."""
        run, epochs = self.run, self.config.training.epochs
        lines = [f"{run.run_id} once more, as {self.config.name}"]
        lines += [f"  differs here: {difference}" for difference in self.differences]
        if not self.differences:
            lines.append("  commit, versions and data are those of the run")
        if run.epochs is not None and run.epochs < epochs:
            lines.append(
                f"  the run ended after {run.epochs} of {epochs} epochs: {run.stop_reason}"
            )
        return lines

    def record(self) -> dict[str, Any]:
        """Plain."""
        return {
            "run": self.run.run_id,
            "name": self.config.name,
            "differences": [asdict(difference) for difference in self.differences],
        }


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """How the numbers came out."""

    plan: Plan
    result: TrainResult
    compared: int
    """Numbers that both runs have: accuracies and losses of their common epochs, and the last."""
    unequal: list[Difference]
    """Those that differ, in the order of the epochs."""

    @property
    def verdict(self) -> str:
        """In one sentence."""
        if not self.unequal:
            return f"the same: all {self.compared} numbers are equal to the last bit"
        accuracies = [d for d in self.unequal if not d.what.startswith("loss.")]
        if not accuracies:
            return (
                f"the same accuracies; {len(self.unequal)} of {self.compared} numbers, all losses, "
                f"differ, the first one in {self.unequal[0].what}"
            )
        largest = max(abs(float(d.then) - float(d.now)) for d in accuracies)
        return (
            f"not the same: {len(self.unequal)} of {self.compared} numbers differ, accuracies by "
            f"up to {100 * largest:.2f} points, the first one is {self.unequal[0]}"
        )

    def record(self) -> dict[str, Any]:
        """Plain."""
        return {
            **self.plan.record(),
            "verdict": self.verdict,
            "compared": self.compared,
            "unequal": [asdict(difference) for difference in self.unequal],
        }


def recorded_config(run: RunRecord, uri: str) -> RunConfig:
    """The whole config of a run, as MLflow holds it.

    Raises:
        MorelError: it holds none, or one that this version does not understand.
    """
    from mlflow.exceptions import MlflowException

    with tempfile.TemporaryDirectory(prefix="morel-config-") as folder:
        try:
            client = open_client(uri, create=False)
            path = client.download_artifacts(run.mlflow_id, "config.yaml", folder)
        except (MlflowException, OSError) as error:
            reason = str(error).splitlines()[0]
            raise MorelError(f"run {run.run_id!r} has no config.yaml in MLflow: {reason}") from None
        return build(RunConfig, read_yaml(Path(path)), source=f"config.yaml of {run.run_id}")


def plan_reproduction(name: str, tracking: RunConfig, overrides: Mapping[str, Any]) -> Plan:
    """What `reproduce` would do.

    Args:
        name: a run's name or id; of a search, its winner.
        tracking: whose MLflow is asked.
        overrides: of what decides no number: name, storage_path, tracking, cluster, data.root.

    Raises:
        MorelError: there is no such run; `ConfigError`: an override that makes another run of it.
    """
    for key, value in overrides.items():
        if not {key, key.partition(".")[0]} & (MAY_CHANGE - {"training.epochs"}):
            raise ConfigError(
                key, value, "as the run had it: other settings make another run, see morel fork"
            )
    run, config = _recorded(name, tracking)
    config = _named(config, run, "again", overrides)
    found = environment_differences(run.tags, records.environment_tags())
    fingerprint = load_data(config.data).fingerprint[:DIGEST]
    if run.dataset and run.dataset != fingerprint:
        found.append(Difference("data", run.dataset, fingerprint))
    if run.epochs is not None and run.epochs > (epochs := config.training.epochs):
        # It was resumed for longer, and its learning rates are those of no single command.
        then = f"{epochs}, then on to {run.epochs}"
        found.append(Difference("training.epochs", then, str(epochs)))
    return Plan(run=run, config=config, differences=found)


def reproduce(plan: Plan, *, on_epoch: OnEpoch | None = None) -> Reproduction:
    """Train the run of ``plan`` once more under a name of its own, and compare the numbers."""
    result = train(plan.config, on_epoch=on_epoch, tags={REPRODUCES: plan.run.run_id})
    uri = tracking_uri(plan.config)
    again = find_run(str(plan.config.name), plan.config)
    then, now = _numbers(plan.run, uri), _numbers(again, uri)
    as_long = plan.run.epochs == again.epochs  # else what one ended with was no end to the other
    both = [key for key in then if key in now and (as_long or key[1].startswith(OF_AN_EPOCH))]
    unequal = [
        Difference(_told(key), repr(then[key]), repr(now[key]))
        for key in both
        if then[key] != now[key] and not (math.isnan(then[key]) and math.isnan(now[key]))
    ]
    return Reproduction(plan=plan, result=result, compared=len(both), unequal=unequal)


def fork(
    name: str,
    tracking: RunConfig,
    overrides: Mapping[str, Any],
    *,
    on_epoch: OnEpoch | None = None,
    on_start: Callable[[RunConfig], None] = lambda _config: None,
) -> TrainResult:
    """Train with the exact config of a recorded run but for ``overrides``.

    Raises:
        MorelError: there is no such run, or as `train`.
    """
    run, config = _recorded(name, tracking)
    config = _named(config, run, "fork", overrides)
    on_start(config)
    return train(config, on_epoch=on_epoch, tags={FORKED: run.run_id})


def _recorded(name: str, tracking: RunConfig) -> tuple[RunRecord, RunConfig]:
    run = find_run(name, tracking)
    if run.kind not in ("train", "trial"):
        raise MorelError(f"{run.run_id!r} is a {run.kind}: name one of its trials, or its winner")
    if exchanges := run.tags.get(LINEAGE):
        raise MorelError(
            f"{run.run_id!r} was trained with settings that changed on the way ({exchanges}): no "
            "training by its config is the same. Its artifact pbt.json has the settings of each "
            "stretch, and morel export takes its network home"
        )
    return run, recorded_config(run, tracking_uri(tracking))


def _named(
    config: RunConfig, run: RunRecord, suffix: str, overrides: Mapping[str, Any]
) -> RunConfig:
    config = replace(config, name=records.new_name(f"{run.run_id.replace('/', '-')}-{suffix}"))
    return with_overrides(config, overrides)


def environment_differences(then: Mapping[str, str], now: Mapping[str, str]) -> list[Difference]:
    """Commit, Python and packages by the tags of a run and those of here."""
    keys = [key for key in {**then, **now} if key.startswith(SHOWN_PREFIXES)]
    return [
        Difference(
            key.removeprefix("morel.").replace("version.", ""), then.get(key, ""), now.get(key, "")
        )
        for key in keys
        if then.get(key) != now.get(key)
    ]


def _numbers(run: RunRecord, uri: str) -> dict[tuple[int, str], float]:
    """(epoch, metric) → value of what decides; what a run ends with comes last."""
    client = open_client(uri, create=False)
    found: dict[tuple[int, str], float] = {}
    for key in run.metrics:
        if key.startswith(COMPARED):
            for point in client.get_metric_history(run.mlflow_id, key):
                found[point.step, key] = point.value
    return dict(sorted(found.items()))


def _told(key: tuple[int, str]) -> str:
    return f"{key[1]} of epoch {key[0]}"
