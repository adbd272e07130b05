"""PGD against torchattacks' and ART's on the same images, start and network, interleaved.

    pip install --no-deps torchattacks==3.5.1 adversarial-robustness-toolbox==1.20.1
    python -m benchmarks.attacks --threads 1 --out benchmarks/results/attacks_cpu.json

The two libraries are no dependencies of ours (torchattacks pins an old requests) and want scipy,
tqdm and scikit-learn beside torch: an environment of their own is best. All three start at the
image itself and return their last iterate; before the clock starts it is checked that these are the
same images. Ours is timed twice: as an evaluation runs it, which lays the images out channels-last
on a CPU, and with the images as they come, as the two libraries take them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.measure import interleaved, parsed, ratio, record, settings, spread, write
from benchmarks.step import MODELS, SHAPE
from morel_core import PGD
from morel_core.evaluation.measure import evaluation_layout
from morel_core.models import build_net
from morel_core.seeding import generator

EPS, STEP_SIZE = 8 / 255, 2 / 255


def contenders(net: nn.Module, x: Tensor, y: Tensor, steps: int) -> dict[str, Callable[[], Tensor]]:
    """Each makes the adversarial images of one batch."""
    import torchattacks
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    attack = PGD(eps=EPS, step_size=STEP_SIZE, num_steps=steps, init="none")
    theirs = torchattacks.PGD(net, eps=EPS, alpha=STEP_SIZE, steps=steps, random_start=False)
    classifier = PyTorchClassifier(
        model=net,
        loss=nn.CrossEntropyLoss(),
        input_shape=SHAPE,
        nb_classes=10,
        clip_values=(0.0, 1.0),
        device_type="gpu" if x.is_cuda else "cpu",
    )
    art = ProjectedGradientDescentPyTorch(
        classifier,
        norm=np.inf,
        eps=EPS,
        eps_step=STEP_SIZE,
        max_iter=steps,
        batch_size=len(x),
        verbose=False,
    )
    images, labels = x.cpu().numpy(), y.cpu().numpy()
    return {
        "ours": lambda: attack(net, evaluation_layout(net, x), y),
        "ours_as_given": lambda: attack(net, x, y),
        "torchattacks": lambda: theirs(x, y),
        "art": lambda: torch.from_numpy(art.generate(images, labels)).to(x.device),
    }


def check_the_same(calls: dict[str, Callable[[], Tensor]]) -> None:
    """Nearly all pixels alike: in fp32 a gradient near zero may take either sign."""
    expected = calls["ours"]()
    for name, call in calls.items():
        differing = ((call() - expected).abs() > 1e-6).double().mean().item()
        assert differing < 1e-2, f"{name}: {differing:.2%} of the pixels differ"


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--model", choices=MODELS, default="wrn-16-2")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    args = parsed(parser)
    device = torch.device(args.device)
    net = build_net(MODELS[args.model], num_classes=10, shape=SHAPE, seed=args.seed).to(device)
    net.eval()
    draws = generator("cpu", args.seed, "batch")
    x = torch.rand(args.batch_size, *SHAPE, generator=draws).to(device)
    y = torch.randint(10, (args.batch_size,), generator=draws).to(device)
    calls = contenders(net, x, y, args.steps)
    check_the_same(calls)
    seconds = interleaved(calls, device, rounds=args.rounds, steps=1, warmup=1)
    config = settings(args)
    result: dict[str, Any] = {
        "benchmark": "attacks",
        "attack": f"pgd{args.steps}",
        "n": args.rounds,
        "seconds": {name: spread(values) for name, values in seconds.items()},
        "ratio": {name: ratio(seconds, name, "ours") for name in calls if name != "ours"},
        **record(device, config),
    }
    result["versions"] |= library_versions()
    for name, value in result["ratio"].items():
        print(f"{name} / ours {value['median']:.3f} ({value['min']:.3f}..{value['max']:.3f})")
    if args.out is not None:
        write(args.out, result)


def library_versions() -> dict[str, str]:
    """Of the libraries compared with."""
    import art
    import torchattacks

    return {"torchattacks": torchattacks.__version__, "art": art.__version__}


if __name__ == "__main__":
    main()
