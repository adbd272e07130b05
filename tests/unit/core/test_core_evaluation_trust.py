"""Masked networks and failed attacks are seen as such, honest ones are not."""

import math

import pytest
import torch
from torch import nn

from morel_core import (
    PGD,
    AttackConfig,
    DataConfig,
    EvaluationResult,
    ExperimentConfig,
    MorelError,
    ObjectiveConfig,
    OptimizerConfig,
    Trainer,
    TrainingConfig,
    evaluate,
)
from morel_core.attacks import AutoAttackPart, Transfer
from morel_core.evaluation import Finding, Outcome, examine, suspicious
from morel_core.models import DigitsCnnConfig

EPS = 0.1


class Saturated(nn.Module):
    """Logits so large that every softmax is 0 or 1: the same predictions, no gradient."""

    def __init__(self, net, factor=1000.0):
        super().__init__()
        self.net, self.factor = net, factor

    def forward(self, x):
        return self.factor * self.net(x)


class Cut(nn.Module):
    """No gradient at all: pixels pass through integers."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net((x * 255).to(torch.uint8).float() / 255)


class Quantised(nn.Module):
    """Digits have 17 grey levels: rounding to them changes no clean image."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net((16 * x).round() / 16)


def train(attack: AttackConfig) -> Trainer:
    """A small network for digits, in seconds."""
    trainer = Trainer(
        ExperimentConfig(
            data=DataConfig(name="digits", holdout=300),
            model=DigitsCnnConfig(name="digits_cnn", width=8),
            objective=ObjectiveConfig(accuracy="at", morel=False),
            attack=attack,
            optimizer=OptimizerConfig(lr=0.1, schedule="cosine"),
            training=TrainingConfig(epochs=5, batch_size=64),
        )
    )
    trainer.fit()
    return trainer


@pytest.fixture(scope="module")
def robust():
    return train(AttackConfig(eps=EPS, step_size=0.025, num_steps=5))


@pytest.fixture(scope="module")
def natural():
    """Trained on images that are moved by nothing to speak of."""
    return train(AttackConfig(eps=1e-6, step_size=1e-6, num_steps=1))


@pytest.fixture(scope="module", params=["robust", "natural"])
def honest(request):
    return request.getfixturevalue(request.param).net.eval()


@pytest.fixture(scope="module")
def digits(robust):
    test = robust.data.test
    return test.fetch(torch.arange(200)), test.labels[:200]


def codes(findings: list[Finding]) -> set[str]:
    assert len({finding.code for finding in findings}) == len(findings)
    return {finding.code for finding in findings}


# --- the network ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("norm", "eps"), [("linf", EPS), ("l2", 0.8)])
def test_an_honest_network_gives_no_reason_to_doubt(honest, digits, norm, eps):
    assert examine(honest, *digits, eps=eps, norm=norm) == []


def test_images_of_any_size_have_a_huge_ball():
    """That of every image reaches to grey: 194 long for these in ℓ2."""
    net = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 3))
    x = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    assert examine(net, x, net(x).argmax(1), eps=0.5, norm="l2") == []


@pytest.mark.parametrize(("norm", "eps"), [("linf", EPS), ("l2", 0.8)])
def test_saturated_logits_are_seen(honest, digits, norm, eps):
    findings = examine(Saturated(honest), *digits, eps=eps, norm=norm)
    assert codes(findings) == {"extreme_logits", "vanishing_gradient", "robust_at_huge_eps"}
    by_code = {finding.code: finding for finding in findings}
    assert by_code["extreme_logits"].evidence["median_margin"] > 1000
    assert by_code["vanishing_gradient"].evidence["share"] > 0.9
    huge = by_code["robust_at_huge_eps"]
    assert huge.evidence["accuracy"] > 0.5 > 0.2 > huge.evidence["accuracy_grey"]
    assert f"{huge.evidence['accuracy']:.1%} of 200 images" in huge.reason


@pytest.mark.parametrize(("norm", "eps"), [("linf", EPS), ("l2", 0.8)])
def test_quantised_inputs_are_seen(honest, digits, norm, eps):
    findings = examine(Quantised(honest), *digits, eps=eps, norm=norm)
    assert codes(findings) == {"zero_gradient", "robust_at_huge_eps"}
    (zero,) = (finding for finding in findings if finding.code == "zero_gradient")
    assert zero.evidence["share"] == 1.0
    assert zero.evidence["count"] == zero.evidence["num_images"] > 180


