"""Networks and images on which AutoAttack by our path is compared with ``pyautoattack`` itself.

Import it as ``from autoattack_cases import ...`` in any test: ``tests/`` is on the path. What the
package itself finds is computed once in a process.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

ATTRIBUTES = {"apgd": "apgd-ce", "apgd_targeted": "apgd-t", "fab": "fab-t", "square": "square"}
"""The package's attacks of the standard version."""


@dataclass(frozen=True, eq=False)
class Case:
    """Images are attacked in chunks of ``chunk``, in their order."""

    net: nn.Module
    x: Tensor
    y: Tensor
    eps: float
    chunk: int
    norm: Literal["linf", "l2"] = "linf"
    version: Literal["standard", "plus"] = "standard"
    seed: int = 3


@dataclass(frozen=True, eq=False)
class Direct:
    """What the package finds when it is called directly, chunk by chunk."""

    correct: Tensor
    """(N,) bool: neither wrong when clean nor broken."""
    x_adv: Tensor
    attacked: Counter[str]
    """How many images each attack was given."""


@cache
def digits_case(
    num_classes: int = 10,
    *,
    eps: float = 0.16,
    norm: Literal["linf", "l2"] = "linf",
    version: Literal["standard", "plus"] = "standard",
    size: int = 24,
) -> Case:
    """Handwritten digits in chunks of 8, three of them by default: seconds.

    The logits are large, so that cross-entropy's gradient vanishes and attacks on it miss what the
    later ones find.
    """
    digits = load_digits(n_class=num_classes)
    x = torch.tensor(digits.images / 16, dtype=torch.float32)[:, None]
    y = torch.tensor(digits.target)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, num_classes)
        )  # fmt: skip
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        for _ in range(5):
            for rows in torch.randperm(len(x) - 24).split(64):
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
                optimizer.step()
    last = net[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.weight.mul_(30)
        last.bias.mul_(30)
    net.zero_grad(set_to_none=True)
    return Case(net.eval(), x[-size:], y[-size:], eps, 8, norm, version)


RESNET_IMAGES = (6, 10, 2, 13, 37, 36, 5, 22)
"""Of CIFAR-10's test set: 37 is wrong when clean, 13 stands, the others break at 1/255.

One that stands suffices for all four attacks to run, each for minutes on a CPU.
"""


@cache
def resnet_case(root: str) -> Case:
    """The package's own example network, eight CIFAR-10 test images, ε = 1/255; minutes."""
    import pyautoattack
    from pyautoattack.examples.resnet import ResNet18
    from torchvision.datasets import CIFAR10

    net: nn.Module = ResNet18()
    file = Path(pyautoattack.__file__).parent / "examples/model_test.pt"
    net.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    test: Any = CIFAR10(root, train=False)
    rows = list(RESNET_IMAGES)
    x = torch.from_numpy(test.data[rows]).permute(0, 3, 1, 2).contiguous() / 255
    return Case(net.eval(), x, torch.tensor([test.targets[i] for i in rows]), 1 / 255, 3)


@cache
def direct(case: Case) -> Direct:
    """``pyautoattack.AutoAttack(...).run_standard_evaluation`` on each chunk."""
    import pyautoattack

    attacked: Counter[str] = Counter()

    def counted(name: str, perturb: Callable[[Tensor, Tensor], Tensor]) -> Any:
        def wrapper(x: Tensor, y: Tensor) -> Tensor:
            attacked[name] += len(x)
            return perturb(x, y)

        return wrapper

    correct: list[Tensor] = []
    images: list[Tensor] = []
    with torch.random.fork_rng(devices=[]):
        for x, y in zip(case.x.split(case.chunk), case.y.split(case.chunk), strict=True):
            package: Any = pyautoattack.AutoAttack(
                case.net,
                eps=case.eps,
                norm="Linf" if case.norm == "linf" else "L2",
                version=case.version,
                seed=case.seed,
            )
            package.verbose = False
            classes = case.net(x[:1]).shape[1]
            for part in (package.apgd_targeted, package.fab):
                part.n_target_classes = min(9, classes - 1)  # as many as there are
            for attribute, name in ATTRIBUTES.items():
                part = getattr(package, attribute)
                part.perturb = counted(name, part.perturb)
            x_adv, y_adv = package.run_standard_evaluation(x, y, batch_size=len(x))
            correct.append(y_adv == y)
            images.append(x_adv)
    return Direct(torch.cat(correct), torch.cat(images), attacked)
