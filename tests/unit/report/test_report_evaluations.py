"""What was measured after the search: by `morel evaluate`, and of every verified trial."""

import random

import pyarrow
import pytest
from pyarrow import parquet
from synthetic import ATTACK, Made, outcomes

from orchestrator import records
from orchestrator.report import evaluations, training_chart
from orchestrator.report.answer import answer, verification_seconds
from orchestrator.report.ball import Ball, ball_of
from orchestrator.report.data import Recorded
from orchestrator.report.page import render
from orchestrator.report.reading import TOP, load

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
    assert f"from {ranked[0].name}, the next one" in evaluations.rival(later, later.winner)
    spent = verification_seconds(later)
    assert {t.run.run_id for t in ranked} <= set(spent)


def test_a_masked_trial_is_not_the_next_one(later):
    best = max(
        (t for t in later.trials if t.verified and t is not later.winner),
        key=lambda trial: trial.verified.value,
    )
    best.run.tags["morel.masking"] = "Square beats PGD"
    try:
        assert best.name not in evaluations.rival(later, later.winner)
    finally:
        best.run.tags["morel.masking"] = "no evidence"


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


def test_curves_are_those_of_training(later):
    winner = later.winner
    curves = later.curves[winner.run.run_id]
    assert "holdout.robust.pgd50_linf_0.1" in winner.run.metrics
    assert "holdout.robust.pgd50_linf_0.1" not in curves
    assert min(epoch for points in curves.values() for epoch, _ in points) == 1
    chart = training_chart.curves(later, winner, training_chart.curve_bounds(later))
    assert "pgd50" not in chart
    assert "after epoch 0" not in chart
