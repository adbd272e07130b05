"""Conditions, groups over seeds, paired tests, the front and verified numbers."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import replace

import pytest

from morel_core.errors import ConfigError
from morel_core.statistics import mean_t, paired_t
from orchestrator.compare import (
    RunRecord,
    as_text,
    comparison_table,
    group_runs,
    groups_as_text,
    groups_to_rich,
    pick,
)

PGD = "pgd20_linf_8-255"
ROBUST = {"trades": [0.50, 0.52, 0.51], "mart": [0.53, 0.56, 0.53], "at": [0.48, 0.49, 0.44]}


def run(
    name: str,
    clean: float,
    robust: float,
    params: Mapping[str, str],
    prefix: str = "test",
    **more: float,
) -> RunRecord:
    metrics = {f"{prefix}.clean": clean, f"{prefix}.robust.{PGD}": robust, **more}
    return RunRecord(
        run_id=name,
        mlflow_id=f"id-{name}",
        parent_mlflow_id=None,
        name=name,
        kind="train",
        search=None,
        status="FINISHED",
        started=0.0,
        ended=1.0,
        params=dict(params),
        metrics=metrics,
        tags={},
    )


@pytest.fixture
def runs() -> list[RunRecord]:
    return [
        run(f"{method}-{seed}", 0.8, robust, {"objective.accuracy": method, "seed": str(seed)})
        for method, values in ROBUST.items()
        for seed, robust in enumerate(values)
    ]


def test_a_group_is_its_mean_over_seeds(runs: list[RunRecord]) -> None:
    grouped = group_runs(runs, ["objective.accuracy"])
    assert [group.name for group in grouped.groups] == ["mart", "trades", "at"]
    assert (grouped.split, grouped.attack) == ("test", PGD)
    for group in grouped.groups:
        assert group.robust_mean == mean_t(ROBUST[group.name])
        assert group.difference is None
    assert grouped.notes == []


def test_each_group_is_tested_against_the_baseline_by_pairs(runs: list[RunRecord]) -> None:
    grouped = group_runs(runs, ["objective.accuracy"], "trades")
    mart, trades, at = grouped.groups
    assert mart.difference == paired_t(ROBUST["mart"], ROBUST["trades"])
    assert trades.difference is trades.p_holm is None
    assert mart.difference is not None
    assert at.difference is not None
    smaller, larger = sorted([mart.difference.p_value, at.difference.p_value])
    assert min(mart.p_holm or 0, at.p_holm or 0) == pytest.approx(2 * smaller)
    assert max(mart.p_holm or 0, at.p_holm or 0) == pytest.approx(max(2 * smaller, larger))
    with pytest.raises(ConfigError, match="one of the groups: mart; trades; at"):
        group_runs(runs, ["objective.accuracy"], "TRADES")
    with pytest.raises(ConfigError, match="--group-by"):
        group_runs(runs, ["objective.acuracy"])


def test_only_seeds_that_both_have_are_paired(runs: list[RunRecord]) -> None:
    fourth = [
        run(f"{method}-3", 0.8, robust, {"objective.accuracy": method, "seed": "3"})
        for method, robust in (("trades", 0.49), ("mart", 0.55))
    ]
    without = [r for r in [*runs, *fourth] if r.name != "trades-1"]
    mart, *_ = group_runs(without, ["objective.accuracy"], "trades").groups
    assert mart.difference == paired_t([0.53, 0.53, 0.55], [0.50, 0.51, 0.49])


def test_two_seeds_are_not_tested(runs: list[RunRecord]) -> None:
    grouped = group_runs(
        [r for r in runs if r.params["seed"] in "01"], ["objective.accuracy"], "at"
    )
    assert all(group.difference is None for group in grouped.groups)
    assert all(group.robust_mean is not None for group in grouped.groups)


def test_tuning_is_left_out_where_there_are_replicates(runs: list[RunRecord]) -> None:
    """It has no test numbers, and would turn the whole table into held-out ones."""

    def of(phase: str, run: RunRecord) -> RunRecord:
        return replace(run, kind="trial", tags={"morel.phase": phase})

    params = {"objective.accuracy": "trades", "seed": "9"}
    tuning = [of("tuning", run(f"t{i}", 0.8, 0.1 * i, params, "best.holdout")) for i in range(4)]
    replicates = [of("replicates", each) for each in runs]
    grouped = group_runs([*tuning, *replicates], ["objective.accuracy"])
    assert grouped.split == "test"
    assert grouped.groups == group_runs(runs, ["objective.accuracy"]).groups
    assert any("4 trial(s) of tuning are left out" in note for note in grouped.notes)
    alone = group_runs(tuning, ["objective.accuracy"])
    assert [group.runs for group in alone.groups] == [4]


@pytest.mark.parametrize(
    "change",
    [
        {"status": "RUNNING"},
        {"status": "FAILED"},
        {"tags": {"morel.state": "stopped"}},
        {"tags": {"morel.state": "diverged"}},
    ],
)
def test_what_did_not_come_to_its_end_is_no_seed(runs: list[RunRecord], change: object) -> None:
    whole = group_runs(runs, ["objective.accuracy"])
    half = replace(
        run("half", 0.8, 0.1, {"objective.accuracy": "mart", "seed": "7"}, "holdout"),
        **change,  # pyright: ignore[reportCallIssue]
    )
    grouped = group_runs([*runs, half], ["objective.accuracy"])
    assert grouped.groups == whole.groups
    assert any("1 run(s) are left out: still at work" in note for note in grouped.notes)


def test_runs_that_differ_in_more_than_their_seed_are_named(runs: list[RunRecord]) -> None:
    runs[0] = replace(runs[0], params=runs[0].params | {"objective.beta": "1.0"})
    notes = group_runs(runs, ["objective.accuracy"]).notes
    assert notes == ["Runs of trades differ in objective.beta, not in their seed alone."]


@pytest.mark.parametrize(
    "change",
    [{"params": {"evaluation.attack.step_size": "0.0001"}}, {"dataset": "cifar100"}],
)
def test_what_was_measured_differently_is_not_ranked_silently(change: Mapping[str, object]) -> None:
    """The attack has the same name; nothing is said to be on the front."""
    params = {"evaluation.attack.step_size": "0.007"}
    one, two = (
        replace(run(name, 0.8, robust, params, "best.holdout"), dataset="cifar10")
        for name, robust in (("one", 0.5), ("two", 0.7))
    )
    assert any(row.on_front for row in comparison_table([one, two]).rows)
    other = replace(two, **change)  # pyright: ignore[reportArgumentType]
    table = comparison_table([one, other])
    assert not any(row.on_front for row in table.rows)
    assert any("measured differently" in note for note in table.notes)
    grouped = group_runs([one, other], ["evaluation.attack.step_size"])
    assert any("measured differently" in note for note in grouped.notes)


def test_what_a_reader_must_know_of_groups(runs: list[RunRecord]) -> None:
    runs[0] = replace(runs[0], metrics={"best.holdout.clean": 0.8, f"best.holdout.robust.{PGD}": 1})
    twice = run("again", 0.8, 0.6, {"objective.accuracy": "mart", "seed": "0"}, "best.holdout")
    other = run("new", 0.8, 0.6, {"objective.accuracy": "loat", "seed": "0"}, "best.holdout")
    known = " ".join(group_runs([runs[0], twice, twice, other], ["objective.accuracy"]).notes)
    for part in ("biased upwards", "several runs of a seed", "one seed"):
        assert part in known


def test_groups_are_written(runs: list[RunRecord]) -> None:
    grouped = group_runs(runs, ["objective.accuracy"], "trades")
    lines = list(csv.reader(io.StringIO(groups_as_text(grouped, "csv"))))
    assert lines[1] == ["mart", "0", "0.8", "0.53", "test", PGD]
    assert len(lines) == 1 + 9
    latex = groups_as_text(grouped, "latex")
    assert latex is not None
    assert latex.startswith("\\begin{tabular}{lllllll}\n\\toprule\n")
    assert "54.00 $\\pm$ 1.73" in latex
    assert "pgd20_linf" not in latex.partition("\\end{tabular}")[0]
    assert "| mart | 80.00 ± 0.00 [80.00, 80.00] | 54.00 ± 1.73 [" in str(
        groups_as_text(grouped, "markdown")
    )
    assert json.loads(str(groups_as_text(grouped, "json")))["groups"][0]["name"] == "mart"
    assert groups_to_rich(grouped).row_count == 3


@pytest.mark.parametrize(
    ("condition", "names"),
    [
        ("objective.accuracy = mart", ["mart-0", "mart-1", "mart-2"]),
        (
            "objective.accuracy != mart",
            ["trades-0", "trades-1", "trades-2", "at-0", "at-1", "at-2"],
        ),
        ("test_robust_accuracy >= 0.53", ["mart-0", "mart-1", "mart-2"]),
        ("seed<1", ["trades-0", "mart-0", "at-0"]),
        ("name = at-1", ["at-1"]),
        ("robust_accuracy > 0", []),  # nothing was measured on held-out images
        ("status = finished", [f"{m}-{i}" for m in ROBUST for i in range(3)]),
    ],
)
def test_conditions_pick_runs(runs: list[RunRecord], condition: str, names: list[str]) -> None:
    assert [r.name for r in pick(runs, [condition])] == names


@pytest.mark.parametrize(
    "wrong", ["clean accuracy > 1", "clean_accuracy", "seed > many", "sed = 1"]
)
def test_a_condition_that_is_none_is_refused(runs: list[RunRecord], wrong: str) -> None:
    with pytest.raises(ConfigError, match="--where"):
        pick(runs, ["seed = 0", wrong])


def test_the_front_and_verified_numbers_are_told_apart() -> None:
    verified = {"verified.robust.worst_case": 0.41, "verified.robust.apgd-ce": 0.42}
    rows = comparison_table(
        [
            run("robust", 0.7, 0.5, {}, "best.holdout", **verified),
            run("clean", 0.9, 0.3, {}, "best.holdout"),
            run("dominated", 0.7, 0.3, {}, "best.holdout"),
        ]
    )
    assert {row.name for row in rows.rows if row.on_front} == {"robust", "clean"}
    scores = {row.name: row.verified_accuracy for row in rows.rows}
    assert scores["robust"] is not None
    assert scores["robust"].value == 0.41
    assert scores["clean"] is None
    text = str(as_text(rows, "markdown"))
    assert "| robust + |" in text
    assert "| dominated |" in text
    assert "verified robust % [95 %]" in text
    assert "stronger attacks" in text


def test_latex_escapes_what_users_wrote() -> None:
    table = comparison_table([run("50%_of $x & ~^\\{}", 0.7, 0.5, {})])
    assert r"50\%\_of \$x \& \textasciitilde{}\textasciicircum{}\textbackslash{}\{\}" in str(
        as_text(table, "latex")
    )


def test_long_numbers_of_a_group_are_cut(runs: list[RunRecord]) -> None:
    near = [replace(r, params=r.params | {"eps": str(8 / 255)}) for r in runs[:3]]
    assert group_runs(near, ["eps"]).groups[0].name == "0.03137"
    far = [replace(r, params=r.params | {"eps": str(8.0001 / 255)}) for r in runs[3:]]
    assert len(group_runs([*near, *far], ["eps"]).groups) == 2
    assert pick([*near, *runs[3:]], ["eps = 8/255"]) == near


def test_no_runs_are_no_groups() -> None:
    assert group_runs([], ["seed"]).groups == []
