"""Non-dominated points against their definition."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.compare.pareto import front, hypervolume, ranks

COARSE = st.integers(0, 6).map(lambda n: n / 6)  # few values: ties and equal points are common
PLANE = st.lists(st.tuples(COARSE, COARSE), max_size=25)
SPACE = st.lists(st.tuples(COARSE, COARSE, COARSE), max_size=15)


def dominates(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return all(x >= y for x, y in zip(a, b, strict=True)) and a != b


def by_definition(points: list[tuple[float, ...]]) -> list[int]:
    return [i for i, p in enumerate(points) if not any(dominates(q, p) for q in points)]


@given(st.one_of(PLANE, SPACE))
def test_the_front_is_what_nothing_dominates(points: list[tuple[float, ...]]) -> None:
    assert front(points) == by_definition(points)


@given(st.one_of(PLANE, SPACE))
def test_ranks_peel_one_front_after_the_other(points: list[tuple[float, ...]]) -> None:
    left, expected, rank = list(range(len(points))), [-1] * len(points), 0
    while left:
        found = [left[i] for i in by_definition([points[i] for i in left])]
        for i in found:
            expected[i] = rank
        left = [i for i in left if i not in found]
        rank += 1
    assert ranks(points) == expected


@given(PLANE, COARSE, COARSE)
def test_the_hypervolume_is_the_area_of_the_cells_below_the_front(
    points: list[tuple[float, float]], x: float, y: float
) -> None:
    cells = [
        (i, j)
        for i in range(6)
        for j in range(6)
        if i / 6 >= x and j / 6 >= y and any(a > i / 6 and b > j / 6 for a, b in points)
    ]
    assert hypervolume(points, (x, y)) == pytest.approx(len(cells) / 36)


def test_points_worked_out_by_hand() -> None:
    points = [(0.9, 0.1), (0.5, 0.5), (0.5, 0.5), (0.4, 0.5), (0.1, 0.4)]
    assert front(points) == [0, 1, 2]
    assert ranks(points) == [0, 0, 0, 1, 2]
    assert hypervolume(points) == pytest.approx(0.9 * 0.1 + 0.5 * 0.4)
    assert hypervolume(points, (0.5, 0.0)) == pytest.approx(0.4 * 0.1)


def test_no_points_have_no_front() -> None:
    assert (front([]), ranks([]), hypervolume([])) == ([], [], 0.0)


@pytest.mark.parametrize("points", [[(math.nan, 1.0)], [(1.0, math.inf)], [(1.0, 2.0), (1.0,)]])
def test_points_that_are_none_are_refused(points: list[tuple[float, ...]]) -> None:
    for function in (front, ranks, hypervolume):
        with pytest.raises(ValueError):
            function(points)


def test_the_hypervolume_takes_the_plane_alone() -> None:
    with pytest.raises(ValueError, match="takes 2"):
        hypervolume([(1.0, 2.0, 3.0)])
