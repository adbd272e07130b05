"""The report against numbers computed by hand, and what it says where numbers are missing."""

import csv
import dataclasses
import io
import json
import math

import pytest
from scipy import stats

from orchestrator.campaign.note import campaign_note
from orchestrator.campaign.outcomes import (
    MethodOutcome,
    OutcomeStore,
    Replicate,
    Replicates,
    Tuning,
)
from orchestrator.campaign.report import Registration, build_report, report_metrics
from orchestrator.campaign.tables import from_json, lost_lines, to_csv, to_json, to_markdown
from orchestrator.campaign.view import print_report
from orchestrator.config import RunConfig
from orchestrator.notes import GAP, cell
from orchestrator.search.budget import Cost
from orchestrator.search.trial import Trial
from orchestrator.settings.building import build as build_run

ROBUST, CLEAN = "test.robust.pgd20_linf_0.1", "test.clean"
FIXED = Registration(sha256="f" * 64, time="2026-01-01T00:00:00Z", commit="c" * 40, code="0" * 16)
METHODS = {
    "methods": {"a": {"objective.beta": 5.0}, "b": {"objective.beta": 6.0}, "c": {}},
    "pairs": {"b": "a", "c": "a"},
    "tuning": None,
}
# Robust accuracies under seeds 1, 2, 3: b - a is 2, 3, 1 points, c - a is 5, 4, 6 points.
A, B, C = (0.48, 0.50, 0.55), (0.50, 0.53, 0.56), (0.53, 0.54, 0.61)
SECONDS = 90.0


def replicate(method, seed, robust, clean=0.9):
    return Replicate(
        seed=seed,
        run_id=f"m-{method}-seeds/{seed}",
        lost="" if robust is not None else "diverged: diverged in epoch 3",
        ended="all 12 epochs trained",
        test={} if robust is None else {ROBUST: robust, CLEAN: clean, "test.images": 359},
        seconds=SECONDS / 3,
        device="cpu",
    )


def outcome(method, robust):
    runs = [replicate(method, seed, value) for seed, value in enumerate(robust, start=1)]
    cost = Cost(cpu_seconds=SECONDS)
    replicates = Replicates(search=f"m-{method}-seeds", runs=runs, cost=cost)
    return MethodOutcome(tuning=None, replicates=replicates)


def build(load, seeds=(1, 2, 3), **robust):
    found = {method: outcome(method, values) for method, values in robust.items()}
    return build_report(load(**METHODS, seeds=list(seeds)), FIXED, found)


@pytest.fixture
def report(load):
    return build(load, a=A, b=B, c=C)


def test_means_by_hand(report):
    mean = report.methods[0].means[ROBUST]
    assert mean.mean == pytest.approx(0.51)
    assert mean.deviation == pytest.approx(math.sqrt((0.03**2 + 0.01**2 + 0.04**2) / 2))
    half = 4.302652730 * mean.deviation / math.sqrt(3)  # t of 2 degrees of freedom
    assert (mean.low, mean.high) == pytest.approx((0.51 - half, 0.51 + half))
    assert report.methods[0].measured == 3


def test_paired_differences_by_hand(report):
    first, second = report.comparisons
    assert first.primary.difference == pytest.approx(0.02)
    assert first.primary.deviation == pytest.approx(0.01)
    half = 4.302652730 * 0.01 / math.sqrt(3)
    assert (first.primary.low, first.primary.high) == pytest.approx((0.02 - half, 0.02 + half))
    # p of t with 2 degrees of freedom: 1 - t / sqrt(2 + t²)
    ps = [1 - t / math.sqrt(2 + t * t) for t in (2 * math.sqrt(3), 5 * math.sqrt(3))]
    assert [c.primary.p_value for c in report.comparisons] == pytest.approx(ps)
    # Holm: the smaller twice, the larger once.
    assert [first.p_holm, second.p_holm] == pytest.approx([ps[0], 2 * ps[1]])
    assert first.others[CLEAN].difference == 0
    assert first.left_out == []


def test_detectable_difference_has_80_percent_power(report):
    shift = report.comparisons[0].detectable / (0.01 / math.sqrt(3))
    power = stats.nct.sf(4.302652730, 2, shift) + stats.nct.cdf(-4.302652730, 2, shift)
    assert power == pytest.approx(0.8, abs=1e-3)


def test_sentences(report):
    weak, strong = (comparison.sentence for comparison in report.comparisons)
    assert weak.startswith("No difference between b and a in robust accuracy (pgd20_linf_0.1)")
    assert "(+2.00 points, 95 % interval -0.48 to +4.48 points; p = 0.074 after Holm's" in weak
    assert "for 2 comparisons" in weak
    assert f"smaller than {100 * report.comparisons[0].detectable:.2f} points" in weak
    assert strong.startswith("c is 5.00 points higher than a in robust accuracy")
    assert "p = 0.026" in strong


