"""Any valid config comes back from its plain values: they travel to workers and into records."""

import json
from collections import defaultdict
from typing import get_args

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from morel_core import (
    AttackConfig,
    AwpConfig,
    DataConfig,
    EvaluationConfig,
    ObjectiveConfig,
    OptimizerConfig,
    TrainingConfig,
)
from morel_core.config import Precision, RungConfig, Scalarisation
from morel_core.data import Augmentation, ImageFolderConfig, SyntheticConfig
from morel_core.models import DigitsCnnConfig, ExternalConfig, ResNetConfig, WideResNetConfig
from orchestrator.config import (
    CheckpointConfig,
    ClusterConfig,
    RunConfig,
    ScalingConfig,
    TrackingConfig,
    flatten,
    run_key,
    to_dict,
    with_overrides,
)
from orchestrator.settings.building import build

WEIGHT = st.floats(0, 1e6)
POSITIVE = st.floats(1e-12, 1e6)
COUNT = st.integers(1, 10**6)
MAYBE_COUNT = st.none() | COUNT
UNIT = st.floats(0, 1)
SHARE = st.floats(0.01, 0.99)
TEXT = st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=20).filter(
    lambda text: "${" not in text
) | st.sampled_from(["8/255", "0/0", "1e-3", "true", "null", "~", "[a", "a: b", "-", "$x", "a b"])


@st.composite
def data(draw, mixes_labels):
    settings = {
        "holdout": draw(COUNT),
        "split_seed": draw(st.integers()),
        "root": draw(st.none() | TEXT),
        "download": draw(st.booleans()),
        "train_size": draw(MAYBE_COUNT),
        "test_size": draw(MAYBE_COUNT),
        "augmentation": draw(st.sampled_from(get_args(Augmentation))),
        "crop_padding": draw(st.integers(0, 8)),
        "erasing": draw(UNIT),
        "cutmix": draw(UNIT) if mixes_labels else 0.0,
        **draw(st.just({}) | st.fixed_dictionaries({"extra": TEXT, "extra_ratio": SHARE})),
    }
    match draw(st.sampled_from(["bundled", "folder", "synthetic"])):
        case "bundled":
            return DataConfig(name=draw(st.sampled_from(["digits", "cifar10", "svhn"])), **settings)
        case "folder":
            return ImageFolderConfig(image_size=draw(st.integers(1, 512)), **settings)
        case _:
            return SyntheticConfig(
                num_classes=draw(st.integers(2, 10)),
                image_size=draw(st.integers(8, 64)),
                channels=draw(st.sampled_from([1, 3])),
                num_train=draw(st.integers(10, 1000)),
                num_test=draw(st.integers(10, 1000)),
                noise=draw(UNIT),
                seed=draw(st.integers()),
                **settings,
            )


@st.composite
def models(draw):
    heads = draw(st.sampled_from([1, 2, 4]))
    settings = {
        "embed_dim": heads * draw(st.integers(1, 64)),
        "num_heads": heads,
        "attention": draw(st.booleans()),
        "dropout": draw(st.floats(0, 0.99)),
    }
    if draw(st.booleans()):
        settings |= {
            "mean": draw(st.lists(UNIT, min_size=3, max_size=3)),
            "std": draw(st.lists(POSITIVE, min_size=3, max_size=3)),
        }
    kind = draw(st.sampled_from(["digits", "resnet", "wide", "torchvision", "timm"]))
    match kind:
        case "digits":
            norm = draw(st.sampled_from(["batch", "group", "none"]))
            return DigitsCnnConfig(width=8 * draw(st.integers(1, 8)), norm=norm, **settings)
        case "resnet":
            name = draw(st.sampled_from(["resnet18", "resnet50"]))
            return ResNetConfig(name=name, width=draw(COUNT), **settings)
        case "wide":
            depth = 4 + 6 * draw(st.integers(1, 9))
            return WideResNetConfig(depth=depth, widen_factor=draw(st.integers(1, 12)), **settings)
        case _:
            return ExternalConfig(
                name=f"{kind}/resnet18",
                pretrained=draw(st.booleans()),
                head=draw(st.sampled_from(["fc", "head.fc", None])),
                **settings,
            )


