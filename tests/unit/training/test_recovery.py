"""Which checkpoint a run goes on from."""

from types import SimpleNamespace

import pytest
from pyarrow.fs import LocalFileSystem
from ray.train import Checkpoint

from morel_core import Trainer
from orchestrator.config import RunConfig
from orchestrator.settings.building import build
from orchestrator.training.recovery import SNAPSHOT, drop_torn_snapshot, newest_saved

TINY = {
    "data": {"name": "synthetic", "num_classes": 3, "image_size": 8, "channels": 1}
    | {"num_train": 60, "num_test": 20, "holdout": 20},
    "model": {"name": "digits_cnn", "width": 4, "embed_dim": 8},
    "training": {"epochs": 1, "batch_size": 16},
}


@pytest.fixture
def save(tmp_path):
    trainer = Trainer(build(RunConfig, TINY))

    def save(name, *, whole=True):
        folder = tmp_path / "run" / name
        trainer.save(folder)
        if not whole:
            file = folder / "last.safetensors"
            file.write_bytes(file.read_bytes()[:-1])
        return Checkpoint(str(folder), LocalFileSystem())

    return save


@pytest.fixture
def storage(tmp_path):
    folder = str(tmp_path / "run")
    return SimpleNamespace(storage_filesystem=LocalFileSystem(), experiment_fs_path=folder)


def chosen(storage, known):
    start, said = newest_saved(storage, known)
    return start and start.path.rpartition("/")[2], said


def test_a_run_that_never_saved_begins_anew(storage):
    assert chosen(storage, None) == (None, "")


def test_what_was_saved_without_rays_knowledge_is_found(storage, save):
    save("checkpoint_1")
    assert chosen(storage, None) == ("checkpoint_1", "")
    known = save("checkpoint_2")
    assert chosen(storage, known) == ("checkpoint_2", "")
    save("checkpoint_3")
    assert chosen(storage, known) == ("checkpoint_3", "")


def test_one_that_was_not_written_to_its_end_is_passed_over(storage, save):
    known = save("checkpoint_1")
    save("checkpoint_2")
    save("checkpoint_3", whole=False)
    assert chosen(storage, known) == ("checkpoint_2", "")


def test_where_the_known_one_is_damaged_the_one_before_is_taken_and_that_is_said(storage, save):
    save("checkpoint_1")
    known = save("checkpoint_2", whole=False)
    start, said = chosen(storage, known)
    assert start == "checkpoint_1"
    assert said.startswith("checkpoint_2 is damaged")
    assert said.endswith("went on from checkpoint_1")


# --- Ray Train's list of checkpoints --------------------------------------------------------------

LISTED = '{"checkpoint_results": [{"checkpoint_dir_name": "checkpoint_1", "metrics": {}}]}'


@pytest.mark.parametrize("text", ["", LISTED[:40], "[]", '{"checkpoint_results": 3}', LISTED])
def test_a_list_that_ray_train_cannot_begin_with_is_dropped(tmp_path, text, caplog):
    """Torn by the driver's death; the last one names a checkpoint that made room."""
    (tmp_path / SNAPSHOT).write_text(text)
    drop_torn_snapshot(str(tmp_path))
    assert not (tmp_path / SNAPSHOT).exists()
    assert "they are looked for" in caplog.text


def test_a_whole_list_stays(tmp_path):
    drop_torn_snapshot(str(tmp_path))
    (tmp_path / "checkpoint_1").mkdir()
    (tmp_path / SNAPSHOT).write_text(LISTED)
    drop_torn_snapshot(str(tmp_path))
    assert (tmp_path / SNAPSHOT).read_text() == LISTED


def test_ray_train_calls_its_list_so():
    from ray.train.v2._internal import constants

    assert constants.CHECKPOINT_MANAGER_SNAPSHOT_FILENAME == SNAPSHOT