def test_differences_that_are_all_the_same_have_no_interval(load):
    """Three seeds that differ by the same count of images do not resolve everything."""
    report = build(load, a=A, b=[value + 0.1 for value in A], c=A)
    first, second = report.comparisons
    assert first.detectable is second.detectable is None
    assert first.sentence == (
        "b less a is +10.00 points in robust accuracy (pgd20_linf_0.1) over 3 seeds, the same "
        "under each: how far it varies over seeds is not known (sign-flip test: p = 0.500 after "
        "Holm's correction for 2 comparisons)."
    )
    assert second.sentence.startswith("c less a is +0.00 points")
    text = to_markdown(report)
    assert "+10.00 under every seed" in text
    assert "[+10.00" not in text
    assert not any(key.endswith(("_low", "_high")) for key in report_metrics(report))


def test_a_lower_method_is_called_lower(load):
    report = build(load, a=C, b=A, c=B)
    assert report.comparisons[0].sentence.startswith("b is 5.00 points lower than a")


def test_missing_replicates_are_named_and_their_pairs_left_out(load):
    four = {"a": (*A, 0.51), "b": (0.50, None, 0.56, 0.54), "c": (None, 0.54, None, 0.6)}
    report = build(load, seeds=(1, 2, 3, 4), **four)
    assert not report.complete
    assert lost_lines(report) == [
        "b, seed 2: diverged: diverged in epoch 3",
        "c, seed 1: diverged: diverged in epoch 3",
        "c, seed 3: diverged: diverged in epoch 3",
        "b − a: left out seed 2",
        "c − a: left out seed 1, 3",
    ]
    first, second = report.comparisons
    assert (first.seeds, first.primary.num_seeds) == ([1, 3, 4], 3)
    assert first.primary.difference == pytest.approx(0.02)
    assert second.primary is None
    assert second.p_holm is None
    assert second.sentence == "c and a are not compared: fewer than 3 seeds have both."
    # It was planned, so it still counts: the other p is doubled.
    assert first.p_holm == pytest.approx(min(1.0, 2 * first.primary.p_value))
    text = to_markdown(report)
    assert all(line in text for line in lost_lines(report))
    assert "57.00 ± 4.24 [18.88, 95.12]" in text
    assert "| 2 of 4 |" in text


def test_a_method_with_one_seed_has_no_interval(load):
    text = to_markdown(build(load, a=A, b=(None, 0.54, None), c=C))
    assert "54.00 (one seed)" in text
    assert "| 1 of 3 |" in text


def test_what_is_another_run_than_its_config_says_is_named(load):
    sliced = dataclasses.replace(
        replicate("b", 2, 0.5), differs="training.micro_batches = 2, not 1"
    )
    found = {method: outcome(method, values) for method, values in (("a", A), ("b", B), ("c", C))}
    found["b"].replicates.runs[1] = sliced
    report = build_report(load(**METHODS), FIXED, found)
    assert report.notes[0] == "b, seed 2: training.micro_batches = 2, not 1."
    assert (
        build_report(load(**METHODS), FIXED, found | {"b": outcome("b", B)}).notes[0]
        != report.notes[0]
    )


def test_unequal_numbers_of_trials_are_not_called_the_same(load):
    def tuned(method, values, trials):
        tuning = Tuning(
            search=f"m-{method}", run_id="m/1", label="", settings={}, holdout={}, trials=trials,
            states={"finished": trials}, cost=Cost(cpu_seconds=5.0),
        )  # fmt: skip
        return dataclasses.replace(outcome(method, values), tuning=tuning)

    def note(*trials):
        methods = zip("abc", (A, B, C), trials, strict=True)
        found = {method: tuned(method, values, count) for method, values, count in methods}
        return build_report(load(**METHODS), FIXED, found).notes[0]

    assert "by its own search, with 8 trials, on" in note(8, 8, 8)
    assert "within the same budget (a: 8, b: 6, c: 8 trials)" in note(8, 6, 8)


def test_a_method_without_a_setting_has_no_replicates(load):
    nothing = Tuning(
        search="m-b", run_id=None, label="", settings={}, holdout={}, trials=2,
        states={"failed": 2}, cost=Cost(cpu_seconds=5.0),
    )  # fmt: skip
    found = {"a": outcome("a", A), "b": MethodOutcome(tuning=nothing, replicates=None)}
    report = build_report(load(**METHODS), FIXED, {**found, "c": outcome("c", C)})
    assert report.methods[1].lost == ["no replicates: its tuning has no winner"]
    assert report.comparisons[0].left_out == [1, 2, 3]
    assert "| b | – | – | 0 of 3 | 2 trials, 5 s CPU | – |" in to_markdown(report)


def test_a_seed_that_was_never_trained_is_named(load):
    report = build(load, a=A, b=B[:2], c=C)
    assert report.methods[1].lost == ["seed 3: not trained"]


def test_nothing_at_all(load):
    report = build(load, a=(None,) * 3, b=(None,) * 3, c=(None,) * 3)
    assert report.num_images is None
    assert "on no test images" in to_markdown(report)


