"""Accuracies with attack, interval and seed, and outcomes that depend on nothing else."""

import json

import pytest
import torch
from torch import nn

from morel_core import PGD, MorelError, evaluate
from morel_core.attacks.ball import project
from morel_core.evaluation import model_hash
from morel_core.seeding import generator
from morel_core.statistics import wilson_interval

WEAK = PGD(eps=0.02, step_size=0.01, num_steps=2, init="uniform")
STRONG = PGD(eps=0.2, step_size=0.05, num_steps=5, init="uniform")


class Shift:
    """Adds its noise's sign, times eps: an attack whose outcome shows which noise it was given."""

    name = "shift"
    norm = "linf"
    draws = 1
    white_box = False

    def __init__(self, eps=0.05, excess=0.0):
        self.eps = eps
        self.excess = excess
        self.seen = []

    def describe(self):
        return {"attack": "shift", "eps": self.eps}

    def __call__(self, net, x, y, *, noise=None, generator=None):
        self.seen.append((x.clone(), noise.clone(), net.training))
        moved = x + self.eps * noise.sign()
        return project(moved, x, self.eps, "linf") + self.excess


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(36), nn.Linear(36, 4)).double()


@pytest.fixture
def images():
    draws = torch.Generator().manual_seed(1)
    return torch.rand(50, 1, 6, 6, generator=draws, dtype=torch.float64)


@pytest.fixture
def labels(net, images):
    """Nine in ten as the network, in eval mode, would have them."""
    with torch.no_grad():
        right = net.eval()(images).argmax(1)
    net.train()
    return torch.where(torch.arange(50) % 10 == 3, (right + 1) % 4, right)


def test_robust_is_never_above_clean_and_stronger_is_never_better(net, images, labels):
    result = evaluate(net, images, labels, {"weak": WEAK, "strong": STRONG}, batch_size=16)
    assert list(result) == ["clean", "weak", "strong"]
    assert result["clean"].accuracy == 0.9
    assert result["strong"].accuracy < result["weak"].accuracy < 0.9
    for name in ("weak", "strong"):
        assert not (result[name].correct & ~result["clean"].correct).any()


def test_worst_case_is_right_under_every_attack(net, images, labels):
    result = evaluate(net, images, labels, {"weak": WEAK, "shift": Shift()}, batch_size=16)
    expected = result["clean"].correct & result["weak"].correct & result["shift"].correct
    assert torch.equal(result.worst_case(), expected)
    assert result.worst_case().sum() < result["shift"].correct.sum()


def test_record_holds_what_the_number_was_measured_with(net, images, labels):
    result = evaluate(net, images, labels, {"robust": WEAK}, batch_size=16, seed=5, split="holdout")
    outcome = result["robust"]
    assert outcome.correct.shape == (50,)
    assert outcome.correct.dtype == torch.bool
    assert outcome.interval == wilson_interval(int(outcome.correct.sum()), 50)

    record = json.loads(json.dumps(result.record()))
    assert (record["split"], record["device"]) == ("holdout", "cpu")
    assert record["format"] == 1
    assert record["versions"] == {"torch": torch.__version__}
    assert record["indices"] == [[0, 50]]
    assert record["model_hash"] == model_hash(net)
    robust = record["outcomes"]["robust"]
    assert robust.pop("seconds") >= 0
    assert robust == {
        "name": "robust",
        "accuracy": outcome.accuracy,
        "low": outcome.interval[0],
        "high": outcome.interval[1],
        "num_images": 50,
        "seed": 5,
        "norm": "linf",
        "eps": 0.02,
        "white_box": True,
        "attack": {
            "attack": "pgd", "eps": 0.02, "step_size": 0.01, "num_steps": 2, "norm": "linf",
            "loss": "ce", "init": "uniform", "init_scale": 0.001, "restarts": 1,
            "iterate": "last",
        },
    }  # fmt: skip
    assert record["outcomes"]["clean"]["attack"] == {"attack": "none"}


def test_json_adds_the_outcome_of_every_image(net, images, labels):
    result = evaluate(net, images, labels, {"robust": WEAK}, batch_size=16)
    document = json.loads(result.to_json())
    for name in ("clean", "robust"):
        bits = document["outcomes"][name]["correct"]
        assert [bit == "1" for bit in bits] == result[name].correct.tolist()
        assert bits.count("1") / 50 == document["outcomes"][name]["accuracy"]


