"""What `morel clean` finds, and what it never touches."""

from __future__ import annotations

import json

import pytest

from morel_core.errors import MorelError
from orchestrator import storage
from orchestrator.cleaning import clean
from orchestrator.cli import main
from orchestrator.driver.lease import LeaseHeldError, held
from orchestrator.tracking import Journal


def begin(journal, run_id, parent=None, **tags):
    payload = {"name": run_id, "parent": parent, "params": {}, "tags": tags, "config": {}}
    journal.append(run_id, "start", "start", payload | {"dataset": None})


def end(journal, run_id, key="final", metrics=(), **tags):
    payload = {"status": "FINISHED", "stop_reason": "", "metrics": dict(metrics), "tags": tags}
    journal.append(run_id, "final", key, payload)


@pytest.fixture
def search(tmp_path):
    """Five trials of two checkpoints each: the winner, one on the front, one verified, two more."""
    folder = tmp_path / "hunt"
    storage.write(f"{folder}/definition.json", b"{}")
    journal = Journal(f"{folder}/journal")
    begin(journal, "hunt", **{"morel.search": "hunt"})
    for number in range(1, 6):
        trial = f"hunt/t{number}"
        begin(journal, trial, "hunt", **{"morel.number": str(number), "morel.search": "hunt"})
        for index in (1, 2):
            storage.write(f"{folder}/trial_t{number}/checkpoint_00000{index}/w.bin", bytes(100))
        newest = f"{folder}/trial_t{number}/checkpoint_000002"
        end(journal, trial, **{"morel.state": "finished", "morel.checkpoint": newest})
    end(journal, "hunt/t3", "verified", **{"morel.verified.attacks": "apgd-ce"})
    content = {"points": [{"run_id": "hunt/t2"}]}
    storage.write(f"{folder}/front.json", json.dumps(content).encode())
    end(journal, "hunt", **{"morel.state": "finished", "morel.winner_run": "hunt/t1"})
    return folder


def left(folder):
    return sorted(f"{p.parent.name}/{p.name}" for p in folder.glob("trial_*/checkpoint_*"))


KEPT = [f"trial_t{number}/checkpoint_000002" for number in (1, 2, 3)]


def test_it_shows_first_and_deletes_when_asked(search, capsys):
    assert main(["clean", str(search)]) == 0
    assert "7 checkpoints: would be freed; --yes deletes" in capsys.readouterr().out
    assert len(left(search)) == 10
    assert main(["clean", "hunt", "--yes", "--json", f"storage_path={search.parent}"]) == 0
    assert json.loads(capsys.readouterr().out)["bytes"] == 700
    assert left(search) == KEPT
    assert clean(str(search), [], delete=True) == []


def test_trials_that_are_asked_for_stay(search):
    clean(str(search), [5], delete=True)
    assert left(search) == [*KEPT, "trial_t5/checkpoint_000002"]
    with pytest.raises(MorelError, match="--keep 9: there is no trial"):
        clean(str(search), [9], delete=True)


def test_a_trial_that_was_tested_stays(search):
    journal = Journal(f"{search}/journal")
    end(journal, "hunt/t4", "test", metrics={"test.clean": 0.5})
    clean(str(search), [], delete=True)
    assert left(search) == [*KEPT, "trial_t4/checkpoint_000002"]


def test_what_is_not_finished_is_left_alone(search):
    end(Journal(f"{search}/journal"), "hunt", "again", **{"morel.state": "killed"})
    with pytest.raises(MorelError, match="is killed: only what has finished"):
        clean(str(search), [], delete=True)
    assert len(left(search)) == 10


def test_a_driver_at_work_keeps_it_out(search):
    with held(str(search), 30), pytest.raises(LeaseHeldError):
        clean(str(search), [], delete=True)
    assert len(left(search)) == 10


def test_other_folders_are_refused(tmp_path, search):
    (tmp_path / "other").mkdir()
    with pytest.raises(MorelError, match="no run or search"):
        clean(str(tmp_path / "other"), [], delete=True)
    (tmp_path / "link").symlink_to(search)
    with pytest.raises(MorelError, match="a link"):
        clean(str(tmp_path / "link"), [], delete=True)
    with pytest.raises(MorelError, match="no run or search"):
        clean(str(tmp_path), [], delete=True)


def test_links_inside_lead_nowhere(tmp_path, search):
    outside = tmp_path / "precious"
    storage.write(f"{outside}/checkpoint_000001/w.bin", b"precious")
    (search / "trial_t4").rename(search / "moved")
    (search / "trial_t4").symlink_to(outside)
    with pytest.raises(MorelError, match="leads out of"):
        clean(str(search), [], delete=True)
    assert (outside / "checkpoint_000001" / "w.bin").exists()


def test_a_single_run_keeps_its_recorded_checkpoint(tmp_path):
    folder = tmp_path / "run"
    storage.write(f"{folder}/definition.json", b"{}")
    journal = Journal(f"{folder}/journal")
    begin(journal, "run")
    for index in (1, 2):
        storage.write(f"{folder}/checkpoint_{index}/w.bin", bytes(10))
    storage.write(f"{folder}/checkpoint_manager_snapshot.json", b"{}")  # Ray Train's
    recorded = f"{folder}/checkpoint_2"
    end(journal, "run", **{"morel.state": "finished", "morel.checkpoint": recorded})
    (doomed,) = clean(str(folder), [], delete=True)
    assert doomed.path == f"{folder}/checkpoint_1"
    assert (folder / "checkpoint_2").exists()
    assert (folder / "checkpoint_manager_snapshot.json").exists()


def test_a_kept_trial_whose_recorded_checkpoint_is_not_there_is_left_alone(search):
    (search / "trial_t1" / "checkpoint_000002").rename(search / "trial_t1" / "elsewhere")
    clean(str(search), [], delete=True)
    assert "trial_t1/checkpoint_000001" in left(search)


def goes_on(journal, run_id, epoch):
    journal.append(run_id, "epoch", f"epoch:{epoch}", {"epoch": epoch, "metrics": {}})


def test_a_run_that_goes_on_after_its_end_is_left_alone(tmp_path):
    """Its newer checkpoints are what it goes on from."""
    test_a_single_run_keeps_its_recorded_checkpoint(tmp_path)
    goes_on(Journal(f"{tmp_path}/run/journal"), "run", 3)
    with pytest.raises(MorelError, match="only what has finished is cleaned"):
        clean(f"{tmp_path}/run", [], delete=True)


def test_a_search_that_has_grown_is_left_alone_until_its_end(search):
    """Its new trials are not verified yet."""
    journal = Journal(f"{search}/journal")
    begin(journal, "hunt/t6", "hunt", **{"morel.number": "6", "morel.search": "hunt"})
    goes_on(journal, "hunt/t6", 1)
    end(journal, "hunt/t6", **{"morel.state": "finished"})
    with pytest.raises(MorelError, match="only what has finished is cleaned"):
        clean(str(search), [], delete=True)
