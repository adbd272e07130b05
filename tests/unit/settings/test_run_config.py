"""Recipe + overrides → a checked config: what is accepted, and how each mistake is answered."""

import json
import re
from pathlib import Path

import pytest
import yaml
from refusals import SECRET, refusal

from morel_core import AttackConfig, ConfigError, MorelError
from morel_core.data import SyntheticConfig
from morel_core.models import DigitsCnnConfig, ExternalConfig
from orchestrator.config import (
    RunConfig,
    compose,
    flatten,
    run_key,
    to_dict,
    with_overrides,
)
from orchestrator.settings.building import build
from orchestrator.settings.yaml_files import find_file, packaged, parse_overrides, read_yaml


@pytest.fixture(autouse=True)
def secret(bare_environment, monkeypatch):
    monkeypatch.setenv("MOREL_TEST_SECRET", SECRET)


@pytest.fixture
def recipe(tmp_path):
    """Write a recipe file: ``recipe("data: {name: digits}")`` gives its path."""

    def write(text):
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return str(path)

    return write


# --- what is accepted ----------------------------------------------------------------------------


def test_a_recipe_by_name():
    config = compose("digits")
    assert (config.data.name, config.data.holdout) == ("digits", 300)
    assert config.model == DigitsCnnConfig(width=16)
    assert config.optimizer.schedule == "cosine"


@pytest.mark.parametrize("name", packaged("recipes"))
def test_every_recipe_composes(name):
    assert compose(name).name is None


def test_a_recipe_by_file(recipe, monkeypatch, tmp_path):
    path = recipe("seed: 3\nmodel: {width: 8}\n")
    assert compose(path) == RunConfig(seed=3, model=DigitsCnnConfig(width=8))
    monkeypatch.chdir(tmp_path)
    assert compose("mine.yaml") == compose(path)


def test_an_empty_section_is_its_defaults(recipe):
    empty = compose(recipe("seed: 0\nattack:\nmodel: {}\ndata: {}\nevaluation: {attack: }\n"))
    assert empty == compose(recipe("seed: 0")) == build(RunConfig, {})


def test_a_section_given_in_part_keeps_the_defaults_of_the_rest(recipe):
    """Of that very section: the evaluation's attack has other defaults than the training's."""
    config = compose(recipe("evaluation: {attack: {num_steps: 50}}\nattack: {num_steps: 7}"))
    assert config.evaluation.attack == AttackConfig(
        eps=8 / 255, step_size=2 / 255, num_steps=50, init="uniform", loss="ce"
    )
    assert config.attack == AttackConfig(num_steps=7)
    assert compose(recipe(""), ["evaluation.attack.num_steps=50"]).evaluation == config.evaluation


def test_overrides_win_and_reach_every_level():
    config = compose(
        "digits",
        [
            "seed=7", "training.epochs=3", "evaluation.attack.num_steps=9", "model.width=24",
            "objective.preference=[0.2,0.8]", "data.train_size=null", "optimizer.nesterov=true",
            "name=my-run_1.0", "optimizer.lr=1e-2", "training.epochs=4",
        ],
    )  # fmt: skip
    assert (config.seed, config.training.epochs) == (7, 4)  # the last one counts
    assert config.evaluation.attack.num_steps == 9
    assert config.model == DigitsCnnConfig(width=24)
    assert config.objective.preference == (0.2, 0.8)
    assert config.data.train_size is None
    assert config.optimizer.nesterov is True
    assert (config.name, config.optimizer.lr) == ("my-run_1.0", 0.01)


@pytest.mark.parametrize(
    ("written", "eps"),
    [
        ("8/255", 8 / 255),
        ("${frac:8,255}", 8 / 255),
        ("7.5/255", 7.5 / 255),
        (".5/2", 0.25),
        ("0.031", 0.031),
        ("1", 1.0),
    ],
)
def test_fractions(written, eps, recipe):
    assert compose("digits", [f"attack.eps={written}"]).attack.eps == eps
    text = f"attack: {{eps: '{written}', step_size: 0.01}}"
    assert compose(recipe(text)).attack.eps == eps


def test_a_fraction_with_spaces(recipe):
    text = "attack: {eps: '${frac: 8 , 255 }', step_size: ' 2 / 255 '}"
    assert compose(recipe(text)).attack == AttackConfig(eps=8 / 255, step_size=2 / 255)


def test_fractions_inside_lists():
    config = compose("digits", ["model.mean=[125/255]", "model.std=['${frac:64,255}']"])
    assert (config.model.mean, config.model.std) == ([125 / 255], [64 / 255])


def test_a_folder_that_looks_like_a_fraction_stays_a_folder():
    assert compose("digits", ["data.root=2024/11"]).data.root == "2024/11"


