"""The comparison table over runs made by hand."""

import csv
import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from morel_core.errors import ConfigError
from orchestrator.compare import (
    RunRecord,
    Score,
    comparison_table,
    group_runs,
    pick,
    render_rich,
    to_csv,
    to_json,
    to_markdown,
)

PGD = "pgd20_linf_8-255"


def measured(prefix, clean, robust, attack=PGD):
    metrics = {}
    for key, value in ((f"{prefix}.clean", clean), (f"{prefix}.robust.{attack}", robust)):
        metrics |= {key: value, f"{key}_low": value - 0.05, f"{key}_high": value + 0.05}
    return metrics


def run(name, metrics, *, kind="trial", params=None, tags=None, status="FINISHED"):
    return RunRecord(
        run_id=f"s/{name}",
        mlflow_id=f"id-{name}",
        parent_mlflow_id="id-s",
        name=name,
        kind=kind,
        search="s",
        status=status,
        started=100.0,
        ended=160.0,
        params={"lr": "0.1", "eps": "0.03", **(params or {})},
        metrics=metrics,
        tags=tags or {},
    )


@pytest.fixture
def runs():
    return [
        run("s", {}, kind="search"),
        run("weak", measured("best.holdout", 0.9, 0.3) | {"epoch": 2, "train.seconds": 7.25}),
        run(
            "strong",
            measured("best.holdout", 0.8, 0.5)
            | measured("holdout", 0.7, 0.4)
            | measured("test", 0.78, 0.44)
            | {"epoch": 5},
            params={"lr": "0.2"},
            tags={"morel.stop_reason": "all epochs done", "morel.baseline": "paper"},
        ),
        run("running", measured("holdout", 0.6, 0.2), status="RUNNING"),
        run("crashed", {}, status="FAILED"),
    ]


def test_the_methods_of_a_campaign_have_a_column(runs):
    numbers = measured("best.holdout", 0.9, 0.4)
    runs += [
        run("c", {}, kind="campaign"),
        run("mart", numbers, tags={"morel.campaign": "c", "morel.method": "mart"}),
    ]
    table = comparison_table(runs)
    assert "c" not in [row.name for row in table.rows]  # has no numbers of its own
    assert {row.name: row.method for row in table.rows}["mart"] == "mart"
    head, *lines = to_markdown(table).splitlines()
    column = [cell.strip() for cell in head.split("|")].index("method")
    (line,) = (line for line in lines if line.startswith("| mart "))
    assert line.split("|")[column].strip() == "mart"


def test_best_first_and_unmeasured_last(runs):
    assert [r.name for r in comparison_table(runs).rows] == ["strong", "weak", "running", "crashed"]
    by_clean = comparison_table(runs, sort="clean_accuracy").rows
    assert [r.name for r in by_clean] == ["weak", "strong", "running", "crashed"]
    by_name = comparison_table(runs, sort="name").rows
    assert [r.name for r in by_name] == ["crashed", "running", "strong", "weak"]
    assert [r.name for r in comparison_table(runs, sort="epochs").rows][:2] == ["weak", "strong"]


def test_a_row_says_what_was_measured_and_how(runs):
    strong, weak, running, crashed = comparison_table(runs).rows
    assert strong.robust_accuracy == Score(0.5, 0.45, 0.55)
    assert strong.clean_accuracy.value == 0.8
    assert (strong.attack, strong.test_attack) == (PGD, PGD)
    assert strong.test_robust_accuracy.value == 0.44
    assert (strong.epochs, strong.seconds, strong.stopped) == (5, 60.0, "all epochs done")
    assert strong.selected
    assert weak.seconds == 7.25
    assert not running.selected
    assert running.robust_accuracy.value == 0.2
    assert (crashed.robust_accuracy, crashed.attack, crashed.stopped) == (None, None, "failed")


def test_only_the_parameters_that_differ(runs):
    table = comparison_table(runs)
    assert table.params == ["lr"]
    assert [row.params["lr"] for row in table.rows] == ["0.2", "0.1", "0.1", "0.1"]


def test_a_parameter_that_only_some_have_differs(runs):
    runs[1] = replace(runs[1], params=runs[1].params | {"beta": "6"})
    assert comparison_table(runs).params == ["lr", "beta"]


