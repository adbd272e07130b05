"""A run that was killed and resumed in a new process is bitwise the run that was not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import parity_resume
import pytest
import torch

from morel_core import Trainer, checkpoint
from morel_core.trainer import Metrics


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Checkpoints of the killed process, and of the one that went on from them."""
    saved, finished = tmp_path_factory.mktemp("saved"), tmp_path_factory.mktemp("finished")
    command = [sys.executable, parity_resume.__file__]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [*command, "train", str(saved)], env=environment, stdout=subprocess.PIPE, text=True
    ) as first:
        try:
            assert first.stdout is not None
            assert first.stdout.readline() == "saved\n"
            assert first.poll() is None
        finally:
            first.kill()
        assert first.wait() == -signal.SIGKILL
    subprocess.run(
        [*command, "resume", str(saved), str(finished)], env=environment, check=True, timeout=240
    )
    return saved, finished


def without_timings(history: list[Metrics]) -> list[Metrics]:
    return [
        {k: v for k, v in epoch.items() if not k.startswith(("seconds", "images_per_second"))}
        for epoch in history
    ]


@pytest.mark.parametrize(
    "name",
    ["loat, awp, ema", "one step guarded, swa, extra images", "plain at, cutmix, ema"],
)
def test_killed_and_resumed_equals_uninterrupted(folders: tuple[Path, Path], name: str) -> None:
    saved, finished = folders[0] / name, folders[1] / name
    whole = Trainer(parity_resume.experiments(folders[0])[name])
    whole.fit()

    assert len(checkpoint.load_progress(saved)["history"]) == parity_resume.SAVED_AFTER
    resumed = checkpoint.load_progress(finished)
    assert len(resumed["history"]) == parity_resume.NUM_EPOCHS
    assert without_timings(resumed["history"]) == without_timings(whole.history)
    assert resumed["best"] == whole.best
    assert resumed["epoch"] == whole.epoch
    assert whole.average is not None
    for kept, state in (
        ("last", whole.net.state_dict()),
        ("averaged", whole.average.net.state_dict()),
        ("best", whole.best_state),
    ):
        loaded = checkpoint.load_network(finished, kept)
        assert sorted(loaded) == sorted(state)
        for key, value in state.items():
            assert torch.equal(loaded[key], value), (kept, key)
    expected, actual = whole.optimizer.state_dict(), checkpoint.load_optimizer(finished)
    assert actual["param_groups"] == expected["param_groups"]
    assert list(actual["state"]) == list(expected["state"])
    for index, entry in expected["state"].items():
        assert list(actual["state"][index]) == list(entry)
        for key, value in entry.items():
            assert torch.equal(actual["state"][index][key], value), (index, key)

    # What the second half did is more than nothing.
    halfway = checkpoint.load_network(saved, "last")
    assert not torch.equal(halfway["head.weight"], whole.net.state_dict()["head.weight"])
    averaged = checkpoint.load_network(saved, "averaged")
    assert not torch.equal(averaged["head.weight"], whole.average.net.head.weight)
    assert not torch.equal(averaged["head.weight"], halfway["head.weight"])
    assert any("running_mean" in key for key in halfway)