def test_numbers_are_typed_as_their_field():
    config = compose("digits", ["attack.eps=1", "optimizer.momentum=0"])
    assert type(config.attack.eps) is type(config.optimizer.momentum) is float


def test_a_new_model_drops_the_old_ones_settings_and_reaches_its_own():
    config = compose("digits", ["model.head=fc", "model.name=torchvision/resnet18"])
    assert config.model == ExternalConfig(name="torchvision/resnet18", head="fc")
    assert compose("digits", ["model.name=digits_cnn"]).model == DigitsCnnConfig(width=16)


def test_a_new_data_set_drops_the_old_ones_settings():
    config = compose("digits", ["data.name=synthetic", "data.num_train=300"])
    assert config.data == SyntheticConfig(num_train=300)


def test_with_overrides_checks_again_and_leaves_the_original():
    config = compose("digits", ["name=a"])
    changed = with_overrides(config, {"training.epochs": 3, "objective.preference": [0.5, 0.5]})
    assert (changed.training.epochs, changed.objective.preference) == (3, (0.5, 0.5))
    assert (config.training.epochs, changed.name) == (12, "a")
    other = with_overrides(config, {"model.name": "resnet18", "model.embed_dim": 16})
    assert (other.model.name, other.model.embed_dim) == ("resnet18", 16)
    assert not hasattr(other.model, "norm")
    with pytest.raises(ConfigError, match=r"^attack\.eps = 8\.0: "):
        with_overrides(config, {"attack.eps": 8})
    with pytest.raises(ConfigError, match=r"^attack\.ep = 1: unknown key; did you mean 'eps'"):
        with_overrides(config, {"attack.ep": 1})
    assert with_overrides(config, {}) == config


def test_to_dict_is_plain_and_builds_the_same_again():
    config = compose("cifar10_wrn34_10", ["name=x"])
    plain = json.loads(json.dumps(to_dict(config)))
    assert plain == to_dict(config)
    assert build(RunConfig, plain) == config
    assert build(RunConfig, yaml.safe_load(yaml.safe_dump(plain))) == config


def test_flatten():
    assert flatten({"a": {"b": 1, "c": {"d": [2]}}, "e": None}) == {
        "a.b": 1,
        "a.c.d": [2],
        "e": None,
    }


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "start"),
    [
        ("seeed=1", "seeed = 1: unknown key; did you mean 'seed'? known: seed, data, "),
        ("training.epoch=5", "training.epoch = 5: unknown key; did you mean 'epochs'? known: "),
        ("evaluation.attack.ep=1", "evaluation.attack.ep = 1: unknown key; did you mean 'eps'?"),
        ("model.widht=3", "model.widht = 3: unknown key; did you mean 'width'? known: "),
        ("scaling.workers=2", "scaling.workers = 2: unknown key; did you mean 'num_workers'?"),
        ("zzz=1", "zzz = 1: unknown key; known: seed, "),
        ("data.num_train=3", "data.num_train = 3: unknown key"),  # of another data set
        ("attack.eps=8", "attack.eps = 8.0: must be in (0, 1]; images lie in [0, 1], so 8/255"),
        ("evaluation.attack.eps=8", "evaluation.attack.eps = 8.0: must be in (0, 1]"),
        ("attack.eps=-8/255", "attack.eps = '-8/255': "),
        ("attack.eps=8/0", "attack.eps = '8/0': '8/0' divides by zero"),
        ("attack.eps=1.2.3/4", "attack.eps = '1.2.3/4': "),
        ("attack.init=none", "attack.init = 'none': gaussian or uniform"),
        ("objective.preference=[1.5,0]", "objective.preference = [1.5, 0.0]: two weights"),
        ("objective.preference=0.1", "objective.preference = 0.1: "),
        ("objective.preference=[a,b]", "objective.preference = ['a', 'b']: "),
        ("objective.temperature=-1", "objective.temperature = -1.0: must be > 0"),
        ("training.epochs=5.5", "training.epochs = 5.5: "),
        ("training.epochs=true", "training.epochs = True: "),
        ("training.epochs=many", "training.epochs = 'many': "),
        ("training.epochs=", "training.epochs = None: "),
        ("training.epochs={a: 1}", "training.epochs = {'a': 1}: "),
        ("training.epochs.x=3", "training.epochs = {'x': 3}: "),
        ("attack.norm=l1", "attack.norm = 'l1': "),
        ("training=5", "training = 5: must be a section with keys of its own"),
        ("evaluation.attack=3", "evaluation.attack = 3: must be a section"),
        ("model=resnet18", "model = 'resnet18': must be a section"),
        ("data=[digits]", "data = ['digits']: must be a section"),
        ("model.name=resnet19", "model.name = 'resnet19': did you mean 'resnet18'? known: "),
        ("model.name=null", "model.name = 'None': "),
        ("data.name=digitz", "data.name = 'digitz': did you mean 'digits'? known: cifar10, "),
        ("data.holdout=0", "data.holdout = 0: at least 1 image must be held out"),
        ("model.num_heads=3", "model.num_heads = 3: must divide embed_dim = 128"),
        ("scaling.num_workers=0", "scaling.num_workers = 0: must be >= 1"),
        ("scaling.gpus_per_worker=-1", "scaling.gpus_per_worker = -1.0: must be >= 0"),
        ("checkpoint.every_seconds=-1", "checkpoint.every_seconds = -1.0: seconds >= 0"),
        ("optimizer.factors=[0.1]", "optimizer.factors = [0.1]: one factor for each milestone"),
        ("name=a/b", "name = 'a/b': letters, digits"),
        ("name=../up", "name = '../up': letters, digits"),
        ("name=.hidden", "name = '.hidden': letters, digits"),
        ("name=''", "name = '': letters, digits"),
        ("name=a b", "name = 'a b': letters, digits"),
        ("name=" + "x" * 101, "name = 'xxx"),
    ],
)
def test_refused_override(override, start):
    said = refusal("digits", override)
    assert said.startswith(start)
    assert said.endswith(" (in the command line)")


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("training: {epoch: 5}", "training.epoch = 5: unknown key; did you mean 'epochs'?"),
        ("attack: {eps: 8}", "attack.eps = 8.0: must be in (0, 1]"),
        ("training: 5", "training = 5: must be a section with keys of its own"),
        ("data: digits", "data = 'digits': must be a section with keys of its own"),
        ("model: {name: torchvision/resnet18, width: 3}", "model.width = 3: unknown key"),
        ("storage_path: null", "storage_path = None: "),
    ],
)
def test_refused_in_a_file_which_is_named(recipe, text, start):
    path = recipe(text)
    said = refusal(path)
    assert said.startswith(start)
    assert said.endswith(f" (in {path})")


