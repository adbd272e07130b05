"""What a search has spent, over drivers and trials, and which limit that reaches."""

from dataclasses import replace

import pytest
from fake_tune import FakeTrial, checkpoint, report

from morel_core.errors import ConfigError
from orchestrator.search.budget import Cost, Meter
from orchestrator.search.settings import BudgetConfig, ResourcesConfig
from orchestrator.search.space import load_search
from orchestrator.search.trial import Trial
from orchestrator.search.trials import TrialBook


def trial(number, held, holding_since=None):
    return Trial(
        run_id=f"hunt/{number}", number=number, label="", params={}, held=held,
        holding_since=holding_since,
    )  # fmt: skip


@pytest.fixture
def meter(search):
    """Of a search whose earlier drivers ran 100 s; it is 30 s later than this one's begin."""

    def make(resources=None, **budget):
        asked = replace(
            search, budget=BudgetConfig(**budget), resources=resources or ResourcesConfig()
        )
        clock = iter([1000.0])
        return Meter(asked, wall_before=100.0, clock=lambda: next(clock, 1030.0))

    return make


def test_cost_is_resources_times_seconds_summed_over_trials(meter):
    asked = ResourcesConfig(workers=2, cpus_per_worker=3, gpus_per_worker=0.5)
    cost = meter(asked).cost([trial(1, 40.0), trial(2, 10.0, holding_since=1020.0)])
    assert cost == Cost(wall_seconds=130.0, cpu_seconds=360.0, gpu_seconds=60.0)
    assert cost.metrics()["cost.gpu_seconds"] == 60.0


@pytest.mark.parametrize(
    ("limit", "value", "reached"),
    [
        ("wall_time_s", 130.0, True),
        ("wall_time_s", 131.0, False),
        ("cpu_hours", 100 / 3600, True),
        ("cpu_hours", 101 / 3600, False),
        ("gpu_hours", 50 / 3600, True),
        ("gpu_hours", 51 / 3600, False),
    ],
)
def test_limits(meter, limit, value, reached):
    asked = ResourcesConfig(cpus_per_worker=2, gpus_per_worker=1.0)
    over = meter(asked, **{limit: value}).over([trial(1, 50.0)])
    assert over == (f"budget.{limit} spent" if reached else "")


def test_no_budget_is_never_spent(meter):
    assert meter().over([trial(1, 1e9)]) == ""


@pytest.mark.parametrize(
    ("robust", "epoch", "target", "reached"),
    [
        (0.6, 9, 0.6, True),
        (0.6, 9, 0.61, False),
        (0.9, 5, 0.6, False),  # not at its end
    ],
)
def test_target_counts_for_a_trial_at_its_end(
    meter, search, recorder, robust, epoch, target, reached
):
    book = TrialBook(search, recorder, None)
    tune_trial = FakeTrial(checkpoint=checkpoint())
    book.result(tune_trial, report(epoch, robust=robust))
    if epoch == 9:
        book.complete(tune_trial)
    assert meter(target=target).over(book.trials) == ("budget.target reached" if reached else "")


def test_a_target_needs_one_number():
    with pytest.raises(ConfigError, match=r"budget\.target = 0\.5"):
        load_search("smoke", ["objective.metric=tradeoff", "budget.target=0.5"])


def test_cost_in_words():
    assert str(Cost(cpu_seconds=1800.0)) == "0.5 CPU-hours"
    assert str(Cost(cpu_seconds=1800.0, gpu_seconds=3600.0)) == "1 GPU-hours, 0.5 CPU-hours"
