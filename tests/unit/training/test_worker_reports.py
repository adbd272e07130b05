"""What runs inside Ray's workers, run here without Ray."""

import math
from pathlib import Path

import pytest
import torch
from ray import train, tune
from ray.tune.result import SHOULD_CHECKPOINT

from morel_core import MorelError, Trainer
from morel_core.checkpoint import MANIFEST, load_progress
from orchestrator.config import RunConfig, to_dict
from orchestrator.messages.failures import FAILED
from orchestrator.search import one_worker_trial
from orchestrator.search.one_worker_trial import MorelTrial
from orchestrator.search.trial import IMPOSSIBLE
from orchestrator.settings.building import build
from orchestrator.training import worker
from orchestrator.training.measuring import measure_checkpoint, measure_final
from orchestrator.training.reports import SCORE, reports
from orchestrator.training.worker import scaling_config

TINY = {
    "data": {
        "name": "synthetic", "num_classes": 3, "image_size": 8, "channels": 1, "num_train": 78,
        "num_test": 20, "holdout": 30,
    },
    "model": {"name": "digits_cnn", "width": 4, "embed_dim": 8},
    "attack": {"eps": 0.05, "step_size": 0.02, "num_steps": 1},
    "evaluation": {"attack": {"eps": 0.05, "step_size": 0.02, "num_steps": 2}, "every": 2},
    "training": {"epochs": 5, "batch_size": 16},
    "name": "tiny",
}  # fmt: skip


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def base(tmp_path):
    return build(RunConfig, TINY | {"storage_path": str(tmp_path)})


def test_a_report_follows_each_measured_epoch_and_carries_all_since_the_last(base):
    trainer = Trainer(base)
    told = list(reports(trainer))
    assert [r["epoch"] for r in told] == [2, 4, 5]
    assert [[m["epoch"] for m in r["epochs"]] for r in told] == [[1, 2], [3, 4], [5]]
    assert [m for r in told for m in r["epochs"]] == trainer.history
    for r in told:
        assert {"robust_accuracy", "clean_accuracy", "best_epoch", "num_epochs"} <= r.keys()
        assert {type(v) for k, v in r.items() if k != "epochs"} <= {int, float}


def test_a_run_measured_beside_training_reports_the_same_epochs_without_numbers(base):
    values = TINY | {"evaluation": TINY["evaluation"] | {"asynchronous": True}}
    beside, inline = Trainer(build(RunConfig, values)), Trainer(base)
    told = list(reports(beside))
    assert [r["epoch"] for r in told] == [2, 4, 5]
    assert all(r[SCORE] == -1.0 for r in told)
    assert not any("robust_accuracy" in key or "best" in key for r in told for key in r)
    inline.fit()
    for name, value in inline.net.state_dict().items():
        assert torch.equal(beside.net.state_dict()[name], value), name


def test_a_checkpoint_measured_beside_training_has_the_trainers_numbers(base, tmp_path):
    values = TINY | {"evaluation": TINY["evaluation"] | {"asynchronous": True}}
    config, inline = build(RunConfig, values), Trainer(base)
    trainer = Trainer(config)
    for _ in range(2):
        inline.run_epoch()
        trainer.run_epoch()
    trainer.save(tmp_path / "second")
    checkpoint = train.Checkpoint.from_directory(tmp_path / "second")
    measured = measure_checkpoint(to_dict(config), checkpoint)
    last = inline.history[-1]
    expected = {k: v for k, v in last.items() if k.startswith(("clean_acc", "robust_acc"))}
    assert len(expected) == 6
    assert {k: v for k, v in measured.items() if k in expected} == expected
    assert measured["epoch"] == 2
    assert measure_final(to_dict(config), checkpoint)["record"]["split"] == "test"


def test_a_diverging_run_ends_with_the_worst_accuracies(base):
    class Diverging:
        config = base
        done = False
        history = ()

        def epochs(self):
            yield {"epoch": 1, "diverged": 0.0, "robust_accuracy": 0.5, "clean_accuracy": 0.8}
            self.done = True
            yield {"epoch": 2, "diverged": 1.0, "loss.total": math.nan}

    first, last = reports(Diverging())
    assert first["robust_accuracy"] == 0.5
    assert (last["robust_accuracy"], last["clean_accuracy"]) == (0.0, 0.0)
    assert (last["epoch"], last["diverged"]) == (2, 1.0)
    assert "robust_accuracy" not in last["epochs"][0]  # recorded as what it is


def point(alpha):
    return {"overrides": {"objective.alpha": alpha}}


@pytest.fixture
def trial(base):
    """A trial as Tune's actor would set it up; saved at epoch 4 as a rung."""
    trial = MorelTrial.__new__(MorelTrial)
    trial.setup(point(0.1), base=to_dict(base), milestones=[4])
    return trial