def test_the_files_mistake_is_not_laid_on_the_command_line(recipe):
    path = recipe("training: {epochs: 0}")
    assert refusal(path, "training.batch_size=8", "attack.eps=0.1").endswith(f"(in {path})")


def test_too_many_workers_for_the_batch():
    said = refusal("digits", "training.batch_size=7", "scaling.num_workers=4")
    assert said.startswith(
        "training.batch_size = 7: at least 2 images for each of scaling.num_workers = 4"
    )
    said = refusal(
        "digits", "training.batch_size=7", "scaling.num_workers=2", "training.micro_batches=2"
    )
    assert "for each of scaling.num_workers = 2 in each of training.micro_batches = 2" in said


def test_a_callable_cannot_come_from_yaml():
    said = refusal("digits", "objective.accuracy=custom", "attack.loss=ce")
    assert said.startswith("objective.accuracy = 'custom': a callable of your own is given in code")


@pytest.mark.parametrize(
    "override",
    ["epochs", "=3", ".x=3", "x.=3", "training..epochs=3", "model.mean[0]=1", " =1"],
)
def test_what_is_no_override(override):
    assert refusal("digits", override) == (
        f"override {override!r}: write key=value, as in training.epochs=5"
    )


@pytest.mark.parametrize("override", ["training.epochs={", "name=[a", "name='x"])
def test_an_override_whose_value_is_no_yaml(override):
    assert refusal("digits", override).startswith(f"override {override!r}: ")


@pytest.mark.parametrize("written", ["007", "1.10", "1e5", "12:30", "true", "1_000"])
def test_text_that_yaml_reads_as_something_else_is_quoted(written):
    """Two names would be one, and neither would be what was written."""
    with pytest.raises(ConfigError, match=r"^name = .*: text: YAML reads something else"):
        compose("digits", [f"name={written}"])
    if ":" not in written:
        assert compose("digits", [f'name="{written}"']).name == written


def test_a_comment_in_an_override_is_told(tmp_path):
    with pytest.raises(MorelError, match="' #' begins a comment: put the value in quotes"):
        compose("digits", [f"storage_path={tmp_path}/run #2"])
    quoted = compose("digits", [f'storage_path="{tmp_path}/run #2"'])
    assert quoted.storage_path == f"{tmp_path}/run #2"


def test_an_override_may_hold_more_equals_signs():
    assert parse_overrides(["tracking.uri=http://host/?a=b"]) == {
        "tracking.uri": "http://host/?a=b"
    }


# --- nothing but fractions is interpolated -------------------------------------------------------

