"""Why a trial is run again, in what, and what its run says of it."""

from dataclasses import replace

import pytest
from fake_tune import FakeTrial, report, traceback

from orchestrator import train
from orchestrator.config import with_overrides
from orchestrator.messages.failures import FAILED
from orchestrator.search.trial import run_of
from orchestrator.search.trials import TrialBook
from orchestrator.search.view import SearchProgress
from orchestrator.settings.building import build
from orchestrator.training import retries
from orchestrator.training.view import epoch_line

CUDA = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB."


@pytest.fixture
def book(search, recorder):
    return TrialBook(search, recorder, None)


@pytest.fixture
def tags(book, recorder, tracker):
    """Those that the run of the only trial ended with."""

    def of():
        assert recorder.flush(10) == 0
        return [e.payload["tags"] for e in tracker.applied if e.kind == "final"][-1]

    return of


def test_out_of_memory_doubles_the_micro_batches_each_time(book, search):
    tune_trial = FakeTrial(failure=traceback(CUDA))
    book.start(tune_trial)
    book.result(tune_trial, report(2, since=1))
    before = tune_trial.config
    for slices in (2, 4):
        book.retry(tune_trial)
        (trial,) = book.trials
        assert tune_trial.config == before | {"changes": {"training.micro_batches": slices}}
        assert trial.retries[-1] == (
            f"out of memory after epoch 2; goes on with training.micro_batches = {slices}"
        )
        assert run_of(search, trial).training.micro_batches == slices
    assert len(trial.retries) == 2
    assert tune_trial.written, "Tune keeps what it is told has changed"


def test_a_batch_that_cannot_be_sliced_goes_on_as_it_was(search, recorder):
    base = with_overrides(search.base, {"training.published_batchnorm": True})
    book = TrialBook(replace(search, base=base), recorder, None)
    tune_trial = FakeTrial(failure=traceback(CUDA))
    book.start(tune_trial)
    book.retry(tune_trial)
    assert "changes" not in tune_trial.config or tune_trial.config["changes"] == {}
    assert (
        book.trials[0]
        .retries[0]
        .startswith(
            "out of memory after epoch 0; goes on as it was (training.micro_batches = 2: 1 with "
        )
    )


def test_another_failure_is_named(book, tags):
    tune_trial = FakeTrial(failure=traceback("OSError: disk"))
    book.start(tune_trial)
    book.result(tune_trial, report(3))
    before = tune_trial.config
    book.retry(tune_trial)
    assert tune_trial.config == before
    tune_trial.failure = None
    book.result(tune_trial, report(9))
    book.complete(tune_trial)
    assert book.trials[0].state == "finished"
    assert tags()["morel.retry"] == "OSError: disk (after epoch 3)"
    assert "morel.differs" not in tags()


def test_a_driver_that_was_restarted_knows_of_retries(search, book, recorder):
    tune_trial = FakeTrial(failure=traceback(CUDA))
    book.start(tune_trial)
    book.retry(tune_trial)
    again = TrialBook(search, recorder, None)
    again.start(tune_trial)
    assert again.trials[0].retries == book.trials[0].retries
    assert again.trials[0].changes == {"training.micro_batches": 2}


def test_a_run_with_batchnorm_in_slices_is_said_to_differ(book, tags):
    tune_trial = FakeTrial(failure=traceback(CUDA))
    book.start(tune_trial)
    book.retry(tune_trial)
    book.result(tune_trial, report(9, batchnorm_slices=2))
    book.complete(tune_trial)
    assert tags()["morel.differs"].startswith("training.micro_batches = 2, not 1: BatchNorm's")


def test_a_run_without_batchnorm_is_the_same_run(book, tags):
    tune_trial = FakeTrial(failure=traceback(CUDA))
    book.start(tune_trial)
    book.retry(tune_trial)
    book.result(tune_trial, report(9, batchnorm_slices=0))
    book.complete(tune_trial)
    assert "morel.differs" not in tags()
    assert "morel.retry" in tags()


def test_a_trial_that_failed_for_good_is_failed_and_keeps_its_numbers(book, tags):
    tune_trial = FakeTrial()
    book.start(tune_trial)
    book.result(tune_trial, report(3, robust=0.7))
    last = {"epoch": 0, "epochs": [], FAILED: "MorelError: it left its ball", "time_total_s": 9.0}
    book.result(tune_trial, last)
    book.complete(tune_trial)
    (trial,) = book.trials
    assert (trial.state, trial.reason) == ("failed", "MorelError: it left its ball")
    assert (trial.epoch, trial.last["best_robust_accuracy"]) == (3, 0.7)
    assert tags()["morel.state"] == "failed"


def test_the_line_of_a_trial_says_it(book, capsys):
    from rich.console import Console

    book.view = SearchProgress(Console(width=200), "pgd20", 5)
    tune_trial = FakeTrial(failure=traceback("OSError: disk"))
    book.start(tune_trial)
    book.retry(tune_trial)
    assert ": again: OSError: disk (after epoch 0)\n" in capsys.readouterr().out


class Workers:
    """Stands in for `train._run_workers`: some runs of it are out of memory."""

    def __init__(self, failing):
        self.failing = failing
        self.slices = []

    def __call__(self, config, *_):
        self.slices.append(config.training.micro_batches)
        if len(self.slices) <= self.failing:
            raise train.OutOfMemory("run 'tiny' failed: OutOfMemoryError", epoch=3)
        return train.Trained(checkpoint="there", last={"epoch": 5}, not_measured="")


@pytest.fixture
def run(tiny_config, monkeypatch):
    def run(failing, **changes):
        workers, shown = Workers(failing), []
        monkeypatch.setattr(train, "_run_workers", workers)
        config = with_overrides(tiny_config, changes)
        trained = train._run_to_the_end(config, None, None, "tiny", shown.append)
        return workers.slices, [epoch_line(metrics) for metrics in shown], trained

    return run


def test_a_training_run_goes_on_in_micro_batches_once(run):
    slices, shown, (config, trained) = run(1)
    said = "out of memory after epoch 3; goes on with training.micro_batches = 2"
    assert (slices, shown) == ([1, 2], [said])
    assert (trained.retries, config.training.micro_batches) == ((said,), 2)
    assert run(0)[2][1].retries == ()
    with pytest.raises(train.OutOfMemory):
        run(2)


def test_a_training_run_that_cannot_be_sliced_says_why(run):
    with pytest.raises(train.MorelError, match=r"OutOfMemoryError; .* published_batchnorm"):
        run(1, **{"training.published_batchnorm": True})


def test_tags_of_a_run_that_was_configured_in_slices(tiny_config):
    own = with_overrides(tiny_config, {"training.micro_batches": 2})
    assert list(retries.retry_tags(["x"], own, {"batchnorm_slices": 2})) == ["morel.retry"]
    assert "morel.differs" in retries.retry_tags(["x"], own, {"batchnorm_slices": 4})
    assert build(type(own), {}).training.micro_batches == 1
