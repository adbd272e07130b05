"""One training step against its floor and against the published step, interleaved in one process.

    python -m benchmarks.step --out benchmarks/results/step_cpu.json
    python -m benchmarks.step --device cuda --model resnet18 wrn-34-10 --batch-size 128 \\
        --precision fp32 bf16 --channels-last --compile --capture --rounds 10 --steps 10 \\
        --out benchmarks/results/step_gpu.json

Run from the repository's folder; needs torch alone. The contenders of a row:

- ``floor``: the raw network passes, with nothing done to their outputs: n × (forward + input
  gradient), one natural forward for TRADES' target, forward and backward of the natural and of the
  adversarial batch, the optimiser.
- ``ours``: `morel_core.step.train_step`, with its noise drawn.
- ``published``: its literal twin in `benchmarks.published`: contiguous, not compiled, without
  cuDNN's benchmark, in fp32 with torch's default of TF32 convolutions on CUDA.
- bf16, channels-last, compiled, cudnn-benchmark or captured rows, where floor and ours run so, have
  ``published_same``, the published step given the same (but for the capture, which its copies from
  the host forbid), and ``ours_plain``, ours as published.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from typing import Any, get_args

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import published
from benchmarks.captured_step import CapturedStep
from benchmarks.measure import (
    interleaved,
    parsed,
    peak_bytes,
    peak_flops,
    ratio,
    record,
    settings,
    spread,
    write,
)
from morel_core import PGD, MorelNet, MorelObjective, ObjectiveConfig, OptimizerConfig
from morel_core.attacks import attack_mode
from morel_core.capture import CapturedAttack
from morel_core.config import ModelConfig, Precision
from morel_core.models import ResNetConfig, WideResNetConfig, build_net
from morel_core.optim import make_optimizer
from morel_core.precision import EncoderPasses
from morel_core.seeding import generator, sliced_randn
from morel_core.step import train_step

MODELS: dict[str, ModelConfig] = {
    "wrn-16-2": WideResNetConfig(depth=16, widen_factor=2),
    "resnet18": ResNetConfig(),
    "wrn-34-10": WideResNetConfig(),
}
OBJECTIVES = ("trades", "mart", "loat", "at")
SETTINGS = OptimizerConfig(lr=1e-4)  # hundreds of steps on random images have to stay finite
SHAPE = (3, 32, 32)
PASSES = ("precision", "channels_last", "compile", "cudnn_benchmark")


def attack_passes(pgd: PGD) -> Callable[..., Tensor]:
    """The passes of an attack and nothing else; the images come back."""

    def passes(net: MorelNet, x: Tensor, y: Tensor, *, noise: Tensor) -> Tensor:
        del y, noise
        ones = torch.ones(len(x), net.head.out_features, device=x.device)
        with attack_mode(net):
            if pgd.loss == "kl":
                with torch.no_grad():
                    net(x)
            for _ in range(pgd.num_steps):
                moving = x.detach().requires_grad_()
                torch.autograd.grad(net(moving), moving, ones)
        return x

    return passes


def descent_passes(net: MorelNet, optimizer: Optimizer, x: Tensor) -> None:
    """Forward and backward of two batches, and the optimiser."""
    ones = torch.ones(len(x), net.head.out_features, device=x.device)
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward([net(x), net(x)], [ones, ones])
    optimizer.step()


class Contenders:
    """The steps of one row, each on a copy of the same network."""

    def __init__(self, row: dict[str, Any], batch_size: int, device: torch.device, seed: int):
        self.batch_size, self.device, self.seed = batch_size, device, seed
        classes = row["classes"]
        self.net = build_net(MODELS[row["model"]], num_classes=classes, shape=SHAPE, seed=seed).to(
            device
        )
        self.config = ObjectiveConfig(accuracy=row["objective"])
        self.objective = MorelObjective(self.config)
        self.pgd = PGD(eps=0.031, step_size=0.007, num_steps=10, loss=self.config.attack_loss)
        draws = generator("cpu", seed, "batch")
        self.x = torch.rand(batch_size, *SHAPE, generator=draws).to(device)
        self.y = torch.randint(classes, (batch_size,), generator=draws).to(device)
        fast = {key: row[key] for key in PASSES}
        capture = row["capture"]
        default = "tf32" if device.type == "cuda" else "fp32"  # torch's, so the published code's
        plain = dict.fromkeys(PASSES, False) | {"precision": default}
        self.steps: dict[str, Callable[[], object]] = {
            "floor": self._floor(fast, capture),
            "ours": self._captured(fast) if row["capture_step"] else self._ours(fast, capture),
            "published": self._published(plain),
        }
        if fast != plain or capture:
            self.steps["published_same"] = self._published(fast)
            self.steps["ours_plain"] = self._ours(plain, capture=False)

    def _copy(self, settings: dict[str, Any]) -> tuple[MorelNet, EncoderPasses]:
        net = copy.deepcopy(self.net)
        return net, EncoderPasses(net, **settings)

    def _floor(self, settings: dict[str, Any], capture: bool) -> Callable[[], object]:
        net, passes = self._copy(settings)
        optimizer = make_optimizer(SETTINGS, net)
        attack = attack_passes(self.pgd)
        attack = CapturedAttack(attack) if capture else attack

        def step() -> None:
            with passes.active():
                attack(net, self.x, self.y, noise=self.x)
                descent_passes(net, optimizer, self.x)

        return step

    def _ours(self, settings: dict[str, Any], capture: bool) -> Callable[[], object]:
        net, passes = self._copy(settings)
        optimizer = make_optimizer(SETTINGS, net)
        attack = CapturedAttack(self.pgd) if capture else self.pgd

        def step() -> Tensor:
            with passes.active():
                return self.train(net, optimizer, self._noise(), attack)

        return step

    def _captured(self, settings: dict[str, Any]) -> Callable[[], object]:
        net, passes = self._copy(settings)
        captured = CapturedStep(net, self.objective, self.pgd, make_optimizer(SETTINGS, net))

        def step() -> Tensor:
            with passes.active():
                return captured(self.x, self.y, self._noise())

        return step

    def _noise(self) -> Tensor:
        return sliced_randn(self.seed, [self.batch_size], 0, SHAPE, self.x.dtype, self.device)

    def train(
        self, net: MorelNet, optimizer: Optimizer, noise: Tensor, attack: Callable[..., Tensor]
    ) -> Tensor:
        terms, _ = train_step(
            net,
            self.objective,
            attack,
            optimizer,
            self.x,
            self.y,
            noise=noise,
            epoch=1,
            num_epochs=100,
        )
        return terms.total

    def _published(self, settings: dict[str, Any]) -> Callable[[], object]:
        net, passes = self._copy(settings)
        optimizer = self._plain_sgd(net)

        def step() -> float:
            with passes.active():
                return published.step(net, optimizer, self.x, self.y, self.config, self.pgd)

        return step

    @staticmethod
    def _plain_sgd(net: MorelNet) -> SGD:
        return SGD(
            net.parameters(),
            lr=SETTINGS.lr,
            momentum=SETTINGS.momentum,
            weight_decay=SETTINGS.weight_decay,
        )

    def loss_difference(self) -> float:
        """Relative difference of ours and the published loss, fp32: the twin must be a twin.

        Both see the one adversarial batch that a single attack made: signs of gradients near zero
        depend on the order of sums.
        """
        one = PGD(eps=self.pgd.eps, step_size=1e-12, num_steps=1, loss=self.pgd.loss)
        noise = torch.randn(self.x.shape, generator=generator("cpu", self.seed, "noise"))
        ours, theirs = copy.deepcopy(self.net), copy.deepcopy(self.net)
        loss = self.train(ours, make_optimizer(SETTINGS, ours), noise.to(self.device), one).item()
        twin = published.step(
            theirs, self._plain_sgd(theirs), self.x, self.y, self.config, one, noise
        )
        return abs(loss - twin) / abs(twin)

    def flops(self) -> int:
        """FLOPs of the floor's passes: what the method cannot do without."""
        net = copy.deepcopy(self.net)
        attacked = self.x.clone().requires_grad_()
        counts: dict[str, int] = {}
        for kind, images in (("forward", self.x), ("train", self.x), ("attack", attacked)):
            for parameter in net.parameters():
                parameter.requires_grad_(kind == "train")
            with FlopCounterMode(display=False) as counter:
                logits = net(images)
                if kind != "forward":
                    logits.sum().backward()
            counts[kind] = counter.get_total_flops()
        target = counts["forward"] if self.pgd.loss == "kl" else 0
        return self.pgd.num_steps * counts["attack"] + target + 2 * counts["train"]


