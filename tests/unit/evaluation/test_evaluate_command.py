"""``morel evaluate``: targets by name, attacks by name, numbers printed and recorded."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pyarrow import parquet

from morel_core import MorelError
from morel_core.checkpoint import MANIFEST
from orchestrator import cli
from orchestrator.config import RunConfig
from orchestrator.evaluate import Request, Unseen, choose_attacks, evaluate_target
from orchestrator.evaluation import outcomes, targets
from orchestrator.evaluation.targets import find_run, find_target
from orchestrator.notes import train_note
from orchestrator.settings.building import build
from orchestrator.tracking import Journal, MemoryTracker, Recorder, records


@pytest.fixture
def folder(tiny_checkpoint, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    return tiny_checkpoint


@pytest.fixture
def tracking(tmp_path):
    return build(RunConfig, {"storage_path": str(tmp_path)})


def quiet(*attacks, **fields):
    return Request(attacks=attacks, checks=False, **fields)


def test_a_folder_is_evaluated_as_its_trainer_would(folder, tiny_trainer, tracking):
    target = find_target(str(folder), tracking, {})
    assert target.run_id is None
    result = evaluate_target(target, quiet("pgd2", split="holdout")).result
    assert result.split == "holdout"
    tiny_trainer.load_best()
    expected = tiny_trainer.evaluate("holdout", {"pgd2_linf_0.05": tiny_trainer.eval_attack})
    for name in ("clean", "pgd2_linf_0.05"):
        assert torch.equal(result[name].correct, expected[name].correct)


def test_overrides_change_the_attack_and_not_the_network(folder, tracking):
    wide = find_target(str(folder), tracking, {"evaluation.attack.eps": 0.5})
    result = evaluate_target(wide, quiet("pgd2", num_images=12)).result
    assert list(result) == ["clean", "pgd2_linf_0.5"]
    assert result["clean"].num_images == 12


def test_the_seed_reaches_the_noise_and_the_package(folder, tracking):
    target = find_target(str(folder), tracking, {"evaluation.attack.init": "uniform"})
    attacks = choose_attacks(
        Request(attacks=["square", "autoattack"], seed=5), target.config.evaluation.attack
    )
    assert [attack.seed for attack in attacks.values()] == [5, 5]
    result = evaluate_target(target, quiet("pgd2", seed=5)).result
    assert result["pgd2_linf_0.05"].record()["seed"] == 5


def test_a_sweep_keeps_the_shape_of_the_attack(folder, tracking):
    ball = find_target(str(folder), tracking, {}).config.evaluation.attack
    attacks = choose_attacks(Request(attacks=["pgd2", "fgsm"], eps=[2 / 255, 8 / 255]), ball)
    assert list(attacks) == [
        "pgd2_linf_2-255", "fgsm_linf_2-255", "pgd2_linf_8-255", "fgsm_linf_8-255"
    ]  # fmt: skip
    for eps in ("2-255", "8-255"):
        pgd = attacks[f"pgd2_linf_{eps}"]
        assert pgd.step_size / pgd.eps == pytest.approx(ball.step_size / ball.eps)


def test_a_preset_with_further_attacks(folder, tracking):
    ball = find_target(str(folder), tracking, {}).config.evaluation.attack
    alone = choose_attacks(Request(preset="quick"), ball)
    more = choose_attacks(Request(preset="quick", attacks=["pgd3"]), ball)
    assert list(more) == [*alone, "pgd3_linf_0.05"]
    with pytest.raises(MorelError, match="--eps with --preset standard, whose radius is its own"):
        choose_attacks(Request(preset="standard", eps=[0.1]), ball)


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
    assert isinstance(document["warnings"], list)
    assert json.loads(Path(document["files"]["json"]).read_text()) == document
    table = parquet.read_table(document["files"]["parquet"]).to_pydict()
    assert table["image"] == list(range(20))
    bits = "".join("01"[right] for right in table["pgd2_linf_0.05"])
    assert bits == outcome["correct"]


def test_the_command_prints_a_table_and_says_how_far_it_is(folder, capsys):
    argv = ["evaluate", str(folder), "--attacks", "fgsm", "--num-images", "10", "--no-checks"]
    assert cli.main(argv) == 0
    out, err = capsys.readouterr()
    assert "fgsm_linf_0.05" in out
    assert "per image: " in out
    first, clean, fgsm = err.splitlines()
    assert first == f"{folder}: 10 images of test"
    assert clean.startswith("clean: 10/10 images, ")
    assert fgsm.startswith("fgsm_linf_0.05: 10/10 images, ")
    assert cli.main(argv) == 0  # from what is stored
    assert capsys.readouterr().err.endswith("10 of them measured before\n")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--attacks", "pgd"], "attack 'pgd' is unknown; known: pgdN"),
        (["--num-images", "21"], "--num-images 21: 1 to 20 are in test"),
        (["--num-images", "0"], "--num-images 0: 1 to 20 are in test"),
        (["--split", "holdout", "--num-images", "31"], "--num-images 31: 1 to 30 are in holdout"),
        (["evaluation.attack.eps=8"], "evaluation.attack.eps = 8.0: must be in (0, 1]"),
        (["--eps", "8"], "--eps 8: must be in (0, 1]"),
        (["--device", "cuda"], "--device cuda: this machine has cpu"),
        (["--device", "abacus"], "--device abacus: this machine has cpu"),
        (["--workers", "-1"], "--workers -1: 0 (this process) or more"),
        (
            ["--workers", "2", "--gpus-per-worker", "1"],
            "--gpus-per-worker 1: 2 workers × 1 = 2 GPUs, but 0 are there: ask for fewer",
        ),
        (["--workers", "2", "--gpus-per-worker", "-1"], "--gpus-per-worker -1: 0 or more"),
        (["--workers", "2", "--device", "cuda"], "--gpus-per-worker 1: 2 workers × 1 = 2 GPUs"),
        (["--workers", "2", "--device", "gpu"], "--device gpu: with --workers cpu or cuda"),
        (
            ["--workers", "2", "--device", "cuda", "--gpus-per-worker", "0"],
            "--gpus-per-worker 0: --device cuda needs some",
        ),
        (["modle.width=3"], "modle = {'width': 3}: unknown key; did you mean 'model'?"),
        (["--attacks", "square", "--transfer-from", "SELF"], "--transfer-from: PGD makes the"),
    ],
)
def test_mistakes(folder, capsys, monkeypatch, options, said):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    options = [str(folder) if option == "SELF" else option for option in options]
    assert cli.main(["evaluate", str(folder), *options]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"morel: {said}")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--eps", "8/0"], "argument --eps: '8/0' divides by zero"),
        (["--eps", "wide"], "argument --eps: invalid radius value: 'wide'"),
        (["--preset", "full"], "argument --preset: invalid choice: 'full'"),
        (["--workers", "two"], "argument --workers: invalid int value: 'two'"),
    ],
)
def test_mistakes_that_are_no_values(folder, capsys, options, said):
    with pytest.raises(SystemExit) as caught:
        cli.main(["evaluate", str(folder), *options])
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


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


def test_images_made_on_another_network(folder, tracking, tmp_path):
    target = find_target(str(folder), tracking, {})
    result = evaluate_target(target, quiet("pgd2", transfer_from=target)).result
    (name,) = [name for name in result if name.startswith("transfer_")]
    assert name == f"transfer_{folder.name}_pgd2_linf_0.05"
    assert not result[name].white_box
    # Made on itself, they are its own.
    assert torch.equal(result[name].correct, result["pgd2_linf_0.05"].correct)


# --- recorded runs -------------------------------------------------------------------------------


def run(run_id, started, status="FINISHED", **tags):
    return SimpleNamespace(
        run_id=run_id,
        mlflow_id=f"mlflow-{run_id}-{started}",
        name=run_id.rpartition("/")[2],
        started=started,
        status=status,
        tags={"morel." + key: value for key, value in tags.items()},
        metrics={},
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
    monkeypatch.setattr(targets, "load_runs", lambda uri, experiment, search=None: runs)
    return runs


def test_a_run_by_any_of_its_names(recorded, tracking, folder):
    for name in ("hunt/t2", "t2", "mlflow-hunt/t2-4.0"):
        found = find_run(name, tracking)
        assert found.run_id == "hunt/t2"
        assert found.tags["morel.checkpoint"] == str(folder)


def test_a_search_stands_for_its_winner(recorded, tracking):
    assert find_run("hunt", tracking).run_id == "hunt/t2"
    target = find_target("hunt", tracking, {"storage_path": "/data/runs"})
    assert target.run_id == "hunt/t2"
    assert target.folder == "/data/runs/hunt/evaluations"


def test_the_newest_of_a_name(recorded, tracking):
    target = find_target("alone", tracking, {})
    assert (target.status, target.stop_reason) == ("FAILED", "diverged in epoch 2")


def test_no_such_run(recorded, tracking):
    with pytest.raises(
        MorelError, match=r"neither a checkpoint folder nor a run .*: hunt, hunt/t2"
    ):
        find_target("nobody", tracking, {})
    with pytest.raises(MorelError, match=r"; a model's name needs --weights FILE$"):
        find_target("digits_cnn", tracking, {})


def test_a_run_without_checkpoint(recorded, tracking):
    with pytest.raises(MorelError, match="run 'stillborn' has no checkpoint"):
        find_target("stillborn", tracking, {})


def test_settings_are_those_of_what_is_evaluated_not_of_a_default_run(folder, capsys, tmp_path):
    """A step of this ball is too long in a default one; a default network has no depth."""
    command = ["evaluate", "--attacks", "pgd1", "--no-checks", f"storage_path={tmp_path}"]
    assert cli.main([*command, str(folder), "evaluation.attack.step_size=0.08"]) == 0
    plain = ["wide_resnet", "model.depth=10", f"--weights={tmp_path}/none.pt"]
    assert cli.main([*command, *plain]) == 2
    assert "there is no such file" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--against", "--transfer-from"])
def test_an_unknown_other_run(recorded, folder, capsys, option, tmp_path):
    assert cli.main(["evaluate", str(folder), option, "nobody", f"storage_path={tmp_path}"]) == 2
    assert "'nobody' is neither a checkpoint folder nor a run" in capsys.readouterr().err


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

    began = Recorder(Journal(str(tmp_path / "journal")), MemoryTracker())
    began.start_run(run_id, name=run_id, params={}, config={})
    began.close()
    monkeypatch.setattr(records, "open_recorder", open_recorder)
    target = find_target(name, tracking, {"storage_path": str(tmp_path)})
    evaluation = evaluate_target(target, quiet("fgsm"))
    evaluate_target(target, quiet("fgsm", num_images=10))
    assert opened == [journal, journal]
    whole, part = [event for event in tracker.applied if event.kind == "final"]
    assert (whole.run_id, whole.kind) == (run_id, "final")
    assert (whole.payload["status"], whole.payload["stop_reason"]) == end
    metrics = whole.payload["metrics"]
    assert metrics["test.robust.fgsm_linf_0.05"] == evaluation.result["fgsm_linf_0.05"].accuracy
    assert metrics["test.images"] == 20
    text = whole.payload["texts"][f"evaluation/{evaluation.stem}.json"]
    assert json.loads(text)["outcomes"]["clean"]["num_images"] == 20
    (file,) = whole.payload["artifacts"].values()
    assert parquet.read_table(file).num_rows == 20
    # A part's numbers do not take the place of the whole's.
    assert part.payload["metrics"]["test_first10.images"] == 10
    assert not part.payload["metrics"].keys() & metrics.keys()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"evaluation.attack.step_size": 0.0002}, "evaluation.attack.step_size = 0.0002: not as"),
        ({"data.test_size": 10}, "data.test_size = 10: not as in the run"),
        ({"evaluation.attack.eps": 0.1, "evaluation.attack.step_size": 0.02}, ""),
        ({"data.root": "/elsewhere", "evaluation.batch_size": 7}, ""),
    ],
)
def test_numbers_stand_under_a_runs_names_only_if_measured_as_in_the_run(
    recorded, tracking, tmp_path, given, said
):
    lines: list[str] = []

    class Seen(Unseen):
        def say(self, line):
            lines.append(line)

    target = find_target("alone", tracking, {"storage_path": str(tmp_path), **given})
    assert ", ".join(outcomes.measured_otherwise(target)) == said.partition(": not")[0]
    assert outcomes.measured_otherwise(find_target("alone", tracking, {})) == []
    if said:
        evaluate_target(target, quiet("pgd2"), Seen())
        assert lines[-1].startswith(f"kept, but not recorded in MLflow: {said}")


def test_the_note_of_a_run_says_what_was_measured_since(recorded, tracking, tmp_path, monkeypatch):
    def opened(config):
        return Recorder(Journal(str(tmp_path / "journal")), MemoryTracker())

    monkeypatch.setattr(records, "open_recorder", opened)
    target = find_target("alone", tracking, {"storage_path": str(tmp_path)})
    metrics = {"best.holdout.clean": 0.5, "best.holdout.robust.pgd9": 0.25, "train.seconds": 3.0}
    note = train_note(target.config, metrics, stop_reason="diverged in epoch 2", device="cpu")
    assert note.startswith("Robust accuracy 25.0 % (pgd9, ")
    first = opened(None)
    first.finish("alone", status="FAILED", stop_reason="", metrics=metrics, note=note)
    first.close()
    evaluate_target(target, quiet("fgsm"))
    once = opened(None).past["alone"].note
    evaluate_target(target, quiet("pgd2"))
    twice = opened(None).past["alone"].note
    rest = note.partition("not verified.")[2].partition("| accuracy")[0]
    assert rest in once
    assert rest in twice
    assert once.startswith("Robust accuracy ")
    assert "(fgsm_linf_0.05, 20 test images)" in once.splitlines()[0]
    rows = [line.split("|")[3].strip() for line in twice.splitlines() if line.startswith("| ")]
    assert rows == [
        "measured with",
        ":---",
        "fgsm_linf_0.05, 20 test images",
        "pgd2_linf_0.05, 20 test images",
        "20 test images",
        "pgd9, 30 held-out images, best epoch",
        "30 held-out images, best epoch",
    ]


def test_another_storage_than_the_runs_records_nothing_and_says_so(
    recorded, tracking, tmp_path, capsys
):
    """A second journal of the run would pass for its first."""
    command = ["evaluate", "alone", "--attacks", "fgsm", "--no-checks"]
    assert cli.main([*command, f"storage_path={tmp_path}/elsewhere"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert f"{tmp_path}/elsewhere/alone holds no journal of alone: write storage_path=" in said
    assert not list(Journal(f"{tmp_path}/elsewhere/alone/journal").events())
