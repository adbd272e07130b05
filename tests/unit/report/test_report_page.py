"""What the page says, and that nothing in it acts or asks for anything."""

import json
import re
from dataclasses import replace

import pytest
from synthetic import ATTACK, HOSTILE, SPACE, Made

from morel_core.errors import MorelError
from orchestrator.cli import main
from orchestrator.report.answer import answer
from orchestrator.report.doubts import doubts
from orchestrator.report.importance import FEWEST, importance, ordered
from orchestrator.report.page import render
from orchestrator.report.reading import load
from orchestrator.search.space import load_search


@pytest.fixture(scope="module")
def page(recorded):
    return render(recorded, pictures=False)[0]


def test_the_winner_is_the_searchs_own_and_its_verified_number_leads(recorded):
    chosen = recorded.subject.tags["morel.winner_run"]
    assert recorded.winner.run.run_id == chosen
    assert not recorded.provisional
    found = answer(recorded)
    assert found.headline == f"Use {recorded.winner.name}."
    assert f"{recorded.winner.verified} %" in found.because
    assert "square100_linf_0.1 on 100 images" in found.because
    assert (
        "search, robust",
        f"{recorded.winner.robust} %",
        f"{ATTACK} on 300 held-out images",
    ) in (found.numbers)
    assert any("McNemar" in line for line in found.sure)
    assert any("biased upwards" in line for line in found.sure)
    assert dict(found.cost)["CPU-seconds of trials"].startswith("100 s")
    commands = [line for _, line in found.commands]
    assert f"morel reproduce {chosen} tracking.experiment=made" in commands


def test_the_configuration_can_be_trained_and_names_no_place(recorded, tmp_path):
    text = answer(recorded).config
    for secret in ("storage_path", "tracking", "mlflow"):
        assert secret not in text
    file = tmp_path / "winner.yaml"
    file.write_text(text)
    assert main(["validate", str(file)]) == 0


def test_without_a_verified_winner_the_best_so_far_is_called_that(recorded):
    undecided = replace(recorded, provisional=True)
    assert "Nobody has won yet" in answer(undecided).headline
    assert doubts(undecided)[0].what.startswith("The search has not chosen a winner")
    assert answer(replace(recorded, winner=None)) is None
    html, _ = render(replace(recorded, winner=None), pictures=False)
    assert "No trial was measured yet." in html


def test_warnings_name_their_runs_and_what_to_do(recorded):
    found = {doubt.what: doubt for doubt in doubts(recorded)}
    strange = found["An evaluation found reason to doubt its numbers."]
    assert len(strange.where) == 10
    assert strange.where[0].startswith("hunt/00000001: strange")
    assert any("did not come to their end" in what for what in found)
    assert any(what.startswith("One seed") for what in found)


def test_what_to_do_names_the_run_its_ball_and_its_experiment(recorded):
    found = {doubt.what: doubt.todo for doubt in doubts(recorded)}
    won = recorded.winner.run.run_id
    assert found["An evaluation found reason to doubt its numbers."] == (
        f"morel evaluate {won} --attacks apgd-ce apgd-t square autoattack --eps 0.1"
        " tracking.experiment=made"
    )
    every = " ".join(found.values())
    assert f"morel evaluate {won} --attacks autoattack --eps 0.1" in every
    assert "RUN" not in every
    assert "--preset" not in every
    stopped = next(todo for what, todo in found.items() if "did not come to their end" in what)
    assert won not in stopped
    failed = next(trial for trial in recorded.trials if trial is not recorded.winner)
    tags = failed.run.tags | {"morel.retry": "once"}
    torn = replace(failed, run=replace(failed.run, tags=tags))
    lines = [d.todo for d in doubts(replace(recorded, trials=[torn], runs=[torn.run]))]
    assert f"morel logs hunt {failed.number} shows the error" in lines


def test_importance_takes_trials_enough_and_adds_up(recorded, monkeypatch):
    monkeypatch.setattr("orchestrator.report.importance.RESAMPLINGS", 3)
    said = importance(recorded)
    assert "10 measured trials" in said
    assert str(FEWEST) in said
    many = replace(
        recorded,
        trials=[
            replace(t, number=100 * copy + t.number) for copy in range(3) for t in recorded.trials
        ],
    )
    found = importance(many)
    assert {each.key for each in found} == set(recorded.searched)
    assert sum(each.value for each in found) == pytest.approx(1)
    assert all(0 <= each.low <= each.high <= 1 for each in found)
    assert importance(many) == found  # seeded


def test_what_diverged_is_not_among_the_good(recorded):
    """However far it came, and whatever it had reached before."""
    best = max((t for t in recorded.trials if t.whole), key=lambda t: t.any_robust.value)
    gone = replace(
        best,
        number=999,
        run=replace(best.run, tags=best.run.tags | {"morel.state": "diverged"}),
    )
    assert ordered([gone, *recorded.trials])[-1].number == 999


