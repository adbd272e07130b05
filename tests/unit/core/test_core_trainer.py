"""The epoch loop: what it reports, what it keeps as best, and how it goes on after a stop."""

import math
from dataclasses import replace

import pytest
import torch
from tiny_run import EVAL_ATTACK, tiny_run

from morel_core import (
    AttackConfig,
    ConfigError,
    EvaluationConfig,
    MorelError,
    ObjectiveConfig,
    OptimizerConfig,
    Trainer,
    TrainingConfig,
)
from morel_core.data import load_data
from morel_core.models import DigitsCnnConfig
from morel_core.statistics import wilson_interval

LOSSES = ("total", "accuracy", "robustness", "alignment", "contrastive", "natural_ce", "kl")
ALWAYS = {
    "epoch", "num_epochs", "lr", "diverged", "seconds", "images_per_second",
    *(f"loss.{name}" for name in LOSSES),
    *(f"gradient_share.{name}" for name in ("alignment", "contrastive", "natural_ce", "kl")),
}  # fmt: skip
MEASURED = {
    "seconds_evaluation",
    *(f"{kind}_accuracy{end}" for kind in ("clean", "robust") for end in ("", "_low", "_high")),
}
BEST = {"best_epoch"} | {f"best_{key}" for key in MEASURED - {"seconds_evaluation"}}


def lasting(metrics):
    """Without what depends on the machine's speed."""
    return {k: v for k, v in metrics.items() if "seconds" not in k and "per_second" not in k}


@pytest.fixture(scope="module")
def finished():
    trainer = Trainer(tiny_run(training=TrainingConfig(epochs=3, batch_size=16)))
    seen = []
    trainer.fit(seen.append)
    return trainer, seen


def test_metrics_are_plain_numbers_under_the_agreed_names(finished):
    trainer, seen = finished
    assert seen == trainer.history
    assert [metrics["epoch"] for metrics in seen] == [1, 2, 3]
    for metrics in seen:
        assert metrics.keys() == ALWAYS | MEASURED | BEST
        assert {type(value) for value in metrics.values()} <= {int, float}
        assert all(math.isfinite(value) for value in metrics.values())
        assert metrics["num_epochs"] == 3
        assert metrics["diverged"] == 0.0
        assert metrics["lr"] == 0.05


def test_gradient_shares_are_shares(finished):
    for metrics in finished[1]:
        shares = [v for k, v in metrics.items() if k.startswith("gradient_share.")]
        assert all(0.0 <= share <= 1.0 for share in shares)
        assert sum(shares) == pytest.approx(1.0, abs=1e-5)


def test_losses_add_up(finished):
    trainer, seen = finished
    config = trainer.config.objective
    (k1, k2), gamma = config.preference, config.gamma
    for metrics in seen:
        loss = {name: metrics[f"loss.{name}"] for name in LOSSES}
        assert loss["accuracy"] == pytest.approx(loss["natural_ce"] + loss["kl"], rel=1e-5)
        robustness = loss["alignment"] + config.alpha * loss["contrastive"]
        assert loss["robustness"] == pytest.approx(robustness, rel=1e-5)
        total = (k1 + gamma) * loss["robustness"] + (k2 + gamma) * loss["accuracy"]
        assert loss["total"] == pytest.approx(total, rel=1e-5)


def test_accuracies_are_of_the_held_out_images_with_their_interval(finished):
    for metrics in finished[1]:
        assert metrics["robust_accuracy"] <= metrics["clean_accuracy"]
        for kind in ("clean", "robust"):
            successes = round(30 * metrics[f"{kind}_accuracy"])
            assert metrics[f"{kind}_accuracy"] == pytest.approx(successes / 30)
            ends = (metrics[f"{kind}_accuracy_low"], metrics[f"{kind}_accuracy_high"])
            assert ends == pytest.approx(wilson_interval(successes, 30))


def test_learning_happens(finished):
    first, last = finished[1][0], finished[1][-1]
    assert last["loss.total"] < first["loss.total"]
    assert last["clean_accuracy"] > 0.8  # chance: a third


