"""What was measured after the search: by `morel evaluate`, and of every verified trial."""

import json
import random
from dataclasses import replace

import pyarrow
import pytest
from pyarrow import parquet
from synthetic import ATTACK, Made, outcomes

from orchestrator.report import evaluations, training_chart
from orchestrator.report.aims import aims, ranges
from orchestrator.report.answer import answer, verification_seconds
from orchestrator.report.ball import Ball, ball_of
from orchestrator.report.data import Recorded
from orchestrator.report.page import render
from orchestrator.report.reading import TOP, load
from orchestrator.tracking import records

AUTOATTACK, APGD, WIDE = "autoattack_linf_0.1", "apgd-ce_linf_0.1", "pgd20_linf_0.3"


def evaluate(made: Made, run_id: str, name: str, attacks, images: int, split: str = "test") -> None:
    """What ``morel evaluate`` records, with labels."""
    result = outcomes(attacks, images, split, random.Random(3))
    table = made.storage / f"{name}.parquet"
    parquet.write_table(pyarrow.table({"label": [i % 10 for i in range(images)]}), table)
    made.final(
        run_id,
        2000.0,
        stop_reason="all epochs trained",
        metrics=records.test_metrics(result.record()),
        texts={f"evaluation/{name}.json": result.to_json()},
        artifacts={f"evaluation/{name}.parquet": str(table)},
    )


@pytest.fixture(scope="module")
def later(tmp_path_factory) -> Recorded:
    """A search whose whole trials were all verified, the winner measured again and again."""
    made = Made(tmp_path_factory.mktemp("later"), "later")
    made.search(16)
    found = load(made.uri, made.experiment)
    whole = sorted(
        (t for t in found.trials if t.whole and not t.verified),
        key=lambda trial: -trial.robust.value,
    )
    assert len(whole) > TOP
    assert not whole[-1].baseline
    for trial in whole:
        made.verify(trial.run.run_id, 0.95 if trial is whole[-1] else 0.3, random.Random(1))
    won = found.winner.run.run_id
    evaluate(made, won, "test-aa", {AUTOATTACK: (0.1, 0.33)}, 60)
    evaluate(made, won, "test-both", {ATTACK: (0.1, 0.75), APGD: (0.1, 0.5)}, 110)
    evaluate(made, won, "test-wide", {WIDE: (0.3, 0.2)}, 300)
    evaluate(made, won, "holdout-pgd50", {"pgd50_linf_0.1": (0.1, 0.4)}, 300, "holdout")
    return load(made.uri, made.experiment)


def test_the_strongest_test_attack_leads_each_with_its_own_images(later):
    rows = [(value, how) for what, value, how in answer(later).numbers if what == "test, robust"]
    assert [how for _, how in rows] == [
        f"{AUTOATTACK} on 60 test images",
        f"worst case of {ATTACK}, {APGD} on 110 test images",
        f"{APGD} on 110 test images",
        f"{ATTACK} on 110 test images",
    ]
    values = [float(value.split()[0]) for value, _ in rows]
    assert values == sorted(values)


def test_the_next_one_is_the_best_of_all_that_were_verified(later):
    ranked = sorted(
        (t for t in later.trials if t.verified and t is not later.winner),
        key=lambda trial: -trial.verified.value,
    )
    assert evaluations.next_one(later, later.winner) is ranked[0]
    assert any(f"from {ranked[0].name}, the next one" in line for line in answer(later).sure)
    spent = verification_seconds(later)
    assert {t.run.run_id for t in ranked} <= set(spent)


def test_a_masked_trial_is_not_the_next_one(later):
    best = max(
        (t for t in later.trials if t.verified and t is not later.winner),
        key=lambda trial: trial.verified.value,
    )
    best.run.tags["morel.masking"] = "Square beats PGD"
    try:
        assert evaluations.next_one(later, later.winner) is not best
    finally:
        best.run.tags["morel.masking"] = "no evidence"


def test_the_published_setting_is_tested_on_the_images_of_both(later):
    paper = next(t for t in later.trials if t.baseline == "paper")
    assert paper.verified
    assert paper is not evaluations.next_one(later, later.winner)
    line = next(line for line in answer(later).sure if "the published setting" in line)
    assert "McNemar p" in line


def test_without_common_images_the_intervals_of_the_search_are_compared(later):
    paper = next(t for t in later.trials if t.baseline == "paper")
    kept = [e for e in later.evaluations if e.run_id != paper.run.run_id]
    line = next(
        line
        for line in answer(replace(later, evaluations=kept)).sure
        if "published setting" in line
    )
    won, other = later.winner.robust, paper.robust
    overlap = won.low <= other.high and other.low <= won.high
    assert f"({other} %)" in line
    assert ("do not overlap" in line) is not overlap
    assert ("does not show that either is better" in line) is overlap


def with_objective(recorded: Recorded, **objective) -> Recorded:
    search = {**recorded.definition["search"], "objective": objective}
    return replace(recorded, definition={**recorded.definition, "search": search})


