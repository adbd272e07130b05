"""The benchmarks need torch alone, their twin is a twin, and README shows what was measured."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import accuracy, measure, published, table
from morel_core import PGD, MorelObjective, ObjectiveConfig, OptimizerConfig
from morel_core.models import WideResNetConfig, build_net
from morel_core.optim import make_optimizer
from morel_core.step import train_step

ROOT = Path(table.__file__).parents[1]


def test_the_readme_shows_the_results_kept():
    readme = table.README.read_text()
    assert readme == table.rewritten(readme)
    assert table.performance().count("\n|") > 3
    assert table.searches().count("\n|") > 3


def test_a_block_is_replaced_and_a_readme_without_one_refused():
    marks = "<!-- search:start -->", "<!-- search:end -->"
    once = table.with_block(f"a\n{marks[0]}\nold\n{marks[1]}\nb", "search", "new")
    assert once == f"a\n{marks[0]}\nnew\n{marks[1]}\nb"
    with pytest.raises(ValueError, match="no block"):
        table.with_block("a", "search", "new")


def test_benchmarks_need_torch_alone():
    script = """
import json, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("omegaconf", "ray", "mlflow", "safetensors", "sklearn",
                                      "optuna", "rich", "timm", "pyautoattack"):
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
import benchmarks.step, benchmarks.evaluation, benchmarks.accuracy, benchmarks.attention
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "morel_core" in json.loads(done.stdout)


@pytest.mark.parametrize("objective_name", ["trades", "mart", "loat", "at"])
def test_the_published_twin_computes_our_step(objective_name):
    net = build_net(
        WideResNetConfig(depth=10, widen_factor=1, embed_dim=8),
        num_classes=4,
        shape=(3, 8, 8),
        seed=0,
    ).double()
    twin = build_net(
        WideResNetConfig(depth=10, widen_factor=1, embed_dim=8),
        num_classes=4,
        shape=(3, 8, 8),
        seed=0,
    ).double()
    config = ObjectiveConfig(accuracy=objective_name, alpha=1.0)
    pgd = PGD(eps=0.06, step_size=0.02, num_steps=2, loss=config.attack_loss)
    settings = OptimizerConfig(lr=0.1, momentum=0.0, weight_decay=0.0)
    draws = torch.Generator().manual_seed(0)
    x = torch.rand(8, 3, 8, 8, generator=draws, dtype=torch.float64)
    y = torch.randint(4, (8,), generator=draws)
    noise = torch.randn(x.shape, generator=draws, dtype=torch.float64)
    objective = MorelObjective(config)
    optimizer = make_optimizer(settings, net)
    terms, _ = train_step(net, objective, pgd, optimizer, x, y, noise=noise, epoch=1, num_epochs=99)
    plain = torch.optim.SGD(twin.parameters(), lr=0.1)
    assert published.step(twin, plain, x, y, config, pgd, noise) == pytest.approx(
        terms.total.item(), rel=1e-8
    )
    theirs = dict(twin.named_parameters())
    for name, parameter in net.named_parameters():
        assert (parameter - theirs[name]).abs().max() < 1e-8, name


def test_seeds_are_compared_once_there_are_enough():
    runs = []
    for seed in range(3):
        for contender, robust in (("fast", 0.41 + 0.01 * seed), ("published", 0.41)):
            assert accuracy.verdict(runs) == {}
            numbers = {"clean_accuracy": 0.8, "robust_accuracy": robust}
            runs.append({"contender": contender, "seed": seed, **numbers})
    verdict = accuracy.verdict(runs)
    assert verdict["seeds"] == 3
    assert verdict["mean"] == pytest.approx(0.01)
    assert verdict["within"]
    told = table.trained(
        {
            "config": {"data": "a.npz", "model": "resnet18", "epochs": 6, "objective": "trades"},
            "runs": [{**run, "num_train": 8000} for run in runs],
            "difference": verdict,
            "versions": {"torch": "2"},
            "hardware": {"device": "a GPU", "threads": 1, "clock": "wall"},
        },
        "a.json",
    )
    assert "8,000 images with TRADES: 42.0% with the fast step, 41.0% with the published" in told
    assert "+1.00 points [" in told
    assert "3 seeds; the mean is within the margin of 2 points" in told


def test_accuracies_of_both_steps_from_the_same_images():
    args = argparse.Namespace(
        device="cpu", threads=None, data="digits", holdout=1300, objective="mart",
        batch_size=64, epochs=1, model="resnet18",
    )  # fmt: skip
    fast, slow = (accuracy.run(contender, 0, args) for contender in accuracy.CONTENDERS)
    assert {run["num_train"] for run in (fast, slow)} == {138}
    assert fast["data"] == slow["data"]
    assert all(0 <= run["robust_accuracy"] <= run["clean_accuracy"] <= 1 for run in (fast, slow))


def test_interleaving_gives_every_contender_every_round():
    calls = []
    seconds = measure.interleaved(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")},
        torch.device("cpu"),
        rounds=2,
        steps=1,
        warmup=0,
    )
    assert calls == ["a", "b", "b", "a"]
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2}
    assert measure.ratio({"a": [2.0, 6.0, 3.0], "b": [1.0, 2.0, 3.0]}, "a", "b") == {
        "median": 2.0, "min": 1.0, "max": 3.0,
    }  # fmt: skip


def test_peak_memory_counts_what_lives_at_once():
    def call():
        for _ in range(3):
            torch.ones(1000, 1000)  # 4 MB, freed before the next

    assert 4e6 <= measure.peak_bytes(call, torch.device("cpu")) < 9e6
