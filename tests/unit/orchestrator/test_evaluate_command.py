"""``morel evaluate``: a checkpoint folder or a recorded run, attacks by name, numbers recorded."""

import json
from types import SimpleNamespace

import pytest
import torch

from morel_core import AttackConfig, MorelError, Trainer
from morel_core.attacks import make_attacks
from morel_core.checkpoint import MANIFEST
from orchestrator import cli, evaluate, records
from orchestrator.config import RunConfig, build
from orchestrator.evaluate import evaluate_target, find_run, find_target
from orchestrator.tracking import Journal, MemoryTracker, Recorder

TINY = {
    "data": {
        "name": "synthetic", "num_classes": 4, "image_size": 8, "channels": 1, "num_train": 78,
        "num_test": 20, "holdout": 30,
    },
    "model": {"name": "digits_cnn", "width": 4, "embed_dim": 8},
    "attack": {"eps": 0.05, "step_size": 0.02, "num_steps": 1},
    "evaluation": {"attack": {"eps": 0.05, "step_size": 0.02, "num_steps": 2}, "batch_size": 16},
    "training": {"epochs": 2, "batch_size": 16},
    "name": "tiny",
}  # fmt: skip
SETTINGS = AttackConfig(eps=0.05, step_size=0.02, num_steps=2, init="uniform", loss="ce")


@pytest.fixture(scope="module")
def trainer():
    trainer = Trainer(build(RunConfig, TINY | {"storage_path": "/nowhere"}))
    trainer.fit()
    return trainer


