"""A trial of several workers, without Ray: what it tells Tune, and how its workers end."""

import queue
import threading
from contextlib import nullcontext

import pytest

from morel_core import ConfigError
from orchestrator.config import RunConfig, to_dict
from orchestrator.search import multi_worker_trial
from orchestrator.search.multi_worker_trial import MultiWorkerTrial


class Controller:
    """Stands in for Ray's handle; ``abort.remote()`` lets `Workers.fit` fail."""

    def __init__(self):
        self.aborted = threading.Event()
        self.abort = self

    def remote(self):
        self.aborted.set()


class Workers:
    """Stands in for Ray Train: reports three epochs, then ends, waits to be aborted, or fails."""

    def __init__(self, reports, error=None, waits=False, epochs=4):
        self.reports, self.error, self.waits, self.epochs = reports, error, waits, epochs
        self.controller = Controller()

    def fit(self):
        for epoch in (1, 2, 3):
            report = {"epoch": epoch, "num_epochs": self.epochs}
            self.reports.queue.put((self.reports.number, report, self.controller))
        if self.waits:
            assert self.controller.aborted.wait(10)
            raise RuntimeError("the controller has exited")
        if self.error is not None:
            raise self.error


@pytest.fixture
def begin(monkeypatch):
    """Starts a trial whose workers are `Workers` with what is given; later ones are plain."""

    def begin(**first):
        kinds = iter([first])
        started = []

        def workers(run, trial, how, reports):
            started.append(Workers(reports, **next(kinds, {})))
            return started[-1]

        monkeypatch.setattr(multi_worker_trial, "Queue", lambda **how: queue.Queue())
        monkeypatch.setattr(multi_worker_trial, "address_passed_on", nullcontext)
        monkeypatch.setattr(multi_worker_trial, "_workers", workers)
        trial = MultiWorkerTrial.__new__(MultiWorkerTrial)
        trial._trial_info = None
        given = {"base": to_dict(RunConfig()), "milestones": [], "staged": None}
        trial.setup({"overrides": {}}, **given)
        trial.started = started
        monkeypatch.setattr(trial, "setup", None)  # with its parameters it would begin anew
        return trial

    return begin


def epochs(trial, count=3):
    return [trial.step()["epoch"] for _ in range(count)]


def test_the_report_of_the_last_epoch_ends_the_trial(begin):
    trial = begin(epochs=3)
    reports = [trial.step() for _ in range(3)]
    assert [report["epoch"] for report in reports] == [1, 2, 3]
    assert [report["done"] for report in reports] == [False, False, True]
    assert trial.controller is None  # a handle would keep the process alive


def test_a_run_that_has_nothing_to_tell_any_more_ends_with_what_tune_has_heard(begin):
    trial = begin()
    epochs(trial)
    assert trial.step() == {"done": True, "__duplicate__": True}


def test_an_error_is_raised_for_tune_to_try_again(begin):
    trial = begin(error=RuntimeError("a worker died"))
    epochs(trial)
    with pytest.raises(RuntimeError, match="a worker died"):
        trial.step()


def test_an_error_that_repeats_is_the_last_report(begin):
    trial = begin(error=ConfigError("training.epochs", 0, "must be >= 1"))
    epochs(trial)
    last = trial.step()
    assert last["done"]
    assert last["failed"].startswith("ConfigError: training.epochs = 0")


def test_a_save_ends_the_workers_and_the_next_trial_hears_none_of_their_reports(begin, tmp_path):
    trial = begin(waits=True)
    assert epochs(trial, 1) == [1]
    trial.save_checkpoint(str(tmp_path))
    assert trial.started[0].controller.aborted.is_set()
    assert trial.controller is None
    trial.reset_config({"overrides": {}})
    assert epochs(trial) == [1, 2, 3]
    assert "__duplicate__" in trial.step()
    assert not trial.started[1].controller.aborted.is_set()


def test_the_next_trial_hears_neither_end_nor_error_of_one_that_is_done(begin, tmp_path):
    trial = begin(epochs=3, waits=True)
    assert epochs(trial) == [1, 2, 3]
    trial.save_checkpoint(str(tmp_path))
    first = trial.thread
    trial.reset_config({"overrides": {}})
    assert not trial.started[0].controller.aborted.is_set()
    trial.started[0].controller.aborted.set()  # it fails now, while the second one trains
    first.join()
    assert epochs(trial) == [1, 2, 3]
    assert "__duplicate__" in trial.step()


def test_a_trial_taken_over_before_its_first_report_is_ended_too(begin):
    trial = begin(waits=True)
    trial.reset_config({"overrides": {}})
    assert trial.started[0].controller.aborted.is_set()
    assert epochs(trial, 1) == [1]
