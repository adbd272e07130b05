"""Smoothed labels against the target distribution written out."""

import math

import pytest
import torch

from morel_core import ConfigError, ObjectiveConfig
from morel_core.distributed import Shard
from morel_core.losses import Outputs
from morel_core.losses.objective import ACCURACY

# Two classes with probabilities 0.9 and 0.1, then 0.5 and 0.5.
LOGITS = torch.tensor([[0.9, 0.1], [0.5, 0.5]], dtype=torch.float64).log()
CE = {"trades": "natural_ce", "at": "adversarial_ce"}


def parts(accuracy, y, **settings):
    outputs = Outputs(
        logits=LOGITS, logits_adv=LOGITS, y=y, epoch=1, num_epochs=2, shard=Shard((2,))
    )
    return ACCURACY[accuracy](outputs, ObjectiveConfig(accuracy=accuracy, **settings))


@pytest.mark.parametrize("accuracy", CE)
def test_by_hand(accuracy):
    """ε = 0.2 over two classes: the target is 0.9 on the label and 0.1 on the other."""
    y = torch.tensor([0, 1])
    first = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    expected = (first + math.log(2)) / 2
    assert parts(accuracy, y, label_smoothing=0.2)[CE[accuracy]].item() == pytest.approx(expected)


@pytest.mark.parametrize("accuracy", CE)
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_probabilities_as_labels(accuracy, smoothing):
    hard = torch.tensor([0, 1])
    soft = torch.nn.functional.one_hot(hard, 2).double()
    expected = parts(accuracy, hard, label_smoothing=smoothing)[CE[accuracy]]
    actual = parts(accuracy, soft, label_smoothing=smoothing)[CE[accuracy]]
    assert actual.item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("accuracy", CE)
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_mixed_labels_by_hand(accuracy, smoothing):
    """CutMix (Yun et al. 2019) with λ = 3/4: λ CE(y_1) + (1 − λ) CE(y_2)."""
    mixed = torch.tensor([[0.75, 0.25], [0.25, 0.75]])
    share = 0.75 * (1 - smoothing) + smoothing / 2
    losses = (-share * math.log(0.9) - (1 - share) * math.log(0.1), math.log(2))
    value = parts(accuracy, mixed, label_smoothing=smoothing)[CE[accuracy]]
    assert value.item() == pytest.approx(sum(losses) / 2, rel=1e-12)


def test_off_is_bitwise_what_it_was():
    y = torch.tensor([0, 1])
    expected = torch.nn.functional.nll_loss(LOGITS.log_softmax(1), y, reduction="none").sum() / 2
    assert torch.equal(parts("trades", y)["natural_ce"], expected)


@pytest.mark.parametrize("accuracy", ["mart", "loat", "custom"])
def test_where_a_hard_label_is_needed_it_is_refused(accuracy):
    with pytest.raises(ConfigError, match=r"label_smoothing = 0\.1: 0 with accuracy"):
        ObjectiveConfig(accuracy=accuracy, label_smoothing=0.1)


def test_a_share():
    with pytest.raises(ConfigError, match="share in"):
        ObjectiveConfig(label_smoothing=1.0)
