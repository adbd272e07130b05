"""Chunks can be measured anywhere, in any order; restarts and ensembles; the record reads back."""

import hashlib
import json
import struct

import pytest
import torch
from torch import nn

from morel_core import PGD, EvaluationResult, MorelError, evaluate
from morel_core.attacks import AutoAttack
from morel_core.attacks.ball import project
from morel_core.evaluation import measure, measure_chunk, model_hash, outcome_of
from morel_core.evaluation.provenance import from_ranges, package_versions, to_ranges
from morel_core.seeding import generator


class Push:
    """Adds eps times the sign of its last draw: the outcome shows which noise it was given."""

    norm = "linf"
    white_box = False

    def __init__(self, eps=0.1, draws=1, name="push", excess=0.0):
        self.eps, self.draws, self.name, self.excess = eps, draws, name, excess
        self.seen = []

    def describe(self):
        return {"attack": "push", "draws": self.draws}

    def __call__(self, net, x, y, *, noise=None, generator=None):
        self.seen.append((x.clone(), None if noise is None else noise.clone()))
        if noise is None:
            return x.clone()
        moved = x + self.eps * (noise if self.draws == 1 else noise[-1]).sign()
        return project(moved, x, self.eps, "linf") + self.excess


class Team:
    """Several pushes, one after the other."""

    eps, norm, name, draws, white_box = 0.2, "linf", "team", 0, True

    def __init__(self, *members):
        self.members = members

    def describe(self):
        return {"attack": "team"}

    def __call__(self, net, x, y, *, noise=None, generator=None):
        raise AssertionError("its members are called instead")


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(36), nn.Linear(36, 4)).double()


@pytest.fixture
def images():
    return torch.rand(50, 1, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture
def labels(net, images):
    """Nine in ten as the network, in eval mode, would have them."""
    with torch.no_grad():
        right = net.eval()(images).argmax(1)
    net.train()
    return torch.where(torch.arange(50) % 10 == 3, (right + 1) % 4, right)


# --- chunks --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "attack",
    [
        None,
        Push(),
        PGD(eps=0.03, step_size=0.01, num_steps=4, init="uniform"),
        PGD(eps=0.03, step_size=0.01, num_steps=2, init="uniform", restarts=3, iterate="worst"),
        Team(Push(0.02, name="a"), Push(0.05, name="b")),
    ],
    ids=lambda attack: "clean" if attack is None else attack.name,
)
def test_chunks_in_any_order_are_the_evaluation(net, images, labels, attack):
    """Each measured with nothing known of the others, the last first."""
    whole = evaluate(
        net, images, labels, {} if attack is None else {"it": attack}, batch_size=16, seed=7
    )
    chunks = {}
    for chunk in (3, 0, 2, 1):
        torch.manual_seed(chunk)  # nobody's numbers depend on it
        rows = slice(16 * chunk, 16 * chunk + 16)
        chunks[chunk] = measure_chunk(net, images[rows], labels[rows], attack, seed=7, chunk=chunk)
    expected = whole["clean" if attack is None else "it"]
    joined = outcome_of(expected.name, attack, [chunks[chunk] for chunk in range(4)], 7)
    assert torch.equal(joined.correct, expected.correct)
    assert joined.stages.keys() == expected.stages.keys()
    for name, stage in joined.stages.items():
        assert torch.equal(stage, expected.stages[name])
    assert joined.record().keys() == expected.record().keys()
    assert 0 < joined.accuracy < 1
    assert joined.correct.device.type == "cpu"