@pytest.fixture(scope="module")
def folder(trainer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    trainer.save(folder)
    return folder


@pytest.fixture
def tracking(tmp_path):
    return build(RunConfig, {"storage_path": str(tmp_path)})


def test_attacks_by_name():
    attacks = make_attacks(["pgd7", "fgsm", "autoattack", "autoattack_plus"], SETTINGS)
    assert list(attacks) == [
        "pgd7_linf_0.05", "fgsm_linf_0.05", "autoattack_linf_0.05", "autoattack_plus_linf_0.05"
    ]  # fmt: skip
    assert all(attack.eps == 0.05 for attack in attacks.values())
    pgd, fgsm, *_ = attacks.values()
    assert (pgd.step_size, pgd.init, pgd.loss) == (0.02, "uniform", "ce")
    assert (fgsm.step_size, fgsm.num_steps, fgsm.init) == (0.05, 1, "none")


@pytest.mark.parametrize("name", ["pgd", "pgd0", "pgd-3", "pgd2x", "cw", "AutoAttack", ""])
def test_unknown_attack(name):
    with pytest.raises(MorelError) as caught:
        make_attacks(["pgd20", name], SETTINGS)
    assert str(caught.value).startswith(f"attack {name!r} is unknown; known: pgdN (as in pgd20)")


def test_a_folder_is_evaluated_as_its_trainer_would(folder, trainer, tracking):
    target = find_target(str(folder), tracking, {})
    assert target.run_id is None
    result = evaluate_target(target, ["pgd2"], split="holdout")
    assert result.split == "holdout"
    trainer.load_best()
    expected = trainer.evaluate("holdout", {"pgd2_linf_0.05": trainer.eval_attack})
    for name in ("clean", "pgd2_linf_0.05"):
        assert torch.equal(result[name].correct, expected[name].correct)


def test_overrides_change_the_attack_and_not_the_network(folder, tracking):
    wide = find_target(str(folder), tracking, {"evaluation.attack.eps": 0.5})
    result = evaluate_target(wide, ["pgd2"], num_images=12)
    assert list(result) == ["clean", "pgd2_linf_0.5"]
    assert result["clean"].num_images == 12


def test_the_command_prints_json(folder, capsys, tmp_path):
    argv = ["evaluate", str(folder), "--attacks", "pgd2", "fgsm", "--json"]
    assert cli.main([*argv, f"storage_path={tmp_path}"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    document = json.loads(out)
    assert document["split"] == "test"
    assert list(document["outcomes"]) == ["clean", "pgd2_linf_0.05", "fgsm_linf_0.05"]
    outcome = document["outcomes"]["pgd2_linf_0.05"]
    assert len(outcome["correct"]) == outcome["num_images"] == 20
    assert outcome["low"] <= outcome["accuracy"] <= outcome["high"]


def test_the_command_prints_a_table(folder, capsys):
    assert cli.main(["evaluate", str(folder), "--attacks", "fgsm", "--num-images", "10"]) == 0
    out, err = capsys.readouterr()
    assert "fgsm_linf_0.05" in out
    assert err == f"evaluating {folder} with fgsm_linf_0.05\n"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--attacks", "cw"], "attack 'cw' is unknown; known: pgdN"),
        (["--num-images", "21"], "--num-images 21: 1 to 20 are in test"),
        (["--num-images", "0"], "--num-images 0: 1 to 20 are in test"),
        (["--split", "holdout", "--num-images", "31"], "--num-images 31: 1 to 30 are in holdout"),
        (["evaluation.attack.eps=8"], "evaluation.attack.eps = 8.0: must be in (0, 1]"),
        (["--device", "cuda"], "--device cuda: this machine has cpu"),
        (["--device", "abacus"], "--device abacus: this machine has cpu"),
    ],
)
def test_mistakes(folder, capsys, monkeypatch, options, said):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert cli.main(["evaluate", str(folder), *options]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"morel: {said}")
    assert err.count("\n") == 1


def test_a_damaged_checkpoint_is_refused(folder, tmp_path, capsys):
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in folder.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    (broken / "best.safetensors").write_bytes(b"short")
    assert cli.main(["evaluate", str(broken)]) == 2
    err = capsys.readouterr().err
    assert "missing, truncated or altered" in err
    assert (broken / MANIFEST).is_file()


# --- recorded runs -------------------------------------------------------------------------------


def run(run_id, started, status="FINISHED", **tags):
    return SimpleNamespace(
        run_id=run_id,
        mlflow_id=f"mlflow-{run_id}-{started}",
        name=run_id.rpartition("/")[2],
        started=started,
        status=status,
        tags={"morel." + key: value for key, value in tags.items()},
    )


@pytest.fixture
def recorded(monkeypatch, folder):
    """A search with its winner, an old run of the same name, and a run without a checkpoint."""
    runs = [
        run("hunt", 3.0, winner_run="hunt/t2"),
        run("hunt/t2", 4.0, checkpoint=str(folder), stop_reason="all 2 epochs trained"),
        run("alone", 1.0, checkpoint="/old"),
        run("alone", 2.0, "FAILED", checkpoint=str(folder), stop_reason="diverged in epoch 2"),
        run("stillborn", 5.0),
    ]
    monkeypatch.setattr(evaluate, "load_runs", lambda uri, experiment, search=None: runs)
    return runs


def test_a_run_by_any_of_its_names(recorded, tracking, folder):
    for name in ("hunt/t2", "t2", "mlflow-hunt/t2-4.0"):
        found = find_run(name, tracking)
        assert found.run_id == "hunt/t2"
        assert found.tags["morel.checkpoint"] == str(folder)


def test_a_search_stands_for_its_winner(recorded, tracking):
    assert find_run("hunt", tracking).run_id == "hunt/t2"
    assert find_target("hunt", tracking, {}).run_id == "hunt/t2"


def test_the_newest_of_a_name(recorded, tracking, folder):
    target = find_target("alone", tracking, {})
    assert target.folder == folder
    assert (target.status, target.stop_reason) == ("FAILED", "diverged in epoch 2")


def test_no_such_run(recorded, tracking):
    with pytest.raises(
        MorelError, match=r"neither a checkpoint folder nor a run .*: hunt, hunt/t2"
    ):
        find_target("nobody", tracking, {})


def test_a_run_without_checkpoint(recorded, tracking):
    with pytest.raises(MorelError, match="run 'stillborn' has no checkpoint"):
        find_target("stillborn", tracking, {})


@pytest.mark.parametrize(
    ("name", "run_id", "journal", "end"),
    [
        # A trial's events belong into the journal that holds its training: the search's.
        ("hunt", "hunt/t2", "hunt", ("FINISHED", "all 2 epochs trained")),
        ("alone", "alone", "alone", ("FAILED", "diverged in epoch 2")),
    ],
)
def test_numbers_of_a_recorded_run_are_added_to_it_and_its_end_stays(
    recorded, tracking, tmp_path, monkeypatch, name, run_id, journal, end
):
    tracker, opened = MemoryTracker(), []

    def open_recorder(config):
        opened.append(config.name)
        return Recorder(Journal(str(tmp_path / "journal")), tracker)

    monkeypatch.setattr(records, "open_recorder", open_recorder)
    target = find_target(name, tracking, {})
    result = evaluate_target(target, ["fgsm"])
    evaluate_target(target, ["fgsm"], num_images=10)
    assert opened == [journal, journal]
    whole, part = tracker.applied
    assert (whole.run_id, whole.kind) == (run_id, "final")
    assert (whole.payload["status"], whole.payload["stop_reason"]) == end
    metrics = whole.payload["metrics"]
    assert metrics["test.robust.fgsm_linf_0.05"] == result["fgsm_linf_0.05"].accuracy
    assert metrics["test.images"] == 20
    text = whole.payload["texts"]["evaluation/test-fgsm_linf_0.05.json"]
    assert json.loads(text)["outcomes"]["clean"]["num_images"] == 20
    # A part's numbers do not take the place of the whole's.
    assert part.payload["metrics"]["test_first10.images"] == 10
    assert not part.payload["metrics"].keys() & metrics.keys()