def test_best_is_the_first_epoch_with_the_highest_robust_accuracy(finished):
    best = None
    for metrics in finished[1]:
        if best is None or metrics["robust_accuracy"] > best["robust_accuracy"]:
            best = metrics
        assert metrics["best_epoch"] == best["epoch"]
        assert metrics["best_robust_accuracy"] == best["robust_accuracy"]
        assert metrics["best_clean_accuracy"] == best["clean_accuracy"]


def scripted(trainer, monkeypatch, accuracies):
    """Let the measurements of ``trainer`` come out as ``accuracies``."""
    results = iter(accuracies)
    evaluate = trainer._evaluate

    def scripted_evaluate(*arguments):
        result = evaluate(*arguments)
        robust = result["robust"]
        object.__setattr__(robust, "correct", torch.arange(30) < round(30 * next(results)))
        return result

    monkeypatch.setattr(trainer, "_evaluate", scripted_evaluate)


def test_the_best_state_is_that_of_the_best_epoch(monkeypatch):
    trainer = Trainer(tiny_run(training=TrainingConfig(epochs=4, batch_size=16)))
    scripted(trainer, monkeypatch, [0.3, 0.6, 0.6, 0.5])
    states = []
    for metrics in trainer.epochs():
        states.append({k: v.clone() for k, v in trainer.net.state_dict().items()})
        assert metrics["best_robust_accuracy"] == max(m["robust_accuracy"] for m in trainer.history)
    assert trainer.best["epoch"] == 2  # a tie goes to the earlier one
    trainer.load_best()
    best = trainer.net.state_dict()
    assert all(torch.equal(best[name], states[1][name]) for name in best)
    assert any(not torch.equal(best[name], states[3][name]) for name in best)


def test_evaluation_every_and_after_the_last(monkeypatch):
    trainer = Trainer(
        tiny_run(
            training=TrainingConfig(epochs=5, batch_size=16),
            evaluation=EvaluationConfig(attack=EVAL_ATTACK, every=2),
        )
    )
    history = trainer.fit()
    assert [m["epoch"] for m in history if "robust_accuracy" in m] == [2, 4, 5]
    assert [m["epoch"] for m in history if "best_epoch" in m] == [2, 3, 4, 5]
    assert history[2]["best_epoch"] == history[1]["epoch"]


def test_num_images_takes_the_first_of_the_holdout_only():
    config = tiny_run(evaluation=EvaluationConfig(attack=EVAL_ATTACK, num_images=7, batch_size=16))
    trainer = Trainer(config)
    assert trainer.evaluate("holdout", {})["clean"].num_images == 7
    assert trainer.evaluate("test", {})["clean"].num_images == 20
    assert trainer.evaluate("test", {}).split == "test"


def test_the_test_set_is_not_read_while_training(monkeypatch):
    data = load_data(tiny_run().data)

    class Forbidden:
        def __len__(self):
            raise AssertionError("the test set was read")

        fetch = labels = property(__len__)

    trainer = Trainer(tiny_run(), data=replace(data, test=Forbidden()))
    trainer.fit()
    assert trainer.best is not None


def test_the_same_seed_gives_the_same_run_and_another_seed_another(finished):
    config = tiny_run(training=TrainingConfig(epochs=3, batch_size=16))
    torch.manual_seed(99)  # whatever ran before
    again = Trainer(config)
    again.run_epoch()
    assert lasting(again.history[0]) == lasting(finished[1][0])
    other = Trainer(replace(config, seed=1))
    assert other.run_epoch()["loss.total"] != again.history[0]["loss.total"]


