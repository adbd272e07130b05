"""`morel evaluate` on Ray: the numbers of one process, also after a worker or the driver died."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import failing_attacks
import pyautoattack
import pytest
import torch
from failing_attacks import Logged
from ray.cloudpickle import register_pickle_by_value
from torch import nn

from morel_core import PGD, Trainer
from morel_core.attacks import AutoAttack
from morel_core.data import load_data
from orchestrator.config import RunConfig, compose
from orchestrator.evaluate import evaluate_model

DIGITS = compose("digits", ["model.width=4", "attack.num_steps=2", "data.holdout=60"])
ROBUST = PGD(eps=0.1, step_size=0.04, num_steps=5, init="uniform")
AUTOATTACK = AutoAttack(eps=0.1)
IMAGES, CHUNK = 7, 4  # two chunks, the last one short


@pytest.fixture(scope="module")
def net() -> nn.Module:
    """Two layers, trained for a moment on digits: AutoAttack takes a second a chunk."""
    data = load_data(DIGITS.data).train
    x, y = data.fetch(torch.arange(1000)).float() / 255, data.labels[:1000]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        for _ in range(100):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()
    return net.eval()


def config(storage: Path, chunk: int = CHUNK) -> RunConfig:
    evaluation = replace(DIGITS.evaluation, batch_size=chunk)
    return replace(DIGITS, evaluation=evaluation, storage_path=str(storage))


def shards(storage: Path) -> list[Path]:
    """Finished ones, without those of the clean images."""
    found = (storage / "evaluations" / "shards").glob("*.json")
    return sorted(path for path in found if not path.name.startswith(("clean", ".")))


def test_three_workers_measure_what_one_process_and_the_package_do(
    local_ray: Any, net: nn.Module, tmp_path: Path
) -> None:
    attacks = {"pgd": ROBUST, "autoattack": AUTOATTACK}
    alone, shared = (
        evaluate_model(
            net,
            config(tmp_path / str(workers)),
            attacks,
            num_images=IMAGES,
            workers=workers,
        )
        for workers in (1, 3)
    )
    for name in ("clean", *attacks):
        assert torch.equal(alone.result[name].correct, shared.result[name].correct), name
    stages = alone.result["autoattack"].stages
    assert {k: v.tolist() for k, v in stages.items()} == {
        k: v.tolist() for k, v in shared.result["autoattack"].stages.items()
    }
    assert alone.findings == shared.findings

    data = load_data(DIGITS.data).test
    x, y = data.fetch(torch.arange(IMAGES)).float() / 255, data.labels[:IMAGES]
    direct: list[torch.Tensor] = []
    for images, labels in zip(x.split(CHUNK), y.split(CHUNK), strict=True):
        package = pyautoattack.AutoAttack(net, eps=AUTOATTACK.eps, norm="Linf", seed=0)
        x_adv, _ = package.run_standard_evaluation(images, labels, batch_size=CHUNK)
        with torch.no_grad():
            direct.append(net(x_adv).argmax(1) == labels)
    assert torch.equal(torch.cat(direct), shared.result["autoattack"].correct)
    *_, before_square, _ = stages.values()
    assert before_square.any(), "no image was left for Square: take a smaller ε"
    assert not before_square.all(), "no attack broke anything: take a larger ε"


def test_a_killed_worker_costs_one_shard(local_ray: Any, net: nn.Module, tmp_path: Path) -> None:
    register_pickle_by_value(failing_attacks)  # workers cannot import what lies among the tests
    log = tmp_path / "calls"
    attack = Logged(**vars(ROBUST), log=str(log), fatal=True)
    fatal = evaluate_model(
        net,
        config(tmp_path / "killed", 2),
        {"pgd": attack},
        num_images=10,
        workers=3,
        checks=False,
    )
    calls = [line.split() for line in log.read_text().splitlines()]
    assert Path(f"{log}.killed").exists()
    assert sorted(Counter(pixels for _, pixels in calls).values()) == [1, 1, 1, 1, 2]
    expected = evaluate_model(
        net, config(tmp_path / "alone", 2), {"pgd": ROBUST}, num_images=10, checks=False
    )
    assert torch.equal(fatal.result["pgd"].correct, expected.result["pgd"].correct)


def test_a_killed_driver_is_resumed_from_its_shards(tmp_path: Path) -> None:
    trainer = Trainer(replace(DIGITS, training=replace(DIGITS.training, epochs=1)))
    trainer.fit()
    trainer.save(tmp_path / "checkpoint")
    command = [
        *(sys.executable, "-m", "orchestrator", "evaluate", str(tmp_path / "checkpoint")),
        *("--attacks", "pgd200", "--num-images", "100", "--workers", "2", "--no-checks", "--json"),
        *(f"storage_path={tmp_path}", "evaluation.batch_size=4"),
    ]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    driver = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    deadline = time.time() + 200
    while len(shards(tmp_path)) < 3:
        assert driver.poll() is None, "the evaluation ended before it could be killed"
        assert time.time() < deadline
        time.sleep(0.02)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    before = {path: path.stat().st_mtime_ns for path in shards(tmp_path)}
    assert 3 <= len(before) < 25

    command[command.index("2")] = "1"  # in one process, and goes on all the same
    second = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300, check=True
    )
    assert len(shards(tmp_path)) == 25
    assert {path: path.stat().st_mtime_ns for path in before} == before
    outcomes = json.loads(second.stdout)["outcomes"]

    trainer.load_best()
    run = config(tmp_path / "uninterrupted", 4)
    expected = evaluate_model(trainer.net, run, ["pgd200"], num_images=100, checks=False).result
    for name, outcome in expected.items():
        bits = "".join("01"[right] for right in outcome.correct.tolist())
        assert outcomes[name]["correct"] == bits, name