def test_what_users_wrote_is_text(page):
    assert HOSTILE not in page
    assert HOSTILE.replace("<", "&lt;").replace(">", "&gt;").replace("'", "&#39;") in page


def test_the_page_asks_for_nothing(page):
    assert not re.findall(r"https?://", page)
    assert "url(" not in page
    assert not re.findall(r"<link(?![^>]*data:,)", page)
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)", page)
    assert '<html lang="en">' in page
    assert "<title>hunt – MOREL report</title>" in page


def test_sections_without_data_say_what_would_make_it(recorded):
    bare = replace(
        recorded, evaluations=[], curves={}, trials=[t for t in recorded.trials if not t.whole]
    )
    html, _ = render(replace(bare, winner=None), pictures=False)
    assert "morel evaluate RUN --attacks pgd20 --eps" in html
    assert "Left out by --no-pictures" in html
    assert "No trial has come to its end" in html


def test_the_command_writes_the_file_and_logs_it(made: Made, tmp_path, capsys):
    out = tmp_path / "page.html"
    command = ["report", "made", "--out", str(out), "--no-pictures", "--json"]
    assert main([*command, f"tracking.uri={made.uri}"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["recorded"] == "hunt"
    assert said["size"] == out.stat().st_size
    from mlflow import MlflowClient

    subject = load(made.uri, "made").subject
    files = MlflowClient(made.uri).list_artifacts(subject.mlflow_id)
    assert "report.html" in {file.path for file in files}


def test_trainings_alone_are_compared_by_what_differs(made: Made, tmp_path):
    single = Made(made.storage, "singles")
    single.training("weak", 0.5, **{"attack.eps": 0.05})
    single.training("strong", 0.8, **{"attack.eps": 0.2, "objective.accuracy": "mart"})
    recorded = load(single.uri, "singles")
    assert recorded.subject is None
    assert recorded.winner.name == "strong"
    assert recorded.winner.point == {"attack.eps": 0.2, "objective.accuracy": "mart"}
    assert answer(recorded).headline.startswith("Of the trainings, strong has the largest")
    html, _ = render(recorded, pictures=False)
    assert "singles – MOREL report" in html
    command = ["report", "singles", "--no-pictures", "--out", str(tmp_path / "s.html")]
    assert main([*command, f"tracking.uri={made.uri}"]) == 0


def test_half_a_record_is_a_gap_and_not_an_error(made: Made):
    other = Made(made.storage, "broken", name="torn")
    other.search(2)
    other.final(
        "torn/00000001", 2000.0, stop_reason="", texts={"evaluation/test-x.json": '{"format": 1}'}
    )
    tags = {"morel.point": '{"k1": NaN, "attack.eps": 0.1}', "morel.number": "two"}
    other.final("torn/00000002", 2001.0, stop_reason="", tags=tags)
    recorded = load(other.uri, "broken")
    assert any("evaluation/test-x.json of torn/00000001" in gap for gap in recorded.gaps)
    assert [trial.number for trial in recorded.trials] == [1, 2]
    assert recorded.trials[1].point == {"attack.eps": 0.1}
    html, _ = render(recorded, pictures=False)
    assert "Parts of the record could not be read" in html


def test_an_unknown_search_is_named(made: Made):
    with pytest.raises(MorelError, match=r"search 'hunter' is not in experiment 'made'.*hunt"):
        load(made.uri, "made", "hunter")


def test_the_search_can_be_repeated_elsewhere_as_it_was(recorded, tmp_path, monkeypatch):
    """With its overrides, in its experiment, and as large as it had become."""
    base = {**recorded.definition["base"], "training": {"epochs": 3}}
    preference = {"type": "derived", "expression": "[k1, 1 - k1]"}
    search = {
        **recorded.definition["search"],
        "num_trials": 4,
        "overrides": {"training.epochs": 12},  # those of the command line are in the base alone
        "parameters": {**SPACE, "objective.preference": preference},
        "baselines": {"paper": {"k1": 0.1}},
    }
    definition = {"search": search, "base": base}
    found = answer(replace(recorded, definition=definition))
    commands = [line for _, line in found.commands]
    assert "morel tune search.yaml reuse=false tracking.experiment=made" in commands
    assert "morel train winner.yaml tracking.experiment=made" in commands
    for name, text in found.files.items():
        assert "storage_path" not in text
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    search = load_search("search.yaml")
    assert search.base.training.epochs == 3
    assert search.num_trials == len(recorded.trials)
    assert set(search.space.sampled) == set(SPACE)


def test_the_test_sets_command_names_the_experiment(recorded):
    metrics = {k: v for k, v in recorded.winner.run.metrics.items() if not k.startswith("test.")}
    untested = replace(recorded.winner, run=replace(recorded.winner.run, metrics=metrics))
    lines = answer(replace(recorded, winner=untested)).sure
    assert any("tracking.experiment=made does it" in line for line in lines)
