"""Reasons to doubt any attack on a network, from the network itself: `examine`.

After Athalye et al. 2018 (obfuscated gradients), Carlini et al. 2019 (On Evaluating Adversarial
Robustness) and the checks of AutoAttack (Croce & Hein 2020, Croce et al. 2022).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from morel_core.attacks import PGD, attack_mode
from morel_core.attacks.ball import project, uniform_in_ball
from morel_core.config import Norm
from morel_core.errors import MorelError
from morel_core.evaluation.measure import as_images, correct_predictions
from morel_core.precision import at_least_fp32, full_precision
from morel_core.seeding import generator
from morel_core.statistics import wilson_interval

ONE_POINT = 0.01
"""Share of images that may lack a gradient: robust accuracies are compared to a point, and so many
images without gradient move one by as much. A share counts from the lower end of its interval."""
SAME_OUTPUT = 1e-4
"""Distance of two passes' normalised outputs that rounding does not explain: AutoAttack's own bound
(``alpha`` of its ``check_randomized``)."""
HUGE_STEPS = 20


@dataclass(frozen=True)
class Finding:
    """One reason to doubt."""

    code: str
    """Stable, for programs."""
    reason: str
    """One sentence, with the figures, for people."""
    evidence: dict[str, float]
    """The figures."""


@dataclass(frozen=True)
class _Passes:
    """What passes over a batch showed, image by image; all are (B,) on the CPU."""

    right: Tensor
    distance: Tensor
    """Between the normalised outputs of two passes; 0 where they are not finite."""
    probability: Tensor
    """Whether the output is a distribution over the classes."""
    margin: Tensor
    """Largest logit less the second; infinite where they are not finite."""
    no_margin_gradient: Tensor
    """Whether the margin loss has a gradient of exactly zero."""
    no_ce_gradient: Tensor
    """Whether the cross-entropy's gradient is zero or below the normal range."""
    right_at_huge_eps: Tensor


def examine(
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    norm: Norm = "linf",
    seed: int = 0,
    batch_size: int = 256,
) -> list[Finding]:
    """Reasons why attacks on ``net`` may fail without it being robust; empty if none is found.

    - ``random_forward``: two passes over the same images, in eval mode, differ (by more than 1e-4
      of the normalised outputs, AutoAttack's bound). Needs attacks on the expectation.
    - ``probabilities``: outputs are distributions over the classes, so that losses apply a second
      softmax (rows in [0, 1] that sum to 1 up to rounding).
    - ``extreme_logits``: for half of the images the largest logit leads by more than −ln of the
      smallest normal number of the logits' type (87 in fp32): the softmax of all other classes is
      zero or nearly so, and the cross-entropy's gradient with it. Training on a cross-entropy in
      fp32 does not lead there: at 17 the right class's probability is 1 and no longer pushed.
    - ``zero_gradient``: the margin loss max_{k≠y} z_k − z_y has an input gradient of exactly zero,
      or none at all, since something on the way cannot be differentiated.
    - ``vanishing_gradient``: it has one, but that of the cross-entropy is zero or below the normal
      numbers. Both at the uniform start of an attack, for more than 1 % of the images that are
      right.
    - ``robust_at_huge_eps``: PGD-20 in a ball that holds the uniformly grey image for every image
      (ℓ∞: 0.5; ℓ2: √d/2) leaves more images right than grey does, which is about one in K of K
      classes; the lower end of the 95 % interval counts. Painting all images grey would be the
      stronger attack (Carlini et al. 2019), so PGD fails where an adversarial image
      is known to exist. It starts from the image itself: a random start would hide a missing
      gradient.

    Costs 24 forward and 22 backward passes, and one forward pass of a single image.

    Args:
        net: maps images in [0, 1] to logits; left in the mode it came in.
        x: (N, C, H, W), uint8 or float in [0, 1].
        y: (N,) int64.
        eps: radius of the ball in which the gradients are looked at, as the attacks will do.
        norm: of the balls.
        seed: of the starts.
        batch_size: images in a pass.

    Raises:
        MorelError: no images.
    """
    if len(x) == 0 or len(x) != len(y):
        raise MorelError(f"examine: {len(x)} images and {len(y)} labels: need as many, at least 1")
    with attack_mode(net), full_precision(x.device):
        parts: list[_Passes] = []
        for chunk, start in enumerate(range(0, len(x), batch_size)):
            images, labels = as_images(x[start : start + batch_size]), y[start : start + batch_size]
            draws = generator(x.device, seed, chunk)
            noise = torch.randn(images.shape, generator=draws, device=x.device).to(images.dtype)
            at = project(images + uniform_in_ball(noise, eps, norm), images, eps, norm)
            parts.append(_passes(net, images, labels, at, norm))
        grey = correct_predictions(net, torch.full_like(as_images(x[:1]), 0.5), y).cpu()
    seen = _Passes(*(torch.cat(columns) for columns in zip(*map(_columns, parts), strict=True)))
    return [*_of_outputs(seen), *_of_gradients(seen), *_of_huge_eps(seen, grey)]


def _columns(passes: _Passes) -> list[Tensor]:
    return list(vars(passes).values())


def _logits(net: nn.Module, x: Tensor) -> Tensor:
    return at_least_fp32(net(x))


