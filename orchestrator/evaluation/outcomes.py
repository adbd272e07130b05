"""What an evaluation leaves behind: its record, the outcome of every image, its run's numbers."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from morel_core.evaluation import CLEAN, EvaluationResult, Finding
from orchestrator import storage
from orchestrator.compare.runs import ATTACK_DETAILS
from orchestrator.config import RunConfig, flatten, scientific, with_overrides
from orchestrator.driver.lease import LeaseHeldError, held
from orchestrator.evaluation.shards import file_name
from orchestrator.evaluation.targets import Target
from orchestrator.notes import counted, renewed
from orchestrator.tracking import records

WORST = "worst_case"
LONGEST_LABEL = 80  # of attacks' names in a file's name


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A result, what it is of, and what speaks against believing it."""

    target: Target
    result: EvaluationResult
    findings: Sequence[Finding] | None
    """None: nobody has looked."""
    labels: Tensor
    """(N,) int64 on the CPU."""
    identity: str
    """Hash of what was measured: network, attacks, images, seed."""

    @property
    def stem(self) -> str:
        """Name of its files, without ending."""
        attacks = [name for name in self.result if name != CLEAN]
        label = "-".join(attacks) or CLEAN
        if len(label) > LONGEST_LABEL:
            label = f"{len(attacks)}_attacks"
        return f"{self.result.split}-{file_name(label)}-{self.identity[:8]}"

    @property
    def files(self) -> dict[str, str]:
        """Where its record and its per-image outcomes lie, by ending."""
        return {end: f"{self.target.folder}/{self.stem}.{end}" for end in ("json", "parquet")}

    def record(self) -> dict[str, Any]:
        """Everything, plain, with the per-image outcomes as strings of 0 and 1."""
        findings = None if self.findings is None else [vars(found) for found in self.findings]
        return {
            "target": self.target.name,
            "run_id": self.target.run_id,
            **json.loads(self.result.to_json()),
            "warnings": findings,
            "files": self.files,
        }


def write(evaluation: Evaluation) -> None:
    """Store the record and the per-image outcomes of an evaluation."""
    text = json.dumps(evaluation.record(), indent=2)
    storage.write(evaluation.files["json"], text.encode())
    storage.write(evaluation.files["parquet"], to_parquet(evaluation))


def columns(evaluation: Evaluation) -> dict[str, list[Any]]:
    """One row an image: its index, its label, and whether it is right under each attack.

    ``<attack>/<stage>`` tells who still stood after each part of an attack that has parts;
    ``worst_case`` is right under every attack.
    """
    result = evaluation.result
    table: dict[str, list[Any]] = {
        "image": list(range(len(evaluation.labels))),
        "label": evaluation.labels.tolist(),
    }
    for name, outcome in result.items():
        table[name] = outcome.correct.tolist()
        for stage, standing in outcome.stages.items():
            table[f"{name}/{stage}"] = standing.tolist()
    return table | {WORST: result.worst_case().tolist()}


def to_parquet(evaluation: Evaluation) -> bytes:
    """`columns` as parquet, with the record in the schema's metadata under ``morel``."""
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table(columns(evaluation))
    table = table.replace_schema_metadata({"morel": json.dumps(evaluation.record())})
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def record(evaluation: Evaluation) -> str:
    """Add an evaluation's numbers, files and warnings to its run in MLflow.

    Returns why MLflow has not got them, empty if it has: they are of other images or of another
    attack than their names say of this run, another driver writes the run's journal, the run is not
    in this storage, or MLflow is away.
    """
    target = evaluation.target
    assert target.run_id is not None
    if differing := measured_otherwise(target):
        return (
            f"{', '.join(differing)}: not as in the run, which the names of its numbers do not "
            "tell; a step size of its own is part of an attack's name (pgd20@0.003)"
        )
    config = with_overrides(target.config, {"name": target.owner})
    deadline = time.monotonic() + config.cluster.lease_s
    while True:
        try:
            with held(f"{config.storage_path}/{config.name}", config.cluster.lease_s):
                return _record(evaluation, target.run_id, config)
        except LeaseHeldError as error:
            if time.monotonic() > deadline:
                return f"{error}; the same command records it without measuring again"
            time.sleep(1.0)  # another evaluation's moment of recording passes


def measured_otherwise(target: Target) -> list[str]:
    """Settings of a run's evaluation that are not the run's own, and that no metric's name tells.

    In a ball of another radius, which a name tells, steps may have another size.
    """
    if target.recorded is None:
        return []
    now, own = (flatten(scientific(c)) for c in (target.config, target.recorded))
    radius = "evaluation.attack.eps"
    return [
        f"{key} = {now.get(key)}"
        for key in dict.fromkeys((*own, *now))
        if (key.startswith("data.") or (key in ATTACK_DETAILS and now[radius] == own[radius]))
        and now.get(key) != own.get(key)
    ]


def _record(evaluation: Evaluation, run_id: str, config: RunConfig) -> str:
    target = evaluation.target
    metrics = records.test_metrics(evaluation.result.record())
    recorder = records.open_recorder(config)
    try:
        past = recorder.past.get(run_id)
        if past is None:
            folder = f"{config.storage_path}/{config.name}"
            return f"{folder} holds no journal of {run_id}: write storage_path=… where the run is"
        images = config.evaluation.num_images or config.data.holdout
        before, now = (counted(m, images) for m in (past.metrics, past.metrics | metrics))
        recorder.finish(
            run_id,
            status=target.status,
            stop_reason=target.stop_reason,
            metrics=metrics,
            tags=warning_tags(target.warnings, evaluation.findings or ()),
            texts={f"evaluation/{evaluation.stem}.json": json.dumps(evaluation.record(), indent=2)},
            artifacts={f"evaluation/{evaluation.stem}.parquet": evaluation.files["parquet"]},
            note=renewed(past.note, before, now) if past.note else None,
        )
    finally:
        pending = recorder.close(records.DELIVERY_S)
    if recorder.rejected:
        return f"MLflow refuses it: {recorder.rejected[0].reason}"
    return f"MLflow is away; morel sync {config.name} delivers it" if pending else ""


def warning_tags(before: str, findings: Sequence[Finding]) -> dict[str, str]:
    """The tag ``morel.warnings``, a line each: what earlier evaluations found, and what is new.

    A warning that comes again, with other numbers, takes the place of the old one.
    """
    lines = [*before.splitlines(), *(f"{found.code}: {found.reason}" for found in findings)]
    kept = {re.sub(r"\d+(\.\d+)?", "#", line): line for line in lines if line}
    return {"morel.warnings": "\n".join(kept.values())} if kept else {}