def test_the_seed_decides(net, images, labels):
    def outcome(seed):
        attack = Shift(eps=0.1)
        result = evaluate(net, images, labels, {"shift": attack}, batch_size=16, seed=seed)
        return result["shift"].correct

    torch.manual_seed(123)
    first = outcome(1)
    torch.manual_seed(321)
    assert torch.equal(outcome(1), first)
    assert not torch.equal(outcome(2), first)


def test_each_chunk_has_noise_of_its_own(net, images, labels):
    attack = Shift()
    evaluate(net, images, labels, {"shift": attack}, batch_size=16, seed=3)
    clean = labels == net.eval()(images).argmax(1)
    assert len(attack.seen) == 4
    for chunk, (seen, noise, _) in enumerate(attack.seen):
        rows = slice(16 * chunk, 16 * chunk + 16)
        shape = images[rows].shape
        drawn = torch.randn(shape, generator=generator("cpu", 3, chunk))
        assert torch.equal(seen, images[rows][clean[rows]])
        assert torch.equal(noise, drawn[clean[rows]].double())


def test_leaving_out_wrong_images_changes_no_outcome(net, images, labels):
    attack = PGD(eps=0.03, step_size=0.01, num_steps=4, init="uniform")
    result = evaluate(net, images, labels, {"pgd": attack}, batch_size=20, seed=2)
    net.eval()
    outcomes = []
    for chunk, start in enumerate(range(0, 50, 20)):
        x, y = images[start : start + 20], labels[start : start + 20]
        noise = torch.randn(x.shape, generator=generator("cpu", 2, chunk)).double()
        x_adv = attack(net, x, y, noise=noise)  # all of them, the wrong ones too
        outcomes.append((net(x).argmax(1) == y) & (net(x_adv).argmax(1) == y))
    assert torch.equal(result["pgd"].correct, torch.cat(outcomes))
    assert 0 < result["pgd"].accuracy < 0.9


def test_uint8_images_count_as_255ths(net, images, labels):
    bytes_ = (images * 255).round().to(torch.uint8)
    net.float()
    from_bytes = evaluate(net, bytes_, labels, {"shift": Shift()}, batch_size=16)
    from_floats = evaluate(net, bytes_.float() / 255, labels, {"shift": Shift()}, batch_size=16)
    for name in from_bytes:
        assert torch.equal(from_bytes[name].correct, from_floats[name].correct)


def test_mode_and_statistics_are_left_as_they_were(net, images, labels):
    net[2].eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    attack = Shift()
    evaluate(net, images, labels, {"shift": attack}, batch_size=16)
    assert [net.training, net[1].training, net[2].training] == [True, True, False]
    assert not any(training for _, _, training in attack.seen)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_mode_is_restored_after_an_error(net, images, labels):
    with pytest.raises(MorelError):
        evaluate(net, images, labels, {"bad": Shift(excess=0.1)}, batch_size=16)
    assert all(module.training for module in net.modules())


@pytest.mark.parametrize("excess", [1e-3, float("nan")])
def test_an_attack_that_leaves_its_ball_has_no_number(net, images, labels, excess):
    with pytest.raises(MorelError, match=r"attack shift left its linf ball of 0\.05 or \[0, 1\]"):
        evaluate(net, images, labels, {"bad": Shift(excess=excess)}, batch_size=16)


def test_a_network_that_gets_nothing_right_is_not_attacked(net, images):
    with torch.no_grad():
        wrong = (net.eval()(images).argmax(1) + 1) % 4
    attack = Shift()
    result = evaluate(net, images, wrong, {"shift": attack}, batch_size=16)
    assert (result["clean"].accuracy, result["shift"].accuracy) == (0.0, 0.0)
    assert attack.seen == []


@pytest.mark.parametrize(("num_images", "num_labels"), [(0, 0), (3, 2)])
def test_images_and_labels_must_be_as_many_and_at_least_one(net, images, num_images, num_labels):
    with pytest.raises(MorelError, match=f"evaluate: {num_images} images and {num_labels} labels"):
        evaluate(net, images[:num_images], torch.zeros(num_labels, dtype=torch.int64), {})
