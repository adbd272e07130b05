"""Trials that are trained already are found by what decides their numbers, and told again."""

import json
from dataclasses import dataclass, replace
from itertools import accumulate

import pytest
import torch
from fake_tune import FakeTrial, checkpoint, report
from ray.tune.result import SHOULD_CHECKPOINT
from tiny_evaluation import TINY

from morel_core import Trainer
from morel_core.data import load_data
from orchestrator import storage, tune
from orchestrator.config import RunConfig, to_dict, with_overrides
from orchestrator.search import reuse, verify
from orchestrator.search.one_worker_trial import MorelTrial
from orchestrator.search.reuse import find_twins, note_twin
from orchestrator.search.settings import SchedulerConfig
from orchestrator.search.trials import TrialBook
from orchestrator.search.verified import Verified
from orchestrator.settings.building import build
from orchestrator.training import worker
from orchestrator.training.keys import TRAIN_SECONDS
from orchestrator.training.twins import Twin, Twins, take_over, whole


@pytest.fixture
def run(tmp_path):
    values = TINY | {"storage_path": str(tmp_path), "training": {"epochs": 4, "batch_size": 16}}
    return build(RunConfig, values)


@pytest.fixture
def twins(run, tmp_path):
    return Twins(folder=f"{tmp_path}/twins", code="c0de", fingerprint="f1", data=run.data)


def noted(twins, run, folder, epochs=None):
    """A trial of ``run``, trained for so many epochs, saved and noted."""
    trainer = Trainer(run)
    for _ in range(epochs or run.training.epochs):
        trainer.run_epoch()
    trainer.save(folder)
    twins.note(run, Twin(run_id="old/t7", checkpoint=str(folder), epochs=trainer.epoch))
    return trainer


def test_a_note_is_found_by_what_decides_the_numbers(twins, run):
    twin = Twin(run_id="old/t7", checkpoint="/there", epochs=4)
    twins.note(run, twin)
    elsewhere = {"name": "other", "tracking.experiment": "x", "checkpoint.every_seconds": 1.0}
    assert twins.find(with_overrides(run, elsewhere)) == twin
    for changes in (
        {"seed": 1},
        {"objective.alpha": 0.5},
        {"training.epochs": 5},
        {"training.micro_batches": 2},
        {"evaluation.attack.num_steps": 9},
        {"data.holdout": 20},
        {"data.augmentation": "crop"},
        {"scaling.num_workers": 2},
    ):
        assert twins.find(with_overrides(run, changes)) is None, changes
    assert replace(twins, code="0ther").find(run) is None
    assert replace(twins, fingerprint="f2").find(run) is None


def test_images_whose_hash_is_unknown_have_no_twins(twins, run):
    other = with_overrides(run, {"data.split_seed": 1})
    twins.note(other, Twin(run_id="old/t7", checkpoint="/there", epochs=4))
    assert twins.find(other) is None
    assert twins.verified(other, "/there", []) is None


def test_the_longer_training_is_kept(twins, run):
    for epochs, kept in ((2, 2), (4, 4), (3, 4)):
        twins.note(run, Twin(run_id=f"t{epochs}", checkpoint="/there", epochs=epochs))
        assert twins.find(run).epochs == kept


def test_half_a_note_is_none(twins, run, tmp_path):
    twins.note(run, Twin(run_id="t", checkpoint="/there", epochs=2))
    (path,) = (tmp_path / "twins").iterdir()
    for text in ('{"run_id": "t"', '{"run_id": "t"}', "[]"):
        path.write_text(text)
        assert twins.find(run) is None


def test_a_checkpoint_that_is_gone_or_damaged_is_trained_anew(twins, run, tmp_path):
    noted(twins, run, tmp_path / "old")
    assert whole(twins.find(run)) == twins.find(run)
    (tmp_path / "old" / "best.safetensors").write_bytes(b"no")
    assert whole(twins.find(run)) is None
    assert whole(Twin(run_id="t", checkpoint=str(tmp_path / "nowhere"), epochs=4)) is None
    assert whole(None) is None
    assert take_over(Trainer(run), None) == []


@pytest.fixture
def begin(twins, run):
    """A trial as Tune's actor sets it up."""

    def begin(**changes):
        trial = MorelTrial.__new__(MorelTrial)
        given = {"base": to_dict(run), "milestones": [2], "twins": twins, **changes}
        trial.setup({"overrides": {}}, **given)
        return trial

    return begin


