"""Iterates of torchattacks' and ART's PGD on a small network, in float64, for the tests to compare.

    python tests/parity/vectors/make_pgd_iterates.py

Neither library is among the development dependencies: torchattacks 3.5.1 pins requests to 2.25,
which MLflow refuses. In an environment of their own beside torch, safetensors and scipy:
``pip install --no-deps torchattacks==3.5.1 adversarial-robustness-toolbox==1.20.1``. ART computes
in float32 throughout; its one constant for that is set to float64 before use.
"""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

FILE = Path(__file__).with_name("pgd_iterates.safetensors")

STEPS = 6
BALLS = {"linf": (0.1, 0.03), "l2": (0.6, 0.2)}
"""ε and step size."""

CASES = [
    (library, norm, images, start)
    for library in ("torchattacks", "art")
    for norm in BALLS
    for images in ("border", "middle")
    for start in ("image", "random")
    # ART's ℓ2 clips to [0, 1] before it projects onto the ball and not after: alike inside alone.
    if (library, norm, images) != ("art", "l2", "border")
]


def network() -> nn.Sequential:
    """Three channels of 6 × 6 to four logits; float64."""
    layers = (nn.Conv2d(3, 4, 3), nn.Softplus(), nn.Flatten(), nn.Linear(64, 4))
    return nn.Sequential(*layers).double()


def images() -> dict[str, Tensor]:
    """Some with a fifth of the pixels at 0 and a fifth at 1, some whose balls keep inside."""
    draws = torch.Generator().manual_seed(1)
    x = torch.rand((2, 3, 6, 6), generator=draws, dtype=torch.float64)
    return {"border": (x * 1.66 - 0.33).clamp(0, 1), "middle": 0.3 + 0.4 * x}


def run_torchattacks(net: nn.Module, x: Tensor, y: Tensor, norm: str, random: bool) -> Tensor:
    import torchattacks

    eps, step_size = BALLS[norm]
    kind = torchattacks.PGD if norm == "linf" else torchattacks.PGDL2
    return kind(net, eps=eps, alpha=step_size, steps=STEPS, random_start=random)(x, y)


def run_art(net: nn.Module, x: Tensor, y: Tensor, norm: str, random: bool) -> Tensor:
    import numpy as np
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    for name, module in list(sys.modules.items()):
        if name.startswith("art.") and hasattr(module, "ART_NUMPY_DTYPE"):
            module.ART_NUMPY_DTYPE = np.float64
    eps, step_size = BALLS[norm]
    classifier = PyTorchClassifier(
        model=net,
        loss=nn.CrossEntropyLoss(),
        input_shape=tuple(x.shape[1:]),
        nb_classes=4,
        clip_values=(0.0, 1.0),
        device_type="cpu",
    )
    attack = ProjectedGradientDescentPyTorch(
        classifier,
        norm=np.inf if norm == "linf" else 2,
        eps=eps,
        eps_step=step_size,
        max_iter=STEPS,
        num_random_init=int(random),
        verbose=False,
    )
    np.random.seed(2)
    return torch.from_numpy(attack.generate(x.numpy(), y.numpy()))


def main() -> None:
    import art
    import torchattacks
    from safetensors.torch import save_file

    torch.manual_seed(0)
    net = network()
    tensors: dict[str, Tensor] = {f"net.{k}": v.clone() for k, v in net.state_dict().items()}
    batches = images()
    y = torch.tensor([0, 3])
    tensors["y"] = y
    tensors |= {f"x.{name}": x for name, x in batches.items()}
    seen: list[Tensor] = []

    def watch(_module: nn.Module, inputs: Any) -> None:
        seen.append(inputs[0].detach().clone())

    net[0].register_forward_pre_hook(watch)  # ART passes a Sequential layer by layer
    for library, norm, name, start in CASES:
        seen.clear()
        torch.manual_seed(2)
        run = run_torchattacks if library == "torchattacks" else run_art
        x_adv = run(net, batches[name], y, norm, start == "random")
        tensors[f"{library}.{norm}.{name}.{start}"] = torch.stack([*seen[:STEPS], x_adv])
    assert {t.dtype for key, t in tensors.items() if key != "y"} == {torch.float64}
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchattacks": torchattacks.__version__,
        "adversarial-robustness-toolbox": art.__version__,
    }
    save_file(tensors, FILE, metadata={"versions": json.dumps(versions)})
    print(FILE.stat().st_size, versions)


if __name__ == "__main__":
    main()
