"""Shards: kept by what they measured, measured once, put together as `evaluate` would."""

import dataclasses
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from morel_core import PGD, MorelError, evaluate
from morel_core.attacks import Transfer
from morel_core.data import load_data
from morel_core.evaluation import ChunkOutcome, model_hash
from orchestrator import storage
from orchestrator.evaluate import Unseen, evaluate_model
from orchestrator.evaluation.runners import Measurer
from orchestrator.evaluation.shards import Shard, ShardStore, Work

WEAK = PGD(eps=0.05, step_size=0.02, num_steps=2, init="uniform")
ATTACKS = {"weak": WEAK, "strong": dataclasses.replace(WEAK, num_steps=5)}


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 4))


@pytest.fixture
def data(tiny_config):
    return load_data(tiny_config.data)


@pytest.fixture
def work(net, data, tiny_config):
    return Work(
        net=net,
        attacks=ATTACKS,
        data=tiny_config.data,
        split="test",
        images=data.test.digest().hex(),
        num_images=20,
        chunk_size=8,
        seed=0,
        device="cpu",
        model=model_hash(net),
    )


@dataclass(frozen=True, kw_only=True)
class Counting(PGD):
    """PGD that leaves a line in a file for each call."""

    log: str = ""

    @property
    def name(self) -> str:
        return f"counting_{super().name}"

    def describe(self):
        return {**super().describe(), "log": ""}

    def __call__(self, net, x, y, *, noise=None, generator=None):
        with Path(self.log).open("a") as file:
            file.write(f"{len(x)}\n")
        return super().__call__(net, x, y, noise=noise, generator=generator)


class Interrupted(Exception):
    pass


class Breaks(Unseen):
    """A view that ends the command after some shards, as a kill would."""

    def __init__(self, after):
        self.left = after

    def update(self, status):
        if status.attack != "clean" and status.done > status.restored:
            self.left -= 1
            if self.left < 0:
                raise Interrupted


def test_put_together_they_are_what_evaluate_measures(net, data, tiny_config):
    result = evaluate_model(net, tiny_config, ATTACKS, checks=False).result
    images = data.test.fetch(torch.arange(20))
    expected = evaluate(net, images, data.test.labels, ATTACKS, batch_size=8)
    assert list(result) == list(expected)
    for name in expected:
        assert torch.equal(result[name].correct, expected[name].correct), name
    same = ("split", "indices", "model_hash", "device", "versions", "worst_case")
    record, wanted = result.record(), expected.record()
    assert [record[key] for key in same] == [wanted[key] for key in same]


def test_a_killed_evaluation_measures_only_what_is_missing(net, tiny_config, tmp_path):
    log = tmp_path / "calls"
    attacks = {"counting": Counting(eps=0.05, step_size=0.02, num_steps=2, log=str(log))}
    with pytest.raises(Interrupted):
        evaluate_model(net, tiny_config, attacks, view=Breaks(1), checks=False)
    assert len(log.read_text().splitlines()) == 2  # the second shard was stored, then it ended
    whole = evaluate_model(net, tiny_config, attacks, checks=False)
    assert len(log.read_text().splitlines()) == 3
    again = evaluate_model(net, tiny_config, attacks, checks=False)
    assert len(log.read_text().splitlines()) == 3
    assert whole.record() == again.record()


def test_more_images_cost_only_those(net, tiny_config, tmp_path):
    log = tmp_path / "calls"
    attacks = {"counting": Counting(eps=0.05, step_size=0.02, num_steps=2, log=str(log))}
    evaluate_model(net, tiny_config, attacks, num_images=16, checks=False)
    evaluate_model(net, tiny_config, attacks, checks=False)
    assert len(log.read_text().splitlines()) == 3


@pytest.mark.parametrize(
    "change",
    [
        {"model": "another"},
        {"images": "another"},
        {"seed": 1},
        {"chunk_size": 10},
        {"split": "holdout"},
        {"device": "cuda"},
        {"attacks": {"weak": dataclasses.replace(WEAK, step_size=0.01)}},
    ],
)
def test_what_decides_an_outcome_is_in_its_key(work, change):
    shard = Shard("weak", 1)
    assert ShardStore("", work).key(shard) == ShardStore("", dataclasses.replace(work)).key(shard)
    other = dataclasses.replace(work, **change)
    assert ShardStore("", work).key(shard) != ShardStore("", other).key(shard)


