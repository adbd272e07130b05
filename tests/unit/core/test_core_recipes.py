"""Whole runs with the options that change what is trained on: they train, resume and refuse."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_run import tiny_run

from morel_core import (
    AttackConfig,
    AwpConfig,
    ConfigError,
    EvaluationConfig,
    ObjectiveConfig,
    OptimizerConfig,
    Trainer,
    TrainingConfig,
)
from morel_core.attacks.ball import outside
from morel_core.models import DigitsCnnConfig

OBJECTIVES = [
    ObjectiveConfig(accuracy=accuracy, morel=morel, alpha=0.1)
    for accuracy in ("trades", "mart", "loat", "at")
    for morel in (True, False)
]
L2 = AttackConfig(norm="l2", eps=0.5, step_size=0.2, num_steps=2)
CHEAP = AttackConfig(eps=0.05, step_size=0.05, num_steps=1, loss="ce")


def lasting(metrics):
    return {k: v for k, v in metrics.items() if "seconds" not in k and "per_second" not in k}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_l2_training(objective):
    trainer = Trainer(tiny_run(objective=objective, attack=L2))
    batch = next(iter(trainer.batches.epoch(1)))
    noise = torch.randn(batch.x.shape, generator=torch.Generator().manual_seed(0))
    x_adv = trainer.attack(trainer.net, batch.x, batch.y, noise=noise)
    lengths = (x_adv - batch.x).flatten(1).norm(dim=1)
    assert outside(x_adv, batch.x, 0.5, "l2") == 0
    # Plain noise has length 0.008; two steps of 0.2 cannot stay that short unless they go back.
    assert (lengths > 0.1).all()
    history = trainer.fit()
    assert [m["diverged"] for m in history] == [0.0, 0.0]
    assert history[1]["loss.total"] < history[0]["loss.total"]


def write_extra(folder):
    path = folder / "extra.npz"
    draws = np.random.default_rng(0)
    images = draws.integers(0, 256, (11, 8, 8, 1), dtype=np.uint8)
    np.savez(path, image=images, label=draws.integers(0, 3, 11))
    return str(path)


@pytest.fixture
def extra(tmp_path):
    return write_extra(tmp_path)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("cutmix", [0.0, 0.5])
def test_mixed_data_trains_and_resumes_exactly(objective, cutmix, extra, tmp_path):
    if cutmix and (objective.morel or objective.accuracy in ("mart", "loat")):
        return  # refused: below
    base = tiny_run(objective=objective)
    data = replace(
        base.data, extra=extra, extra_ratio=0.5, erasing=0.5, cutmix=cutmix, augmentation="crop"
    )
    config = replace(base, data=data)
    whole = Trainer(config)
    whole.fit()
    first = Trainer(config)
    first.run_epoch()
    first.save(tmp_path / "saved")
    second = Trainer(config)
    second.load(tmp_path / "saved")
    second.fit()
    assert [lasting(m) for m in second.history] == [lasting(m) for m in whole.history]
    assert whole.history[0]["diverged"] == 0.0
    plain = Trainer(base).run_epoch()
    assert plain["loss.total"] != whole.history[0]["loss.total"]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_options_combine_with_every_objective(objective, extra):
    """All at once: averaging, AWP, smoothing, clipping, schedule, decay groups, mixed data, one
    guarded step, bf16; what an objective refuses is left out."""
    soft = objective.accuracy in ("trades", "at")
    base = tiny_run()
    data = replace(base.data, augmentation="idbh", erasing=0.5, extra=extra, extra_ratio=0.5)
    config = tiny_run(
        objective=replace(
            objective,
            label_smoothing=0.1 if soft else 0.0,
            scalarisation="smooth_chebyshev" if objective.morel else "weighted_sum",
        ),
        data=replace(data, cutmix=0.5 if soft and not objective.morel else 0.0),
        attack=AttackConfig(eps=0.05, step_size=0.05, num_steps=1, init="uniform"),
        optimizer=OptimizerConfig(
            lr=0.05, schedule="one_cycle", no_decay_on_norm_and_bias=True, clip_norm=1.0
        ),
        training=TrainingConfig(
            epochs=1,
            batch_size=16,
            precision="bf16",
            channels_last=True,
            ema_decay=0.9,
            awp=AwpConfig(gamma=0.01),
            patience=3,
            overfitting_guard=True,
            published_batchnorm=True,
        ),
    )
    [metrics] = Trainer(config).fit()
    assert metrics["diverged"] == 0.0
    assert {"guard_multi_step_accuracy", "stopped_early", "robust_accuracy"} <= metrics.keys()


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (ObjectiveConfig(accuracy="mart", morel=False), "objective.accuracy: mart, which needs"),
        (ObjectiveConfig(accuracy="loat", morel=False), "objective.accuracy: loat, which needs"),
        (ObjectiveConfig(accuracy="at"), "objective.morel: true, whose attention"),
    ],
)
def test_cutmix_is_refused_where_a_hard_label_is_needed(objective, message):
    base = tiny_run()
    with pytest.raises(ConfigError) as caught:
        tiny_run(objective=objective, data=replace(base.data, cutmix=0.5))
    assert str(caught.value).startswith(f"data.cutmix = 0.5: 0 with {message}")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cutmix": 1.5}, "cutmix = 1.5: a probability"),
        ({"erasing": -0.1}, "erasing = -0.1: a probability"),
        ({"extra_ratio": 0.0}, "extra_ratio = 0.0: a share"),
        ({"extra_ratio": 1.0}, "extra_ratio = 1.0: a share"),
        ({"extra_ratio": 0.5}, "extra_ratio = 0.5: only with extra"),
    ],
)
def test_refusals(settings, message):
    with pytest.raises(ConfigError) as caught:
        replace(tiny_run().data, **settings)
    assert str(caught.value).startswith(message)


AT = ObjectiveConfig(accuracy="at", alpha=0.1)
LOAT = ObjectiveConfig(accuracy="loat", loat_lore=True)
CROP = {"augmentation": "crop"}
EXTRA = {"extra": "here", "extra_ratio": 0.5}
SGD = OptimizerConfig(lr=0.05)
CHEBYSHEV = replace(AT, scalarisation="smooth_chebyshev")
ALONE = {
    "data.augmentation": ({"data": CROP}, {"data": {"augmentation": "crop_flip"}}),
    "data.crop_padding": ({"data": CROP}, {"data": {**CROP, "crop_padding": 1}}),
    "data.erasing": ({}, {"data": {"erasing": 0.5}}),
    "data.extra": ({}, {"data": EXTRA}),
    "data.extra_ratio": ({"data": EXTRA}, {"data": {**EXTRA, "extra_ratio": 0.25}}),
    "data.cutmix": (
        {"objective": replace(AT, morel=False)},
        {"objective": replace(AT, morel=False), "data": {"cutmix": 1.0}},
    ),
    **{
        f"objective.{key}": ({"objective": base}, {"objective": replace(base, **{key: value})})
        for base, settings in (
            (
                AT,
                {
                    "preference": (0.5, 0.5), "gamma": 0.5, "scalarisation": "chebyshev",
                    "alignment": False, "alpha": 0.5, "temperature": 1.0, "label_smoothing": 0.1,
                    "features": "both", "morel": False, "accuracy": "mart",
                },
            ),
            (CHEBYSHEV, {"mu": 1.0, "reference": (0.5, 0.0)}),
            (ObjectiveConfig(alpha=0.1), {"beta": 1.0}),
            (
                LOAT,
                {
                    "loat_base": "trades", "loat_measure": "kl", "loat_theta": 0.1,
                    "loat_lore": False, "loat_gamma": 1.0, "loat_early_epochs": 0,
                },
            ),
        )
        for key, value in settings.items()
    },
    **{
        f"attack.{key}": ({"attack": base}, {"attack": replace(base, **{key: value})})
        for base in (AttackConfig(eps=0.05, step_size=0.02, num_steps=2),)
        for key, value in {
            "norm": "l2", "eps": 0.03, "step_size": 0.01, "num_steps": 3, "init": "uniform",
            "init_scale": 0.01, "loss": "ce",
        }.items()
    },
    **{
        f"optimizer.{key}": ({"optimizer": SGD}, {"optimizer": replace(SGD, **{key: value})})
        for key, value in {
            "name": "adamw", "lr": 0.01, "momentum": 0.5, "nesterov": True, "weight_decay": 0.1,
            "no_decay_on_norm_and_bias": True, "schedule": "cosine", "warmup_epochs": 1,
            "clip_norm": 0.01,
        }.items()
    },
    **{
        f"training.{key}": ({}, {"training": {key: value}})
        for key, value in {
            "batch_size": 8, "precision": "bf16", "published_batchnorm": True, "micro_batches": 2,
            "ema_decay": 0.5, "awp": AwpConfig(gamma=0.05),
        }.items()
    },
    "model.dropout": ({}, {"model": {"dropout": 0.5}}),
    "model.attention": ({}, {"model": {"attention": False}}),
}  # fmt: skip


@pytest.fixture(scope="module")
def network_of(tmp_path_factory):
    """The network after two steps with some settings, which are run once."""
    path = write_extra(tmp_path_factory.mktemp("extra"))
    seen = {}

    def network(sections):
        data = dict(sections.get("data", {}))
        if "extra" in data:
            data["extra"] = path
        config = tiny_run(
            **{k: v for k, v in sections.items() if k in ("objective", "attack", "optimizer")},
            data=replace(tiny_run().data, num_train=62, **data),
            model=DigitsCnnConfig(width=4, embed_dim=8, norm="batch", **sections.get("model", {})),
            training=TrainingConfig(
                **{"epochs": 1, "batch_size": 16, **sections.get("training", {})}
            ),
            evaluation=EvaluationConfig(attack=CHEAP, num_images=1),
        )
        if repr(config) not in seen:
            trainer = Trainer(config)
            trainer.run_epoch()
            seen[repr(config)] = trainer.network.state_dict()
        return seen[repr(config)]

    return network


@pytest.mark.parametrize("option", ALONE)
def test_no_option_is_ignored(option, network_of):
    """Each by itself leads to another network, statistics of BatchNorm included."""
    without, with_it = map(network_of, ALONE[option])
    assert any(not torch.equal(with_it[key], v) for key, v in without.items() if key in with_it)
