"""Naive twins of the method: its equations, sample by sample and class by class.

Slow on purpose, written from the equations and the published procedure, sharing nothing with
morel_core but the network's modules and its configs. "Row" is a list of K scalars.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from morel_core.config import ObjectiveConfig
from morel_core.models import MorelNet

Row = list[Tensor]


def total(values: list[Tensor]) -> Tensor:
    result = values[0]
    for value in values[1:]:
        result = result + value
    return result


def mean(values: list[Tensor]) -> Tensor:
    return total(values) / len(values)


def softmax(values: Row) -> Row:
    largest = max(v.item() for v in values)
    exponentials = [torch.exp(v - largest) for v in values]
    normaliser = total(exponentials)
    return [e / normaliser for e in exponentials]


def log_softmax(values: Row) -> Row:
    largest = max(v.item() for v in values)
    log_normaliser = torch.log(total([torch.exp(v - largest) for v in values]))
    return [v - largest - log_normaliser for v in values]


def argmax(values: Row, leaving_out: int | None = None) -> int:
    best = -1
    for k, value in enumerate(values):
        if k != leaving_out and (best < 0 or value.item() > values[best].item()):
            best = k
    return best


def rows(matrix: Tensor) -> list[Row]:
    return [list(row.unbind()) for row in matrix.unbind()]


# Accuracy objectives. ----------------------------------------------------------------------------


def cross_entropy(logits: Tensor, y: list[int], smoothing: float = 0.0) -> Tensor:
    """Against 1 − smoothing on the label plus smoothing spread evenly over all classes."""
    losses: list[Tensor] = []
    for row, label in zip(rows(logits), y, strict=True):
        log_p = log_softmax(row)
        even = [smoothing / len(row) * value for value in log_p]
        losses.append(-((1 - smoothing) * log_p[label] + total(even)))
    return mean(losses)


def trades(
    logits: Tensor, logits_adv: Tensor, y: list[int], beta: float, smoothing: float = 0.0
) -> list[Tensor]:
    """CE(f(x), y) and β/B · Σ KL(p ‖ p')."""
    divergences: list[Tensor] = []
    for natural, adversarial in zip(rows(logits), rows(logits_adv), strict=True):
        p, log_p, log_q = softmax(natural), log_softmax(natural), log_softmax(adversarial)
        divergences.append(total([p[k] * (log_p[k] - log_q[k]) for k in range(len(p))]))
    return [cross_entropy(logits, y, smoothing), beta * mean(divergences)]


def mart(logits: Tensor, logits_adv: Tensor, y: list[int], beta: float) -> list[Tensor]:
    """Boosted CE and β/B · Σ KL(p ‖ p') (1.0000001 − p_y), with log(p' + 1e-12)."""
    boosts: list[Tensor] = []
    weighted: list[Tensor] = []
    for natural, adversarial, label in zip(rows(logits), rows(logits_adv), y, strict=True):
        p, q = softmax(natural), softmax(adversarial)
        strongest = q[argmax(q, leaving_out=label)]
        boosts.append(-torch.log(1.0001 - strongest + 1e-12))
        divergence = total(
            [p[k] * (torch.log(p[k]) - torch.log(q[k] + 1e-12)) for k in range(len(p))]
        )
        weighted.append(divergence * (1.0000001 - p[label]))
    return [cross_entropy(logits_adv, y) + mean(boosts), beta * mean(weighted)]


def loat(
    logits: Tensor,
    logits_adv: Tensor,
    y: list[int],
    config: ObjectiveConfig,
    epoch: int,
    num_epochs: int,
) -> list[Tensor]:
    """The base objective, the logit fluctuation and LORE, as far as the epoch has them."""
    base = mart if config.loat_base == "mart" else trades
    parts = base(logits, logits_adv, y, config.beta)
    late_start = config.loat_late_start
    if late_start is None:  # the last tenth, at least the last epoch
        late_start = num_epochs + 1 - max(1, num_epochs // 10)
    early = epoch <= config.loat_early_epochs
    if not early and epoch < late_start:
        return parts

    right: list[Tensor] = []
    wrong: list[Tensor] = []
    moved_right: list[Tensor] = []
    moved_wrong: list[Tensor] = []
    for natural, adversarial, label in zip(rows(logits), rows(logits_adv), y, strict=True):
        p, q = softmax(natural), softmax(adversarial)
        others = [k for k in range(len(p)) if k != label]
        if config.loat_measure == "mse":
            even = (1 - p[label]) / len(others)
            fluctuation = total([(p[k] - even) ** 2 for k in others])
            moved = total([(q[k] - p[k]) ** 2 for k in range(len(p))])
        else:
            fluctuation = -torch.log(1 - p[argmax(p, leaving_out=label)])
            j = argmax(q)
            difference = q[j] - p[j]
            moved = -torch.log(1 - (difference if difference.item() >= 0 else -difference))
        is_right = argmax(natural) == label
        (right if is_right else wrong).append(fluctuation)
        (moved_right if is_right else moved_wrong).append(moved)

    def group_mean(values: list[Tensor]) -> Tensor:
        return mean(values) if values else logits.sum() * 0

    difference = group_mean(right) - group_mean(wrong)
    parts.append(config.loat_theta * (difference if early else -difference))
    if config.loat_lore:
        parts.append(config.loat_gamma * group_mean(moved_wrong if early else moved_right))
    return parts


def accuracy(
    logits: Tensor,
    logits_adv: Tensor,
    y: list[int],
    config: ObjectiveConfig,
    epoch: int,
    num_epochs: int,
) -> list[Tensor]:
    """The parts of the configured accuracy objective."""
    if config.accuracy == "trades":
        return trades(logits, logits_adv, y, config.beta, config.label_smoothing)
    if config.accuracy == "mart":
        return mart(logits, logits_adv, y, config.beta)
    if config.accuracy == "loat":
        return loat(logits, logits_adv, y, config, epoch, num_epochs)
    return [cross_entropy(logits_adv, y, config.label_smoothing)]


# The embedding space. ----------------------------------------------------------------------------


def dot(a: Tensor, b: Tensor) -> Tensor:
    return total([s * t for s, t in zip(a.unbind(), b.unbind(), strict=True)])


def cosine_alignment(z: Tensor, z_adv: Tensor) -> Tensor:
    """1 − mean_i cos(z_i, z'_i)."""
    cosines = [
        dot(a, b) / (torch.sqrt(dot(a, a)) * torch.sqrt(dot(b, b)))
        for a, b in zip(z, z_adv, strict=True)
    ]
    return 1 - mean(cosines)


def contrastive(u: Tensor, y: list[int], temperature: float) -> Tensor:
    """Multi-positive contrastive loss; anchors without positives count as 0."""
    losses: list[Tensor] = []
    for i in range(len(y)):
        others = [j for j in range(len(y)) if j != i]
        positives = [j for j in others if y[j] == y[i]]
        if not positives:
            losses.append(u.sum() * 0)
            continue
        log_q = log_softmax([dot(u[i], u[j]) / temperature for j in others])
        losses.append(
            -total([log_q[others.index(j)] / len(positives) for j in positives])  # uniform target
        )
    return mean(losses)


def attention(net: MorelNet, z: Tensor, y: list[int]) -> Tensor:
    """u = normalise(Z_c + MHA(LN(Z_c))) for every class c, one row and one head at a time."""
    assert net.attention is not None
    assert net.pre_norm is not None
    width, heads = net.attention.embed_dim, net.attention.num_heads
    size = width // heads
    result: list[Tensor | None] = [None] * len(y)
    for label in sorted(set(y)):
        members = [i for i in range(len(y)) if y[i] == label]
        queries: list[Tensor] = []
        keys: list[Tensor] = []
        values: list[Tensor] = []
        for i in members:
            centred = z[i] - mean(list(z[i].unbind()))
            variance = dot(centred, centred) / width
            normed = centred / torch.sqrt(variance + 1e-6)
            normed = normed * net.pre_norm.weight + net.pre_norm.bias
            projected = net.attention.in_proj_weight @ normed + net.attention.in_proj_bias
            queries.append(projected[:width])
            keys.append(projected[width : 2 * width])
            values.append(projected[2 * width :])
        for place, i in enumerate(members):
            mixed: list[Tensor] = []
            for head in range(heads):
                part = slice(head * size, (head + 1) * size)
                scores = [dot(queries[place][part], k[part]) / math.sqrt(size) for k in keys]
                weights = softmax(scores)
                mixed.append(total([w * v[part] for w, v in zip(weights, values, strict=True)]))
            out = net.attention.out_proj
            a = z[i] + out.weight @ torch.cat(mixed) + out.bias
            result[i] = a / torch.sqrt(dot(a, a))
    return torch.stack([row for row in result if row is not None])


def embed(net: MorelNet, x: Tensor) -> Tensor:
    return F.linear(net.encoder(x), net.projection.weight, net.projection.bias)


def scalarise(robustness: Tensor, accuracy_: Tensor, config: ObjectiveConfig) -> Tensor:
    """Σ_i k_i d_i, max_i k_i d_i or μ log Σ_i exp(k_i d_i / μ), plus γ Σ_i d_i; d_i = L_i − a_i."""
    distances = [robustness - config.reference[0], accuracy_ - config.reference[1]]
    weighted = [k * d for k, d in zip(config.preference, distances, strict=True)]
    if config.scalarisation == "weighted_sum":
        value = total(weighted)
    elif config.scalarisation == "chebyshev":
        value = weighted[argmax(weighted)]
    else:
        value = config.mu * torch.log(total([torch.exp(w / config.mu) for w in weighted]))
    return value + config.gamma * total(distances)


def objective(
    net: MorelNet,
    x: Tensor,
    x_adv: Tensor,
    y: Tensor,
    config: ObjectiveConfig,
    epoch: int,
    num_epochs: int,
) -> dict[str, Tensor]:
    """The published objective: the accuracy loss first, then all passes again for the rest."""
    labels = y.tolist()
    base = config.loat_base if config.accuracy == "loat" else config.accuracy
    # As published, pass by pass: BatchNorm's running statistics move with each.
    logits = net(x) if base != "at" else None
    logits_adv = net(x_adv)
    if base == "trades":
        logits = net(x)  # softmax(f(x)) of the KL term is passed anew
    if logits is None:
        parts = [cross_entropy(logits_adv, labels, config.label_smoothing)]
    else:
        parts = accuracy(logits, logits_adv, labels, config, epoch, num_epochs)
    accuracy_ = total(parts)
    if not config.morel:
        return {"total": accuracy_, "accuracy": accuracy_}
    z, z_adv = embed(net, x), embed(net, x_adv)
    alignment = cosine_alignment(z, z_adv)
    attended: list[Tensor] = []
    if config.features in ("natural", "both"):
        attended.append(attention(net, z, labels))
    if config.features in ("adversarial", "both"):
        attended.append(attention(net, z_adv, labels))
    contrast = contrastive(torch.cat(attended), labels * len(attended), config.temperature)
    robustness = alignment + config.alpha * contrast
    return {
        "total": scalarise(robustness, accuracy_, config),
        "accuracy": accuracy_,
        "robustness": robustness,
        "alignment": alignment,
        "contrastive": contrast,
    }


# Attacks. ----------------------------------------------------------------------------------------


def uniform_in_ball(noise: list[float], eps: float, norm: str) -> list[float]:
    """One image. ℓ2 with an even number of pixels, for which χ² has a closed form."""
    if norm == "linf":
        return [eps * (2 * (0.5 * math.erfc(-v / math.sqrt(2))) - 1) for v in noise]
    d = len(noise)
    assert d % 2 == 0
    length = math.sqrt(math.fsum(v * v for v in noise))
    half = length**2 / 2
    tail = math.fsum(half**k / math.factorial(k) for k in range(d // 2))
    quantile = 1 - math.exp(-half) * tail
    return [eps * quantile ** (1 / d) * v / length for v in noise]


def ascent_step(x_adv: list[float], grad: list[float], step_size: float, norm: str) -> list[float]:
    """One image, one step of steepest ascent in the norm."""
    if norm == "linf":
        return [a + step_size * ((g > 0) - (g < 0)) for a, g in zip(x_adv, grad, strict=True)]
    length = math.sqrt(math.fsum(g * g for g in grad))
    if length == 0:
        return list(x_adv)
    return [a + step_size * g / length for a, g in zip(x_adv, grad, strict=True)]


def project(x_adv: list[float], x: list[float], eps: float, norm: str) -> list[float]:
    """One image onto the ball, then onto [0, 1]."""
    if norm == "linf":
        inside = [min(max(a, c - eps), c + eps) for a, c in zip(x_adv, x, strict=True)]
    else:
        delta = [a - c for a, c in zip(x_adv, x, strict=True)]
        length = math.sqrt(math.fsum(v * v for v in delta))
        shrink = 1.0 if length <= eps else eps / length
        inside = [c + shrink * v for c, v in zip(x, delta, strict=True)]
    return [min(max(v, 0.0), 1.0) for v in inside]


def margin(logits: Row, label: int) -> Tensor:
    """max_{k≠y} z_k − z_y."""
    others = [z for k, z in enumerate(logits) if k != label]
    return others[argmax(others)] - logits[label]


def iterates(
    net: torch.nn.Module,
    image: Tensor,
    label: int,
    draw: Tensor,
    *,
    eps: float,
    step_size: float,
    num_steps: int,
    norm: str,
    loss: str,
    init: str,
    init_scale: float = 0.001,
) -> list[Tensor]:
    """x_0 … x_n of one image, pixel by pixel; the clean prediction anew in every iteration."""
    centre, normal = image.flatten().tolist(), draw.flatten().tolist()
    if init == "gaussian":
        point = [c + init_scale * n for c, n in zip(centre, normal, strict=True)]
    elif init == "uniform":
        offset = uniform_in_ball(normal, eps, norm)
        point = project([c + o for c, o in zip(centre, offset, strict=True)], centre, eps, norm)
    else:
        point = list(centre)
    found = [torch.tensor(point, dtype=image.dtype).view_as(image)]
    for _ in range(num_steps):
        moving = found[-1].clone().requires_grad_()
        logits = list(net(moving[None])[0].unbind())
        if loss == "ce":
            value = -log_softmax(logits)[label]
        elif loss == "cw":
            value = margin(logits, label)
        else:
            natural = list(net(image[None])[0].unbind())
            p, log_p, log_q = softmax(natural), log_softmax(natural), log_softmax(logits)
            value = total([p[k] * (log_p[k] - log_q[k]) for k in range(len(p))])
        (grad,) = torch.autograd.grad(value, moving)
        point = ascent_step(point, grad.flatten().tolist(), step_size, norm)
        point = project(point, centre, eps, norm)
        found.append(torch.tensor(point, dtype=image.dtype).view_as(image))
    return found


def pgd(net: torch.nn.Module, x: Tensor, y: Tensor, noise: Tensor, **parameters: Any) -> Tensor:
    """The last iterate of each image."""
    net.eval()
    images = [
        iterates(net, image, int(label), draw, **parameters)[-1]
        for image, label, draw in zip(x, y, noise, strict=True)
    ]
    net.train()
    return torch.stack(images)


def pgd_search(
    net: torch.nn.Module,
    x: Tensor,
    y: Tensor,
    noise: list[Tensor],
    *,
    iterate: str,
    **parameters: Any,
) -> tuple[Tensor, list[bool]]:
    """The first wrong iterate of each image over all restarts, and whether there was none.

    All iterates are looked at, or the last one of each restart; a Gaussian start is no iterate.
    Without a wrong one, the last one of all.
    """
    net.eval()
    images: list[Tensor] = []
    stands: list[bool] = []
    for i, (image, label) in enumerate(zip(x, y.tolist(), strict=True)):
        looked_at: list[Tensor] = []
        for draws in noise:
            made = iterates(net, image, label, draws[i], **parameters)
            if iterate == "last":
                made = made[-1:]
            elif parameters["init"] == "gaussian":
                made = made[1:]
            looked_at += made
        wrong = [a for a in looked_at if argmax(list(net(a[None])[0].unbind())) != label]
        images.append(wrong[0] if wrong else looked_at[-1])
        stands.append(not wrong)
    net.train()
    return torch.stack(images), stands


def published_attack(
    net: torch.nn.Module,
    x: Tensor,
    y: Tensor,
    noise: Tensor,
    *,
    eps: float,
    step_size: float,
    num_steps: int,
    loss: str,
) -> Tensor:
    """TRADES' ℓ∞ attack line by line, softmax(f(x)) recomputed in every iteration."""
    net.eval()
    x_adv = x.detach() + 0.001 * noise
    for _ in range(num_steps):
        x_adv.requires_grad_()
        if loss == "kl":
            value = F.kl_div(
                F.log_softmax(net(x_adv), dim=1), F.softmax(net(x), dim=1), reduction="sum"
            )
        else:
            value = F.cross_entropy(net(x_adv), y)
        (grad,) = torch.autograd.grad(value, [x_adv])
        x_adv = x_adv.detach() + step_size * torch.sign(grad.detach())
        x_adv = torch.min(torch.max(x_adv, x - eps), x + eps)
        x_adv = torch.clamp(x_adv, 0.0, 1.0)
    net.train()
    return torch.clamp(x_adv, 0.0, 1.0).detach()


def published_step(
    net: MorelNet,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    y: Tensor,
    noise: Tensor,
    config: ObjectiveConfig,
    *,
    eps: float,
    step_size: float,
    num_steps: int,
    attack_loss: str,
    epoch: int,
    num_epochs: int,
    clip_norm: float | None = None,
    awp_gamma: float = 0.0,
) -> Tensor:
    """One step as published: attack, accuracy loss, repeated passes, update.

    AWP line by line: the gradient at a copy, the copy moved, the gradient there for the net.
    """
    x_adv = published_attack(
        net, x, y, noise, eps=eps, step_size=step_size, num_steps=num_steps, loss=attack_loss
    )
    optimizer.zero_grad()
    if awp_gamma:
        proxy = copy.deepcopy(net)
        proxy.zero_grad()
        objective(proxy, x, x_adv, y, config, epoch, num_epochs)["total"].backward()
        for weight in proxy.parameters():
            if weight.grad is not None and weight.dim() > 1:
                length = math.sqrt(math.fsum(weight.detach().square().flatten().tolist()))
                slope = math.sqrt(math.fsum(weight.grad.square().flatten().tolist()))
                if slope > 0:
                    weight.data += awp_gamma * length * weight.grad / slope
        proxy.zero_grad()
        loss = objective(proxy, x, x_adv, y, config, epoch, num_epochs)["total"]
        loss.backward()
        for weight, moved in zip(net.parameters(), proxy.parameters(), strict=True):
            weight.grad = moved.grad
    else:
        loss = objective(net, x, x_adv, y, config, epoch, num_epochs)["total"]
        loss.backward()
    if clip_norm is not None:
        grads = [p.grad for p in net.parameters() if p.grad is not None]
        norm = math.sqrt(math.fsum((g * g).sum().item() for g in grads))
        for grad in grads:
            grad.mul_(min(1.0, clip_norm / (norm + 1e-6)))
    optimizer.step()
    return loss.detach()