ENVIRONMENT = "${oc.env:MOREL_TEST_SECRET}"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", ENVIRONMENT),
        ("name", "run-" + ENVIRONMENT),
        ("name", "${seed}"),
        ("name", "${frac:8,255}-${seed}"),
        ("data.root", ENVIRONMENT),
        ("data.root", {"a": ENVIRONMENT}),
        ("data.root", [1, [ENVIRONMENT]]),
        ("data.name", ENVIRONMENT),
        ("model.name", ENVIRONMENT),
        ("model.mean", [ENVIRONMENT]),
        ("training.epochs", {"a": ENVIRONMENT}),
        ("objective.accuracy", ENVIRONMENT),
        ("storage_path", ENVIRONMENT),
        ("storage_path", "${oc.create:{a:1}}"),
        ("tracking.uri", "${oc.decode:" + ENVIRONMENT + "}"),
    ],
)
def test_other_interpolations_are_refused_unresolved(recipe, key, value):
    text = yaml.safe_dump({"seed": 1} | nested(key, value))
    for said in (
        refusal(recipe(text)),
        refusal("digits", f"{key}={yaml.safe_dump(value, default_flow_style=True)}".strip()),
    ):
        assert said.startswith(f"{key} = ")
        if not key.endswith(".name"):
            assert "the only interpolations in a config are" in said or "a config may read" in said


def nested(key, value):
    head, _, rest = key.partition(".")
    return {head: nested(rest, value) if rest else value}


def test_a_section_as_interpolation(recipe):
    assert refusal(recipe(f"data: {ENVIRONMENT}")).startswith("data = '${oc.env:")
    assert refusal(recipe("attack: ${evaluation.attack}")).startswith("attack = '${eval")


def test_yaml_tags_run_nothing(recipe, tmp_path):
    marker = tmp_path / "executed"
    said = refusal(recipe(f"name: !!python/object/apply:os.mkdir ['{marker}']"))
    assert "mine.yaml: not valid YAML: " in said
    assert not marker.exists()


# --- files ---------------------------------------------------------------------------------------


def test_broken_yaml_names_file_and_line(recipe):
    path = recipe("seed: 1\ntraining:\n  epochs: [3\n")
    said = refusal(path)
    assert said.startswith(f"{path}: not valid YAML: ")
    assert re.search(r"line [34]", said)


def test_a_key_given_twice(recipe):
    assert "epochs" in refusal(recipe("training:\n  epochs: 3\n  epochs: 4\n"))


@pytest.mark.parametrize(("text", "kind"), [("[1, 2]", "list"), ("- a: 1", "list")])
def test_a_file_that_holds_no_mapping(recipe, text, kind):
    path = recipe(text)
    assert refusal(path) == f"{path}: must hold keys and values, not {kind}"


def test_a_file_that_is_no_text(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"\xff\xfe\x00\x81")
    assert refusal(str(path)).startswith(f"{path}: ")


def test_an_empty_file_is_all_defaults(recipe):
    assert compose(recipe("")) == RunConfig(model=DigitsCnnConfig())


def test_unknown_recipe():
    said = refusal("digit")
    assert said.startswith(
        "recipe 'digit' is neither a file nor a known name: did you mean 'digits'? known: "
    )
    with pytest.raises(MorelError, match=r"^search space 'smke' is neither .* mean 'smoke'\?"):
        find_file("search_spaces", "smke")


def test_a_folder_is_no_recipe(tmp_path):
    assert "is neither a file nor a known name" in refusal(str(tmp_path))


def test_read_yaml_leaves_interpolations_alone(recipe):
    assert read_yaml(Path(recipe(f"a: {ENVIRONMENT}"))) == {"a": ENVIRONMENT}


# --- the key of the science ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "override",
    [
        "name=other", "storage_path=/elsewhere", "scaling.num_workers=2",
        "scaling.cpus_per_worker=3", "tracking.experiment=other", "tracking.uri=http://h:1",
        "cluster.address=10.0.0.1:6379", "checkpoint.every_seconds=1", "data.root=/data",
        "data.download=true",
    ],
)  # fmt: skip
def test_run_key_does_not_see(override):
    assert run_key(compose("digits", [override])) == run_key(compose("digits"))


@pytest.mark.parametrize(
    "override",
    [
        "seed=1", "training.epochs=13", "training.batch_size=32", "attack.eps=0.11",
        "objective.alpha=0.1", "objective.preference=[0.2,0.8]", "optimizer.lr=0.2",
        "model.width=8", "model.embed_dim=64", "model.name=resnet18", "data.holdout=299",
        "data.split_seed=1", "data.augmentation=crop", "evaluation.attack.num_steps=21",
        "evaluation.seed=1",
    ],
)  # fmt: skip
def test_run_key_sees(override):
    assert run_key(compose("digits", [override])) != run_key(compose("digits"))


def test_run_key_is_the_same_tomorrow():
    """A changed key orphans recorded twins: change this line only with a changelog entry."""
    key = run_key(RunConfig(model=DigitsCnnConfig()))
    assert re.fullmatch(r"[0-9a-f]{16}", key)
    assert key == run_key(build(RunConfig, to_dict(RunConfig(model=DigitsCnnConfig()))))
