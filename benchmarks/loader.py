"""What a batch costs beside the step that it is made for, in the recipes.

    python -m benchmarks.loader --threads 1 --out benchmarks/results/loader_cpu.json

A batch is a whole epoch's loading, draws included, over its steps. Steps are the trainer's own, of
the recipe's first epoch. CIFAR-10 is looked for where ``MOREL_DATA_ROOT`` says.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch

from benchmarks.measure import interleaved, parsed, record, settings, spread, write
from morel_core import Trainer
from orchestrator.config import compose

CPU = torch.device("cpu")


def measure(recipe: str, rounds: int) -> dict[str, Any]:
    """One recipe's row of the result."""
    config = compose(recipe)
    trainer = Trainer(config)
    trainer.epoch = 1
    batch = next(trainer.batches.epoch(1))

    def load() -> None:
        for _ in trainer.batches.epoch(1):
            pass

    contenders = {"loader": load, "step": lambda: trainer.step(batch)}
    seconds = interleaved(contenders, CPU, rounds=rounds, steps=1, warmup=1)
    seconds["loader"] = [epoch / len(trainer.batches) for epoch in seconds["loader"]]
    shares = [load / step for load, step in zip(seconds["loader"], seconds["step"], strict=True)]
    return {
        "batch_size": config.training.batch_size,
        "augmentation": config.data.augmentation,
        "n": rounds,
        "seconds": {name: spread(values) for name, values in seconds.items()},
        "share": spread(shares),
    }


def main() -> None:
    """Measure every recipe, print as it goes, write after each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--recipes", nargs="+", default=["digits", "cifar10_resnet18"])
    parser.add_argument("--rounds", type=int, default=3)
    args = parsed(parser)
    result: dict[str, Any] = {"benchmark": "loader", "recipes": {}}
    for recipe in args.recipes:
        result["recipes"][recipe] = measure(recipe, args.rounds)
        print(f"{recipe}: {result['recipes'][recipe]['share']['median']:.3%} of a step", flush=True)
        result |= record(CPU, settings(args))
        if args.out is not None:
            write(args.out, result)


if __name__ == "__main__":
    main()
