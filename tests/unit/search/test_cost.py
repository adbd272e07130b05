"""What a run costs: the formula against counted passes, and the dry run of a search."""

import json
from dataclasses import replace

import pytest

from morel_core import PGD, MorelError, Trainer
from orchestrator import cli
from orchestrator.config import with_overrides
from orchestrator.search import cost, dry_run
from orchestrator.search.settings import ResourcesConfig


class Counted:
    """Passes of images through a trainer's encoder, begun ones too."""

    def __init__(self, trainer):
        self.passes = 0
        trainer.net.encoder.register_forward_pre_hook(lambda module, given: self.add(given[0]))
        trainer.net.encoder.register_forward_hook(self.forward)

    def forward(self, module, given, features):
        if features.requires_grad:
            features.register_hook(self.add)

    def add(self, batch):
        self.passes += len(batch)


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"attack.num_steps": 4, "training.batch_size": 48},
        {"objective.accuracy": "at", "objective.morel": False},
        {"objective.accuracy": "mart"},
        {"training.awp.gamma": 0.01},
        {"training.micro_batches": 2},
        {"attack.loss": "kl"},
    ],
    ids=str,
)
def test_passes_of_a_step_are_those_that_are_made(tiny_config, overrides):
    run = with_overrides(tiny_config, overrides)
    trainer = Trainer(run)
    trainer.epoch = 1
    trainer.net.train()
    counted = Counted(trainer)
    batch = next(iter(trainer.batches.epoch(1)))
    trainer.step(batch)
    assert counted.passes == run.training.batch_size * cost.step_passes(run, 1)


def test_passes_of_a_measurement_are_those_that_are_made(tiny_config):
    """Images that are wrong without an attack are not attacked: of the others all passes count."""
    trainer = Trainer(tiny_config)
    counted = Counted(trainer)
    trainer.epoch = 1
    right = round(30 * trainer.measure()["clean_accuracy"])
    assert 0 < right < 30
    attack = trainer.ladder.last.attack
    chunks = 4  # in each of which one image more finds out the memory layout
    made = counted.passes - 30 - right * cost.measured_passes(attack)
    assert 0 <= made <= chunks


@pytest.mark.parametrize(
    ("attack", "passes"),
    [
        (PGD(eps=0.1, step_size=0.1, num_steps=10), 20),
        (PGD(eps=0.1, step_size=0.1, num_steps=10, loss="kl"), 21),
        (PGD(eps=0.1, step_size=0.1, num_steps=10, restarts=5), 105),
        (PGD(eps=0.1, step_size=0.1, num_steps=10, iterate="worst"), 21),
    ],
)
def test_passes_of_an_attack(attack, passes):
    assert cost.attack_passes(attack) == passes


@pytest.mark.parametrize(
    ("overrides", "training", "evaluation"),
    [
        # 78 images: 4 steps of 16; TRADES: 2 for the step's attack, 1 for its KL, 2 × 2 passes
        ({}, 2 * 64 * 7, 2 * 30 * (1 + 5)),
        ({"training.epochs": 5, "evaluation.every": 2}, 5 * 64 * 7, 3 * 30 * (1 + 5)),
        ({"training.awp": {"gamma": 0.1, "warmup_epochs": 1}}, 64 * (7 + 11), 2 * 30 * 6),
        (
            {"evaluation.rungs": [
                {"epoch": 1, "num_steps": 1, "num_images": 10}, {"epoch": 2, "num_steps": 3}]},
            2 * 64 * 7,
            10 * (1 + 3) + 30 * (1 + 7),
        ),
        ({"training.overfitting_guard": True}, 2 * 64 * 7, 2 * 30 * (6 + 1 + (3 + 1) + 21)),
    ],
)  # fmt: skip
def test_passes_of_a_run(tiny_config, overrides, training, evaluation):
    passes = cost.run_passes(with_overrides(tiny_config, overrides), 78, 30)
    assert (passes.training, passes.evaluation) == (training, evaluation)
    assert passes.seconds(2.0, workers=2) == 2.0 * (training / 2 + evaluation)


def test_a_pass_is_timed_on_the_real_trainer(tiny_config):
    data = Trainer(tiny_config).data
    assert 0 < cost.time_pass(tiny_config, data) < 0.1


# --- the dry run ---------------------------------------------------------------------------------


@pytest.fixture
def timed(monkeypatch):
    """A pass takes a millisecond; two CPUs are there."""
    monkeypatch.setattr(dry_run, "time_pass", lambda run, data: 1e-3)
    monkeypatch.setattr(dry_run, "local_resources", lambda: (2.0, 0.0))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def test_what_differs_and_what_it_costs(search, timed):
    asked = replace(search, base=with_overrides(search.base, {"objective.alpha": 0.5}))
    found = dry_run.dry_run(asked)
    first, second, *_ = found["trials"]
    assert len(found["trials"]) == 5
    assert first["label"] == "paper"
    assert first["difference"] == {"objective.alpha": 1e-5}  # its preference is the recipe's
    assert set(second["difference"]) == {"objective.alpha", "objective.preference"}
    assert second["config"]["objective"]["alpha"] == second["params"]["objective.alpha"]
    assert found["plan"]["trials_at_a_time"] == 2
    cost = found["cost"]
    assert cost["seconds_per_trial"] == pytest.approx(1e-3 * cost["passes_per_trial"])
    assert cost["cpu_seconds"] == cost["seconds"] == pytest.approx(5 * cost["seconds_per_trial"])
    assert cost["wall_seconds"] == pytest.approx(cost["seconds"] / 2)
    assert json.loads(json.dumps(found)) == found


def test_a_gpu_that_is_not_here(search, timed):
    asked = replace(search, resources=ResourcesConfig(gpus_per_worker=1.0))
    found = dry_run.dry_run(asked)
    assert found["plan"]["trials_at_a_time"] == 0
    assert found["cost"]["seconds_per_pass"] is None
    shown = "\n".join(dry_run.lines(found))
    assert "it does not fit" in shown
    assert "no step was timed" in shown


def test_a_cluster_is_not_asked(search, timed, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "ray://far:10001")
    found = dry_run.dry_run(search)
    assert found["plan"]["there"] is None
    assert found["cost"]["wall_seconds"] is None
    assert "far:10001 is not asked" in "\n".join(dry_run.lines(found))


def test_a_point_that_no_run_can_have(search, timed, monkeypatch):
    real = dry_run.SpaceSearcher.suggest

    def suggest(self, trial_id):
        return real(self, trial_id) | ({"params": {"k1": 7.0}} if trial_id == "1" else {})

    monkeypatch.setattr(dry_run.SpaceSearcher, "suggest", suggest)
    found = dry_run.dry_run(search)
    assert "error" in found["trials"][1]
    assert found["cost"]["impossible_trials"] == 1
    assert "cannot be run" in "\n".join(dry_run.lines(found))


def test_what_it_is_to_learn_from_must_be_there(search, timed):
    with pytest.raises(MorelError, match="nothing was recorded there yet"):
        dry_run.dry_run(replace(search, warm_start=["nowhere"]))


def test_the_command_writes_nothing(timed, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    arguments = ["tune", "smoke", "--dry-run", f"storage_path={tmp_path}/runs"]
    assert cli.main(arguments) == 0
    assert "an upper bound" in capsys.readouterr().out
    assert cli.main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["total_trials"] == 2
    assert list(tmp_path.iterdir()) == []
