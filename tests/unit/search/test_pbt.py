"""Exchanges of population-based training: who waits, who takes over what, what is told."""

import itertools
import json
import random
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_tune import SEARCH, report
from ray.tune.schedulers import TrialScheduler

from morel_core.errors import MorelError
from orchestrator.config import to_dict
from orchestrator.provenance.identity import check_identity
from orchestrator.search.pbt import PopulationTraining, position, takeovers
from orchestrator.search.population import Exchange, Place, Population
from orchestrator.search.settings import GoalConfig, SchedulerConfig, SearcherConfig
from orchestrator.search.space import load_search
from orchestrator.search.trials import TrialBook
from orchestrator.tune import definition, tune

GO, PAUSE = TrialScheduler.CONTINUE, TrialScheduler.PAUSE


@dataclass(eq=False)
class Tuned:
    """A Tune trial as far as the scheduler looks at it."""

    index: int
    alpha: float = 0.01
    status: str = "PENDING"
    latest_checkpoint_result: Any = None
    config: dict = field(default_factory=dict)
    storage: Any = field(default_factory=lambda: SimpleNamespace(storage_filesystem=None))

    def __post_init__(self):
        params = {"k1": 0.25, "objective.alpha": self.alpha}
        self.config = {"index": self.index, "baseline": None, "params": params}
        manager = Manager(self)
        self.run_metadata = SimpleNamespace(
            checkpoint_manager=manager, invalidate_cache=lambda: None
        )

    @property
    def trial_id(self):
        return f"t{self.index}"

    def is_finished(self):
        return self.status in ("TERMINATED", "ERROR")

    def set_status(self, status):
        self.status = status

    def set_config(self, config):
        self.config = config


class Manager:
    """Of a trial's checkpoints: the scheduler sets the newest, the trial reads it."""

    def __init__(self, trial):
        self._trial = trial
        self._checkpoint_results = []

    def __setattr__(self, name, value):
        if name == "_latest_checkpoint_result":
            self._trial.latest_checkpoint_result = value
        else:
            super().__setattr__(name, value)


class Tune:
    """Tune's loop: runs what the scheduler chooses, by ``numbers(trial, epoch)``."""

    def __init__(self, scheduler, trials, numbers, epochs):
        self.scheduler, self.trials, self.numbers, self.epochs = scheduler, trials, numbers, epochs
        self.storage = Path(scheduler._search.base.storage_path)
        self.trained = []
        self.most = 0
        for trial in trials:
            scheduler.on_trial_add(self, trial)

    def get_trials(self):
        return self.trials

    def run(self, until=None):
        """To the end, or until ``until`` trials were run up to a pause or an end."""
        for count in itertools.count():
            if until is not None and count >= until:
                return
            while (chosen := self.scheduler.choose_trial_to_run(self)) is not None:
                assert chosen.status == "PAUSED"
                chosen.status = "RUNNING"
            running = [t for t in self.trials if t.status == "RUNNING"]
            self.most = max(self.most, len(running))
            if not running:
                assert all(trial.is_finished() for trial in self.trials), "they wait for ever"
                return
            self.train(running[-1])

    def train(self, trial):
        epoch = position(trial)
        while True:
            epoch += 1
            self.trained.append((trial.trial_id, epoch, trial.config["params"]["objective.alpha"]))
            clean, robust = self.numbers(trial, epoch)
            result = {
                "epoch": epoch, "num_epochs": self.epochs, "clean_accuracy": clean,
                "robust_accuracy": robust, "time_total_s": 10.0 * epoch + trial.index,
            }  # fmt: skip
            if epoch == self.epochs:  # a report that is done goes to nobody but the callbacks
                trial.status = "TERMINATED"
                return
            if self.scheduler.on_trial_result(self, trial, result) == PAUSE:
                path = self.storage / trial.trial_id / f"checkpoint_{epoch:06d}"
                path.mkdir(parents=True, exist_ok=True)
                saved = SimpleNamespace(checkpoint=SimpleNamespace(path=str(path)), metrics=result)
                trial.latest_checkpoint_result = saved
                trial.run_metadata.checkpoint_manager._checkpoint_results.append(saved)
                trial.status = "PAUSED"
                return