def test_ranks_measure_every_chunk_once(net, images, labels, monkeypatch):
    """What three ranks measure adds up to the whole; the last has no chunk at all."""
    team = Team(Push(0.02, name="a"), Push(0.2, name="b"))
    whole = evaluate(net, images, labels, {"team": team}, batch_size=25)["team"]
    clean = labels == net.eval()(images).argmax(1)
    parts = []
    for rank in range(3):
        monkeypatch.setattr(measure, "world_size", lambda: 3)
        monkeypatch.setattr(measure, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(
            measure, "sum_over_ranks", lambda table: clean[None] if len(table) == 1 else table
        )
        parts.append(evaluate(net, images, labels, {"team": team}, batch_size=25)["team"])
    assert [int(part.correct.sum()) > 0 for part in parts] == [True, True, False]
    assert torch.equal(sum(part.correct.int() for part in parts), whole.correct.int())
    for name, stage in whole.stages.items():
        assert torch.equal(sum(part.stages[name].int() for part in parts), stage.int())


def test_clean_outcomes_may_be_handed_over(net, images, labels):
    attack = Push()
    net.eval()
    clean = torch.arange(16) % 2 == 0
    outcome = measure_chunk(net, images[:16], labels[:16], attack, seed=0, chunk=0, clean=clean)
    assert torch.equal(attack.seen[0][0], images[:16][clean])
    assert not outcome.correct[~clean].any()
    assert clean.sum() == 8  # what was handed over is as it was


def test_a_chunk_is_measured_in_eval_mode_and_full_precision(net, images, labels):
    net.float()

    class Spy(nn.Module):
        def forward(self, x):
            modes.append((self.training, torch.is_autocast_enabled("cpu")))
            return x

    modes = []
    net.append(Spy())
    with torch.autocast("cpu", torch.bfloat16):
        measure_chunk(net, images[:9].float(), labels[:9], Push(), seed=0, chunk=0)
    assert modes == [(False, False)] * 2
    assert net.training


def test_pgd_measures_convolutions_channels_last_and_says_the_same():
    torch.manual_seed(0)
    seen = []

    class Spy(nn.Module):
        def forward(self, x):
            seen.append(x.is_contiguous(memory_format=torch.channels_last))
            return x

    convolutions = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten()]
    net = nn.Sequential(Spy(), *convolutions, nn.Linear(64, 4)).double()
    x = torch.rand(20, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        y = net(x).argmax(1)
    attack = PGD(eps=0.02, step_size=0.01, num_steps=5, init="none")
    seen.clear()
    measured = measure_chunk(net, x, y, attack, seed=0, chunk=0)
    assert not seen[0]
    assert all(seen[1:])
    plain = net(attack(net, x, y)).argmax(1) == y
    assert 0 < plain.sum() < 20
    assert torch.equal(measured.correct, plain)


def test_a_network_that_views_its_images_is_measured_as_they_come():
    class Views(nn.Module):
        def forward(self, x):
            return x.view(len(x), -1)[:, :5]

    x = torch.rand(4, 3, 8, 8)
    assert measure.evaluation_layout(Views(), x) is x
    attack = PGD(eps=0.1, step_size=0.05, num_steps=1, init="none")
    y = Views()(x).argmax(1)
    assert len(measure_chunk(Views(), x, y, attack, seed=0, chunk=0).correct) == 4


# --- noise ---------------------------------------------------------------------------------------


def test_every_restart_has_noise_of_its_own_and_the_first_that_of_one(net, images, labels):
    one, three = Push(), Push(draws=3, name="three")
    evaluate(net, images, labels, {"one": one, "three": three}, batch_size=16, seed=3)
    for (x, single), (same, noise) in zip(one.seen, three.seen, strict=True):
        assert torch.equal(x, same)
        assert noise.shape == (3, *x.shape)
        assert noise.dtype == x.dtype
        assert torch.equal(noise[0], single)
        assert not torch.equal(noise[1], noise[0])
        assert not torch.equal(noise[2], noise[1])


def test_the_noise_of_an_image_follows_from_seed_chunk_restart_and_row(net, images, labels):
    attack = Push(draws=2)
    rows = torch.tensor([1, 4, 5])
    clean = torch.zeros(16, dtype=torch.bool)
    clean[rows] = True
    measure_chunk(net, images[:16], labels[:16], attack, seed=5, chunk=9, clean=clean)
    (_, noise), *_ = attack.seen
    for restart, parts in enumerate([(5, 9), (5, 9, 1)]):
        drawn = torch.randn(images[:16].shape, generator=generator("cpu", *parts))
        assert torch.equal(noise[restart], drawn[rows].double())


def test_an_attack_without_draws_gets_no_noise(net, images, labels):
    attack = Push(draws=0)
    evaluate(net, images, labels, {"none": attack}, batch_size=16)
    assert all(noise is None for _, noise in attack.seen)


# --- ensembles -----------------------------------------------------------------------------------


def test_members_attack_what_is_left(net, images, labels):
    members = Push(0.05, name="a"), Push(0.1, name="b"), Push(0.2, name="c")
    result = evaluate(net, images, labels, {"team": Team(*members)}, batch_size=50)
    stages = result["team"].stages
    assert list(stages) == ["a", "b", "c"]
    standing = result["clean"].correct
    for member, after in zip(members, stages.values(), strict=True):
        assert torch.equal(member.seen[0][0], images[standing])
        assert not (after & ~standing).any()
        standing = after
    assert torch.equal(result["team"].correct, standing)
    counts = [int(stage.sum()) for stage in stages.values()]
    assert 45 > counts[0] > counts[1] > counts[2]


def test_nothing_left_ends_the_ensemble(net, images):
    with torch.no_grad():
        wrong = (net.eval()(images).argmax(1) + 1) % 4
    member = Push()
    result = evaluate(net, images, wrong, {"team": Team(member, Push(name="b"))}, batch_size=16)
    assert member.seen == []
    assert not torch.cat(list(result["team"].stages.values())).any()


def test_a_member_that_leaves_its_ball_is_named(net, images, labels):
    team = Team(Push(), Push(name="liar", excess=0.1))
    with pytest.raises(MorelError, match="attack liar left its linf ball"):
        evaluate(net, images, labels, {"team": team}, batch_size=16)


# --- the record ----------------------------------------------------------------------------------


@pytest.fixture
def result(net, images, labels):
    attacks = {
        "small": Push(0.02),
        "pgd": PGD(eps=0.1, step_size=0.02, num_steps=3),
        "team": Team(Push(0.02, name="a"), Push(0.2, name="b")),
        "far": PGD(eps=0.8, step_size=0.5, num_steps=2, norm="l2"),
    }
    return evaluate(
        net, images, labels, attacks, batch_size=16, seed=2, split="holdout",
        indices=torch.tensor([*range(10, 40), 3, *range(60, 79)]),
    )  # fmt: skip


def test_the_record_reads_back_as_it_was(result):
    text = result.to_json()
    back = EvaluationResult.from_json(text)
    assert back.to_json() == text
    assert list(back) == list(result)
    for name, outcome in result.items():
        assert torch.equal(back[name].correct, outcome.correct)
        assert back[name].stages.keys() == outcome.stages.keys()
        for stage, correct in outcome.stages.items():
            assert torch.equal(back[name].stages[stage], correct)
    assert torch.equal(back.indices, result.indices)
    assert torch.equal(back.worst_case(), result.worst_case())


def test_the_record_names_the_images(result):
    assert result.record()["indices"] == [[10, 40], [3, 4], [60, 79]]


def test_the_worst_case_is_counted_in_each_ball(result):
    """Of a ball are the attacks in it and in smaller ones of its norm, and the clean images."""
    cases = {(case["norm"], case["eps"]): case for case in result.record()["worst_case"]}
    assert {ball: case["attacks"] for ball, case in cases.items()} == {
        ("linf", 0.02): ["small"],
        ("linf", 0.1): ["small", "pgd"],
        ("linf", 0.2): ["small", "pgd", "team"],
        ("l2", 0.8): ["far"],
    }
    expected = result["clean"].correct & result["small"].correct & result["pgd"].correct
    case = cases["linf", 0.1]
    assert case["accuracy"] == expected.double().mean().item()
    assert case["low"] < case["accuracy"] < case["high"]
    assert case["num_images"] == 50


def test_stages_are_recorded_with_their_intervals(result):
    document = json.loads(result.to_json())["outcomes"]["team"]
    assert list(document["stages"]) == ["a", "b"]
    for name, stage in document["stages"].items():
        assert stage["accuracy"] == result["team"].stages[name].double().mean().item()
        assert stage["correct"].count("1") == round(50 * stage["accuracy"])
    assert "stages" not in json.loads(result.to_json())["outcomes"]["pgd"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not the record of an evaluation"),
        ("[]", "not the record of an evaluation"),
        ('{"split": "test"}', "not the record of an evaluation"),
        ('{"format": 7}', "evaluation of format 7: this version reads 1"),
    ],
)
def test_what_is_no_record_is_refused(text, said):
    with pytest.raises(MorelError, match=said):
        EvaluationResult.from_json(text)


