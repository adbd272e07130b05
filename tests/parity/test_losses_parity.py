"""Every loss term and the whole objective against their naive twins: values and gradients."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import naive
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from parity_cases import assert_equal_to, bounded, grads, small_batch, small_net
from torch import Tensor, nn

from morel_core import MorelNet, MorelObjective, ObjectiveConfig
from morel_core.distributed import Shard
from morel_core.losses import (
    Outputs,
    augmented_weighted_sum,
    cosine_alignment,
    multi_positive_contrastive,
    scalarise,
)
from morel_core.losses.objective import ACCURACY

LABELS = ("any", "one class", "all different", "one single-member class")
PREDICTIONS = ("any", "all right", "all wrong")

OBJECTIVES: dict[str, tuple[ObjectiveConfig, int, int]] = {
    "trades": (ObjectiveConfig(accuracy="trades", beta=5.0), 1, 10),
    "mart": (ObjectiveConfig(accuracy="mart", beta=5.0), 1, 10),
    "at": (ObjectiveConfig(accuracy="at"), 1, 10),
    "trades smoothed": (ObjectiveConfig(accuracy="trades", label_smoothing=0.2), 1, 10),
    "at smoothed": (ObjectiveConfig(accuracy="at", label_smoothing=0.2), 1, 10),
    **{
        f"loat {base} {measure}{' lore' if lore else ''} {phase}": (
            ObjectiveConfig(
                accuracy="loat",
                loat_base=base,
                loat_measure=measure,
                loat_lore=lore,
                loat_theta=0.7,
                loat_gamma=0.3,
            ),
            epoch,
            110,
        )
        for base, measure in (("mart", "mse"), ("mart", "kl"), ("trades", "mse"), ("trades", "kl"))
        for lore in (False, True)
        for phase, epoch in (("early", 1), ("middle", 2), ("late", 100))
    },
}
WITH_ALL_TERMS = [
    name for name in OBJECTIVES if "loat" not in name or name.endswith(("lore early", "lore late"))
]
PHASES = [  # config, number of epochs, the epochs that have a regulariser
    (ObjectiveConfig(), 110, [1, *range(100, 111)]),
    (ObjectiveConfig(), 100, [1, *range(91, 101)]),
    (ObjectiveConfig(), 5, [1, 5]),
    (ObjectiveConfig(), 1, [1]),
    (ObjectiveConfig(loat_early_epochs=0, loat_late_start=3), 4, [3, 4]),
    (ObjectiveConfig(loat_early_epochs=2, loat_late_start=9), 4, [1, 2]),
]


FEATURES = ("natural", "adversarial", "both")


def make_labels(kind: str, size: int, num_classes: int, draws: torch.Generator) -> Tensor:
    if kind == "one class":
        return torch.full((size,), num_classes - 1)
    if kind == "all different":
        return torch.randperm(num_classes, generator=draws)[torch.arange(size) % num_classes]
    if kind == "one single-member class":
        y = torch.full((size,), num_classes - 1)
        y[0] = 0
        return y
    return torch.randint(num_classes, (size,), generator=draws)


def make_logits(
    seed: int, size: int, num_classes: int, labels: str, predictions: str
) -> tuple[Tensor, Tensor, Tensor]:
    draws = torch.Generator().manual_seed(seed)
    y = make_labels(labels, size, num_classes, draws)
    logits = 2 * torch.randn((size, num_classes), generator=draws, dtype=torch.float64)
    if predictions != "any":
        favourite = y if predictions == "all right" else (y + 1) % num_classes
        logits.scatter_(1, favourite[:, None], logits.max().item() + 0.5)
    logits_adv = logits + torch.randn(logits.shape, generator=draws, dtype=torch.float64)
    return logits.requires_grad_(), logits_adv.requires_grad_(), y


def assert_accuracy_objective_agrees(
    name: str, logits: Tensor, logits_adv: Tensor, y: Tensor
) -> None:
    config, epoch, num_epochs = OBJECTIVES[name]
    outputs = Outputs(
        logits=logits,
        logits_adv=logits_adv,
        y=y,
        epoch=epoch,
        num_epochs=num_epochs,
        shard=Shard((len(y),)),
    )
    ours = list(ACCURACY[config.accuracy](outputs, config).values())
    twin = naive.accuracy(logits, logits_adv, y.tolist(), config, epoch, num_epochs)
    assert len(ours) == len(twin)
    for part, expected in zip(ours, twin, strict=True):
        assert_equal_to(part, expected)
        for actual_grad, expected_grad in zip(
            gradients(part, logits, logits_adv),
            gradients(expected, logits, logits_adv),
            strict=True,
        ):
            assert_equal_to(actual_grad, expected_grad)


def gradients(value: Tensor, *of: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(
        value, of, retain_graph=True, allow_unused=True, materialize_grads=True
    )


@pytest.mark.parametrize("name", OBJECTIVES)
@bounded
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.integers(1, 7),
    num_classes=st.sampled_from([2, 3, 4, 7, 10]),
    labels=st.sampled_from(LABELS),
    predictions=st.sampled_from(PREDICTIONS),
)
def test_accuracy_objectives(
    name: str, seed: int, size: int, num_classes: int, labels: str, predictions: str
) -> None:
    logits, logits_adv, y = make_logits(seed, size, num_classes, labels, predictions)
    assert_accuracy_objective_agrees(name, logits, logits_adv, y)


@pytest.mark.parametrize("num_classes", [2, 100])
@pytest.mark.parametrize("predictions", PREDICTIONS)
@pytest.mark.parametrize("name", WITH_ALL_TERMS)
def test_accuracy_objectives_with_two_and_a_hundred_classes(
    name: str, predictions: str, num_classes: int
) -> None:
    logits, logits_adv, y = make_logits(5, 2, num_classes, "all different", predictions)
    assert_accuracy_objective_agrees(name, logits, logits_adv, y)


@pytest.mark.parametrize(
    "name", ["trades", "mart", "at", "loat mart kl lore early", "loat trades mse lore late"]
)
def test_accuracy_objectives_with_a_thousand_classes(name: str) -> None:
    logits, logits_adv, y = make_logits(5, 2, 1000, "all different", "any")
    assert_accuracy_objective_agrees(name, logits, logits_adv, y)


@pytest.mark.parametrize(("config", "num_epochs", "regularised"), PHASES)
def test_loat_has_its_regulariser_in_the_phases_it_should(
    config: ObjectiveConfig, num_epochs: int, regularised: list[int]
) -> None:
    config = dataclasses.replace(config, accuracy="loat", loat_lore=True)
    logits, logits_adv, y = make_logits(0, 5, 3, "any", "any")
    for epoch in range(1, num_epochs + 1):
        outputs = Outputs(
            logits=logits,
            logits_adv=logits_adv,
            y=y,
            epoch=epoch,
            num_epochs=num_epochs,
            shard=Shard((len(y),)),
        )
        parts = ACCURACY["loat"](outputs, config)
        assert ("fluctuation" in parts) is (epoch in regularised)
        twin = naive.loat(logits, logits_adv, y.tolist(), config, epoch, num_epochs)
        assert_equal_to(torch.stack(list(parts.values())), torch.stack(twin))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_single_precision_stays_finite_at_extreme_logits(name: str) -> None:
    """Probabilities that underflow to 0 or round to 1 must not make a gradient NaN."""
    config, epoch, num_epochs = OBJECTIVES[name]
    for gap in (20.0, 60.0, 110.0, 1000.0):
        logits = torch.tensor([[gap, 0, 1], [0, gap, 1], [0, 1, gap]], requires_grad=True)
        logits_adv = torch.tensor([[0, 1, gap], [0, gap, 1], [gap, 0, 1]], requires_grad=True)
        outputs = Outputs(
            logits=logits,
            logits_adv=logits_adv,
            y=torch.tensor([0, 0, 2]),
            epoch=epoch,
            num_epochs=num_epochs,
            shard=Shard((3,)),
        )
        value = torch.stack(list(ACCURACY[config.accuracy](outputs, config).values())).sum()
        assert value.isfinite()
        for gradient in gradients(value, logits, logits_adv):
            assert gradient.isfinite().all(), gap


@bounded
@given(seed=st.integers(0, 2**32 - 1), size=st.integers(1, 9), width=st.integers(1, 12))
def test_alignment(seed: int, size: int, width: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    z, z_adv = (
        torch.randn((size, width), generator=draws, dtype=torch.float64).requires_grad_()
        for _ in range(2)
    )
    ours = Shard((size,)).mean(cosine_alignment(z, z_adv))
    twin = naive.cosine_alignment(z, z_adv)
    assert_equal_to(ours, twin)
    for actual, expected in zip(gradients(ours, z, z_adv), gradients(twin, z, z_adv), strict=True):
        assert_equal_to(actual, expected)


@bounded
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.integers(1, 10),
    width=st.integers(1, 6),
    num_classes=st.sampled_from([2, 3, 10, 1000]),
    labels=st.sampled_from(LABELS),
    temperature=st.sampled_from([0.05, 0.1, 1.0]),
)
def test_contrastive(
    seed: int, size: int, width: int, num_classes: int, labels: str, temperature: float
) -> None:
    draws = torch.Generator().manual_seed(seed)
    y = make_labels(labels, size, num_classes, draws)
    raw = torch.randn((size, width), generator=draws, dtype=torch.float64)
    u = (raw / raw.norm(dim=1, keepdim=True)).requires_grad_()
    ours = multi_positive_contrastive(u, y, temperature)
    twin = naive.contrastive(u, y.tolist(), temperature)
    assert_equal_to(ours, twin)
    assert_equal_to(gradients(ours, u)[0], gradients(twin, u)[0])


def test_contrastive_by_hand() -> None:
    """Three anchors at right angles, two of a class: 2 · log 2 / 3."""
    u = torch.eye(3, dtype=torch.float64)
    value = multi_positive_contrastive(u, torch.tensor([4, 4, 7]), 0.1)
    assert value.item() == pytest.approx(2 * 0.6931471805599453 / 3, rel=1e-12)


@bounded
@given(values=st.lists(st.floats(-5, 5), min_size=7, max_size=7))
def test_scalarisation(values: list[float]) -> None:
    rob, acc, k1, k2, a1, a2, gamma = values
    robustness, accuracy = (
        torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (rob, acc)
    )
    k1, k2, gamma = abs(k1) / 10 + 0.1, abs(k2) / 10, abs(gamma)
    config = ObjectiveConfig(preference=(k1, k2), reference=(a1, a2), gamma=gamma)
    ours = augmented_weighted_sum(
        robustness, accuracy, config.preference, config.reference, config.gamma
    )
    twin = naive.scalarise(robustness, accuracy, config)
    assert_equal_to(ours, twin)
    for slope, weight in zip(gradients(ours, robustness, accuracy), (k1, k2), strict=True):
        assert slope.item() == pytest.approx(weight + gamma, rel=1e-12)


@pytest.mark.parametrize("scalarisation", ["chebyshev", "smooth_chebyshev"])
@bounded
@given(values=st.lists(st.floats(-5, 5), min_size=7, max_size=7), mu=st.floats(0.05, 5))
def test_chebyshev(scalarisation: str, values: list[float], mu: float) -> None:
    rob, acc, k1, k2, a1, a2, gamma = values
    robustness, accuracy = (
        torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (rob, acc)
    )
    config = ObjectiveConfig(
        scalarisation=scalarisation,
        preference=(abs(k1) / 10 + 0.1, abs(k2) / 10),
        reference=(a1, a2),
        gamma=abs(gamma),
        mu=mu,
    )
    ours = scalarise(robustness, accuracy, config)
    twin = naive.scalarise(robustness, accuracy, config)
    assert_equal_to(ours, twin)
    for actual, expected in zip(
        gradients(ours, robustness, accuracy), gradients(twin, robustness, accuracy), strict=True
    ):
        assert_equal_to(actual, expected)


def test_chebyshev_by_hand() -> None:
    """k = (½, ½), a = (0, 1): weighted distances 2 and 1; equal ones are μ log 2 above either."""
    robustness = torch.tensor(4.0, dtype=torch.float64, requires_grad=True)
    accuracy = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    config = ObjectiveConfig(
        scalarisation="chebyshev", preference=(0.5, 0.5), reference=(0.0, 1.0), gamma=0.1
    )
    value = scalarise(robustness, accuracy, config)
    assert value.item() == pytest.approx(2 + 0.1 * (4 + 2))
    slopes = [slope.item() for slope in gradients(value, robustness, accuracy)]
    assert slopes == pytest.approx([0.6, 0.1])
    smooth = dataclasses.replace(config, scalarisation="smooth_chebyshev", mu=0.2, gamma=0.0)
    value = scalarise(robustness, accuracy + 2, smooth)
    assert value.item() == pytest.approx(2 + 0.2 * 0.6931471805599453)
    slopes = [slope.item() for slope in gradients(value, robustness, accuracy)]
    assert slopes == pytest.approx([0.25, 0.25])


def test_without_alignment_the_contrastive_term_is_left() -> None:
    config = ObjectiveConfig(alpha=0.5, preference=(0.4, 0.6), gamma=0.01)
    net = small_net(3)
    x, y, noise = small_batch(6, 3, pixels=4)
    x_adv = (x + 0.05 * noise).clamp(0, 1)
    whole, part = (
        MorelObjective(dataclasses.replace(config, alignment=kept))(
            net, x, x_adv, y, epoch=1, num_epochs=10
        )
        for kept in (True, False)
    )
    assert part.alignment == 0
    assert_equal_to(part.robustness, 0.5 * whole.contrastive)
    net.zero_grad()
    (whole.total - (0.4 + 0.01) * whole.alignment).backward()
    expected = grads(net)
    net.zero_grad()
    part.total.backward()
    for name, gradient in grads(net).items():
        assert_equal_to(gradient, expected[name])


@pytest.mark.parametrize("accuracy", ["trades", "mart", "loat", "at"])
@pytest.mark.parametrize("features", FEATURES)
@bounded
@given(
    seed=st.integers(0, 2**16),
    size=st.integers(1, 6),
    labels=st.sampled_from(LABELS),
    num_classes=st.sampled_from([2, 5, 50]),
)
def test_whole_objective(
    accuracy: str, features: str, seed: int, size: int, labels: str, num_classes: int
) -> None:
    """Through encoder, projection and per-class attention to every parameter's gradient."""
    config = ObjectiveConfig(
        accuracy=accuracy,
        features=features,
        alpha=0.5,  # heavy enough that an error in the contrastive term shows
        preference=(0.4, 0.6),
        reference=(0.1, -0.2),
        gamma=0.01,
        loat_lore=True,
    )
    net = small_net(num_classes, seed=seed)
    x, _, noise = small_batch(size, num_classes, seed=seed, pixels=4)
    y = make_labels(labels, size, num_classes, torch.Generator().manual_seed(seed))
    x_adv = (x + 0.05 * noise).clamp(0, 1)

    net.zero_grad()
    terms = MorelObjective(config)(net, x, x_adv, y, epoch=1, num_epochs=10)
    terms.total.backward()
    ours = grads(net)
    net.zero_grad()
    twin = naive.objective(net, x, x_adv, y, config, 1, 10)
    twin["total"].backward()

    for name, value in twin.items():
        assert_equal_to(terms.scalars()[name], value)
    for name, gradient in grads(net).items():
        assert_equal_to(ours[name], gradient)
    assert sum(g.abs().sum() for n, g in ours.items() if n.startswith("projection")) > 0


