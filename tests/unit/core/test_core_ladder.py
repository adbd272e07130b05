"""The evaluation ladder: what measures which epoch, and that rungs are never compared."""

from dataclasses import replace

import pytest
import torch
from tiny_run import ATTACK, EVAL_ATTACK, tiny_run

from morel_core import PGD, ConfigError, EvaluationConfig, RungConfig, Trainer, TrainingConfig
from morel_core.ladder import Ladder
from morel_core.stopping import measurements_since_best

RUNGS = [RungConfig(num_steps=1, num_images=10), RungConfig(epoch=3)]


def evaluation(rungs=RUNGS, **settings) -> EvaluationConfig:
    return EvaluationConfig(attack=EVAL_ATTACK, batch_size=16, rungs=list(rungs), **settings)


def run(rungs=RUNGS, epochs=4, patience=None, **settings):
    training = TrainingConfig(epochs=epochs, batch_size=16, patience=patience)
    return tiny_run(training=training, evaluation=evaluation(rungs, **settings))


def test_each_epoch_has_its_rung():
    ladder = Ladder.of(evaluation())
    assert [ladder.at(epoch).number for epoch in range(1, 6)] == [1, 1, 2, 2, 2]
    assert [rung.label for rung in ladder] == ["pgd1_linf_0.05_first10", "pgd3_linf_0.05"]
    assert ladder.last.attack == PGD.from_config(EVAL_ATTACK, "ce")
    assert ladder.numbered(1).attack == replace(ladder.last.attack, num_steps=1)


def test_rungs_that_differ_have_names_of_their_own():
    rungs = [
        RungConfig(num_steps=2),
        RungConfig(epoch=2, num_steps=2, step_size=0.01),
        RungConfig(epoch=3, restarts=2),
        RungConfig(epoch=4, restarts=2, iterate="worst"),
    ]
    assert [rung.label for rung in Ladder.of(evaluation(rungs))] == [
        "pgd2_linf_0.05",
        "pgd2_step0.01_linf_0.05",
        "pgd3x2_linf_0.05",
        "pgd3x2_worst_linf_0.05",
    ]


def test_restarts_need_a_random_start():
    attack = replace(EVAL_ATTACK, init="none")
    with pytest.raises(ConfigError, match=r"rungs\[0\].restarts = 2: 1 with"):
        EvaluationConfig(attack=attack, rungs=[RungConfig(restarts=2)])


def test_without_rungs_there_is_one_with_the_attacks_own_name():
    (only,) = Ladder.of(EvaluationConfig(attack=EVAL_ATTACK, num_images=7))
    assert (only.number, only.label, only.num_images) == (0, "pgd3_linf_0.05", 7)


@pytest.mark.parametrize(
    ("rungs", "message"),
    [
        ([RungConfig(epoch=2)], r"rungs\[0\].epoch = 2: 1 for the first"),
        (
            [RungConfig(num_steps=1), RungConfig(num_steps=2)],
            r"rungs\[1\].epoch = 1: later than epoch 1",
        ),
        (
            [RungConfig(), RungConfig(epoch=2, num_images=9), RungConfig(epoch=3, num_steps=3)],
            r"rungs\[2\].epoch = 3: measures what an earlier rung does",
        ),
        ([RungConfig(step_size=0.5)], r"rungs\[0\].step_size = 0.5: must be at most"),
    ],
)
def test_ladders_that_are_none(rungs, message):
    with pytest.raises(ConfigError, match=message):
        evaluation(rungs)


@pytest.mark.parametrize("setting", [{"epoch": 0}, {"num_steps": 0}, {"num_images": 0}])
def test_rungs_that_are_none(setting):
    with pytest.raises(ConfigError, match=next(iter(setting))):
        RungConfig(**setting)


@pytest.mark.parametrize(
    ("rung", "message"),
    [
        (RungConfig(epoch=5), r"evaluation.rungs\[1\].epoch = 5: at most training.epochs = 4"),
        (
            RungConfig(epoch=2, num_images=31),
            r"evaluation.rungs\[1\].num_images = 31: at most data.holdout = 30",
        ),
    ],
)
def test_a_rung_must_fit_the_run(rung, message):
    with pytest.raises(ConfigError, match=message):
        run([RungConfig(num_steps=1), rung])


def test_a_run_is_measured_as_its_rungs_say(tmp_path):
    """The numbers are those of runs without rungs that use each rung's settings throughout."""
    config = run()
    trainer = Trainer(config)
    history = trainer.fit()
    assert [(m["rung"], m["num_images"]) for m in history] == [(1, 10), (1, 10), (2, 30), (2, 30)]
    cheap = replace(EVAL_ATTACK, num_steps=1)
    for attack, limit, epochs in ((cheap, 10, (0, 1)), (EVAL_ATTACK, None, (2, 3))):
        alone = EvaluationConfig(attack=attack, batch_size=16, num_images=limit)
        plain = Trainer(replace(config, evaluation=alone)).fit()
        assert not any("rung" in m or "num_images" in m for m in plain)
        for epoch in epochs:
            for key in ("clean_accuracy", "robust_accuracy", "robust_accuracy_low"):
                assert history[epoch][key] == plain[epoch][key]
    trainer.save(tmp_path)
    resumed = Trainer(config)
    resumed.load(tmp_path)
    assert resumed.best == trainer.best


@pytest.mark.parametrize("waits", ["patience", "overfitting_guard"])
def test_nothing_that_needs_the_numbers_at_once_goes_with_asynchronous(waits):
    training = {"patience": 2} if waits == "patience" else {"overfitting_guard": True}
    with pytest.raises(
        ConfigError, match=rf"evaluation.asynchronous = True: false with training.{waits}"
    ):
        tiny_run(
            attack=replace(ATTACK, num_steps=1),
            training=TrainingConfig(epochs=4, batch_size=16, **training),
            evaluation=evaluation(asynchronous=True),
        )


def scripted(trainer, monkeypatch, robust):
    """Let the robust accuracies come out as given."""
    values, measure = iter(robust), trainer._evaluate

    def scripted_evaluate(*arguments):
        result = measure(*arguments)
        n = result["robust"].num_images
        object.__setattr__(result["robust"], "correct", torch.arange(n) < n * next(values))
        return result

    monkeypatch.setattr(trainer, "_evaluate", scripted_evaluate)


def test_the_best_of_an_earlier_rung_does_not_outlive_it(monkeypatch):
    trainer = Trainer(run())
    scripted(trainer, monkeypatch, [0.5, 0.9, 0.3, 0.2])
    history = trainer.fit()
    assert [(m["best_rung"], m["best_epoch"]) for m in history] == [(1, 1), (1, 2), (2, 3), (2, 3)]
    assert trainer.best["robust_accuracy"] == 0.3


def test_patience_counts_within_a_rung(monkeypatch):
    trainer = Trainer(run([RungConfig(num_steps=1), RungConfig(epoch=4)], epochs=8, patience=2))
    scripted(trainer, monkeypatch, [0.5, 0.9, 0.8, 0.3, 0.2, 0.2])
    assert [m["stopped_early"] for m in trainer.fit()] == [0.0] * 5 + [1.0]


def test_measurements_since_best_of_the_newest_rung():
    rungs = [(1, 0.9), (1, 0.8), (2, 0.3), (2, 0.2)]
    history = [{"rung": rung, "robust_accuracy": robust} for rung, robust in rungs]
    assert [measurements_since_best(history[:n]) for n in range(5)] == [0, 0, 1, 0, 1]
