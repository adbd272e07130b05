"""Evaluation with PGD-20 against its raw passes, interleaved in one process.

    python -m benchmarks.evaluation --threads 1 --out benchmarks/results/evaluation_cpu.json

The raw passes: 20 × (forward + input gradient), one forward for the clean images and one for the
adversarial ones, in the memory layout in which the evaluation runs its attack. All images count as
right when clean, so that none is left out of the attack. An evaluation takes the network's hash
once, 0.06 s for a ResNet-18: on a GPU that is a tenth of a single batch, and next to nothing of
``--batches``, as many as the recipes hold out.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch

from benchmarks.measure import interleaved, parsed, ratio, record, settings, spread, write
from benchmarks.step import MODELS, SHAPE
from morel_core import PGD, evaluate
from morel_core.attacks import attack_mode
from morel_core.evaluation.measure import evaluation_layout
from morel_core.models import build_net
from morel_core.precision import full_precision
from morel_core.seeding import generator

ATTACK = PGD(eps=8 / 255, step_size=2 / 255, num_steps=20, init="uniform")


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--model", choices=MODELS, default="wrn-16-2")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    args = parsed(parser)
    device = torch.device(args.device)
    net = build_net(MODELS[args.model], num_classes=10, shape=SHAPE, seed=args.seed).to(device)
    draws = generator("cpu", args.seed, "batch")
    x = torch.rand(args.batches * args.batch_size, *SHAPE, generator=draws).to(device)
    batches = x.split(args.batch_size)
    with attack_mode(net), torch.no_grad():
        y = torch.cat([net(batch).argmax(1) for batch in batches])
    laid_out = [evaluation_layout(net, batch) for batch in batches]
    ones = torch.ones(args.batch_size, 10, device=device)

    def raw() -> None:
        with attack_mode(net), full_precision(device):
            for batch, attacked in zip(batches, laid_out, strict=True):
                for _ in range(ATTACK.num_steps):
                    moving = attacked.detach().requires_grad_()
                    torch.autograd.grad(net(moving), moving, ones)
                with torch.no_grad():
                    net(batch)
                    net(attacked)

    def ours() -> None:
        evaluate(net, x, y, {ATTACK.name: ATTACK}, batch_size=args.batch_size)

    seconds = interleaved({"raw": raw, "ours": ours}, device, rounds=args.rounds, steps=1, warmup=1)
    config = settings(args)
    result: dict[str, Any] = {
        "benchmark": "evaluation",
        "attack": ATTACK.name,
        "n": args.rounds,
        "seconds": {name: spread(values) for name, values in seconds.items()},
        "ratio": ratio(seconds, "ours", "raw"),
        **record(device, config),
    }
    value = result["ratio"]
    print(f"ours / raw {value['median']:.3f} ({value['min']:.3f}..{value['max']:.3f})")
    if args.out is not None:
        write(args.out, result)


if __name__ == "__main__":
    main()