def told(trial):
    reports = [trial.step()]
    while not reports[-1]["done"]:
        reports.append(trial.step())
    return reports


def test_a_twin_is_told_again_and_not_trained(begin, twins, run, tmp_path, monkeypatch):
    old = noted(twins, run, tmp_path / "old")
    monkeypatch.setattr(Trainer, "run_epoch", lambda _: pytest.fail("it trains"))
    trial = begin()
    reports = told(trial)
    assert [m for r in reports for m in r["epochs"]] == old.history
    assert [r["epoch"] for r in reports] == [1, 2, 3, 4]
    assert {r["twin"] for r in reports} == {"old/t7"}
    assert {r["trained"] for r in reports} == {4}
    took = [m["seconds"] + m.get("seconds_evaluation", 0.0) for m in old.history]
    assert [r[TRAIN_SECONDS] for r in reports] == pytest.approx(list(accumulate(took)))
    # At epoch 2 the network is that of epoch 4: it is saved when that has been told.
    assert [r[SHOULD_CHECKPOINT] for r in reports] == [False, False, False, True]
    trial.save_checkpoint(str(tmp_path / "new"))
    assert (tmp_path / "new" / "best.safetensors").read_bytes() == (
        tmp_path / "old" / "best.safetensors"
    ).read_bytes()


def test_a_trial_that_was_stopped_early_is_trained_on(begin, twins, run, tmp_path):
    noted(twins, run, tmp_path / "old", epochs=2)
    reports = told(begin())
    assert [r["epoch"] for r in reports] == [1, 2, 3, 4]
    whole_run = Trainer(run)
    whole_run.fit()
    for again, once in zip(reports, whole_run.history, strict=True):
        for key in ("loss.total", "robust_accuracy", "clean_accuracy"):
            assert again[key] == once[key]


def test_without_a_twin_nothing_is_said_of_one(begin):
    trial = begin()
    assert "twin" not in trial.step()
    assert trial.trainer.epoch == 1


def test_the_next_trial_of_the_process_is_another(begin, twins, run, tmp_path):
    noted(twins, run, tmp_path / "old")
    trial = begin()
    assert "twin" in trial.step()
    trial.reset_config({"overrides": {"objective.alpha": 0.3}})
    assert "twin" not in trial.step()


def test_an_own_checkpoint_comes_before_a_twin(begin, twins, run, tmp_path):
    own = begin(twins=None)
    own.step()
    own.save_checkpoint(str(tmp_path / "own"))
    noted(twins, run, tmp_path / "old")
    trial = begin()
    trial.load_checkpoint(str(tmp_path / "own"))
    report = trial.step()
    assert (report["epoch"], trial.trainer.epoch) == (2, 2)
    assert "twin" not in report


def test_ranks_take_over_what_their_driver_found(twins, run, tmp_path, monkeypatch):
    old = noted(twins, run, tmp_path / "old")
    reports = []

    class Context:
        def get_world_rank(self):
            return 0

    monkeypatch.setattr(worker, "checkpoint_to_start_from", lambda stretch: (None, ""))
    monkeypatch.setattr(worker.train, "get_context", Context)
    monkeypatch.setattr(worker.train, "get_preemption_info", lambda: None)
    monkeypatch.setattr(worker.train, "report", lambda r, **how: reports.append((r, how)))
    monkeypatch.setattr("ray.train.torch.get_device", lambda: torch.device("cpu"))
    staged = worker.Staged(run.data, load_data(run.data).fingerprint, None)
    how = {"milestones": [2], "staged": staged, "twin": twins.find(run)}
    worker.train_loop({"config": to_dict(run), **how})
    assert [m for r, _ in reports for m in r["epochs"]] == old.history
    assert ["checkpoint" in how for _, how in reports] == [False, False, False, True]
    assert {r["twin"] for r, _ in reports} == {"old/t7"}


# --- the driver's side ---------------------------------------------------------------------------


@pytest.fixture
def book(search, recorder):
    return TrialBook(search, recorder, None)


def ended(book, last, **circumstances):
    tune_trial = FakeTrial(checkpoint=checkpoint())
    book.start(tune_trial)
    book.result(tune_trial, last | circumstances)
    book.complete(tune_trial)
    return book.trials[0]