@pytest.mark.parametrize("accuracy", ["trades", "mart", "loat", "at"])
def test_plain_baselines(accuracy: str) -> None:
    config = ObjectiveConfig(accuracy=accuracy, morel=False)
    net = small_net()
    x, y, noise = small_batch(6)
    x_adv = (x + 0.05 * noise).clamp(0, 1)
    terms = MorelObjective(config)(net, x, x_adv, y, epoch=1, num_epochs=10)
    terms.total.backward()
    ours = grads(net)
    net.zero_grad()
    twin = naive.objective(net, x, x_adv, y, config, 1, 10)["total"]
    twin.backward()
    assert_equal_to(terms.total, twin)
    for name, gradient in grads(net).items():
        assert_equal_to(ours[name], gradient)


class InBfloat16(nn.Module):
    """An encoder that computes in bf16 whatever it is given."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder.bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x.bfloat16())


def bfloat16_layers() -> MorelNet:
    net = small_net().float()
    net.encoder = InBfloat16(net.encoder)
    net.head.bfloat16()
    net.projection.bfloat16()
    return net


def autocast_net() -> MorelNet:
    return small_net().float()


@pytest.mark.parametrize("make", [bfloat16_layers, autocast_net])
@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("accuracy", ["trades", "mart", "loat", "at"])
def test_losses_of_a_bfloat16_network_are_fp32_and_finite(
    accuracy: str, features: str, make: Callable[[], MorelNet]
) -> None:
    config = ObjectiveConfig(accuracy=accuracy, features=features, alpha=1.0, loat_lore=True)
    net = make()
    x, y, noise = small_batch(6)
    x, x_adv = x.float(), (x + 0.05 * noise).clamp(0, 1).float()
    exact = MorelObjective(config)(small_net().float(), x, x_adv, y, epoch=1, num_epochs=10)
    with torch.autocast("cpu", torch.bfloat16, enabled=make is autocast_net):
        terms = MorelObjective(config)(net, x, x_adv, y, epoch=1, num_epochs=10)
    terms.total.backward()
    for name, value in terms.scalars().items():
        assert value.dtype == torch.float32, name
        assert value.isfinite(), name
    assert terms.total.item() == pytest.approx(exact.total.item(), rel=0.05)
    assert all(g.isfinite().all() for g in grads(net).values())


def test_contrastive_logits_are_not_rounded_under_autocast() -> None:
    u = torch.nn.functional.normalize(torch.randn(6, 5, generator=torch.Generator().manual_seed(0)))
    y = torch.tensor([0, 0, 1, 1, 2, 0])
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = multi_positive_contrastive(u, y, 0.1)
    assert torch.equal(under_autocast, multi_positive_contrastive(u, y, 0.1))
