"""AutoAttack (Croce & Hein 2020) and each of its attacks, by its authors' package ``pyautoattack``.

The package seeds torch's own generators, logs under ``auto-attack`` and sets a trace function; here
all of these are as before when a call returns.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from morel_core.attacks.base import attack_mode, size_label
from morel_core.config import Norm
from morel_core.errors import MorelError, check

Part = Literal["apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square"]
Version = Literal["standard", "plus"]

VERSIONS: dict[Version, tuple[tuple[Part, int], ...]] = {
    "standard": (("apgd-ce", 1), ("apgd-t", 1), ("fab-t", 1), ("square", 1)),
    "plus": (
        ("apgd-ce", 5), ("apgd-dlr", 5), ("fab", 5), ("square", 1), ("apgd-t", 1), ("fab-t", 1)
    ),
}  # fmt: skip
"""Attacks and restarts of each version, in the order in which the package runs them."""

SQUARE_QUERIES = 5000


@dataclass(frozen=True, kw_only=True)
class AutoAttackPart:
    """One attack of AutoAttack: an image counts as broken by any iterate that is wrong.

    Only images that ``net`` gets right are attacked; the others come back as they are. The package
    draws for the whole batch, so an image's outcome depends on which others are in it.

    Args:
        part: "apgd-ce", "apgd-dlr" (APGD on cross-entropy or on the difference of logits ratio),
            "apgd-t" (targeted), "fab", "fab-t" (targeted; Croce & Hein 2020) or "square", which
            needs no gradient (Andriushchenko et al. 2020).
        eps: radius of the ball, in units of the image range [0, 1].
        norm: "linf" or "l2".
        seed: of the package's own random numbers; noise passed in is not used.
        restarts: random starts; of the targeted ones, for each target.
        queries: of Square for an image, 5000 in AutoAttack.
    """

    part: Part
    eps: float
    norm: Norm = "linf"
    seed: int = 0
    restarts: int = 1
    queries: int = SQUARE_QUERIES

    def __post_init__(self) -> None:
        check(self.part in get_args(Part), "part", self.part, ", ".join(get_args(Part)))
        check(self.eps > 0, "eps", self.eps, "must be > 0")
        check(self.restarts >= 1, "restarts", self.restarts, "must be >= 1")
        check(self.queries >= 1, "queries", self.queries, "must be >= 1")
        check(
            self.part == "square" or self.queries == SQUARE_QUERIES,
            "queries",
            self.queries,
            f"of square alone, not of {self.part}",
        )

    @property
    def name(self) -> str:
        """As in ``apgd-t_linf_8-255``; restarts and queries only if not AutoAttack's."""
        queries = "" if self.queries == SQUARE_QUERIES else f"{self.queries}"
        restarts = "" if self.restarts == 1 else f"x{self.restarts}"
        return f"{self.part}{queries}{restarts}_{self.norm}_{size_label(self.eps)}"

    @property
    def draws(self) -> int:
        """The package draws for itself."""
        return 0

    @property
    def white_box(self) -> bool:
        """All but Square follow the gradient."""
        return self.part != "square"

    def describe(self) -> dict[str, Any]:
        """Its parameters, plain."""
        parameters = asdict(self)
        if self.part != "square":
            del parameters["queries"]
        return {"attack": "autoattack-part", **parameters}

    def __call__(
        self,
        net: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """See `Attack`; all of ``x`` is one batch.

        Raises:
            MorelError: the network tells fewer than 4 classes apart, or images are not float32.
        """
        del noise, generator
        with attack_mode(net), torch.no_grad(), _package_log(), _own_random_numbers():
            return self._attack(net, x).perturb(x, y).detach()

    def _attack(self, net: nn.Module, x: Tensor) -> Any:
        """The package's attack, set up as its ``run_standard_evaluation`` does."""
        package = _package(net, x, self.eps, self.norm, self.seed)
        if self.part == "square":
            attack = package.square
            attack.n_queries = self.queries
        elif self.part == "apgd-t":
            attack = package.apgd_targeted
        elif self.part in ("fab", "fab-t"):
            attack = package.fab
            attack.targeted = self.part == "fab-t"
        else:
            attack = package.apgd
            attack.loss = self.part.removeprefix("apgd-")
        attack.n_restarts = self.restarts
        return attack


@dataclass(frozen=True, kw_only=True)
class AutoAttack:
    """The ensemble APGD-CE, APGD-T, FAB-T and Square (``plus`` adds their other versions).

    Args:
        eps: radius of the ball, in units of the image range [0, 1].
        norm: "linf" or "l2".
        version: "standard" or "plus".
        seed: of the package's own random numbers; noise passed in is not used.
    """

    eps: float
    norm: Norm = "linf"
    version: Version = "standard"
    seed: int = 0

    def __post_init__(self) -> None:
        check(self.eps > 0, "eps", self.eps, "must be > 0")
        check(self.version in VERSIONS, "version", self.version, "standard or plus")

    @property
    def members(self) -> tuple[AutoAttackPart, ...]:
        """Its attacks, in order: each is for the images that those before it left standing.

        So run, every image's outcome is that of the package's ``run_standard_evaluation``.
        """
        return tuple(
            AutoAttackPart(
                part=part, eps=self.eps, norm=self.norm, seed=self.seed, restarts=restarts
            )
            for part, restarts in VERSIONS[self.version]
        )

    @property
    def name(self) -> str:
        """As in ``autoattack_linf_8-255``."""
        version = "" if self.version == "standard" else f"_{self.version}"
        return f"autoattack{version}_{self.norm}_{size_label(self.eps)}"

    @property
    def draws(self) -> int:
        """The package draws for itself."""
        return 0

    @property
    def white_box(self) -> bool:
        """All its members but Square follow the gradient."""
        return True

    def describe(self) -> dict[str, Any]:
        """Its parameters, plain."""
        return {
            "attack": "autoattack",
            **asdict(self),
            "members": [member.name for member in self.members],
        }

    def __call__(
        self,
        net: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """See `Attack`; all of ``x`` is one batch.

        Raises:
            MorelError: the network tells fewer than 4 classes apart, or images are not float32.
        """
        del noise, generator
        x_adv = x.detach().clone()
        with attack_mode(net), torch.no_grad():
            rows = (net(x).argmax(1) == y).nonzero()[:, 0]
            for member in self.members:
                if len(rows) == 0:
                    break
                x_adv[rows] = member(net, x[rows], y[rows])
                rows = rows[net(x_adv[rows]).argmax(1) == y[rows]]
        return x_adv


def autoattack_checks(
    net: nn.Module, x: Tensor, y: Tensor, *, eps: float, norm: Norm = "linf", seed: int = 0
) -> list[str]:
    """What the package warns of before it attacks, in its words; empty if of nothing.

    Its checks for a randomised defence, probabilities in place of logits, a defence that
    differentiates in its forward pass, and images where the gradient of the DLR loss is zero at
    APGD's random start.

    Args:
        net: maps images in [0, 1] to logits; left as it was.
        x: (B, C, H, W) float32 in [0, 1]; all of it is one batch.
        y: (B,) int64.
        eps: radius of the ball in which APGD starts.
        norm: "linf" or "l2".
        seed: of the random start.

    Raises:
        MorelError: the network tells fewer than 4 classes apart, or images are not float32.
    """
    from pyautoattack import checks

    tracing = sys.gettrace()
    with attack_mode(net), torch.no_grad(), _package_log() as messages, _own_random_numbers():
        package = _package(net, x, eps, norm, seed)
        checks.check_randomized(net, x, y, bs=len(x), logger=package.logger)
        checks.check_range_output(net, x, logger=package.logger)
        checks.funcs.update(dict.fromkeys(checks.funcs, 0))  # the package never resets its counts
        try:
            checks.check_dynamic(net, x, logger=package.logger)
        finally:
            sys.settrace(tracing)
        apgd = package.apgd
        apgd.loss, apgd.n_iter = "dlr", 1  # it looks for zero gradients where it starts
        torch.manual_seed(seed)
        apgd.init_hyperparam(x)
        apgd.attack_single_run(x, y)
    return [message.partition(" See flags_doc.md")[0] for message in messages]


def _package(net: nn.Module, x: Tensor, eps: float, norm: Norm, seed: int) -> Any:
    """The package's AutoAttack, with as many targets as there are other classes."""
    import pyautoattack

    if x.dtype != torch.float32:
        raise MorelError(f"AutoAttack computes in float32, the images are {x.dtype}: use pgdN")
    classes = net(x[:1]).shape[1]
    if classes < 4:
        raise MorelError(
            f"AutoAttack compares the 4 largest logits, the model has {classes}: use pgdN"
        )
    package = pyautoattack.AutoAttack(
        net, device=x.device, eps=eps, norm="Linf" if norm == "linf" else "L2", seed=seed
    )
    # The package aims at 9 other classes, whether or not there are as many.
    for part in (package.apgd_targeted, package.fab):
        part.n_target_classes = min(part.n_target_classes, classes - 1)
    return package


@contextmanager
def _own_random_numbers() -> Generator[None]:
    """Inside, torch's generators may be seeded; after, they go on as if nothing had been."""
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=gpus):
        yield


@contextmanager
def _package_log() -> Generator[list[str]]:
    """What the package's logger warns of inside, which is shown nowhere."""
    logger = logging.getLogger("auto-attack")
    messages: list[str] = []

    def collect(record: logging.LogRecord) -> bool:
        if record.levelno >= logging.WARNING:
            messages.append(record.getMessage())
        return False

    logger.addFilter(collect)
    try:
        yield messages
    finally:
        logger.removeFilter(collect)
