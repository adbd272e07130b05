"""Held-out evaluation beside training: the same numbers, later; a failure costs one of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dying
import pytest
import recorded

from morel_core import Trainer
from orchestrator.config import RunConfig, compose
from orchestrator.tracking import records
from orchestrator.train import train
from orchestrator.training import asynchronous
from orchestrator.training.result import TrainResult

ATTACK = "pgd3_linf_0.1"


def config(storage: Path, *overrides: str) -> RunConfig:
    return compose(
        "digits",
        [
            f"storage_path={storage}",
            "training.epochs=3",
            "data.holdout=60",
            "data.train_size=320",
            "data.test_size=60",
            "model.width=4",
            "attack.num_steps=2",
            "evaluation.attack.num_steps=3",
            "evaluation.rungs=[{epoch: 1, num_images: 40}, {epoch: 2}]",
            "training.ema_decay=0.9",
            *overrides,
        ],
    )


def history(storage: Path, run_id: str, metric: str) -> list[tuple[int, float]]:
    run = recorded.one(storage, run_id)
    points = recorded.client(storage).get_metric_history(run.info.run_id, metric)
    return sorted((point.step, point.value) for point in points)


@pytest.fixture(scope="module")
def waited(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """The run that measures each epoch before the next."""
    trainer = Trainer(config(tmp_path_factory.mktemp("inline")))
    trainer.fit()
    return trainer


@pytest.fixture(scope="module")
def beside(local_ray: Any, shared_storage: Path) -> TrainResult:
    """The same, measured beside training."""
    return train(config(shared_storage, "name=beside", "evaluation.asynchronous=true"))


def test_the_numbers_of_each_epoch_are_the_same(
    waited: Trainer, beside: TrainResult, shared_storage: Path
) -> None:
    for epoch, metrics in enumerate(waited.history, start=1):
        attack = records.measured_with(config(shared_storage), metrics)
        expected = records.epoch_metrics(metrics, attack)
        measured = [key for key in expected if key.startswith("holdout.")]
        assert len(measured) == 7  # two accuracies with their intervals, and the images
        for key in (*measured, "loss.total"):
            assert (epoch, expected[key]) in history(shared_storage, "beside", key), key
    assert [step for step, _ in history(shared_storage, "beside", "holdout.clean")] == [1, 2, 3]


def test_the_same_epoch_is_best_and_meets_the_test_set(
    waited: Trainer, beside: TrainResult, shared_storage: Path
) -> None:
    assert waited.best is not None
    assert beside.metrics["best.epoch"] == waited.best["epoch"]
    key = f"best.holdout.robust.{ATTACK}"
    assert beside.metrics[key] == waited.best["robust_accuracy"]
    waited.load_best()
    final = waited.evaluate("test", {ATTACK: waited.eval_attack})
    assert beside.metrics[f"test.robust.{ATTACK}"] == final[ATTACK].accuracy
    assert beside.metrics["test.clean"] == final["clean"].accuracy
    assert beside.not_measured == ""
    tags = recorded.one(shared_storage, "beside").data.tags
    assert tags["morel.stop_reason"] == "all 3 epochs trained"


def test_a_validation_that_fails_costs_its_number_alone(
    local_ray: Any, shared_storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asynchronous, "measure_checkpoint", dying.measure_checkpoint)
    lines: list[Any] = []
    result = train(
        config(shared_storage, "name=dying", "evaluation.asynchronous=true"),
        on_epoch=lines.append,
    )
    assert result.epochs == 3
    assert [step for step, _ in history(shared_storage, "dying", "holdout.clean")] == [3]
    assert result.metrics["best.epoch"] == 3
    first, second = result.not_measured.split("; ", 1)
    assert first == "epoch 1: RuntimeError: no such attack"
    assert second.startswith("epoch 2: ")
    tags = recorded.one(shared_storage, "dying").data.tags
    assert tags["morel.not_measured"] == result.not_measured
    assert [line["epoch"] for line in lines if "not_measured" in line] == [1, 2]