def measure(row: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """One row of the result; raises RuntimeError if ours and the twin compute another loss."""
    device = torch.device(args.device)
    contenders = Contenders(row, args.batch_size, device, args.seed)
    difference = contenders.loss_difference()
    if not difference < 1e-3:
        raise RuntimeError(f"{row}: ours and the published loss differ by {difference:g}")
    flops = contenders.flops()
    peak_mib = {  # before the clock runs: also what warms up, and compiles
        name: peak_bytes(step, device) / 2**20 for name, step in contenders.steps.items()
    }
    seconds = interleaved(
        contenders.steps, device, rounds=args.rounds, steps=args.steps, warmup=args.warmup
    )
    ratios = {
        "ours / floor": ratio(seconds, "ours", "floor"),
        "published / floor": ratio(seconds, "published", "floor"),
        "published / ours": ratio(seconds, "published", "ours"),
    }
    if "ours_plain" in seconds:
        ratios["published_same / ours"] = ratio(seconds, "published_same", "ours")
        ratios["ours_plain / ours"] = ratio(seconds, "ours_plain", "ours")
    peak = peak_flops(device, row["precision"])
    speed = args.batch_size / spread(seconds["ours"])["median"]
    return {
        **row,
        "batch_size": args.batch_size,
        "n": args.rounds,
        "seconds": {name: spread(values) for name, values in seconds.items()},
        "ratios": ratios,
        "images_per_second": {
            name: args.batch_size / spread(values)["median"] for name, values in seconds.items()
        },
        "peak_mib": peak_mib,
        "gflop_per_step": flops / 1e9,
        "flop_utilisation": None
        if peak is None
        else {"of": peak[1], "ours": flops * speed / args.batch_size / peak[0]},
        "loss_difference": difference,
    }


def show(row: dict[str, Any]) -> str:
    """A row in one line."""
    parts = [
        f"{name} {value['median']:.3f} ({value['min']:.3f}..{value['max']:.3f})"
        for name, value in row["ratios"].items()
    ]
    used = row["flop_utilisation"]
    return " | ".join(
        [
            f"{row['model']} {row['objective']} {row['classes']} classes {row['precision']}",
            *parts,
            f"{row['images_per_second']['ours']:.0f} images/s",
            f"peak {row['peak_mib']['ours']:.0f} of {row['peak_mib']['published']:.0f} MiB",
            *([] if used is None else [f"{used['ours']:.1%} of {used['of']}"]),
        ]
    )


def rows(args: argparse.Namespace) -> list[dict[str, Any]]:
    """fp32 rows are contiguous and not compiled on a CPU: its default."""
    found: list[dict[str, Any]] = []
    for model in args.model:
        for precision in args.precision:
            plain = precision != "bf16" and args.device == "cpu"
            for classes in args.classes:
                for objective in args.objective:
                    found.append(
                        {
                            "model": model,
                            "objective": objective,
                            "classes": classes,
                            "precision": precision,
                            "channels_last": args.channels_last and not plain,
                            "compile": args.compile and not plain,
                            "cudnn_benchmark": args.cudnn_benchmark,
                            "capture": args.capture or args.capture_step,
                            "capture_step": args.capture_step,
                        }
                    )
    return found


def main() -> None:
    """Measure every combination, print as it goes, write after every row."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--model", nargs="+", choices=MODELS, default=["wrn-16-2"])
    parser.add_argument("--objective", nargs="+", choices=OBJECTIVES, default=list(OBJECTIVES))
    parser.add_argument("--classes", nargs="+", type=int, default=[10, 100])
    parser.add_argument("--precision", nargs="+", choices=get_args(Precision), default=["fp32"])
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--cudnn-benchmark", action="store_true")
    parser.add_argument("--capture", action="store_true", help="the attack as one CUDA graph")
    parser.add_argument(
        "--capture-step", action="store_true", help="losses and backward pass in that graph as well"
    )
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1, help="steps of a contender in a round")
    parser.add_argument("--warmup", type=int, default=0, help="more steps before the first")
    parser.add_argument("--seed", type=int, default=0)
    args = parsed(parser)
    dynamo: Any = torch._dynamo.config  # never timed as compiled what torch gave up compiling
    dynamo.fail_on_recompile_limit_hit = True
    result: dict[str, Any] = {"benchmark": "step", "rows": []}
    for row in rows(args):
        result["rows"].append(measure(row, args))
        print(show(result["rows"][-1]), flush=True)
        config = settings(args)
        result |= record(torch.device(args.device), config)
        if args.out is not None:
            write(args.out, result)


if __name__ == "__main__":
    main()