@st.composite
def attacks(draw, losses=("ce", "kl"), num_steps=COUNT):
    norm = draw(st.sampled_from(["linf", "l2"]))
    eps = draw(st.floats(1e-6, 1.0 if norm == "linf" else 100.0))
    loss = draw(st.sampled_from(losses))
    return AttackConfig(
        norm=norm,
        eps=eps,
        step_size=eps * draw(st.floats(1e-3, 2.0)),
        num_steps=draw(num_steps),
        init=draw(st.sampled_from(["gaussian", "uniform", *(["none"] if loss == "ce" else [])])),
        init_scale=draw(UNIT),
        loss=loss,
    )


@st.composite
def optimizers(draw):
    schedule = draw(st.sampled_from(["constant", "piecewise", "cosine", "one_cycle"]))
    piecewise = schedule == "piecewise"
    milestones = sorted(draw(st.sets(st.integers(1, 200), max_size=4))) if piecewise else []
    name = draw(st.sampled_from(["sgd", "adamw"]))
    return OptimizerConfig(
        name=name,
        lr=draw(POSITIVE),
        momentum=draw(st.floats(0.01, 0.99)),
        nesterov=name == "sgd" and draw(st.booleans()),
        weight_decay=draw(WEIGHT),
        no_decay_on_norm_and_bias=draw(st.booleans()),
        schedule=schedule,
        milestones=milestones,
        factors=[draw(UNIT) for _ in milestones],
        warmup_epochs=0 if schedule == "one_cycle" else draw(st.integers(0, 10)),
        one_cycle_peak=draw(st.floats(0.01, 0.5)),
        one_cycle_start=draw(UNIT),
        clip_norm=draw(st.none() | POSITIVE),
    )


@st.composite
def objectives(draw, epochs):
    accuracy = draw(st.sampled_from(["trades", "mart", "loat", "at"]))
    morel = draw(st.booleans())
    return ObjectiveConfig(
        accuracy=accuracy,
        morel=morel,
        beta=draw(WEIGHT),
        preference=draw(st.tuples(st.floats(0.01, 1), UNIT)),
        reference=draw(st.tuples(st.floats(-10, 10), st.floats(-10, 10))),
        gamma=draw(WEIGHT),
        scalarisation=draw(st.sampled_from(get_args(Scalarisation))) if morel else "weighted_sum",
        mu=draw(POSITIVE),
        alignment=draw(st.booleans()),
        alpha=draw(WEIGHT),
        temperature=draw(POSITIVE),
        label_smoothing=draw(st.floats(0, 0.99)) if accuracy in ("trades", "at") else 0.0,
        features=draw(st.sampled_from(["natural", "adversarial", "both"])),
        loat_base=draw(st.sampled_from(["mart", "trades"])),
        loat_measure=draw(st.sampled_from(["mse", "kl"])),
        loat_theta=draw(WEIGHT),
        loat_lore=draw(st.booleans()),
        loat_gamma=draw(WEIGHT),
        loat_early_epochs=draw(st.integers(0, 5)),
        loat_late_start=draw(st.none() | st.integers(1, epochs)),
    )


@st.composite
def trainings(draw, single_step):
    epochs = draw(COUNT)
    average = draw(st.sampled_from(["none", "ema", "swa"]))
    published_batchnorm = draw(st.booleans())
    micro_batches = 1 if published_batchnorm else draw(st.integers(1, 8))
    return TrainingConfig(
        epochs=epochs,
        batch_size=draw(st.integers(8 * micro_batches, 10**6)),
        micro_batches=micro_batches,
        precision=draw(st.sampled_from(get_args(Precision))),
        channels_last=draw(st.booleans()),
        compile=draw(st.booleans()),
        cudnn_benchmark=draw(st.booleans()),
        capture_attack=draw(st.booleans()),
        published_batchnorm=published_batchnorm,
        ema_decay=draw(SHARE) if average == "ema" else None,
        swa_start_epoch=draw(st.integers(1, epochs)) if average == "swa" else None,
        awp=AwpConfig(
            gamma=draw(st.floats(0, 0.99)), warmup_epochs=draw(st.integers(0, epochs - 1))
        ),
        patience=draw(MAYBE_COUNT),
        overfitting_guard=single_step and draw(st.booleans()),
    )


