"""Any valid config comes back from its plain values: they travel to workers and into records."""

import json

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from morel_core import (
    AttackConfig,
    DataConfig,
    EvaluationConfig,
    ObjectiveConfig,
    OptimizerConfig,
    TrainingConfig,
)
from morel_core.data import SyntheticConfig
from morel_core.models import DigitsCnnConfig, ExternalConfig, ResNetConfig, WideResNetConfig
from orchestrator.config import (
    CheckpointConfig,
    ClusterConfig,
    RunConfig,
    ScalingConfig,
    TrackingConfig,
    build,
    flatten,
    run_key,
    to_dict,
    with_overrides,
)

WEIGHT = st.floats(0, 1e6)
POSITIVE = st.floats(1e-12, 1e6)
COUNT = st.integers(1, 10**6)
MAYBE_COUNT = st.none() | COUNT
UNIT = st.floats(0, 1)
TEXT = st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=20).filter(
    lambda text: "${" not in text
) | st.sampled_from(["8/255", "0/0", "1e-3", "true", "null", "~", "[a", "a: b", "-", "$x", "a b"])

DATA = {
    "holdout": COUNT,
    "split_seed": st.integers(),
    "root": st.none() | TEXT,
    "download": st.booleans(),
    "train_size": MAYBE_COUNT,
    "test_size": MAYBE_COUNT,
    "augmentation": st.sampled_from(["none", "crop", "crop_flip"]),
    "crop_padding": st.integers(0, 8),
}
data = st.one_of(
    st.builds(DataConfig, name=st.sampled_from(["digits", "cifar10", "svhn"]), **DATA),
    st.builds(
        SyntheticConfig,
        num_classes=st.integers(2, 10),
        num_train=st.integers(10, 1000),
        num_test=st.integers(10, 1000),
        noise=UNIT,
        **DATA,
    ),
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
            return DigitsCnnConfig(width=8 * draw(st.integers(1, 8)), norm="group", **settings)
        case "resnet":
            return ResNetConfig(name=draw(st.sampled_from(["resnet18", "resnet50"])), **settings)
        case "wide":
            return WideResNetConfig(**settings)
        case _:
            head = draw(st.none() | st.just("fc"))
            return ExternalConfig(name=f"{kind}/resnet18", head=head, **settings)


@st.composite
def attacks(draw, losses=("auto", "ce", "kl")):
    norm = draw(st.sampled_from(["linf", "l2"]))
    eps = draw(st.floats(1e-6, 1.0 if norm == "linf" else 100.0))
    return AttackConfig(
        norm=norm,
        eps=eps,
        step_size=eps * draw(st.floats(1e-3, 2.0)),
        num_steps=draw(COUNT),
        init=draw(st.sampled_from(["gaussian", "uniform"])),
        init_scale=draw(UNIT),
        loss=draw(st.sampled_from(losses)),
    )


@st.composite
def optimizers(draw):
    piecewise = draw(st.booleans())
    milestones = sorted(draw(st.sets(st.integers(1, 200), max_size=4))) if piecewise else []
    return OptimizerConfig(
        name=draw(st.sampled_from(["sgd", "adamw"])),
        lr=draw(POSITIVE),
        momentum=draw(st.floats(0.01, 0.99)),
        nesterov=draw(st.booleans()),
        weight_decay=draw(WEIGHT),
        schedule="piecewise" if piecewise else draw(st.sampled_from(["constant", "cosine"])),
        milestones=milestones,
        factors=[draw(UNIT) for _ in milestones],
        warmup_epochs=draw(st.integers(0, 10)),
        clip_norm=draw(st.none() | POSITIVE),
    )


objectives = st.builds(
    ObjectiveConfig,
    accuracy=st.sampled_from(["trades", "mart", "loat", "at"]),
    morel=st.booleans(),
    beta=WEIGHT,
    preference=st.tuples(st.floats(0.01, 1), UNIT),
    reference=st.tuples(st.floats(-10, 10), st.floats(-10, 10)),
    gamma=WEIGHT,
    alpha=WEIGHT,
    temperature=POSITIVE,
    features=st.sampled_from(["natural", "adversarial", "both"]),
    loat_base=st.sampled_from(["mart", "trades"]),
    loat_lore=st.booleans(),
    loat_late_start=MAYBE_COUNT,
)

run_configs = st.builds(
    RunConfig,
    seed=st.integers(),
    data=data,
    model=models(),
    objective=objectives,
    attack=attacks(),
    optimizer=optimizers(),
    training=st.builds(TrainingConfig, epochs=COUNT, batch_size=st.integers(8, 10**6)),
    evaluation=st.builds(
        EvaluationConfig, attack=attacks(losses=("ce", "kl")), every=COUNT, seed=st.integers()
    ),
    name=st.none() | st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,40}", fullmatch=True),
    storage_path=st.sampled_from(["/data/runs", "~/runs", "s3://bucket/a b"]),
    scaling=st.builds(ScalingConfig, num_workers=st.integers(1, 4), gpus_per_worker=UNIT),
    tracking=st.builds(TrackingConfig, uri=st.none() | TEXT, experiment=TEXT),
    cluster=st.builds(ClusterConfig, address=st.none() | TEXT),
    checkpoint=st.builds(CheckpointConfig, every_seconds=WEIGHT),
)


@given(run_configs)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_round_trip(config):
    plain = to_dict(config)
    assert build(RunConfig, plain) == config
    assert build(RunConfig, json.loads(json.dumps(plain))) == config
    assert run_key(build(RunConfig, plain)) == run_key(config)
    assert with_overrides(config, {}) == config


@given(run_configs)
@settings(max_examples=15, deadline=None, derandomize=True)
def test_every_setting_given_as_an_override_gives_the_same_config(config):
    """As a recorded run's parameters would be given again."""
    flat = flatten(to_dict(config))
    assert with_overrides(RunConfig(), flat) == config


@given(run_configs)
@settings(max_examples=15, deadline=None, derandomize=True)
def test_round_trip_through_a_yaml_file(config):
    text = yaml.safe_dump(to_dict(config), allow_unicode=True)
    assert build(RunConfig, yaml.safe_load(text)) == config