@pytest.fixture
def pbt(search, tmp_path):
    """A search of 9 epochs under pbt."""
    base = replace(search.base, storage_path=str(tmp_path), name="hunt")

    def make(num_trials=4, metric="robust_accuracy", **settings):
        return replace(
            search,
            base=base,
            num_trials=num_trials,
            searcher=SearcherConfig(name="random"),
            scheduler=SchedulerConfig(name="pbt", **settings),
            objective=GoalConfig(metric=metric),
        )

    return make


def by_index(trial, epoch):
    """Trials of higher index are more robust."""
    return 0.5, (trial.index + 1) / 10 + epoch / 1000


def tuned(count):
    return [Tuned(index, alpha=10.0 ** -(index + 1)) for index in range(count)]


# --- staying in step -------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 2, 3, 7])
def test_any_number_of_trials_at_a_time_trains_all_in_step(pbt, limit):
    search = replace(pbt(num_trials=7, interval=2), max_concurrent=limit)
    loop = Tune(PopulationTraining(search, limit), tuned(7), by_index, 9)
    loop.run()
    assert loop.most == limit
    assert sorted((i, e) for i, e, _ in loop.trained) == [
        (f"t{i}", e) for i in range(7) for e in range(1, 10)
    ]
    order = [(epoch - 1) // 2 for _, epoch, _ in loop.trained]
    assert order == sorted(order)  # nobody is ahead of an exchange
    assert [x.epoch for x in loop.scheduler.population.exchanges] == [2, 4, 6, 8]


def test_nobody_begins_by_himself_and_nothing_is_exchanged_before_all_are_there(pbt):
    scheduler = PopulationTraining(pbt(num_trials=3), 8)
    first = tuned(3)
    loop = Tune(scheduler, first[:2], by_index, 9)  # the third has not been proposed yet
    assert {trial.status for trial in first[:2]} == {"PAUSED"}
    with pytest.raises(AssertionError, match="for ever"):
        loop.run()
    assert scheduler.population.exchanges == []
    loop.trials.append(first[2])
    scheduler.on_trial_add(loop, first[2])
    loop.run()
    assert len(scheduler.population.exchanges) == 8


def test_one_process_hands_on_to_the_next_trial_where_resources_alone_limit(pbt):
    """Twice as many are asked for: Tune starts the other half in the processes of the first."""
    assert PopulationTraining(pbt(), 2)._limit == 4
    assert PopulationTraining(replace(pbt(), max_concurrent=2), 2)._limit == 2


def test_trials_that_end_leave_the_others_their_exchanges(pbt):
    """One diverges, one fails for good: an end goes past the scheduler."""

    class Losing(Tune):
        def train(self, trial):
            ends = {(1, 0): "TERMINATED", (3, 2): "ERROR"}
            end = ends.get((trial.index, position(trial)))
            if end:
                trial.status = end
            else:
                super().train(trial)

    loop = Losing(PopulationTraining(pbt(num_trials=4, interval=2), 2), tuned(4), by_index, 9)
    loop.run()
    members = [set(x.places) for x in loop.scheduler.population.exchanges]
    assert members == [{1, 3, 4}, *[{1, 3}] * 3]


def test_a_diverged_report_at_an_exchange_does_not_wait(pbt):
    scheduler = PopulationTraining(pbt(interval=3), 2)
    diverged = report(3, diverged=1.0)
    assert scheduler.on_trial_result(None, Tuned(0), diverged) == GO
    assert scheduler.on_trial_result(None, Tuned(0), report(3)) == PAUSE
    assert scheduler.on_trial_result(None, Tuned(0), report(2)) == GO


# --- who takes over what ---------------------------------------------------------------------


def brute_takeovers(points, quantile, metric):
    """By counting, for each trial, how many are better."""

    def better(a, b):
        """Whether trial a comes before trial b, and whether it is truly better."""
        if metric != "tradeoff":
            values = [p[metric == "robust_accuracy"] for p in points]
            return (-values[a], a) < (-values[b], b), values[a] > values[b]
        left, ranks = set(range(len(points))), {}
        for rank in itertools.count():
            if not left:
                break
            front = {
                i
                for i in left
                if not any(
                    points[j] != points[i] and all(map(float.__ge__, points[j], points[i]))
                    for j in left
                )
            }
            ranks |= dict.fromkeys(front, rank)
            left -= front
        return None, ranks[a] < ranks[b]

    size = len(points)
    count = min(-int(-quantile * size // 1), size // 2)
    if metric == "tradeoff":
        return count, {(a, b) for a in range(size) for b in range(size) if better(a, b)[1]}
    place = [sum(better(a, b)[0] for a in range(size) if a != b) for b in range(size)]
    return {
        loser: {w for w in range(size) if place[w] < count and better(w, loser)[1]}
        for loser in range(size)
        if place[loser] >= size - count
        and any(place[w] < count and better(w, loser)[1] for w in range(size))
    }


@pytest.mark.parametrize("metric", ["robust_accuracy", "clean_accuracy"])
@pytest.mark.parametrize("quantile", [0.1, 0.25, 0.5])
def test_who_takes_over_against_brute_force(pbt, metric, quantile):
    search, dice, sizes = pbt(metric=metric, quantile=quantile), random.Random(0), set()
    for _ in range(100):
        points = [
            (dice.randint(0, 9) / 10, dice.randint(0, 9) / 10) for _ in range(dice.randint(1, 9))
        ]
        found = {loser: set(winners) for loser, winners in takeovers(search, points)}
        assert found == brute_takeovers(points, quantile, metric)
        sizes.add(len(found))
    assert len(sizes) > 1


def test_a_tradeoff_takes_over_from_a_better_front_only(pbt):
    search, dice, taken = pbt(metric="tradeoff", quantile=0.5), random.Random(0), 0
    for _ in range(100):
        points = [
            (dice.randint(0, 9) / 10, dice.randint(0, 9) / 10) for _ in range(dice.randint(1, 9))
        ]
        count, above = brute_takeovers(points, 0.5, "tradeoff")
        found = takeovers(search, points)
        assert len(found) <= count
        pairs = {(winner, loser) for loser, winners in found for winner in winners}
        assert pairs <= above
        taken += len(pairs)
    assert taken > 100
    assert takeovers(search, [(0.1, 0.9), (0.9, 0.1), (0.5, 0.5)]) == []


def test_who_misses_a_constraint_gives_nothing_away(pbt):
    search = pbt(metric="robust_accuracy", quantile=0.5)
    points = [(0.9, 0.9), (0.9, 0.5), (0.9, 0.4), (0.9, 0.3)]
    assert takeovers(search, points) == [(2, [0, 1]), (3, [0, 1])]
    assert takeovers(search, points, [True, False, False, False]) == [(3, [1, 2]), (0, [1, 2])]
    assert takeovers(search, points, [True] * 4) == takeovers(search, points)


def test_what_a_trial_takes_over(pbt):
    """The donor's checkpoint of this very epoch, settings near the donor's, its own costs."""
    search = pbt(num_trials=4, interval=4, resample=0.0)
    trials = tuned(4)
    loop = Tune(PopulationTraining(search, 1), trials, by_index, 9)
    loop.run()
    first = loop.scheduler.population.exchanges[0]
    assert first.epoch == 4
    assert {i: place.donor for i, place in first.places.items()} == {
        1: 4, 2: None, 3: None, 4: None,
    }  # fmt: skip
    place = first.places[1]
    assert place.checkpoint == str(loop.storage / "t3" / "checkpoint_000004")
    assert place.trained_with["objective.alpha"] == 0.1
    assert place.params["objective.alpha"] in (0.8 * 1e-4, 1e-4) or place.params[
        "objective.alpha"
    ] == pytest.approx(1.2e-4)
    assert place.report["time_total_s"] == 40.0  # of t0, not of t3
    trained_on = {alpha for i, epoch, alpha in loop.trained if i == "t0" and epoch in (5, 6, 7, 8)}
    assert trained_on == {place.params["objective.alpha"]}


def test_checkpoints_stay_as_long_as_anyone_goes_on_from_them(pbt):
    class Looking(Tune):
        def train(self, trial):
            if trial.latest_checkpoint_result is not None:
                assert Path(trial.latest_checkpoint_result.checkpoint.path).is_dir()
            super().train(trial)
            there = sorted(self.storage.glob("t*/checkpoint_*"))
            assert len(there) <= 2 * len(self.trials)

    loop = Looking(PopulationTraining(pbt(quantile=0.5), 1), tuned(4), by_index, 9)
    loop.run()
    assert len(list(loop.storage.glob("t*/checkpoint_*"))) == 4  # of the last exchange, epoch 8


def test_the_same_seed_makes_the_same_exchanges_whatever_the_order(pbt, tmp_path):
    found = []
    for run, (limit, seed) in enumerate(((1, 0), (4, 0), (1, 5))):
        search = pbt(num_trials=6, interval=1, quantile=0.5)
        base = replace(search.base, name=f"run{run}")
        search = replace(search, base=base, seed=seed)
        loop = Tune(PopulationTraining(search, limit), tuned(6), by_index, 9)
        loop.run()
        found.append(
            [
                {i: (p.donor, p.params["objective.alpha"]) for i, p in x.places.items()}
                for x in loop.scheduler.population.exchanges
            ]
        )
    assert found[0] == found[1]
    assert found[0] != found[2]


def test_combinations_of_a_grid_are_populations_of_their_own(tmp_path):
    file = tmp_path / "grid.yaml"
    grid = "parameters:\n  seed: {type: grid, values: [0, 1]}"
    pbt = "scheduler: {name: pbt, interval: 8}\nsearcher: {name: random}"
    lines = SEARCH.replace("parameters:", grid).splitlines()
    lines[lines.index("scheduler: {name: asha, grace_period: 1, reduction_factor: 3}")] = pbt
    file.write_text("\n".join(lines))
    search = load_search(str(file), [f"storage_path={tmp_path}", "name=hunt", "num_trials=2"])
    trials = tuned(4)
    for trial in trials:
        trial.config["params"]["seed"] = trial.index % 2
    loop = Tune(PopulationTraining(search, 4), trials, by_index, 9)
    loop.run()
    (exchange,) = loop.scheduler.population.exchanges
    assert {i: place.donor for i, place in exchange.places.items() if place.donor} == {
        1: 3,
        2: 4,
    }
    assert exchange.places[2].params["seed"] == 1


def test_a_population_does_not_grow(tmp_path):
    """Trials that come after its exchanges would have no part in any."""
    file = tmp_path / "grows.yaml"
    pbt = "scheduler: {name: pbt, interval: 3}\nsearcher: {name: random}"
    file.write_text(
        SEARCH.replace("scheduler: {name: asha, grace_period: 1, reduction_factor: 3}", pbt)
    )
    given = [f"storage_path={tmp_path}", "name=hunt"]
    first, larger = (load_search(str(file), [*given, f"num_trials={n}"]) for n in (4, 8))
    fixed = {**definition(first), "base": to_dict(first.base)}
    check_identity(f"{tmp_path}/hunt", fixed, may_change=set())
    with pytest.raises(MorelError, match=r"num_trials = 8 \(there: 4\): give this one a name"):
        tune(larger)


# --- after a restart -------------------------------------------------------------------------


@pytest.mark.parametrize("turns", range(1, 12))
def test_a_search_whose_driver_died_goes_on_as_if_nothing_had_happened(pbt, tmp_path, turns):
    """Tune's state is as old as the search: the exchanges so far are made again from their file."""
    search = pbt(num_trials=4, interval=3, quantile=0.5)
    whole = replace(search, base=replace(search.base, name="whole"))
    uninterrupted = Tune(PopulationTraining(whole, 2), tuned(4), by_index, 9)
    uninterrupted.run()
    Tune(PopulationTraining(search, 2), tuned(4), by_index, 9).run(until=turns)
    again = Tune(PopulationTraining(search, 2), tuned(4), by_index, 9)
    again.run()
    paths = [
        [x.places for x in loop.scheduler.population.exchanges] for loop in (uninterrupted, again)
    ]
    assert paths[0] == paths[1]
    repeated = {entry for entry in again.trained if entry not in uninterrupted.trained}
    assert not repeated


def test_a_restored_trial_that_is_further_than_its_exchange_keeps_its_checkpoint(pbt):
    search = pbt(num_trials=2, interval=2)
    trials = tuned(2)
    loop = Tune(PopulationTraining(search, 1), trials, by_index, 9)
    loop.run(until=3)  # both at epoch 2, exchanged; one of them at 4
    ahead = next(trial for trial in trials if position(trial) == 4)
    kept = ahead.latest_checkpoint_result
    for trial in trials:
        trial.status = "PENDING"
    restored = PopulationTraining(search, 1)
    Tune(restored, trials, by_index, 9)
    assert ahead.latest_checkpoint_result is kept
    assert {trial.status for trial in trials} == {"PAUSED"}


def test_a_trial_that_failed_tries_again_at_once(pbt):
    scheduler = PopulationTraining(pbt(), 2)
    trial = Tuned(0)
    scheduler.on_trial_add(None, trial)
    trial.status = "PENDING"  # Tune's own doing, after a failure
    scheduler.on_trial_add(None, trial)
    assert trial.status == "PENDING"


# --- what is told of it ----------------------------------------------------------------------


def place(before, after, donor=None):
    return Place(
        trained_with={"a": before}, params={"a": after}, donor=donor, checkpoint="", report={}
    )


TOLD = Population(
    [
        Exchange(epoch=2, places={1: place(1, 1), 2: place(5, 1.2, donor=1)}),
        Exchange(epoch=4, places={1: place(1, 0.9, donor=2), 2: place(1.2, 1.2)}),
    ]
)


def test_lineage():
    assert TOLD.lineage(1) == "epoch 4 from trial 002"
    assert TOLD.lineage(2) == "epoch 2 from trial 001"
    assert TOLD.lineage(3) == ""


def test_the_schedule_follows_the_network_not_the_trial():
    """Trial 1 ended with trial 2's network, which was its own until epoch 2."""

    def stages(number, params):
        found = TOLD.schedule(number, params)
        return [(s.first_epoch, s.last_epoch, s.trial, s.params["a"]) for s in found]

    assert stages(1, {}) == [(1, 2, 1, 1), (3, 4, 2, 1.2), (5, None, 1, 0.9)]
    assert stages(2, {}) == [(1, 2, 1, 1), (3, 4, 2, 1.2), (5, None, 2, 1.2)]
    assert stages(3, {"a": 7}) == [(1, None, 3, 7)]


def test_a_population_reads_back(tmp_path):
    TOLD.write(str(tmp_path))
    assert Population.read(str(tmp_path)) == TOLD
    assert Population.read(str(tmp_path / "nothing")) == Population()


def test_what_mlflow_hears_of_an_exploited_trial(pbt, recorder, tracker):
    search = pbt(num_trials=2, interval=4, resample=0.0)
    book = TrialBook(search, recorder, None)
    trials = tuned(2)
    for trial in trials:
        trial.last_result, trial.checkpoint = {}, None
        trial.config["overrides"] = search.space.overrides(trial.config["params"])
        book.start(trial)
    loop = Tune(PopulationTraining(search, 2), trials, by_index, 9)
    loop.run(until=2)
    book.result(trials[0], report(4, robust=0.1, since=1))
    loop.run()
    book.start(trials[0])
    book.result(trials[0], report(9, robust=0.6, since=5))
    book.complete(trials[0])
    assert recorder.flush(10) == 0
    heard = [event.payload for event in tracker.applied if event.run_id == "hunt/t0"]
    start, *epochs, final = heard
    alphas = [payload["metrics"]["pbt.objective.alpha"] for payload in epochs]
    new = trials[0].config["params"]["objective.alpha"]
    assert alphas == [0.1] * 4 + [new] * 4 + [book.trials[0].params["objective.alpha"]]
    assert final["tags"]["morel.pbt.lineage"].startswith("epoch 4 from trial 002")
    assert final["tags"]["morel.key"] != start["tags"]["morel.key"]  # no twin of a constant run
    stages = json.loads(final["texts"]["pbt.json"])
    assert (stages[0]["trial"], stages[0]["params"]["objective.alpha"]) == (2, 0.01)
    assert stages[-1]["overrides"]["objective.alpha"] == new
    assert book.trials[0].label == search.space.label(trials[0].config["params"])
