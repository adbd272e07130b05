"""Does the fast step train as robust a network as the published one? Both, from the same seeds.

    python -m benchmarks.accuracy --device cuda --data images.npz --model resnet18 --epochs 6 \\
        --out benchmarks/results/accuracy_gpu.json
    python -m benchmarks.accuracy --data digits --seeds 0 1 2 3 4 5 6 7 8 9 --epochs 30 \\
        --batch-size 64 --holdout 500 --threads 1 \\
        --out benchmarks/results/accuracy_cpu_digits.json

``--data``: an npz with ``image`` (N, 32, 32, 3) uint8 and ``label`` (N,), whose last ``--holdout``
images are held out; or ``digits``, scikit-learn's, with the network and the attack of its recipe.
Both contenders see the same batches and initial weights:

- ``fast``: `morel_core.step.train_step` in bf16, channels-last; on CUDA compiled, its attack
  captured.
- ``published``: `benchmarks.published`, contiguous, not compiled, in torch's default of TF32
  convolutions on CUDA.

The question is answered by the margin that is stated beforehand, ``MARGIN``: the mean over the
seeds of the difference in held-out robust accuracy lies within it.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import Any

import torch

from benchmarks import published
from benchmarks.measure import parsed, record, settings, write
from benchmarks.step import MODELS, SHAPE
from morel_core import PGD, MorelNet, MorelObjective, ObjectiveConfig, OptimizerConfig, evaluate
from morel_core.capture import CapturedAttack
from morel_core.config import ModelConfig
from morel_core.data import Augmentation, Batches, DataConfig, TensorSource, load_data
from morel_core.data.extra import load_extra
from morel_core.evaluation.measure import as_images
from morel_core.models import DigitsCnnConfig, build_net
from morel_core.optim import learning_rate, make_optimizer, set_learning_rate
from morel_core.precision import EncoderPasses
from morel_core.seeding import sliced_randn
from morel_core.statistics import FEWEST_PAIRS, paired_t
from morel_core.step import train_step

MARGIN = 0.02
CONTENDERS = ("fast", "published")


@dataclass(frozen=True)
class Protocol:
    """What both contenders are trained and measured by."""

    shape: tuple[int, int, int]
    model: ModelConfig
    eps: float
    step_size: float
    num_steps: int
    optimizer: OptimizerConfig
    augmentation: Augmentation
    held_out: PGD

    def attack(self, objective: ObjectiveConfig) -> PGD:
        """That of training."""
        return PGD(
            eps=self.eps,
            step_size=self.step_size,
            num_steps=self.num_steps,
            loss=objective.attack_loss,
        )


IMAGES = Protocol(
    shape=SHAPE,
    model=MODELS["resnet18"],
    eps=0.031,
    step_size=0.007,
    num_steps=10,
    optimizer=OptimizerConfig(lr=0.1, weight_decay=5e-4, schedule="one_cycle"),
    augmentation="crop_flip",
    held_out=PGD(eps=8 / 255, step_size=2 / 255, num_steps=20, init="uniform"),
)
DIGITS = Protocol(  # that of recipes/digits.yaml
    shape=(1, 8, 8),
    model=DigitsCnnConfig(width=16),
    eps=0.1,
    step_size=0.025,
    num_steps=5,
    optimizer=OptimizerConfig(lr=0.1, schedule="cosine"),
    augmentation="none",
    held_out=PGD(eps=0.1, step_size=0.0125, num_steps=20, init="uniform"),
)


def protocol_of(args: argparse.Namespace) -> Protocol:
    """By the data, with the network that was asked for."""
    return DIGITS if args.data == "digits" else replace(IMAGES, model=MODELS[args.model])


def train(
    contender: str, net: MorelNet, batches: Batches, args: argparse.Namespace, device: torch.device
) -> None:
    """Train ``net`` in place."""
    protocol = protocol_of(args)
    config = ObjectiveConfig(accuracy=args.objective)
    pgd = protocol.attack(config)
    objective, attack = MorelObjective(config), CapturedAttack(pgd)
    fast = {"precision": "bf16", "channels_last": True, "compile": device.type == "cuda"}
    passes = EncoderPasses(net, **fast if contender == "fast" else {"precision": "tf32"})
    optimizer = make_optimizer(protocol.optimizer, net)
    for epoch in range(1, args.epochs + 1):
        for step, batch in enumerate(batches.epoch(epoch)):
            done = epoch - 1 + step / len(batches)
            set_learning_rate(optimizer, learning_rate(protocol.optimizer, done, args.epochs))
            with passes.active():
                if contender == "published":
                    published.step(net, optimizer, batch.x, batch.y, config, pgd)
                    continue
                noise = sliced_randn(
                    batch.seed, batch.sizes, 0, protocol.shape, batch.x.dtype, device
                )
                train_step(
                    net,
                    objective,
                    attack,
                    optimizer,
                    batch.x,
                    batch.y,
                    noise=noise,
                    epoch=epoch,
                    num_epochs=args.epochs,
                )


def parts(args: argparse.Namespace, device: torch.device) -> tuple[TensorSource, TensorSource]:
    """Images to train on, and those held out."""
    if args.data == "digits":
        data = load_data(DataConfig(holdout=args.holdout))
        assert isinstance(data.train, TensorSource)
        assert isinstance(data.holdout, TensorSource)
        return data.train.to(device), data.holdout.to(device)
    images = load_extra(args.data, SHAPE, 10).to(device)
    rows = torch.arange(len(images))
    return images.subset(rows[: -args.holdout]), images.subset(rows[-args.holdout :])


def run(contender: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """One training run, measured on the held-out images."""
    device, protocol = torch.device(args.device), protocol_of(args)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    train_set, holdout = parts(args, device)
    torch.manual_seed(seed)  # the published step draws its noise from the global generator
    net = build_net(protocol.model, num_classes=10, shape=protocol.shape, seed=seed)
    net = net.to(device).train()
    batches = Batches(train_set, args.batch_size, seed, protocol.augmentation, 4)
    train(contender, net, batches, args, device)
    result = evaluate(net, as_images(holdout.images), holdout.labels, {"robust": protocol.held_out})
    return {
        "contender": contender,
        "seed": seed,
        "data": train_set.digest().hex()[:16],
        "num_train": len(train_set),
        "num_holdout": len(holdout),
        "clean_accuracy": result["clean"].accuracy,
        "robust_accuracy": result["robust"].accuracy,
    }


def verdict(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Fast minus published over the seeds: mean, 95 % interval (paired t), and the margin.

    Empty until there are as many seeds of both as a t-test takes.
    """
    by = {
        name: {r["seed"]: r["robust_accuracy"] for r in runs if r["contender"] == name}
        for name in CONTENDERS
    }
    seeds = sorted(set(by["fast"]) & set(by["published"]))
    if len(seeds) < FEWEST_PAIRS:
        return {}
    pairs = [(by["fast"][seed], by["published"][seed]) for seed in seeds]
    paired = paired_t(*zip(*pairs, strict=True))
    return {
        "seeds": paired.num_seeds,
        "mean": paired.difference,
        "low": paired.low,
        "high": paired.high,
        "margin": MARGIN,
        "within": abs(paired.difference) <= MARGIN,
    }


def main() -> None:
    """Train every seed with both, print as it goes, write after every run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", required=True, help="an npz, or digits")
    parser.add_argument("--holdout", type=int, default=2000)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--model", choices=MODELS, default="resnet18", help="of an npz's images")
    parser.add_argument("--objective", default="trades")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, a process each")
    args = parsed(parser)
    result: dict[str, Any] = {"benchmark": "accuracy", "runs": []}
    runs = [(contender, seed) for seed in args.seeds for contender in CONTENDERS]
    with ProcessPoolExecutor(args.jobs, get_context("spawn")) as pool:
        for done in as_completed([pool.submit(run, *of, args) for of in runs]):
            result["runs"].append(done.result())
            print(result["runs"][-1], flush=True)
            result["difference"] = verdict(result["runs"])
            result |= record(torch.device(args.device), settings(args))
            if args.out is not None:
                write(args.out, result)
    print(result["difference"])


if __name__ == "__main__":
    main()
