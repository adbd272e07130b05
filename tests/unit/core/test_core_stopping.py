"""Early stopping and the guard against catastrophic overfitting, on scripted measurements."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tiny_run import ATTACK, EVAL_ATTACK, tiny_run

from morel_core import PGD, ConfigError, EvaluationConfig, Trainer, TrainingConfig
from morel_core.statistics import wilson_interval
from morel_core.stopping import guard_attack, guard_metrics, measurements_since_best

SINGLE = replace(ATTACK, num_steps=1)
GUARDED = TrainingConfig(epochs=6, batch_size=16, overfitting_guard=True)


def scripted(trainer, monkeypatch, **accuracies):
    """Let the outcomes named come out as given, one number for each evaluation that has them."""
    results = {name: iter(values) for name, values in accuracies.items()}
    evaluate = trainer._evaluate

    def scripted_evaluate(*arguments):
        result = evaluate(*arguments)
        for name in results.keys() & result.keys():
            correct = torch.arange(30) < round(30 * next(results[name]))
            object.__setattr__(result[name], "correct", correct)
        return result

    monkeypatch.setattr(trainer, "_evaluate", scripted_evaluate)


@pytest.mark.parametrize(
    ("robust", "expected"),
    [([], 0), ([0.1], 0), ([0.1, 0.2], 0), ([0.2, 0.2], 1), ([0.3, None, 0.1, 0.3], 2)],
)
def test_measurements_since_best(robust, expected):
    history = [{} if r is None else {"robust_accuracy": r} for r in robust]
    assert measurements_since_best(history) == expected


def test_patience_counts_measurements(monkeypatch):
    trainer = Trainer(
        tiny_run(
            training=TrainingConfig(epochs=12, batch_size=16, patience=2),
            evaluation=EvaluationConfig(attack=EVAL_ATTACK, batch_size=16, every=2),
        )
    )
    scripted(trainer, monkeypatch, robust=[0.3, 0.2, 0.5, 0.5, 0.4])
    history = trainer.fit()
    assert [m["stopped_early"] for m in history] == [0.0] * 9 + [1.0]
    assert trainer.stopped_early
    assert trainer.done
    assert trainer.best["epoch"] == 6


def test_a_run_that_reaches_its_end_did_not_stop_early(monkeypatch):
    trainer = Trainer(tiny_run(training=TrainingConfig(epochs=2, batch_size=16, patience=1)))
    scripted(trainer, monkeypatch, robust=[0.5, 0.4])
    assert [m["stopped_early"] for m in trainer.fit()] == [0.0, 0.0]


def test_patience_survives_a_checkpoint(monkeypatch, tmp_path):
    config = tiny_run(training=TrainingConfig(epochs=9, batch_size=16, patience=3))
    first = Trainer(config)
    scripted(first, monkeypatch, robust=[0.5, 0.4])
    first.run_epoch()
    first.run_epoch()
    first.save(tmp_path)
    second = Trainer(config)
    second.load(tmp_path)
    scripted(second, monkeypatch, robust=[0.4, 0.4])
    assert len(second.fit()) == 4
    second.save(tmp_path / "stopped")
    third = Trainer(config)
    third.load(tmp_path / "stopped")
    assert third.done


def outcomes(multi, single, n=256):
    def outcome(accuracy):
        return SimpleNamespace(accuracy=accuracy, interval=wilson_interval(round(accuracy * n), n))

    return {"multi_step": outcome(multi), "single_step": outcome(single)}


@pytest.mark.parametrize(
    ("multi", "single", "fires"),
    [
        (0.0, 0.9, 1.0),
        (0.0, 0.5, 1.0),
        (0.0, 0.49, 0.0),  # the whole network got worse, also against its own attack
        (0.25, 0.9, 0.0),  # upper end 0.31 of the interval is over half of 0.4
        (0.18, 0.9, 0.0),  # below half itself, but its upper end 0.23 is not
        (0.12, 0.9, 1.0),  # upper end 0.17
        (0.5, 0.9, 0.0),
    ],
)
def test_the_guard_by_hand(multi, single, fires):
    history = [
        dict(guard_metrics(outcomes(m, s), []), epoch=1) for m, s in ((0.1, 0.9), (0.4, 0.5))
    ]
    assert all(m["catastrophic_overfitting"] == 0.0 for m in history)
    metrics = guard_metrics(outcomes(multi, single), [*history, {"epoch": 3}])
    assert metrics["catastrophic_overfitting"] == fires
    assert metrics["guard_multi_step_accuracy"] == multi
    assert metrics["guard_single_step_accuracy"] == single


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_guard_attacks_in_the_same_ball(norm):
    attack = guard_attack(PGD(eps=0.05, step_size=0.06, num_steps=1, norm=norm, loss="kl"))
    assert (attack.eps, attack.norm, attack.num_steps, attack.loss) == (0.05, norm, 10, "ce")
    assert (attack.step_size, attack.init) == (0.0125, "uniform")


def test_the_guard_watches_the_trained_network_not_its_average(monkeypatch):
    trainer = Trainer(tiny_run(attack=SINGLE, training=replace(GUARDED, epochs=1, ema_decay=0.9)))
    watched, evaluate = {}, trainer._evaluate

    def note(net, split, attacks, limit):
        watched[tuple(attacks)] = net
        return evaluate(net, split, attacks, limit)

    monkeypatch.setattr(trainer, "_evaluate", note)
    trainer.run_epoch()
    assert watched["multi_step", "single_step"] is trainer.net
    assert watched["robust",] is trainer.average.net


def test_a_run_stops_where_the_guard_fires_and_is_measured_there(monkeypatch):
    config = tiny_run(
        attack=SINGLE,
        training=GUARDED,
        evaluation=EvaluationConfig(attack=EVAL_ATTACK, batch_size=16, every=6),
    )
    trainer = Trainer(config)
    scripted(trainer, monkeypatch, multi_step=[0.8, 0.9, 0.0], single_step=[0.8, 0.9, 1.0])
    history = trainer.fit()
    assert [m["catastrophic_overfitting"] for m in history] == [0.0, 0.0, 1.0]
    assert ["robust_accuracy" in m for m in history] == [False, False, True]
    assert trainer.done


def test_a_guarded_run_resumes_exactly(tmp_path):
    config = tiny_run(attack=SINGLE, training=replace(GUARDED, epochs=3))
    whole = Trainer(config)
    whole.fit()
    assert "guard_multi_step_accuracy" in whole.history[0]
    first = Trainer(config)
    first.run_epoch()
    first.save(tmp_path)
    second = Trainer(config)
    second.load(tmp_path)
    second.fit()
    for mine, theirs in zip(second.history, whole.history, strict=True):
        kept = [k for k in theirs if "seconds" not in k and "per_second" not in k]
        assert [mine[k] for k in kept] == [theirs[k] for k in kept]


def test_refusals():
    with pytest.raises(ConfigError, match="patience = 0: null"):
        TrainingConfig(patience=0)
    with pytest.raises(ConfigError, match=r"only with attack\.num_steps = 1, not 2"):
        tiny_run(training=GUARDED)