def test_a_network_cut_off_from_its_images_is_seen(honest, digits):
    cut = Cut(honest)
    assert codes(examine(cut, *digits, eps=EPS)) == {"zero_gradient", "robust_at_huge_eps"}
    with pytest.raises(MorelError, match="cut off from its images"):
        evaluate(cut, *digits, {"pgd1": PGD(eps=EPS, step_size=EPS, num_steps=1)})


def test_the_limit_of_the_logits_is_that_of_their_type(honest, digits):
    """What saturates fp32 does not saturate fp64, whose range is eight times as wide."""
    x, y = digits
    with torch.no_grad():
        top = honest(x.float() / 255).topk(2, dim=1).values
    net = Saturated(honest, 200 / (top[:, 0] - top[:, 1]).median().item())
    assert "extreme_logits" in codes(examine(net, x, y, eps=EPS))
    try:
        assert "extreme_logits" not in codes(examine(net.double(), x.double() / 255, y, eps=EPS))
    finally:
        net.float()


def test_a_random_forward_pass_is_seen(honest, digits):
    class Noisy(nn.Module):
        def forward(self, x):
            return honest(x + 0.02 * torch.randn_like(x))

    torch.manual_seed(0)
    assert codes(examine(Noisy(), *digits, eps=EPS)) == {"random_forward"}


def test_probabilities_are_seen(honest, digits):
    net = nn.Sequential(honest, nn.Softmax(dim=1))
    assert "probabilities" in codes(examine(net, *digits, eps=EPS))


def test_logits_that_are_not_finite_are_seen(honest, digits):
    class Overflowing(nn.Module):
        def forward(self, x):
            return honest(x) * math.nan

    findings = codes(examine(Overflowing(), *digits, eps=EPS))
    assert "extreme_logits" in findings
    assert "random_forward" not in findings


def test_what_is_examined_does_not_depend_on_the_batches_and_is_left_as_it_was(honest, digits):
    net = Saturated(honest)
    net.train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    flags = [parameter.requires_grad for parameter in net.parameters()]
    whole = examine(net, *digits, eps=EPS)
    parts = examine(net, *digits, eps=EPS, batch_size=64)
    assert codes(parts) == codes(whole)
    assert all(module.training for module in net.modules())
    net.eval()
    assert [parameter.requires_grad for parameter in net.parameters()] == flags
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert examine(net, *digits, eps=EPS) == whole


def test_images_without_a_gradient_count_from_one_in_a_hundred(digits):
    """By the lower end of the interval: 5 of 200 (1.07 %) are, 4 (0.78 %) are not."""

    class FlatFor(nn.Module):
        """Linear, but constant for the first ``count`` images."""

        def __init__(self, count):
            super().__init__()
            self.count = count

        def forward(self, x):
            logits = x.flatten(1)[:, 20:30]
            flat = (torch.arange(len(x)) < self.count)[:, None]
            return torch.where(flat, logits.detach(), logits)

    x = digits[0].float() / 255
    y = FlatFor(0)(x).argmax(1)
    for count in (0, 4, 5):
        assert ("zero_gradient" in codes(examine(FlatFor(count), x, y, eps=EPS))) == (count == 5)


def test_there_must_be_images(honest, digits):
    x, y = digits
    with pytest.raises(MorelError, match="examine: 0 images and 0 labels"):
        examine(honest, x[:0], y[:0], eps=EPS)


# --- how attacks went: networks ------------------------------------------------------------------


def attacks(source: nn.Module, **more: PGD):
    pgd = PGD(eps=EPS, step_size=EPS / 8, num_steps=16, init="uniform")
    return {
        pgd.name: pgd,
        "square": AutoAttackPart(part="square", eps=EPS, queries=200),
        "transfer": Transfer(attack=pgd, source=source, source_name="twin"),
        **more,
    }


