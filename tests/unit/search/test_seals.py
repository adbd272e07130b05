"""Tune's own pickled state is read only where it is ours: a malicious one is never unpickled."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
from pathlib import Path

import pytest
from bait import Bait
from ray import cloudpickle, tune
from ray.tune import ExperimentAnalysis
from ray.tune.callback import CallbackList
from ray.tune.utils.serialization import TuneFunctionEncoder

from morel_core.errors import MorelError
from orchestrator.search import seals
from orchestrator.search.multi_worker_trial import MultiWorkerTrial
from orchestrator.search.one_worker_trial import MorelTrial
from orchestrator.search.resume import TrialSource, saved_trials
from orchestrator.search.searcher import SpaceSearcher

SESSION, LATER = "2026-01-01_00-00-00", "2026-01-01_00-00-01"
NAMES = [pattern.replace("*", LATER) for pattern in (*seals.SEALED, "callback-states-*.pkl")]


@pytest.fixture
def source(search, tmp_path):
    return TrialSource(
        SpaceSearcher(search), concurrent=2, folder=str(tmp_path), saved=[], closed=False
    )


@pytest.fixture
def folder(source, tmp_path):
    """A search's, with the state of an earlier driver."""
    place = tmp_path / "hunt"
    place.mkdir(mode=0o700)
    write_state(source, place)
    return place


def write_state(source, place, session=SESSION):
    """As Tune does: the trials, then the searcher."""
    state = {"trial_data": [], "runner_data": {"of": Bait}, "stats": {}}
    path = place / f"experiment_state-{session}.json"
    path.write_text(json.dumps(state, cls=TuneFunctionEncoder))
    source.save_to_dir(str(place), session)


def plant(place, name, marker):
    """A malicious file of that name, newer than all others; returns where it is."""
    path, harm = place / name, Bait(marker)
    if name.startswith("experiment_state"):
        path.write_text(json.dumps({"runner_data": harm}, cls=TuneFunctionEncoder))
    else:
        path.write_bytes(cloudpickle.dumps((harm, harm, harm, harm, harm)))
    return path


def test_what_we_wrote_is_read(folder, source):
    assert saved_trials(str(folder)) == []  # trials, of which it holds none
    assert source.has_checkpoint(str(folder))
    source.restore_from_dir(str(folder))
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}