def test_a_resumed_run_equals_the_uninterrupted_one(finished, tmp_path):
    trainer, seen = finished
    config = trainer.config
    first = Trainer(config)
    first.run_epoch()
    first.save(tmp_path)

    torch.manual_seed(5)
    second = Trainer(config)
    second.load(tmp_path)
    assert (second.epoch, second.history, second.best) == (1, first.history, first.best)
    second.fit()
    assert [lasting(m) for m in second.history] == [lasting(m) for m in seen]
    for ours, theirs in ((second.net.state_dict(), trainer.net.state_dict()),
                         (second.best_state, trainer.best_state)):  # fmt: skip
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_with_dropout_too(tmp_path, monkeypatch):
    config = tiny_run(
        model=DigitsCnnConfig(width=4, embed_dim=8, dropout=0.5),
        objective=ObjectiveConfig(alpha=1.0, features="both"),
    )
    whole = Trainer(config)
    seeds, step = set(), whole.step
    monkeypatch.setattr(whole, "step", lambda *a: (seeds.add(torch.initial_seed()), step(*a))[1])
    whole.fit()
    assert len(seeds) == 2, "each epoch has masks of its own"
    first = Trainer(config)
    first.run_epoch()
    first.save(tmp_path)
    second = Trainer(config)
    second.load(tmp_path)
    assert lasting(second.run_epoch()) == lasting(whole.history[1])