def test_attacks_on_an_honest_network_are_not_suspicious(honest, digits):
    more = {
        "pgd40": PGD(eps=EPS, step_size=EPS / 8, num_steps=40, init="uniform"),
        "pgd16x3": PGD(eps=EPS, step_size=EPS / 8, num_steps=16, init="uniform", restarts=3),
        "cw": PGD(eps=EPS, step_size=EPS / 8, num_steps=16, init="uniform", loss="cw"),
    }
    x, y = digits
    assert suspicious(evaluate(honest, x, y, attacks(honest, **more))) == []


@pytest.mark.parametrize("mask", [Saturated, Quantised])
def test_black_boxes_break_what_a_masked_network_hides(honest, digits, mask):
    result = evaluate(mask(honest), *digits, attacks(honest))
    findings = suspicious(result)
    assert {finding.code for finding in findings} == {"black_box_breaks_survivors"}
    assert "transfer breaks" in findings[-1].reason
    standing = result["pgd16_linf_0.1"].correct
    broken = int((standing & ~result["transfer"].correct).sum())
    assert findings[-1].evidence["broken_by_black_box_only"] == broken > 14


# --- how attacks went: outcomes ------------------------------------------------------------------

BALL = {"eps": EPS, "norm": "linf"}
N = 10_000


def pgd(num_steps=20, **parameters):
    attack = {
        "attack": "pgd", **BALL, "step_size": EPS / 8, "num_steps": num_steps, "loss": "ce",
        "init": "uniform", "init_scale": 0.001, "restarts": 1, "iterate": "last",
    }  # fmt: skip
    return attack | parameters


SQUARE = {"attack": "autoattack-part", "part": "square", **BALL}
APGD_T = {"attack": "autoattack-part", "part": "apgd-t", **BALL}
AUTOATTACK = {"attack": "autoattack", **BALL, "version": "standard"}


def right(*ranges):
    """(N,) bool: the images in these ranges are right."""
    correct = torch.zeros(N, dtype=torch.bool)
    for start, stop in ranges:
        correct[start:stop] = True
    return correct


def result_of(**outcomes) -> EvaluationResult:
    """``name=(attack, correct)`` or ``(attack, correct, stages)``; black boxes by their attack."""
    clean = Outcome(
        name="clean", attack={"attack": "none"}, norm=None, eps=0.0, white_box=False,
        correct=right((0, 9000)), seed=0, seconds=0.0,
    )  # fmt: skip
    made = {
        name: Outcome(
            name=name,
            attack=attack,
            norm="linf",
            eps=attack["eps"],
            white_box=attack.get("part") != "square" and attack["attack"] != "transfer",
            correct=correct,
            stages=dict(*stages),
            seed=0,
            seconds=0.0,
        )
        for name, (attack, correct, *stages) in outcomes.items()
    }
    return EvaluationResult(
        outcomes={"clean": clean} | made,
        split="test",
        indices=torch.arange(N),
        model_hash="",
        device="cpu",
        versions={},
    )


def test_the_gap_of_an_honest_mart_is_no_finding():
    """Seven points from PGD to AutoAttack; Square alone slightly below PGD on cross-entropy."""
    stages = {
        "apgd-ce": right((0, 5400)),
        "apgd-t": right((0, 4760)),
        "fab-t": right((0, 4755)),
        "square": right((0, 4750)),
    }
    result = result_of(
        pgd=(pgd(), right((0, 5450))),
        pgd100=(pgd(100), right((0, 5430))),
        square=(SQUARE, right((0, 4900), (5450, 5850))),
        autoattack=(AUTOATTACK, stages["square"], stages),
    )
    assert suspicious(result) == []
    without = {name: o for name, o in result.outcomes.items() if name != "autoattack"}
    assert suspicious(EvaluationResult(**vars(result) | {"outcomes": without})) == []


@pytest.mark.parametrize(("broken", "flagged"), [(750, False), (770, True)])
def test_after_cross_entropy_seven_points_are_honest(broken, flagged):
    """Above 7 % by the binomial test at 1 %: 760 of 10,000, 2.33 standard errors of 25.5 above."""
    result = result_of(
        pgd=(pgd(), right((0, 6000))), square=(SQUARE, right((broken, 6000), (6000, 8000)))
    )
    assert codes(suspicious(result)) == ({"black_box_breaks_survivors"} if flagged else set())