def test_another_version_of_torch_measures_again(work, monkeypatch):
    shard = Shard("weak", 0)
    before = ShardStore("", work).key(shard)
    monkeypatch.setattr(torch, "__version__", "9.9")
    assert ShardStore("", work).key(shard) != before


def test_a_source_of_transfer_is_known_by_its_weights(work):
    keys = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        source = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
        attack = Transfer(attack=WEAK, source=source, source_name="same")
        store = ShardStore("", dataclasses.replace(work, attacks={"transfer": attack}))
        keys.append(store.key(Shard("transfer", 0)))
    assert keys[0] == keys[1] != keys[2]


def test_a_short_last_chunk_of_a_part_is_another_shard(work):
    part = dataclasses.replace(work, num_images=18)
    assert [len(work.indices(chunk)) for chunk in range(work.num_chunks)] == [8, 8, 4]
    assert part.indices(2).tolist() == [16, 17]
    for chunk, same in ((0, True), (1, True), (2, False)):
        keys = {ShardStore("", each).key(Shard("weak", chunk)) for each in (work, part)}
        assert (len(keys) == 1) == same


def test_what_is_stored_comes_back(work, tmp_path):
    store, shard = ShardStore(str(tmp_path), work), Shard("weak", 2)
    assert store.load(shard) is None
    outcome = ChunkOutcome(
        correct=torch.tensor([True, False, True, True]),
        seconds=1.5,
        stages={"first": torch.tensor([True, True, True, True])},
    )
    store.save(shard, outcome)
    loaded = store.load(shard)
    assert loaded is not None
    assert torch.equal(loaded.correct, outcome.correct)
    assert torch.equal(loaded.stages["first"], outcome.stages["first"])
    assert loaded.seconds == 1.5


@pytest.mark.parametrize("damage", ["", "{", "[]", "null", '{"key": 1}', "bits", "short", "key"])
def test_a_damaged_file_is_as_none(work, tmp_path, damage):
    store, shard = ShardStore(str(tmp_path), work), Shard("weak", 0)
    outcome = ChunkOutcome(correct=torch.ones(8, dtype=torch.bool), seconds=1.0, stages={})
    store.save(shard, outcome)
    path = Path(store.path(shard))
    content = json.loads(path.read_text())
    changed = {"bits": {"correct": "1111x111"}, "short": {"correct": "111"}, "key": {"key": "0"}}
    path.write_text(json.dumps(content | changed[damage]) if damage in changed else damage)
    assert store.load(shard) is None
    store.save(shard, outcome)
    assert store.load(shard) is not None


def test_a_torn_write_is_not_seen(tmp_path, monkeypatch):
    path = str(tmp_path / "deep" / "file")
    storage.write(path, b"old")

    def torn(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr(storage.os, "fsync", torn)
    with pytest.raises(OSError, match="disk full"):
        storage.write(path, b"new")
    assert storage.read_text(path) == "old"


def test_a_node_with_other_images_is_refused(work):
    with pytest.raises(MorelError, match="this node's images are not the driver's"):
        Measurer(dataclasses.replace(work, images="0" * 64))


def test_progress_adds_up(net, tiny_config):
    seen = []

    class Watching(Unseen):
        def update(self, status):
            seen.append(status)

    result = evaluate_model(net, tiny_config, ATTACKS, view=Watching(), checks=False).result
    assert Counter(status.attack for status in seen) == {"clean": 4, "weak": 4, "strong": 4}
    weak = [status for status in seen if status.attack == "weak"]
    assert [status.done for status in weak] == [0, 8, 16, 20]
    assert weak[-1].standing == int(result["weak"].correct.sum())
    assert weak[0].seconds_left is None
    assert weak[1].seconds_left == pytest.approx(weak[1].seconds / 8 * 12)
