"""The published training step, with what makes it slow left in: what ours is timed against.

In the authors' order of operations: softmax(f(x)) anew in every attack iteration, both batches
passed again for the embedding, attention class by class with indices moved to the host, noise drawn
on the host, LOAT sample by sample in Python, losses read out after every step.
It computes the loss of `morel_core.MorelObjective`, which the benchmark checks before it measures.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from morel_core import PGD, MorelNet, ObjectiveConfig


def attack(net: MorelNet, x: Tensor, y: Tensor, pgd: PGD, noise: Tensor) -> Tensor:
    """ℓ∞ PGD from x + 0.001 · noise; ``noise`` lies on the host."""
    net.eval()
    x_adv = x.detach() + pgd.init_scale * noise.to(x.device)
    for _ in range(pgd.num_steps):
        x_adv.requires_grad_()
        if pgd.loss == "kl":
            loss = F.kl_div(
                F.log_softmax(net(x_adv), dim=1), F.softmax(net(x), dim=1), reduction="sum"
            )
        else:
            loss = F.cross_entropy(net(x_adv), y)
        grad = torch.autograd.grad(loss, [x_adv])[0]
        x_adv = x_adv.detach() + pgd.step_size * torch.sign(grad.detach())
        x_adv = torch.min(torch.max(x_adv, x - pgd.eps), x + pgd.eps)
        x_adv = torch.clamp(x_adv, 0.0, 1.0)
    net.train()
    return torch.clamp(x_adv, 0.0, 1.0).detach()


def trades(net: MorelNet, x: Tensor, x_adv: Tensor, y: Tensor, beta: float) -> Tensor:
    """Three passes: f(x), f(x') and f(x) again."""
    natural = F.cross_entropy(net(x), y)
    kl = F.kl_div(F.log_softmax(net(x_adv), dim=1), F.softmax(net(x), dim=1), reduction="sum")
    return natural + beta * kl / len(x)


def mart(logits: Tensor, logits_adv: Tensor, y: Tensor, beta: float) -> Tensor:
    """Boosted cross-entropy, the largest other class by a sort, and the weighted KL term."""
    p, p_adv = F.softmax(logits, dim=1), F.softmax(logits_adv, dim=1)
    order = p_adv.sort(dim=1, descending=True).indices
    runner_up = torch.where(order[:, 0] == y, order[:, 1], order[:, 0])
    rows = torch.arange(len(y), device=y.device)
    margin = -torch.log(1.0001 - p_adv[rows, runner_up] + 1e-12).mean()
    kl = F.kl_div(torch.log(p_adv + 1e-12), p, reduction="none").sum(1)
    weighted = (kl * (1.0000001 - p[rows, y])).mean()
    return F.cross_entropy(logits_adv, y) + margin + beta * weighted


def fluctuation(logits: Tensor, y: Tensor, theta: float) -> Tensor:
    """LOAT's early regulariser, θ (R − Wr), sample by sample and class by class."""
    probs = F.softmax(logits, dim=1)
    classes = logits.shape[1]
    right: list[Tensor] = []
    wrong: list[Tensor] = []
    for i in range(len(logits)):
        label = int(y[i].item())
        mean = (1 - probs[i, label]) / (classes - 1)
        value = logits.new_zeros(())
        for k in range(classes):
            if k != label:
                value = value + (probs[i, k] - mean) ** 2
        (right if int(logits[i].argmax().item()) == label else wrong).append(value)
    zero = logits.new_zeros(())
    groups = [torch.stack(g).mean() if g else zero for g in (right, wrong)]
    return theta * (groups[0] - groups[1])


def accuracy(net: MorelNet, x: Tensor, x_adv: Tensor, y: Tensor, config: ObjectiveConfig) -> Tensor:
    """The accuracy objective, in LOAT's early phase."""
    if config.accuracy == "trades":
        return trades(net, x, x_adv, y, config.beta)
    if config.accuracy == "at":
        return F.cross_entropy(net(x_adv), y)
    logits, logits_adv = net(x), net(x_adv)
    loss = mart(logits, logits_adv, y, config.beta)
    if config.accuracy == "loat":
        loss = loss + fluctuation(logits, y, config.loat_theta)
    return loss


def attended(net: MorelNet, z: Tensor, y: Tensor) -> Tensor:
    """Class-adaptive attention, one call for each class of the batch, then normalised."""
    assert net.attention is not None
    assert net.pre_norm is not None
    u = torch.zeros_like(z)
    for label in torch.unique(y):
        members = torch.where(y == label)[0].tolist()
        rows = z[members]
        normed = net.pre_norm(rows)
        u[members] = rows + net.attention(normed, normed, normed)[0]
    return F.normalize(u, dim=-1)


def contrastive(u: Tensor, y: Tensor, temperature: float) -> Tensor:
    """Multi-positive contrastive loss by masks of floats."""
    others = 1 - torch.eye(len(u), device=u.device)
    mask = torch.eq(y.view(-1, 1), y.view(1, -1)).float() * others
    logits = torch.matmul(u, u.T) / temperature - (1 - others) * 1e9
    logits = logits - logits.max(dim=-1, keepdim=True)[0].detach()
    target = mask / mask.sum(1, keepdim=True).clamp(min=1.0)
    return -torch.sum(target * F.log_softmax(logits, dim=-1), dim=-1).mean()


def step(
    net: MorelNet,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    y: Tensor,
    config: ObjectiveConfig,
    pgd: PGD,
    noise: Tensor | None = None,
) -> float:
    """One step; the loss. ``noise`` as `attack` takes it, drawn here if None."""
    if noise is None:
        noise = torch.randn(x.shape)
    x_adv = attack(net, x, y, pgd, noise)
    optimizer.zero_grad()
    accuracy_ = accuracy(net, x, x_adv, y, config)
    z, z_adv = net.projection(net.features(x)), net.projection(net.features(x_adv))
    u, _ = attended(net, z, y), attended(net, z_adv, y)
    alignment = 1 - F.cosine_similarity(z, z_adv, dim=1).mean()
    robustness = alignment + config.alpha * contrastive(u, y, config.temperature)
    distances = [robustness - config.reference[0], accuracy_ - config.reference[1]]
    loss = sum(k * d for k, d in zip(config.preference, distances, strict=True))
    loss = loss + config.gamma * sum(distances)
    assert isinstance(loss, Tensor)
    loss.backward()
    optimizer.step()
    [value.item() for value in (robustness, accuracy_, alignment)]
    return loss.item()
