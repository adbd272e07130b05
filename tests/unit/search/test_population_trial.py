"""The stretches of a trial of several workers between two exchanges."""

import json
from pathlib import Path

from ray import tune

from orchestrator.search.population_trial import POINTER, Stretch, next_stretch
from orchestrator.training.reports import up_to


def pointing(folder: Path, epoch: int) -> tune.Checkpoint:
    (folder / POINTER).write_text(json.dumps({"epoch": epoch, "checkpoint": "s3://bucket/c"}))
    return tune.Checkpoint.from_directory(folder)


def test_from_exchange_to_exchange_and_to_the_end(tmp_path):
    assert next_stretch(None, [2, 4]) == Stretch(last=2)
    assert next_stretch(pointing(tmp_path, 2), [2, 4]) == Stretch(
        after=2, checkpoint="s3://bucket/c", last=4
    )
    assert next_stretch(pointing(tmp_path, 4), [2, 4]).last is None


def test_reports_up_to_an_epoch_leave_the_rest_untrained():
    trained = []

    def reports():
        for epoch in (2, 4, 6):
            trained.append(epoch)
            yield {"epoch": epoch}

    assert [r["epoch"] for r in up_to(4, reports())] == [2, 4]
    assert trained == [2, 4]
    assert [r["epoch"] for r in up_to(None, reports())] == [2, 4, 6]