def test_a_search_for_clean_accuracy_is_answered_with_that(later):
    clean = with_objective(later, metric="clean_accuracy", constraints=["robust_accuracy >= 0.3"])
    found = answer(clean)
    assert "looked for clean accuracy" in found.because
    assert f"Verified clean accuracy {later.winner.verified_clean} %" in found.because
    assert dict(found.aims)["kept to"] == "robust_accuracy >= 0.3"
    rights = [
        sum(evaluations.deciding(evaluations.verification(later, t), "clean_accuracy"))
        for t in (later.winner, evaluations.next_one(clean, later.winner))
    ]
    assert f"{float(rights[0] - rights[1]):+.1f} points" in found.sure[2]


def test_of_a_trade_off_the_winner_is_one_of_several(later):
    assert (
        "others of it may suit you better"
        in answer(with_objective(later, metric="tradeoff")).because
    )


def test_the_search_is_described_in_words(later):
    space = {
        "model.width": {"type": "grid", "values": [8, 16]},
        "loss": {"type": "choice", "values": ["a", "b"], "when": {"k1": 1}},
        "step": {"type": "derived", "expression": "k1 / 4"},
        "objective.alpha": {"type": "float", "low": 1e-6, "high": 1.0, "log": True},
    }
    search = {
        "num_trials": 3,
        "parameters": space,
        "searcher": {"name": "tpe", "startup_trials": 4, "population_size": None},
        "scheduler": {"name": "none"},
        "budget": {"gpu_hours": 2.0, "target": None},
        "ladder": {"verify": {"top": 2, "attacks": ["square"], "num_images": 100}},
    }
    made = replace(later, definition={"search": search})
    assert dict(aims(made)) == {
        "made better": f"held-out robust accuracy, under {ATTACK}, of the best epoch",
        "searcher": "tpe (startup trials 4)",
        "verified": "the best 2, by square on the first 100 held-out images",
        "budget": "8 points, each in 2 trials, 2 GPU-hours",  # there are 16
    }
    assert dict(ranges(made)) == {
        "model.width": "each of 8, 16",
        "loss": "one of a, b, where k1 is 1",
        "step": "= k1 / 4",
        "objective.alpha": "1e-06 to 1, logarithmic",
    }


def test_classes_are_those_of_an_evaluation_in_the_ball(later):
    ball = ball_of(later)
    assert ball == Ball(norm="linf", eps=0.1)
    best = evaluations.best_record(later.measured(later.winner), ball)
    assert best.file == "evaluation/test-sweep.json"  # test-wide has more images
    assert not evaluations.best_record([m for m in [best] if WIDE in m.record["outcomes"]], ball)
    html, _ = render(later, pictures=False)
    assert "right under pgd20_linf_0.05, pgd20_linf_0.1 on 120 images (test)" in html


@pytest.mark.parametrize(
    ("eps", "attack", "named"),
    [
        (8 / 255, "pgd20_linf_8-255", True),
        (8 / 255, "autoattack_l2_8-255", False),
        (8 / 255, "pgd20_linf_18-255", False),
        (0.1, "apgd-ce_linf_0.1", True),
    ],
)
def test_a_name_tells_the_ball(eps, attack, named):
    assert Ball(norm="linf", eps=eps).named(attack) is named


def test_a_radius_is_written_as_exactly_as_it_is():
    ball = Ball(norm="linf", eps=8 / 255)
    assert [ball.radius(share) for share in (0.5, 1, 1.5)] == ["4/255", "8/255", "12/255"]
    assert Ball(norm="l2", eps=0.1).radius() == "0.1"
    assert Ball(norm="l2", eps=2.0).radius(0.5) == "1"


def test_curves_are_those_of_training(later):
    winner = later.winner
    curves = later.curves[winner.run.run_id]
    assert "holdout.robust.pgd50_linf_0.1" in winner.run.metrics
    assert "holdout.robust.pgd50_linf_0.1" not in curves
    assert min(epoch for points in curves.values() for epoch, _ in points) == 1
    chart = training_chart.curves(later, winner, training_chart.curve_bounds(later))
    assert "pgd50" not in chart
    assert "after epoch 0" not in chart


def test_the_best_so_far_is_that_of_the_objective(tmp_path):
    made = Made(tmp_path, "clean")
    made.search(4)
    search = {"name": "made", "objective": {"metric": "clean_accuracy"}}
    made.final(
        made.name,
        3000.0,
        stop_reason="interrupted",
        tags={"morel.winner_run": ""},
        texts={"config.yaml": json.dumps({"search": search})},
    )
    found = load(made.uri, made.experiment)
    assert found.provisional
    whole = [trial for trial in found.trials if trial.whole]
    assert found.winner is max(whole, key=lambda trial: trial.clean.value)
    assert found.winner is not max(whole, key=lambda trial: trial.robust.value)