@pytest.mark.parametrize(
    ("last", "kept"),
    [
        (report(9), True),
        (report(3), True),  # stopped: the next one is trained on
        (report(3, diverged=1.0), False),
        (report(3, failed="MorelError: no"), False),
    ],
)
def test_who_is_noted(book, search, last, kept):
    twins = find_twins(search, "f1")
    trial = ended(book, last)
    note_twin(twins, search, trial)
    twin = twins.find(search.trial_config(trial.params))
    assert (twin is not None) == kept
    if kept:
        assert (twin.run_id, twin.epochs) == (trial.run_id, trial.epoch)
        assert twin.checkpoint == trial.checkpoint


def test_a_retried_trial_is_noted_as_what_it_is(book, search):
    twins = find_twins(search, "f1")
    trial = ended(book, report(9))
    trial.changes = {"training.micro_batches": 2}
    note_twin(twins, search, trial)
    own = search.trial_config(trial.params)
    assert twins.find(own) is None
    assert twins.find(with_overrides(own, trial.changes)) is not None


def test_a_storage_that_fails_costs_no_search(book, search, monkeypatch, caplog):
    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(storage, "write", full)
    note_twin(find_twins(search, "f1"), search, ended(book, report(9)))
    assert "no space left" in caplog.text


def test_who_looks_for_twins(search):
    assert find_twins(search, "f1") is not None
    assert find_twins(replace(search, reuse=False), "f1") is None
    assert find_twins(replace(search, scheduler=SchedulerConfig(name="pbt")), "f1") is None
    assert "reuse" in tune.MAY_CHANGE
    assert reuse.find_twins(search, "f1").folder == f"{search.base.storage_path}/twins"


def test_a_network_that_knows_later_epochs_than_were_told_is_not_the_trials(book):
    assert ended(book, report(3), twin="old/t7", trained=9).checkpoint is None


def test_its_run_names_the_twin(book, recorder, tracker):
    trial = ended(book, report(9), twin="old/t7", trained=9)
    assert (trial.twin, trial.checkpoint) == ("old/t7", "/storage/checkpoint_000001")
    assert recorder.flush(10) == 0
    assert tracker.applied[-1].payload["tags"]["morel.twin"] == "old/t7"


def test_a_verification_is_found_by_network_attacks_and_images(book, search, tmp_path):
    twins = find_twins(search, "f1")
    trial = ended(book, report(9))
    places = []
    for network in ("aa", "bb"):
        manifest = {"sha256": {"best.safetensors": network}}
        storage.write(f"{tmp_path}/{network}/manifest.json", json.dumps(manifest).encode())
        trial.checkpoint = f"{tmp_path}/{network}"
        places.append(verify._places(search, trial, twins))
    assert len(places[0]) == len(places[1]) == 2
    assert places[0][0] == places[1][0]
    assert places[0][1] != places[1][1]
    other = replace(search.ladder.verify, top=1, attacks=["pgd20"])
    changed = replace(search, ladder=replace(search.ladder, verify=other))
    assert verify._places(changed, trial, twins)[1] not in places[1]
    trial.checkpoint = f"{tmp_path}/gone"
    assert len(verify._places(search, trial, twins)) == 1


@dataclass
class Found:
    """Stands in for `Verified`."""

    number: int
    seconds: float = 5.0


def test_a_verification_of_another_search_is_taken_over_and_costs_nothing(
    book, search, tmp_path, monkeypatch
):
    twins = find_twins(search, "f1")
    trial = ended(book, report(9))
    trial.checkpoint = str(tmp_path / "net")
    manifest = {"sha256": {"best.safetensors": "aa"}}
    storage.write(f"{trial.checkpoint}/manifest.json", json.dumps(manifest).encode())
    own, shared = verify._places(search, trial, twins)
    monkeypatch.setattr(Verified, "from_json", lambda text: Found(*json.loads(text)))
    storage.write(shared, b"{")
    assert verify._kept(search, trial, twins) is None
    storage.write(shared, b"[1]")
    assert verify._kept(search, trial, twins) == Found(1, seconds=0.0)
    assert verify._kept(search, trial, None) is None
    storage.write(own, b"[2]")
    assert verify._kept(search, trial, twins) == Found(2)
