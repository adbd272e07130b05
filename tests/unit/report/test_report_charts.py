"""Scales, marks and labels, and charts against the numbers that they draw."""

import math
import re

import pytest
from markupsafe import Markup

from orchestrator.report import (
    course_charts,
    evaluations,
    front_chart,
    parameter_charts,
    strength_charts,
    training_chart,
)
from orchestrator.report.ball import ball_of
from orchestrator.report.svg import (
    Scale,
    Wanted,
    number,
    place_labels,
    round_values,
    scale,
    tag,
    text,
)


def test_contents_and_attributes_are_escaped_and_elements_are_not():
    assert tag("g", "<b>", title='"&') == Markup('<g title="&#34;&amp;">&lt;b&gt;</g>')
    inner = tag("text", "a")
    assert tag("g", inner) == "<g><text>a</text></g>"


@pytest.mark.parametrize(
    ("low", "high", "count", "wanted"),
    [
        (0, 1, 5, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0.71, 0.93, 4, [0.8, 0.9]),
        (0, 7, 3, [0, 5]),
        (3, 3, 5, [3]),
    ],
)
def test_ticks_are_round(low, high, count, wanted):
    assert round_values(low, high, count) == pytest.approx(wanted)


def test_a_scale_keeps_its_ends_and_what_it_must_not_leave():
    x = Scale(low=1e-6, high=1.0, start=0, end=60, log=True)
    assert (x(1e-6), x(1e-3), x(1.0)) == pytest.approx((0, 30, 60))
    assert x.ticks(3) == pytest.approx([1e-6, 1e-3, 1])
    kept = scale([0.2, 0.99], 0, 10, within=(0, 1))
    assert kept.high == 1
    assert 0 < kept.low < 0.2
    assert scale([], 0, 10).high > scale([], 0, 10).low
    assert scale([0.5], 0, 10)(0.5) == pytest.approx(5)
    assert scale([math.nan, 1, 2], 0, 10).low < 1


@pytest.mark.parametrize(
    ("value", "wanted"),
    [(0, "0"), (0.05, "0.05"), (1e-5, "1e-5"), (123456.0, "1.23e5"), (0.1234567, "0.1235")],
)
def test_numbers_are_short(value, wanted):
    assert number(value) == wanted


def test_labels_cover_neither_marks_nor_each_other():
    wanted = [Wanted(100, 100, "first"), Wanted(104, 100, "second"), Wanted(108, 100, "third")]
    drawn = place_labels(wanted, [(w.x, w.y) for w in wanted], 300, 200)
    assert drawn.count("<text") == 3
    crowded = place_labels([Wanted(100, 100, "x" * 20)] * 12, [], 300, 200)
    assert 0 < crowded.count("<text") < 12  # the others are left to their tooltips
    around = [(100 + 9 * i, 100 + 9 * j) for i in range(-5, 6) for j in range(-5, 6)]
    assert "<text" not in place_labels([Wanted(100, 100, "paper")], around, 300, 300)
    led = place_labels([Wanted(100, 100, "paper", must=True)], around, 300, 300)
    assert (led.count("<text"), led.count('class="link"')) == (1, 1)


def test_the_front_draws_whole_trials_once_and_marks_what_they_are(recorded):
    chart = front_chart.front(recorded, 720)
    whole = [trial for trial in recorded.trials if trial.whole]
    verified = [trial for trial in whole if trial.verified]
    assert 0 < len(whole) < len(recorded.trials)
    assert chart.count('class="tip point"') == len(whole) + len(verified)
    assert chart.count("mark verified") == len(verified) == 2
    assert chart.count("mark won") == 1
    assert chart.count('class="ring"') == 1
    assert chart.count("mark member") == sum(not t.masking for t in recorded.front)
    assert f"verified {recorded.winner.verified} %" in chart
    marks = re.findall(r'class="mark (\w+)', chart)
    assert marks[-1] == "won"  # above all others


def test_every_mark_lies_inside_its_chart(recorded):
    for width in (720, 360):
        for chart in (front_chart.front(recorded, width), course_charts.course(recorded, width)):
            box = [float(v) for v in re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', chart).groups()]
            assert box[0] == width
            for key, most in (("x", box[0]), ("cx", box[0]), ("y", box[1]), ("cy", box[1])):
                found = [float(v) for v in re.findall(rf' {key}="(-?[\d.]+)"', chart)]
                assert all(0 <= value <= most for value in found), (key, max(found))


def test_parallel_coordinates_have_a_share_for_each_axis(recorded):
    chart, filters = parameter_charts.parallel(recorded, recorded.searched)
    assert [f["key"] for f in filters] == [*recorded.searched, "robust accuracy, %"]
    assert [f["log"] for f in filters] == [False, True, False, False, False]
    assert filters[3]["values"] == ["mart", "trades"]
    shares = [line.split() for line in re.findall(r'data-shares="([^"]+)"', chart)]
    assert len(shares) == len(recorded.trials)
    assert {len(line) for line in shares} == {4, 5}  # those stopped early end before the last axis
    assert all(0 <= float(share) <= 1 for line in shares for share in line)


def test_curves_tell_the_gap_between_the_best_and_the_last_epoch(recorded):
    trial = next(trial for trial in recorded.trials if trial.baseline)
    chart = training_chart.curves(recorded, trial, training_chart.curve_bounds(recorded))
    assert "curve clean" in chart
    assert "curve robust" in chart
    assert "curve cheap" in chart
    assert "robust overfitting gap 0.0 points" in chart
    assert training_chart.overfitting_gap(recorded, trial) == 0  # its best epoch is the last


def test_seconds_add_up(recorded):
    total = course_charts.total_cost(recorded, {recorded.trials[0].run.run_id: 7.0})
    epochs = sum(len(trial.steps) for trial in recorded.trials)
    assert total == {"training": epochs, "evaluation": 0.25 * epochs, "verification": 7.0}
    assert "verification 7.0 s" in course_charts.cost(
        recorded, {recorded.trials[0].run.run_id: 7.0}, 720
    )


def test_radii_and_classes_are_those_of_the_evaluations(recorded):
    series = evaluations.by_radius(recorded)
    assert len(series) == 2
    for _, points in series:
        assert [eps for eps, _ in points] == [0.0, 0.05, 0.1, 0.2]
        assert [v.value for _, v in points] == sorted((v.value for _, v in points), reverse=True)
    chart = strength_charts.by_radius(series, 720)
    assert chart.count('class="tip point"') == 8

    best = evaluations.best_record(recorded.measured(recorded.winner), ball_of(recorded))
    assert best.record["split"] == "test"
    rows = evaluations.per_class(best, ball_of(recorded))
    assert [name for name, *_ in rows] == [str(label) for label in range(10)]
    right = sum(round(12 * robust.value) for _, _, robust in rows)
    assert right == sum(evaluations.standing(best, ball_of(recorded)))
    for _, clean, robust in rows:
        assert robust.low <= robust.value <= robust.high <= 1
        assert robust.value <= clean.value


def test_the_axis_of_classes_has_its_title(recorded):
    ball = ball_of(recorded)
    best = evaluations.best_record(recorded.measured(recorded.winner), ball)
    chart = strength_charts.per_class(evaluations.per_class(best, ball), 720)
    assert re.search(r'class="title">class</text>', chart)


def test_a_scatter_writes_each_class_at_its_place():
    chart = strength_charts.scatter([(0, 0), (1, 2)], [3, 11], "made")
    assert text(0, 0, "3", "k3", "middle").count("k3") == 1
    assert re.findall(r'class="k(\d)"[^>]*>(\d+)<', chart) == [("3", "3"), ("3", "11")]