def test_no_state_is_none(tmp_path):
    assert not seals.check(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("name", NAMES)
def test_bait_is_real(name, tmp_path, source):
    """Tune itself would run it."""
    marker = tmp_path / "executed"
    plant(tmp_path, name, marker)
    readers = {
        "experiment": lambda: ExperimentAnalysis(str(tmp_path)),
        "search_gen": lambda: super(TrialSource, source).has_checkpoint(str(tmp_path)),
        "searcher": lambda: source._proposer.restore_from_dir(str(tmp_path)),
        "callback": lambda: CallbackList([]).restore_from_dir(str(tmp_path)),
    }
    (read,) = [reader for begin, reader in readers.items() if name.startswith(begin)]
    with contextlib.suppress(AttributeError, KeyError, TypeError):  # it is no state
        read()
    assert marker.exists()


@pytest.mark.parametrize("name", NAMES)
def test_a_planted_file_is_refused_unread(name, folder, source, marker):
    plant(folder, name, marker)
    with pytest.raises(MorelError, match=f"{name}: this state .* refused unread: it carries no"):
        saved_trials(str(folder))
    with pytest.raises(MorelError, match="it carries no seal"):
        source.has_checkpoint(str(folder))


@pytest.mark.parametrize("name", NAMES[:3])
def test_one_with_a_seal_of_another_file_is_refused(name, folder, source, marker):
    plant(folder, name, marker)
    seals.seal(str(folder), LATER)
    (folder / name).rename(folder / name.replace(LATER, "2026-01-01_00-00-02"))
    with pytest.raises(MorelError, match="its seal does not fit: it is damaged"):
        saved_trials(str(folder))


@pytest.mark.parametrize("name", NAMES[:3])
def test_without_the_key_nobody_can_seal(name, folder, source, marker, monkeypatch):
    """Somebody who can write into an object store knows how, but not the key."""
    monkeypatch.setenv(seals.KEY, "ours")
    write_state(source, folder)
    assert saved_trials(str(folder)) == []
    plant(folder, name, marker)
    monkeypatch.delenv(seals.KEY)
    seals.seal(str(folder), LATER)
    monkeypatch.setenv(seals.KEY, "ours")
    with pytest.raises(MorelError, match="it is not sealed with the key in MOREL_STATE_KEY"):
        saved_trials(str(folder))
    monkeypatch.setenv(seals.KEY, "theirs")
    seals.seal(str(folder), LATER)
    monkeypatch.setenv(seals.KEY, "ours")
    with pytest.raises(MorelError, match="tampered with it, or MOREL_STATE_KEY is another one"):
        saved_trials(str(folder))


def test_the_key_is_asked_for_and_never_told(folder, source, monkeypatch):
    monkeypatch.setenv(seals.KEY, "a secret")
    write_state(source, folder)
    monkeypatch.delenv(seals.KEY)
    with pytest.raises(MorelError, match="sealed with a key: set MOREL_STATE_KEY"):
        saved_trials(str(folder))
    assert not any(b"a secret" in path.read_bytes() for path in folder.iterdir())


@pytest.mark.parametrize("mode", [0o770, 0o757])
def test_where_others_may_write_a_seal_is_no_proof(folder, marker, mode):
    plant(folder, NAMES[0], marker)
    seals.seal(str(folder), LATER)
    folder.chmod(mode)
    with pytest.raises(MorelError, match="others may write its folder"):
        saved_trials(str(folder))


def test_a_file_that_others_may_write_is_refused_unless_its_folder_is_closed(folder, marker):
    state = folder / f"experiment_state-{SESSION}.json"
    state.chmod(0o664)
    assert saved_trials(str(folder)) == []
    folder.chmod(0o755)
    with pytest.raises(MorelError, match="others may write it"):
        saved_trials(str(folder))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_files_of_another_user_are_refused(folder, marker):
    os.chown(plant(folder, NAMES[2], marker), 12345, -1)
    seals.seal(str(folder), "nothing")
    with pytest.raises(MorelError, match=r"others may write it \(user 12345 owns it"):
        saved_trials(str(folder))


def test_links_are_refused(folder, tmp_path, marker):
    elsewhere = plant(tmp_path, NAMES[1], marker)
    (folder / NAMES[1]).symlink_to(elsewhere)
    with pytest.raises(MorelError, match="no plain file"):
        saved_trials(str(folder))


# --- checkpoints of trials ------------------------------------------------------------------------


class Saved:
    """Tune's result of a save, of which trials read this much."""

    def __init__(self, folder: Path) -> None:
        self.checkpoint = tune.Checkpoint.from_directory(folder)
        self.metrics = {"epoch": 1}


@pytest.fixture
def pickled(tmp_path, marker, monkeypatch):
    """A checkpoint with a dictionary that Tune would unpickle."""
    monkeypatch.setattr(
        "orchestrator.search.one_worker_trial.newest_whole", lambda checkpoint: (checkpoint, "")
    )
    folder = tmp_path / "checkpoint_000001"
    folder.mkdir()
    (folder / seals.PICKLED).write_bytes(pickle.dumps({"harm": Bait(marker)}))
    return Saved(folder)


def test_a_pickled_checkpoint_fails_its_trial_unread(pickled):
    trial = MorelTrial.__new__(MorelTrial)
    trial.failure, trial.changed = None, False
    trial.restore(pickled)
    report = trial.step()
    assert report["done"]
    assert "a pickled checkpoint" in str(report)


def test_a_pickled_checkpoint_of_several_workers_is_refused_unread(pickled):
    trial = MultiWorkerTrial.__new__(MultiWorkerTrial)
    with pytest.raises(MorelError, match=r"a pickled checkpoint, .* refused unread"):
        trial.restore(pickled)


def test_tune_calls_it_so():
    """The name is Tune's own."""
    from ray.tune.trainable import trainable

    assert trainable._DICT_CHECKPOINT_FILE_NAME == seals.PICKLED


@pytest.mark.parametrize(
    ("folder", "key", "warned"),
    [
        ("s3://bucket/runs/hunt", "", 1),
        ("s3://bucket/runs/hunt", "a key", 0),
        ("/runs/hunt", "", 0),
    ],
)
def test_a_search_in_an_object_store_without_a_key_is_warned_of(
    search, monkeypatch, caplog, folder, key, warned
):
    monkeypatch.setenv("MOREL_STATE_KEY", key)
    TrialSource(SpaceSearcher(search), concurrent=2, folder=folder, saved=[], closed=False)
    said = [record.getMessage() for record in caplog.records if "MOREL" in record.getMessage()]
    assert len(said) == warned
    assert all(line.startswith(f"{folder}: whoever may write there can") for line in said)