def test_an_interrupted_epoch_does_not_count_as_trained(monkeypatch, tmp_path):
    """Whose steps would otherwise be left out in silence, as a user of a notebook may."""
    trainer = Trainer(tiny_run(training=TrainingConfig(epochs=2, batch_size=16)))
    trainer.run_epoch()
    trainer.save(tmp_path / "whole")
    step, steps = trainer.step, iter(range(9))

    def interrupted(*given):
        if next(steps) == 1:
            raise KeyboardInterrupt
        return step(*given)

    monkeypatch.setattr(trainer, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    monkeypatch.undo()
    trainer.save(tmp_path / "torn")
    torn = Trainer(trainer.config)
    torn.load(tmp_path / "torn")
    for go_on in (trainer.fit, trainer.run_epoch, torn.fit):
        with pytest.raises(MorelError, match=r"epoch 2 was interrupted.* load the last checkpoint"):
            go_on()
    trainer.load(tmp_path / "whole")
    assert [metrics["epoch"] for metrics in trainer.fit()] == [1, 2]


def test_an_unmeasured_run_can_be_saved_and_resumed(tmp_path):
    config = tiny_run(
        training=TrainingConfig(epochs=3, batch_size=16),
        evaluation=EvaluationConfig(attack=EVAL_ATTACK, every=3),
    )
    first = Trainer(config)
    first.run_epoch()
    first.save(tmp_path)
    second = Trainer(config)
    second.load(tmp_path)
    assert second.best is None
    second.fit()
    assert second.best["epoch"] == 3


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_diverging_run_is_flagged_and_stops_with_the_best_state_finite(name, monkeypatch):
    config = tiny_run(
        training=TrainingConfig(epochs=6, batch_size=16),
        optimizer=OptimizerConfig(
            name=name, lr=0.01, schedule="piecewise", milestones=[2], factors=[1e11]
        ),
    )
    trainer = Trainer(config)
    history = trainer.fit()
    assert trainer.diverged
    assert trainer.done
    assert [m["diverged"] for m in history[:2]] == [0.0, 0.0]
    assert history[-1]["diverged"] == 1.0
    assert len(history) < 6
    assert "robust_accuracy" not in history[-1]  # a broken network has no accuracy …
    assert history[-1]["best_epoch"] <= len(history) - 1  # … but the best one before has
    assert all(value.isfinite().all() for value in trainer.best_state.values())
    trainer.load_best()
    accuracy = trainer.evaluate("holdout", {})["clean"].accuracy
    assert accuracy == history[-1]["best_clean_accuracy"]


def test_divergence_in_the_first_epoch_leaves_no_best_and_survives_a_checkpoint(tmp_path):
    config = tiny_run(optimizer=OptimizerConfig(lr=1e9), training=TrainingConfig(batch_size=8))
    trainer = Trainer(config)
    history = trainer.fit()
    assert history[-1]["diverged"] == 1.0
    assert trainer.best is None
    assert not any(key.startswith("best_") for key in history[-1])
    assert all(value.isfinite().all() for value in trainer.best_state.values())
    trainer.save(tmp_path)
    again = Trainer(config)
    again.load(tmp_path)
    assert again.done
    assert list(again.epochs()) == []


def test_no_epoch_after_the_last(finished):
    with pytest.raises(MorelError, match="all 3 epochs are trained"):
        finished[0].run_epoch()


def test_a_batch_larger_than_the_data():
    with pytest.raises(ConfigError) as caught:
        Trainer(tiny_run(training=TrainingConfig(batch_size=49)))
    assert str(caught.value) == (
        "training.batch_size = 49: at most 48, the number of training images"
    )


@pytest.mark.parametrize(
    ("objective", "loss"), [("trades", "kl"), ("mart", "ce"), ("at", "ce"), ("loat", "ce")]
)
def test_the_training_attack_follows_the_objective_and_the_measuring_one_does_not(objective, loss):
    trainer = Trainer(tiny_run(objective=ObjectiveConfig(accuracy=objective)))
    assert trainer.attack.loss == loss
    assert trainer.eval_attack.loss == "ce"
    assert trainer.eval_attack.name == "pgd3_linf_0.05"
    assert "loss.accuracy" in trainer.run_epoch()


def test_a_users_own_objective():
    calls = []

    def margin(outputs, config):
        calls.append((outputs.epoch, outputs.num_epochs, len(outputs.y)))
        rows = torch.arange(len(outputs.y))
        right = outputs.logits_adv[rows, outputs.y]
        return {"margin": outputs.shard.mean(torch.relu(config.beta - right))}

    config = tiny_run(
        objective=ObjectiveConfig(accuracy="custom"),
        attack=AttackConfig(eps=0.05, step_size=0.02, num_steps=2, loss="ce"),
    )
    trainer = Trainer(config, accuracy=margin)
    metrics = trainer.fit()[-1]
    assert calls == [(epoch, 2, 16) for epoch in (1, 1, 1, 2, 2, 2)]
    assert metrics["loss.margin"] == metrics["loss.accuracy"]
    assert "gradient_share.margin" in metrics
    assert "loss.kl" not in metrics


def test_a_callable_goes_with_custom_alone():
    with pytest.raises(ValueError, match="custom"):
        Trainer(tiny_run(), accuracy=lambda outputs, config: {})
    custom = tiny_run(
        objective=ObjectiveConfig(accuracy="custom"),
        attack=AttackConfig(eps=0.05, step_size=0.02, loss="ce"),
    )
    with pytest.raises(ValueError, match="custom"):
        Trainer(custom)


def test_without_morel_the_embedding_space_is_not_trained():
    trainer = Trainer(tiny_run(objective=ObjectiveConfig(accuracy="at", morel=False)))
    before = [parameter.clone() for parameter in trainer.net.embedder_parameters()]
    head = trainer.net.head.weight.clone()
    metrics = trainer.fit()[-1]
    after = list(trainer.net.embedder_parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert not any(parameter.requires_grad for parameter in after)
    assert not torch.equal(head, trainer.net.head.weight)
    assert metrics["loss.alignment"] == metrics["loss.contrastive"] == 0.0
    assert metrics["loss.total"] == metrics["loss.accuracy"]
    assert metrics["gradient_share.adversarial_ce"] == pytest.approx(1.0)


def test_with_morel_it_is():
    trainer = Trainer(tiny_run())
    before = [parameter.clone() for parameter in trainer.net.embedder_parameters()]
    trainer.run_epoch()
    after = trainer.net.embedder_parameters()
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_net_of_ones_own_is_trained_in_place():
    net = Trainer(tiny_run()).net
    net.eval()
    weight = net.head.weight.clone()
    Trainer(tiny_run(), net=net).run_epoch()
    assert not torch.equal(weight, net.head.weight)


def test_the_learning_rate_follows_the_schedule_step_by_step():
    config = tiny_run(optimizer=OptimizerConfig(lr=0.08, schedule="cosine"))
    lrs = [metrics["lr"] for metrics in Trainer(config).fit()]  # of each epoch's last of 3 steps
    expected = [0.04 * (1 + math.cos(math.pi * done / 2)) for done in (2 / 3, 5 / 3)]
    assert lrs == pytest.approx(expected)


def test_images_per_second_counts_what_was_trained_on(finished):
    for metrics in finished[1]:
        assert metrics["images_per_second"] * metrics["seconds"] == pytest.approx(48)