def test_markdown_has_the_papers_table(report):
    lines = to_markdown(report).splitlines()
    head = "| method | clean accuracy % | robust accuracy (pgd20_linf_0.1) % \\* | seeds |"
    assert any(line.startswith(head) for line in lines)
    (row,) = (line for line in lines if line.startswith("| a | 90.00"))
    assert "| 51.00 ± 3.61 [42.04, 59.96] | 3 of 3 | – | 1 min 30 s CPU |" in row
    (difference,) = (line for line in lines if line.startswith("| b − a"))
    assert "| +2.00 [-0.48, +4.48] | 0.074 | 0.074 |" in difference
    assert "Fixed beforehand: 2026-01-01T00:00:00Z, SHA-256 ffffffffffffffff" in "\n".join(lines)


def test_the_note_in_mlflow_begins_with_the_finding_and_links_to_the_searches(report, load):
    note = campaign_note(load(**METHODS), report).replace(GAP, "")
    assert note.startswith(cell(report.comparisons[0].sentence))
    row = report.methods[0]
    search = row.replicates[0].run_id.partition("/")[0]
    assert f"| [{row.method}](run:{search}) |" in note
    assert "morel report --search " in note


def test_csv_has_what_all_else_can_be_computed_from(report):
    rows = list(csv.DictReader(io.StringIO(to_csv(report))))
    assert [(row["method"], row["seed"]) for row in rows][:4] == [
        ("a", "1"), ("a", "2"), ("a", "3"), ("b", "1"),
    ]  # fmt: skip
    assert [float(row[ROBUST]) for row in rows[:3]] == list(A)


def test_json_and_metrics_are_unrounded(report):
    content = json.loads(to_json(report))
    assert content["comparisons"][0]["primary"]["difference"] == pytest.approx(0.02, abs=1e-15)
    metrics = report_metrics(report)
    assert metrics[f"mean.a.{ROBUST}"] == pytest.approx(0.51)
    assert metrics[f"difference.c-a.{ROBUST}"] == pytest.approx(0.05)
    assert metrics[f"difference.c-a.{ROBUST}_p_holm"] == report.comparisons[1].p_holm


@pytest.mark.parametrize("missing", [False, True])
def test_json_reads_back(load, missing):
    report = build(load, a=A, b=(None, 0.5, 0.6) if missing else B, c=(None,) * 3 if missing else C)
    tuning = Tuning(
        search="m-a", run_id="m-a/1", label="paper", settings={"optimizer.lr": 0.1},
        holdout={"best_robust_accuracy": 0.5}, trials=2, states={"finished": 2},
        cost=Cost(gpu_seconds=5.0),
    )  # fmt: skip
    rows = [dataclasses.replace(row, tuning=tuning) for row in report.methods]
    whole = dataclasses.replace(report, methods=rows)
    assert from_json(to_json(whole)) == whole


def test_the_terminal_shows_the_same(report, load):
    from rich.console import Console

    from orchestrator.campaign.run import CampaignResult

    console = Console(record=True, width=200)
    result = CampaignResult(campaign=load(**METHODS), report=report, seconds=1.0, recorded=True)
    print_report(console, result)
    shown = console.export_text()
    assert "51.00 ± 3.61 [42.04, 59.96]" in shown
    assert report.comparisons[0].sentence in shown


# --- what is kept --------------------------------------------------------------------------------


def test_outcomes_are_kept(tmp_path):
    store = OutcomeStore(str(tmp_path))
    assert store.tuning("a") is None
    assert store.replicates("a") is None
    kept = outcome("a", A).replicates
    assert kept is not None
    store.save("a", "replicates", kept)
    assert OutcomeStore(str(tmp_path)).replicates("a") == kept
    tuning = Tuning(
        search="m-a", run_id="m-a/1", label="paper", settings={"optimizer.lr": 0.1},
        holdout={"best_robust_accuracy": 0.5}, trials=2, states={"finished": 2},
        cost=Cost(gpu_seconds=5.0),
    )  # fmt: skip
    store.save("a", "tuning", tuning)
    assert OutcomeStore(str(tmp_path)).tuning("a") == tuning


@pytest.mark.parametrize(
    ("fields", "lost"),
    [
        ({"state": "diverged", "reason": "diverged in epoch 2"}, "diverged: diverged in epoch 2"),
        ({"state": "failed", "reason": "no memory"}, "failed: no memory"),
        ({"state": "finished", "untested": "a node was lost"}, "finished: a node was lost"),
        ({"state": "finished"}, "finished: nothing was measured"),
        ({"state": "finished", "test": {CLEAN: 0.5}}, ""),
    ],
)
def test_why_a_replicate_has_no_numbers(fields, lost):
    trial = Trial(run_id="m/1", number=1, label="", params={"seed": 4}, **fields)
    replicate = Replicate.of(trial, build_run(RunConfig, {}))
    assert (replicate.lost, replicate.seed, replicate.differs) == (lost, 4, "")


def test_a_replicate_that_went_on_in_slices_says_so():
    last = {"batchnorm_slices": 2}
    fields = {"state": "finished", "test": {CLEAN: 0.5}, "last": last, "retries": ["out of memory"]}
    trial = Trial(run_id="m/1", number=1, label="", params={"seed": 4}, **fields)
    replicate = Replicate.of(trial, build_run(RunConfig, {}))
    assert replicate.differs.startswith("training.micro_batches = 2, not 1: BatchNorm's")