def test_a_trial_is_the_base_with_its_overrides(trial, base):
    assert trial.run_config.objective.alpha == 0.1
    assert trial.trainer.config == trial.run_config
    assert trial.base == base
    assert torch.get_num_threads() == base.scaling.cpus_per_worker


def test_a_point_that_no_run_can_have_says_why_and_ends(base):
    trial = MorelTrial.__new__(MorelTrial)
    trial.setup(point(0.1) | {IMPOSSIBLE: "objective.alpha: division by zero"}, base=to_dict(base))
    report = trial.step()
    assert (report["done"], report[FAILED]) == (
        True,
        "MorelError: objective.alpha: division by zero",
    )


def test_steps_go_from_measurement_to_measurement_and_save_at_milestones_and_the_end(trial):
    results = [trial.step() for _ in range(3)]
    assert [r["epoch"] for r in results] == [2, 4, 5]
    assert [r["done"] for r in results] == [False, False, True]
    assert [r[SHOULD_CHECKPOINT] for r in results] == [False, True, True]
    assert {r["device"] for r in results} == {"cpu"}


def test_a_trial_saves_when_the_time_has_come(base, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(one_worker_trial.time, "monotonic", lambda: now[0])
    trial = MorelTrial.__new__(MorelTrial)
    trial.setup(point(0.1), base=to_dict(base), milestones=[])
    assert not trial.step()[SHOULD_CHECKPOINT]
    now[0] = 300.0
    assert trial.step()[SHOULD_CHECKPOINT]


def test_a_reused_actor_starts_the_next_trial_as_a_fresh_one_does(trial, base):
    data = trial.data
    trial.step()
    assert trial.reset_config(point(1.0))
    assert trial.run_config.objective.alpha == 1.0
    assert trial.data is data  # loaded once
    fresh = MorelTrial.__new__(MorelTrial)
    fresh.setup(point(1.0), base=to_dict(base), milestones=[4])
    again, first = trial.step(), fresh.step()
    assert again["loss.total"] == first["loss.total"]
    assert again["robust_accuracy"] == first["robust_accuracy"]
    assert [m["epoch"] for m in again["epochs"]] == [1, 2]


def test_a_reused_actor_loads_other_data_when_the_trial_wants_it(trial):
    data = trial.data
    trial.reset_config({"overrides": {"data.holdout": 20}})
    assert trial.data is not data
    assert len(trial.data.holdout) == 20
    trial.reset_config({"overrides": {"data.holdout": 20}})
    assert len(trial.data.holdout) == 20
    trial.reset_config(point(0.1))
    assert len(trial.data.holdout) == 30


def test_a_trial_goes_on_from_its_checkpoint(trial, base, tmp_path):
    trial.step()
    trial.save_checkpoint(str(tmp_path / "c"))
    assert (tmp_path / "c" / MANIFEST).is_file()
    other = MorelTrial.__new__(MorelTrial)
    other.setup(point(0.1), base=to_dict(base), milestones=[])
    other.load_checkpoint(str(tmp_path / "c"))
    resumed, uninterrupted = other.step(), trial.step()
    assert [m["epoch"] for m in resumed["epochs"]] == [3, 4]
    assert resumed["loss.total"] == uninterrupted["loss.total"]


class SavedResult:
    """Tune's own, of which a trial reads this much."""

    def __init__(self, checkpoint, metrics):
        self.checkpoint, self.metrics = checkpoint, metrics


@pytest.fixture
def restored(base, monkeypatch):
    """A fresh trial, restored by Tune from the checkpoint that ours chooses."""

    def load(self, saved):
        assert Path(saved.checkpoint.path).is_dir()
        self.load_checkpoint(saved.checkpoint.path)

    monkeypatch.setattr(tune.Trainable, "restore", load)

    def restore(folder, epoch):
        trial = MorelTrial.__new__(MorelTrial)
        trial.setup(point(0.1), base=to_dict(base), milestones=[])
        trial.restore(SavedResult(tune.Checkpoint.from_directory(folder), {"epoch": epoch}))
        return trial

    return restore


def test_a_trial_whose_checkpoint_made_room_goes_on_from_the_newest_whole_one(
    trial, restored, tmp_path
):
    uninterrupted = [trial.step()]
    for index in (1, 2):
        uninterrupted.append(trial.step())
        trial.save_checkpoint(str(tmp_path / f"checkpoint_00000{index}"))
    (tmp_path / "checkpoint_000003").mkdir()  # the driver was killed while it was written
    other = restored(tmp_path / "checkpoint_000000", epoch=2)
    assert other.trainer.epoch == 5
    heard = [other.step(), other.step()]
    assert [r["epoch"] for r in heard] == [4, 5]
    assert [r["done"] for r in heard] == [False, True]
    for now, then in zip(heard, uninterrupted[1:], strict=True):
        assert now["epochs"] == then["epochs"]
        assert now["robust_accuracy"] == then["robust_accuracy"]


def test_a_trial_that_was_at_its_end_says_so_again(trial, restored, tmp_path):
    last = [trial.step() for _ in range(3)][-1]
    trial.save_checkpoint(str(tmp_path / "checkpoint_000000"))
    other = restored(tmp_path / "checkpoint_000000", epoch=5)
    again = other.step()
    assert again["done"]
    assert (again["epoch"], again["robust_accuracy"]) == (5, last["robust_accuracy"])


def test_config_travels_as_plain_values(base):
    assert worker.config_from(to_dict(base)) == base


@pytest.mark.parametrize(
    ("scaling", "resources", "gpu"),
    [
        ({"num_workers": 2, "cpus_per_worker": 3}, {"CPU": 3.0}, False),
        ({"num_workers": 1, "gpus_per_worker": 0.5}, {"CPU": 1.0, "GPU": 0.5}, True),
    ],
)
def test_scaling_in_rays_words(scaling, resources, gpu):
    config = build(RunConfig, {"scaling": scaling})
    asked = scaling_config(config)
    assert asked.num_workers == scaling["num_workers"]
    assert asked.resources_per_worker == resources
    assert asked.use_gpu is gpu


@pytest.fixture
def saved(base, tmp_path):
    """A finished run's checkpoint, as Ray hands it over."""
    trainer = Trainer(base)
    trainer.fit()
    trainer.save(tmp_path / "saved")
    return train.Checkpoint.from_directory(tmp_path / "saved"), trainer


def test_final_numbers_are_the_best_networks_on_the_test_set(base, saved):
    checkpoint, trainer = saved
    final = measure_final(to_dict(base), checkpoint)
    trainer.load_best()
    attack = trainer.eval_attack
    expected = trainer.evaluate("test", {attack.name: attack})
    record = final["record"]
    assert record["split"] == "test"
    assert list(record["outcomes"]) == ["clean", "pgd2_linf_0.05"]
    for name, outcome in record["outcomes"].items():
        assert outcome["accuracy"] == expected[name].accuracy
        assert outcome["num_images"] == 20
    assert set(final["files"]) == {"model.safetensors", "model.pt2"}
    assert (final["shape"], final["num_classes"]) == ([1, 8, 8], 3)
    assert '"correct"' in final["json"]
    assert final["seconds"] > 0


def test_a_run_that_was_never_measured_has_no_final_numbers(base, tmp_path):
    trainer = Trainer(base)
    trainer.run_epoch()  # measured every second one
    trainer.save(tmp_path / "early")
    assert load_progress(tmp_path / "early")["best"] is None
    with pytest.raises(MorelError, match="before its first measurement"):
        measure_final(to_dict(base), train.Checkpoint.from_directory(tmp_path / "early"))


def test_a_point_that_no_run_can_have_ends_its_trial_without_an_error(trial, tmp_path):
    trial.reset_config({"overrides": {"training.batch_size": 5000}})
    last = trial.step()
    assert last["failed"].startswith("ConfigError: training.batch_size = 5000: at most 48")
    assert (last["done"], last["epochs"], last["robust_accuracy"]) == (True, [], 0.0)
    trial.save_checkpoint(str(tmp_path / "none"))  # as Tune does at the end of every trial
    assert not (tmp_path / "none").exists()
    trial.load_checkpoint("/nowhere")  # Tune may restore it first: it has failed before
    assert trial.step()["failed"] == last["failed"]
    trial.reset_config(point(0.2))
    assert trial.step()["epoch"] == 2


def test_a_checkpoint_of_another_network_fails_its_trial_for_good(trial, base, tmp_path):
    values = TINY | {"model": TINY["model"] | {"width": 8}}
    Trainer(build(RunConfig, values)).save(tmp_path / "other")
    trial.load_checkpoint(tmp_path / "other")
    assert "belongs to another network" in trial.step()["failed"]


def test_other_errors_are_tunes_to_handle(trial, monkeypatch):
    def out(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(trial.trainer, "run_epoch", out)
    with pytest.raises(torch.OutOfMemoryError):
        trial.step()


@pytest.mark.parametrize(("norm", "slices"), [("batch", 2), ("none", 0)])
def test_a_retry_trains_with_what_it_changed_and_says_what_that_means(trial, norm, slices):
    trial.reset_config(
        {"overrides": {"model.norm": norm}, "changes": {"training.micro_batches": 2}}
    )
    assert trial.trainer.config.training.micro_batches == 2
    report = trial.step()
    assert report["batchnorm_slices"] == slices
    assert report["device"] == "cpu"