def test_different_attacks_are_never_ranked_against_each_other(runs):
    easy = measured("best.holdout", 0.8, 0.79, attack="fgsm_linf_2-255")
    table = comparison_table([*runs, run("easy", easy)])
    assert [row.name for row in table.rows] == ["strong", "weak", "running", "easy", "crashed"]
    assert any("different attacks" in note for note in table.notes)
    assert not any("different attacks" in note for note in comparison_table(runs).notes)


def test_selected_maxima_are_labelled(runs):
    assert any("biased upwards" in note for note in comparison_table(runs).notes)
    assert comparison_table([runs[3]]).notes == [
        "* latest epoch of a run that has recorded no best epoch."
    ]


def test_an_unknown_order_is_named():
    with pytest.raises(ConfigError, match="robust_accuracy"):
        comparison_table([], sort="speed")


def test_rendering_in_a_terminal(runs):
    console = Console(width=250, record=True, file=io.StringIO())
    console.print(render_rich(comparison_table(runs)))
    text = console.export_text()
    assert "50.0 [45.0, 55.0]" in text
    assert "20.0 [15.0, 25.0]*" in text
    assert "Test set, " in text
    assert "biased upwards" in text


def test_test_columns_only_where_there_are_test_numbers(runs):
    assert "% test" in to_markdown(comparison_table(runs))
    assert "% test" not in to_markdown(comparison_table(runs[:2]))


def test_markdown_is_one_line_a_row(runs):
    lines = to_markdown(comparison_table(runs)).splitlines()
    assert lines[0].startswith("| name | clean % held-out [95 %] | robust % held-out [95 %] |")
    assert len([line for line in lines if line.startswith("|")]) == 2 + 4
    assert lines[2].startswith("| strong + | 80.0 [75.0, 85.0] | 50.0 [45.0, 55.0] |")


def test_sampled_parameters_are_shortened_for_reading_only(runs):
    exact = {"lr": "0.30000000000000004", "file": "a.e", "seed": "123456789"}
    runs[1] = replace(runs[1], params=exact)
    table = comparison_table(runs)
    (line,) = (ln for ln in to_markdown(table).splitlines() if ln.startswith("| weak"))
    assert "| 0.3 |" in line
    assert "| a.e |" in line
    assert "| 123456789 |" in line
    assert "0.30000000000000004" in to_csv(table)


def test_csv_and_json_hold_numbers(runs):
    table = comparison_table(runs)
    first, *_, last = csv.DictReader(io.StringIO(to_csv(table)))
    assert float(first["robust_accuracy_low"]) == 0.45
    assert first["params.lr"] == "0.2"
    assert last["robust_accuracy"] == ""
    document = json.loads(to_json(table))
    assert document["rows"][0]["robust_accuracy"] == {"value": 0.5, "low": 0.45, "high": 0.55}
    assert document["notes"] == table.notes


def test_no_runs_are_an_empty_table():
    table = comparison_table([])
    assert (table.rows, table.notes, to_csv(table)) == ([], [], "")
    assert to_markdown(table).startswith("| name |")


def test_a_ladder_is_not_among_the_settings_that_differ(runs):
    """It is long, and each number stands beside the attack of its rung."""
    laddered = replace(runs[1], params={**runs[1].params, "evaluation.rungs": '[{"epoch": 1}]'})
    assert comparison_table([laddered, *runs[2:]]).params == comparison_table(runs[1:]).params


CHEAP = "pgd5_linf_8-255_first150"
JUDGED = {"morel.attack.evaluation": PGD}


@pytest.fixture
def ladder():
    """A search whose cheap first rung stopped most of its trials."""
    stopped = {"morel.state": "stopped", **JUDGED}
    whole = {"morel.state": "finished", **JUDGED}
    numbers = {
        "winner": measured("best.holdout", 0.8, 0.5),
        "masked": measured("best.holdout", 0.9, 0.6),
        "unsafe": measured("best.holdout", 0.5, 0.7),
        "beaten": measured("best.holdout", 0.7, 0.4),
        "other": measured("best.holdout", 0.85, 0.3),
    }
    tags = {
        "winner": {"morel.winner": "true"},
        "masked": {"morel.masking": "unbounded attack"},
        "unsafe": {"morel.missed": "clean_accuracy 0.5 misses clean_accuracy >= 0.6"},
    }
    cheap = [
        run(f"stopped{n}", measured("best.holdout", 0.95, 0.9, CHEAP), tags=stopped)
        for n in range(6)
    ]
    return [*cheap, *(run(n, m, tags=whole | tags.get(n, {})) for n, m in numbers.items())]