def _passes(net: nn.Module, x: Tensor, y: Tensor, start: Tensor, norm: Norm) -> _Passes:
    with torch.no_grad():
        first, second = _logits(net, x), _logits(net, x)
        top = first.topk(2, dim=1).values
    distance = (F.normalize(first, dim=1) - F.normalize(second, dim=1)).norm(dim=1)
    rounding = 10 * torch.finfo(first.dtype).eps * first.shape[1]
    distribution = (first >= 0).all(1) & ((first.sum(1) - 1).abs() <= rounding)
    margin_gradient, ce_gradient = _gradients(net, start, y)
    huge = 0.5 if norm == "linf" else 0.5 * math.sqrt(x[0].numel())
    pgd = PGD(
        eps=huge, step_size=2.5 * huge / HUGE_STEPS, num_steps=HUGE_STEPS, norm=norm, init="none"
    )
    columns = _Passes(
        right=first.argmax(1) == y,
        distance=distance.nan_to_num(nan=0.0),
        probability=distribution,
        margin=(top[:, 0] - top[:, 1]).nan_to_num(nan=math.inf),
        no_margin_gradient=margin_gradient == 0,
        no_ce_gradient=ce_gradient < torch.finfo(first.dtype).tiny,
        right_at_huge_eps=correct_predictions(net, _moved(pgd, net, x, y), y),
    )
    return _Passes(*(column.cpu() for column in _columns(columns)))


def _gradients(net: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """(B,) each: largest entry of the input gradient of the margin loss and of cross-entropy.

    Zeros where nothing can be differentiated.
    """
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        logits = _logits(net, x)
        if not logits.requires_grad:
            return torch.zeros_like(logits[:, 0]), torch.zeros_like(logits[:, 0])
        own = F.one_hot(y, logits.shape[1]).bool()
        margin = logits.masked_fill(own, -math.inf).amax(1) - logits[own]
        losses = (margin.sum(), F.cross_entropy(logits, y, reduction="sum"))
        gradients = [torch.autograd.grad(loss, x, retain_graph=True)[0] for loss in losses]
    margin_size, ce_size = (gradient.flatten(1).abs().amax(1) for gradient in gradients)
    return margin_size, ce_size


def _moved(pgd: PGD, net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """What ``pgd`` makes of the images: themselves where nothing can be differentiated."""
    with torch.enable_grad():
        differentiable = net(x[:1].detach().requires_grad_()).requires_grad
    return pgd(net, x, y) if differentiable else x


def _of_outputs(seen: _Passes) -> list[Finding]:
    findings: list[Finding] = []
    limit = -math.log(torch.finfo(seen.margin.dtype).tiny)
    distance, median = seen.distance.amax().item(), seen.margin.median().item()
    if distance > SAME_OUTPUT:
        findings.append(
            Finding(
                "random_forward",
                f"Two passes over the same images differ by up to {distance:.2g} of their length: "
                "attacks on a random network need expectations, and its accuracy is one draw.",
                {"distance": distance},
            )
        )
    if seen.probability.all():
        findings.append(
            Finding(
                "probabilities",
                f"The outputs for all {len(seen.right)} images are non-negative and sum to 1: they "
                "are probabilities, where attacks need logits.",
                {"num_images": float(len(seen.right))},
            )
        )
    if median > limit:
        findings.append(
            Finding(
                "extreme_logits",
                f"For half of the images the largest logit leads by more than {median:.3g}: beyond "
                f"{limit:.0f} the probabilities of all other classes are zero in their number "
                "format, and the cross-entropy has no gradient.",
                {"median_margin": median, "limit": limit},
            )
        )
    return findings


def _of_gradients(seen: _Passes) -> list[Finding]:
    """Only images that are right are attacked, so only theirs count."""
    findings: list[Finding] = []
    zero = seen.no_margin_gradient[seen.right]
    vanishing = (seen.no_ce_gradient & ~seen.no_margin_gradient)[seen.right]
    for code, missing, what in (
        ("zero_gradient", zero, "the margin loss has an input gradient of exactly zero"),
        (
            "vanishing_gradient",
            vanishing,
            "the cross-entropy's input gradient is zero or too small for a normal number, though "
            "the margin loss has one",
        ),
    ):
        count, n = int(missing.sum()), len(missing)
        if n and wilson_interval(count, n)[0] > ONE_POINT:
            findings.append(
                Finding(
                    code,
                    f"For {count} of {n} images {what}: attacks by that gradient cannot move them, "
                    "and they count as robust.",
                    {"count": float(count), "num_images": float(n), "share": count / n},
                )
            )
    return findings


def _of_huge_eps(seen: _Passes, grey: Tensor) -> list[Finding]:
    right, n = int(seen.right_at_huge_eps.sum()), len(grey)
    bound = grey.double().mean().item()
    if wilson_interval(right, n)[0] <= bound:
        return []
    return [
        Finding(
            "robust_at_huge_eps",
            f"PGD-{HUGE_STEPS} in a ball that holds the same grey image for all leaves "
            f"{right / n:.1%} of {n} images right, and that grey image {bound:.1%}: PGD fails "
            "where an adversarial image is known to exist.",
            {"accuracy": right / n, "accuracy_grey": bound, "num_images": float(n)},
        )
    ]
