"""Class-adaptive attention, as one masked call and as a call for each class, by number of classes.

    python -m benchmarks.attention --threads 1 --out benchmarks/results/attention_cpu.json

Forward and backward of a batch's rows, with labels drawn evenly; needs torch alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import published
from benchmarks.measure import interleaved, parsed, ratio, record, settings, spread, write
from benchmarks.step import MODELS, SHAPE
from morel_core.models import build_net
from morel_core.seeding import generator

CLASSES = (10, 100, 1000)


def contenders(args: argparse.Namespace, device: torch.device) -> dict[str, Callable[[], object]]:
    """Both ways for each number of classes, on one embedder and the same rows."""
    net = build_net(MODELS["wrn-16-2"], num_classes=10, shape=SHAPE, seed=args.seed).to(device)
    assert net.attention is not None
    draws = generator("cpu", args.seed, "rows")
    rows = torch.randn(args.rows, net.attention.embed_dim, generator=draws).to(device)
    calls: dict[str, Callable[[], object]] = {}
    for classes in CLASSES:
        labels = torch.randint(classes, (args.rows,), generator=draws).to(device)
        for name, attend in (
            ("masked", net.attend),
            ("loop", partial(published.attended, net)),
        ):

            def call(
                attend: Callable[[Tensor, Tensor], Tensor] = attend, labels: Tensor = labels
            ) -> None:
                z = rows.clone().requires_grad_()
                attend(z, labels)[:, 0].sum().backward()

            calls[f"{name}, {classes}"] = call
    return calls


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--steps", type=int, default=10, help="calls in a round")
    parser.add_argument("--seed", type=int, default=0)
    args = parsed(parser)
    device = torch.device(args.device)
    seconds = interleaved(
        contenders(args, device), device, rounds=args.rounds, steps=args.steps, warmup=1
    )
    result: dict[str, Any] = {
        "benchmark": "attention",
        "n": args.rounds,
        "rows": args.rows,
        "seconds": {name: spread(values) for name, values in seconds.items()},
        "to 10 classes": {
            str(classes): ratio(seconds, f"masked, {classes}", f"masked, {CLASSES[0]}")
            for classes in CLASSES[1:]
        },
        "loop / masked": {
            str(classes): ratio(seconds, f"loop, {classes}", f"masked, {classes}")
            for classes in CLASSES
        },
    }
    result |= record(device, settings(args))
    print(result["to 10 classes"], result["loop / masked"])
    if args.out is not None:
        write(args.out, result)


if __name__ == "__main__":
    main()