def test_the_attack_that_decides_comes_first_however_few_were_measured_with_it(ladder):
    table = comparison_table(ladder)
    assert [row.name for row in table.rows[:5]] == ["unsafe", "masked", "winner", "beaten", "other"]
    assert {row.attack for row in table.rows[5:]} == {CHEAP}


def test_on_the_front_is_only_who_may_win(ladder):
    table = comparison_table(ladder)
    assert {row.name for row in table.rows if row.on_front} == {"winner", "other"}
    assert [row.name for row in table.rows if row.winner] == ["winner"]
    console = Console(width=200, record=True)
    console.print(render_rich(table))
    shown = console.export_text()
    assert "winner + ★" in shown
    assert "★ the winner of its search." in shown
    assert CHEAP in shown.splitlines()[-8]  # each row says what it was measured with


@pytest.fixture
def swept():
    """Two runs measured in several balls and with several attacks on the test set."""

    def of(name, **robust):
        metrics = measured("best.holdout", 0.8, 0.5) | {"test.clean": 0.75}
        metrics |= {f"test.robust.{attack.replace('__', '-')}": v for attack, v in robust.items()}
        return run(name, metrics, kind="train", tags=JUDGED)

    return [
        of("a", pgd20_linf_8__255=0.45, fgsm_linf_8__255=0.5, pgd20_linf_16__255=0.2),
        of(
            "b", pgd20_linf_8__255=0.46, fgsm_linf_8__255=0.55, pgd20_linf_16__255=0.1,
            autoattack_linf_8__255=0.4,
        ),
    ]  # fmt: skip


def test_the_test_attack_lies_in_the_ball_and_is_the_strongest_that_most_share(swept):
    table = comparison_table(swept)
    assert {row.test_attack for row in table.rows} == {PGD}
    assert [len(row.test_attacks) for row in table.rows] == [3, 4]  # all of them are told
    asked = comparison_table(swept, "test_robust_accuracy", "autoattack_linf_8-255")
    assert [row.name for row in asked.rows] == ["b", "a"]
    assert asked.rows[0].test_robust_accuracy == Score(0.4)
    assert asked.rows[1].test_robust_accuracy is None
    assert {row.attack for row in asked.rows} == {PGD}  # held out nobody was measured with it
    with pytest.raises(ConfigError, match="--attack = 'cw': known: autoattack"):
        comparison_table(swept, attack="cw")


def test_every_test_attack_can_be_got_out(swept):
    (line, _) = csv.DictReader(io.StringIO(to_csv(comparison_table(swept, "name"))))
    assert line["test.robust.pgd20_linf_16-255"] == "0.2"
    assert line["test.robust.autoattack_linf_8-255"] == ""
    rows = json.loads(to_json(comparison_table(swept, "name")))["rows"]
    assert rows[1]["test_attacks"]["autoattack_linf_8-255"]["value"] == 0.4


def test_groups_and_conditions_go_by_the_same_attack(swept):
    assert group_runs(swept, ["lr"]).attack == PGD
    assert group_runs(swept, ["lr"], attack="fgsm_linf_8-255").groups[0].runs == 2
    strong = group_runs(swept, ["lr"], attack="autoattack_linf_8-255")
    assert (strong.split, strong.groups[0].runs) == ("test", 1)
    assert "1 run(s) are left out: not measured, or with other attacks." in strong.notes
    assert pick(swept, ["test_robust_accuracy >= 0.42"]) == swept[:1]  # not that of 16/255


def test_best_by_verified_accuracy(runs):
    verified = {f"verified.robust.{PGD}": 0.2}
    runs.append(run("checked", measured("best.holdout", 0.9, 0.1) | verified))
    assert comparison_table(runs, "verified_accuracy").rows[0].name == "checked"
    assert [r.name for r in pick(runs, ["verified_accuracy > 0.1"])] == ["checked"]


def test_settings_that_changed_on_the_way_are_said_to_be_the_first(runs):
    assert not [note for note in comparison_table(runs).notes if "changed on the way" in note]
    runs[1] = replace(runs[1], tags={"morel.pbt.lineage": "epoch 3 from trial 002"})
    (note,) = [note for note in comparison_table(runs).notes if "changed on the way" in note]
    assert note.startswith("1 run(s) were trained with settings that changed")