@st.composite
def evaluations(draw, holdout, training):
    attack, epochs = draw(attacks()), training.epochs
    waits = training.patience is not None or training.overfitting_guard
    images = st.none() | st.integers(1, holdout)
    later = draw(st.sets(st.integers(2, epochs), max_size=2)) if epochs > 1 else set()
    return EvaluationConfig(
        attack=attack,
        every=draw(COUNT),
        batch_size=draw(COUNT),
        num_images=draw(images),
        seed=draw(st.integers()),
        rungs=[
            RungConfig(
                epoch=epoch,
                num_steps=index + 1,  # each of a strength of its own
                step_size=draw(st.none() | st.floats(attack.eps / 10, attack.eps)),
                num_images=draw(images),
            )
            for index, epoch in enumerate([1, *sorted(later)] if draw(st.booleans()) else [])
        ],
        asynchronous=not waits and draw(st.booleans()),
    )


@st.composite
def run_configs(draw):
    """Valid combinations: what is refused, and why, is tested where it is refused."""
    attack = draw(attacks(("auto", "ce", "kl"), num_steps=st.sampled_from([1, 2, 10])))
    training = draw(trainings(single_step=attack.num_steps == 1))
    objective = draw(objectives(training.epochs))
    mixes_labels = not objective.morel and objective.accuracy not in ("mart", "loat")
    images = draw(data(mixes_labels))
    return RunConfig(
        seed=draw(st.integers()),
        data=images,
        model=draw(models()),
        objective=objective,
        attack=attack,
        optimizer=draw(optimizers()),
        training=training,
        evaluation=draw(evaluations(images.holdout, training)),
        name=draw(st.none() | st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,40}", fullmatch=True)),
        storage_path=draw(st.sampled_from(["/data/runs", "~/runs", "s3://bucket/a-b"])),
        scaling=ScalingConfig(
            num_workers=draw(st.integers(1, 4) | st.just([1, 4]) | st.just([2, 2])),
            max_failures=draw(st.integers(0, 9)),
            hang_timeout_s=draw(st.floats(0.1, 1e6)),
            cpus_per_worker=draw(st.integers(1, 4)),
            gpus_per_worker=draw(UNIT),
        ),
        tracking=TrackingConfig(uri=draw(st.none() | TEXT), experiment=draw(TEXT)),
        cluster=ClusterConfig(address=draw(st.none() | TEXT), lease_s=draw(st.floats(3.0, 1e6))),
        checkpoint=CheckpointConfig(every_seconds=draw(WEIGHT)),
    )


@given(run_configs())
@settings(max_examples=40, deadline=None, derandomize=True)
def test_round_trip(config):
    plain = to_dict(config)
    assert build(RunConfig, plain) == config
    assert build(RunConfig, json.loads(json.dumps(plain))) == config
    assert run_key(build(RunConfig, plain)) == run_key(config)
    assert with_overrides(config, {}) == config


@given(run_configs())
@settings(max_examples=15, deadline=None, derandomize=True)
def test_every_setting_given_as_an_override_gives_the_same_config(config):
    """As a recorded run's parameters would be given again."""
    flat = flatten(to_dict(config))
    assert with_overrides(RunConfig(), flat) == config


@given(run_configs())
@settings(max_examples=15, deadline=None, derandomize=True)
def test_round_trip_through_a_yaml_file(config):
    text = yaml.safe_dump(to_dict(config), allow_unicode=True)
    assert build(RunConfig, yaml.safe_load(text)) == config


def test_no_setting_is_left_out_of_what_is_drawn():
    """A field that the strategies above do not know would stay at its default."""
    seen = defaultdict(set)

    @given(run_configs())
    @settings(max_examples=150, deadline=None, derandomize=True, database=None)
    def note(config):
        for key, value in flatten(to_dict(config)).items():
            seen[key].add(repr(value))

    note()
    assert [key for key, values in seen.items() if len(values) < 2] == []
