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