@pytest.mark.parametrize(("broken", "flagged"), [(28, False), (36, True)])
def test_after_a_targeted_attack_two_in_a_thousand_are_honest(broken, flagged):
    """As AutoAttack has it: 20 of 10,000, and chance up to 31 (1 % level)."""
    result = result_of(
        apgd=(APGD_T, right((0, 6000))), square=(SQUARE, right((broken, 6000), (6000, 8000)))
    )
    expected = {"black_box_breaks_survivors"} if flagged else set()
    assert codes(suspicious(result)) == expected
    stages = {"fab-t": right((0, 6000)), "square": right((broken, 6000))}
    ensemble = result_of(autoattack=(AUTOATTACK, stages["square"], stages))
    assert codes(suspicious(ensemble)) == expected


def test_square_before_other_attacks_says_nothing_of_them():
    """AutoAttack plus runs APGD-T after Square: what Square broke it never saw."""
    stages = {
        "apgd-ce": right((0, 6000)),
        "square": right((0, 3000)),
        "apgd-t": right((0, 2900)),
    }
    plus = AUTOATTACK | {"version": "plus"}
    assert suspicious(result_of(plus=(plus, stages["apgd-t"], stages))) == []


@pytest.mark.parametrize(("loss", "flagged"), [("cw", {"black_box_stronger"}), ("ce", set())])
def test_a_black_box_below_a_margin_attack_is_a_finding(loss, flagged):
    """300 images broken by Square alone and 100 by the other alone; cross-entropy may lose so."""
    outcomes = {
        "white": (pgd(loss=loss), right((0, 6000))),
        "square": (SQUARE, right((300, 6000), (6000, 6100))),
    }
    findings = suspicious(result_of(**outcomes))
    assert codes(findings) == flagged
    for finding in findings:
        assert "leaves 58.0% of the images right and white, which do, 60.0%" in finding.reason


def test_chance_makes_a_black_box_no_stronger():
    """As many images either way, but for two standard errors."""
    result = result_of(
        cw=(pgd(loss="cw"), right((0, 6000))), square=(SQUARE, right((220, 6000), (6000, 6180)))
    )
    assert suspicious(result) == []


def test_a_transferred_attack_counts_as_square_does():
    transfer = {"attack": "transfer", "source": "other", **BALL, "made_by": pgd()}
    result = result_of(pgd=(pgd(), right((0, 8000))), moved=(transfer, right((0, 4000))))
    assert codes(suspicious(result)) == {"black_box_breaks_survivors"}


@pytest.mark.parametrize(
    "white",
    [
        pgd(1, step_size=EPS, init="none"),  # FGSM: one step is no search
        pgd(4),  # half a radius of the ball
        pgd(eps=EPS / 2),  # another ball
    ],
)
def test_only_an_attack_that_could_have_is_held_against_the_network(white):
    result = result_of(white=(white, right((0, 9000))), square=(SQUARE, right((0, 4000))))
    assert suspicious(result) == []


@pytest.mark.parametrize("more", [{"num_steps": 100}, {"restarts": 5}])
@pytest.mark.parametrize(
    ("left", "flagged"), [(5910, False), (5890, True), (6090, False), (6110, True)]
)
def test_more_effort_may_change_pgd_within_its_interval(more, left, flagged):
    """60 % of 10,000: the 95 % interval is 59.0 to 61.0 %."""
    result = result_of(few=(pgd(), right((0, 6000))), many=(pgd() | more, right((0, left))))
    findings = suspicious(result)
    assert codes(findings) == ({"not_converged"} if flagged else set())
    for finding in findings:
        assert finding.evidence["accuracy_fewer"] == 0.6
        assert finding.evidence["accuracy_more"] == left / N


@pytest.mark.parametrize(
    "other",
    [
        pgd(100, step_size=EPS / 80),
        pgd(100, loss="cw"),
        pgd(100, iterate="worst"),
        pgd(100, restarts=5) | {"num_steps": 10},
    ],
)
def test_only_the_same_attack_with_more_effort_is_compared(other):
    result = result_of(few=(pgd(), right((0, 6000))), many=(other, right((0, 5000))))
    assert suspicious(result) == []


def test_a_recorded_evaluation_is_judged_alike():
    result = result_of(pgd=(pgd(), right((0, 8000))), square=(SQUARE, right((0, 4000))))
    assert suspicious(EvaluationResult.from_json(result.to_json())) == suspicious(result) != []
