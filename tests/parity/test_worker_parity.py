"""The number of workers changes neither the loss nor the gradient; a bad loss stops all of them."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import sys
from typing import Any

import parity_workers
import pytest
import torch
from parity_cases import assert_equal_to
from parity_workers import CASES, RUNS, SIZES

TIMEOUT = 240
GRADIENT_RUNS = [
    pytest.param(world_size, sizes, name, id=f"{name}-{'+'.join(map(str, sizes))}")
    for world_size in SIZES
    for sizes in SIZES[world_size]
    for name in CASES
]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    """World size → rank → results."""
    folder = tmp_path_factory.mktemp("ranks")
    process = subprocess.Popen(
        [sys.executable, parity_workers.__file__, str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        _, errors = process.communicate(timeout=TIMEOUT)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # a rank whose partner died waits for it
    assert process.returncode == 0, errors
    return {
        size: [torch.load(folder / str(size) / f"rank{rank}.pt") for rank in range(size)]
        for size in SIZES
    }


@pytest.mark.parametrize(("world_size", "sizes", "name"), GRADIENT_RUNS)
def test_gradients_and_terms_do_not_depend_on_the_workers(
    ranks: dict[int, list[dict[str, Any]]], world_size: int, sizes: tuple[int, ...], name: str
) -> None:
    case = CASES[name]
    alone = parity_workers.gradients(case, (sum(sizes),), 0)
    several = [result["gradients"][name, sizes] for result in ranks[world_size]]
    assert alone["classes"] > 1
    if case.wrong is not None:  # the groups of LOAT are what the case says
        assert (~alone["right"]).nonzero().flatten().tolist() == list(case.wrong)

    assert_equal_to(torch.cat([result["x_adv"] for result in several]), alone["x_adv"])
    for key, value in alone["terms"].items():
        reported = torch.stack([result["terms"][key] for result in several]).mean()
        assert_equal_to(reported, value)
    assert sum(g.abs().sum() for g in alone["grads"].values()) > 0.1
    for result in several:
        assert list(result["grads"]) == list(alone["grads"])
        for key, gradient in alone["grads"].items():
            assert_equal_to(result["grads"][key], gradient)
        assert list(result["shares"]) == list(alone["shares"])
        for key, share in alone["shares"].items():
            assert_equal_to(result["shares"][key], share)


def test_ranks_that_see_another_maximum_follow_the_global_one(
    ranks: dict[int, list[dict[str, Any]]],
) -> None:
    """The case would prove nothing if both ranks' own shares named the same objective."""
    name, sizes = "chebyshev, ranks disagree", (4, 4)
    k = CASES[name].config.preference
    shares = [result["gradients"][name, sizes]["terms"] for result in ranks[2]]
    own = [(k[0] * s["robustness"] > k[1] * s["accuracy"]).item() for s in shares]
    assert sorted(own) == [False, True]


@pytest.mark.parametrize("name", RUNS)
def test_a_run_of_two_workers_equals_a_run_of_one(
    ranks: dict[int, list[dict[str, Any]]], name: str
) -> None:
    alone = parity_workers.train(RUNS[name])
    first, second = (result["train"][name] for result in ranks[2])
    for part in ("net", "measured"):  # the average, where there is one
        for key, value in alone[part].items():
            assert torch.equal(first[part][key], second[part][key]), (part, key)
            assert_equal_to(first[part][key], value)
    averaged = any(not torch.equal(alone["net"][k], v) for k, v in alone["measured"].items())
    assert averaged == ("ema" in name or name == "loat, swa")  # one epoch's mean is itself
    for attack, correct in alone["correct"].items():
        assert torch.equal(first["correct"][attack], second["correct"][attack])
        assert first["correct"][attack].sum() == correct.sum()
        assert 0 < correct.sum() < len(correct), "an accuracy of 0 or 1 would prove little"
    assert len(alone["history"]) == 2
    for epoch, first_epoch, second_epoch in zip(
        alone["history"], first["history"], second["history"], strict=True
    ):
        assert list(epoch) == list(first_epoch) == list(second_epoch)
        for key, value in epoch.items():
            if not key.startswith(("seconds", "images_per_second")):
                assert first_epoch[key] == pytest.approx(value, rel=1e-10, abs=1e-12), key
                assert second_epoch[key] == pytest.approx(value, rel=1e-10, abs=1e-12), key


def test_with_batchnorm_all_ranks_attack_and_measure_the_same_network(
    ranks: dict[int, list[dict[str, Any]]],
) -> None:
    """Each normalises by its own rows while training; in eval mode all use the first one's."""
    first, second = (result["batchnorm"] for result in ranks[2])
    attacked = first["attacked"].unique_consecutive(dim=0)
    assert len(attacked) > 10, "the statistics move, else this proves nothing"
    assert torch.equal(second["attacked"].unique_consecutive(dim=0), attacked)
    for key, value in first["measured"].items():
        assert torch.equal(second["measured"][key], value), key


def test_statistics_estimated_anew_are_the_mean_over_ranks(
    ranks: dict[int, list[dict[str, Any]]],
) -> None:
    """By hand: means 1 and 6, variances 2 and 8."""
    assert [result["reestimated"] for result in ranks[2]] == [(3.5, 5.0)] * 2


def assert_same(actual: dict[str, Any], expected: dict[str, Any], part: str) -> None:
    assert list(actual[part]) == list(expected[part])
    for key, value in expected[part].items():
        assert torch.equal(actual[part][key], value), (part, key)


def parameters_of(step: dict[str, Any]) -> dict[str, Any]:
    """Without BatchNorm's buffers, which a forward pass moves whatever becomes of its loss."""
    return {
        **step,
        "net": {k: v for k, v in step["net"].items() if "running" not in k and "num_b" not in k},
    }


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_one_rank_without_a_finite_loss_stops_the_update_of_all(
    ranks: dict[int, list[dict[str, Any]]], optimizer: str, value: float
) -> None:
    for result in ranks[2]:
        runs = {(name, str(bad)): run for (name, bad), run in result["steps"].items()}
        good, bad, again = map(parameters_of, runs[optimizer, str(value)])
        assert [good["finite"], bad["finite"], again["finite"]] == [True, False, True]
        assert_same(bad, good, "net")
        assert_same(bad, good, "optimizer")
        assert any(not torch.equal(again["net"][k], v) for k, v in bad["net"].items())
        assert all(v.isfinite().all() for v in again["net"].values())


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("bad_step", [0, 1])
def test_a_step_without_a_finite_loss_might_as_well_not_have_been(
    optimizer: str, value: float, bad_step: int
) -> None:
    """Also the first step, before the optimiser has any state."""
    spoil: list[float | None] = [None, None]
    spoil.insert(bad_step, value)
    with_bad = list(map(parameters_of, parity_workers.steps(spoil, optimizer, (5,), 0)))
    without = list(map(parameters_of, parity_workers.steps([None, None], optimizer, (5,), 0)))
    assert [step["finite"] for step in with_bad] == [value is None for value in spoil]
    if bad_step:
        assert_same(with_bad[bad_step], without[bad_step - 1], "net")
        assert_same(with_bad[bad_step], without[bad_step - 1], "optimizer")
    assert_same(with_bad[-1], without[-1], "net")
    assert_same(with_bad[-1], without[-1], "optimizer")