@pytest.mark.parametrize("indices", [[], [4], [0, 1, 2], [2, 1, 0], [7, 8, 3, 4, 5, 5]])
def test_ranges_and_back(indices):
    assert from_ranges(to_ranges(indices)).tolist() == indices


def test_pyautoattack_is_named_where_it_was_used():
    attack = AutoAttack(eps=0.1).describe()
    assert list(package_versions([{"attack": "pgd"}])) == ["torch"]
    assert list(package_versions([{"attack": "pgd"}, attack])) == ["torch", "pyautoattack"]
    inside = {"attack": "transfer", "made_by": attack}
    assert list(package_versions([inside])) == ["torch", "pyautoattack"]


# --- the network's hash --------------------------------------------------------------------------


def test_the_hash_is_of_names_types_shapes_and_bytes():
    net = nn.BatchNorm1d(2).float()
    expected = hashlib.sha256()
    for name, kind, shape, content in (  # by name
        ("bias", "torch.float32", "(2,)", struct.pack("<2f", 0, 0)),
        ("num_batches_tracked", "torch.int64", "()", struct.pack("<q", 0)),
        ("running_mean", "torch.float32", "(2,)", struct.pack("<2f", 0, 0)),
        ("running_var", "torch.float32", "(2,)", struct.pack("<2f", 1, 1)),
        ("weight", "torch.float32", "(2,)", struct.pack("<2f", 1, 1)),
    ):
        expected.update(f"{name} {kind} {shape}\n".encode() + content)
    assert model_hash(net) == expected.hexdigest()


def test_the_hash_sees_every_parameter_buffer_name_shape_and_type():
    def changed(change):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
        with torch.no_grad():
            net = change(net) or net
        return model_hash(net)

    hashes = [
        changed(lambda net: None),
        changed(lambda net: net[0].weight[2, 1].add_(1e-7).data and None),
        changed(lambda net: net[1].running_mean[0].add_(1e-7).data and None),
        changed(lambda net: net.double()),
        changed(lambda net: nn.Sequential(nn.Identity(), *net)),
        changed(lambda net: setattr(net[0], "weight", nn.Parameter(net[0].weight.view(2, 6)))),
    ]
    assert len(set(hashes)) == len(hashes)
    assert changed(lambda net: net.eval()) == hashes[0]


def test_the_hash_does_not_depend_on_memory_layout():
    net = nn.Conv2d(3, 4, 3)
    before = model_hash(net)
    assert model_hash(net.to(memory_format=torch.channels_last)) == before


def test_the_hash_reads_half_precision():
    net = nn.Linear(3, 2)
    assert model_hash(net.bfloat16()) != model_hash(nn.Linear(3, 2))
