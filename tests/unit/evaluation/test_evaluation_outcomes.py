"""What an evaluation leaves behind, and what two of them say of each other."""

import dataclasses
import io
import json

import pytest
import torch
from pyarrow import parquet
from rich.console import Console
from torch import nn

from morel_core import PGD, MorelError
from morel_core.evaluation import Finding
from morel_core.statistics import paired_difference
from orchestrator.evaluate import Request, Status, evaluate_model
from orchestrator.evaluation.against import compare_targets
from orchestrator.evaluation.outcomes import warning_tags
from orchestrator.evaluation.targets import module_target
from orchestrator.evaluation.view import (
    EvaluationProgress,
    evaluation_table,
    print_done,
    progress_line,
)
from orchestrator.messages.wording import duration


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """An ensemble of two attacks, as AutoAttack is one of four."""

    eps: float
    norm: str = "linf"
    white_box: bool = True

    @property
    def members(self):
        step = {"eps": self.eps, "step_size": self.eps}
        return (PGD(num_steps=1, **step), PGD(num_steps=3, **step))

    def describe(self):
        return {"attack": "pair", "eps": self.eps}


def linear(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4)).eval()


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=160)


def text(console):
    return console.file.getvalue()


def test_parquet_holds_every_image_under_every_attack_and_stage(tiny_config):
    pair = Pair(eps=0.02)
    evaluation = evaluate_model(linear(0), tiny_config, {"pair": pair}, num_images=6, checks=False)
    stored = parquet.read_table(evaluation.files["parquet"])
    members = [f"pair/{member.name}" for member in pair.members]
    assert stored.column_names == ["image", "label", "clean", "pair", *members, "worst_case"]
    assert {str(stored.schema.field(name).type) for name in stored.column_names[2:]} == {"bool"}
    table = stored.to_pydict()
    assert table["pair"] == table[members[-1]] == evaluation.result["pair"].correct.tolist()
    assert table["worst_case"] == evaluation.result.worst_case().tolist()
    assert len(table["label"]) == 6
    assert json.loads(stored.schema.metadata[b"morel"]) == evaluation.record()


def test_the_name_of_the_files_stays_short(tiny_config):
    few = evaluate_model(linear(0), tiny_config, ["fgsm", "pgd2"], checks=False)
    assert few.stem.startswith("test-fgsm_linf_0.05-pgd2_linf_0.05-")
    many = [f"pgd{steps}" for steps in range(1, 9)]
    assert evaluate_model(linear(0), tiny_config, many, checks=False).stem.startswith(
        "test-8_attacks-"
    )
    seeds = {evaluate_model(linear(0), tiny_config, ["pgd2"], seed=s).stem for s in (0, 1)}
    assert len(seeds) == 2


def test_warnings_stay_on_the_run_and_are_not_repeated():
    square = Finding(code="square", reason="Square broke 3 images more", evidence={})
    flat = Finding(code="zero_gradients", reason="all are zero", evidence={})
    assert warning_tags("", []) == {}
    tag = warning_tags("", [square])["morel.warnings"]
    assert tag == "square: Square broke 3 images more"
    more = dataclasses.replace(square, reason="Square broke 5 images more")
    assert warning_tags(tag, [more, flat])["morel.warnings"].splitlines() == [
        "square: Square broke 5 images more", "zero_gradients: all are zero"
    ]  # fmt: skip
    assert warning_tags(tag, [])["morel.warnings"] == tag


# --- two networks --------------------------------------------------------------------------------


def test_a_comparison_is_paired_on_the_same_images(tiny_config, console):
    first, second = (module_target(f"net{seed}", linear(seed), tiny_config) for seed in (0, 1))
    done = compare_targets(first, second, Request(attacks=["pgd2"], checks=False))
    assert list(done.differences) == ["clean", "pgd2_linf_0.05"]
    one, two = done.first.result, done.second.result
    for name, found in done.differences.items():
        assert found == paired_difference(one[name].correct, two[name].correct)
        assert done.detectable[name] > 0
    record = json.loads(json.dumps(done.record()))
    assert record["first"]["target"] == "net0"
    entry = record["differences"]["clean"]
    difference = one["clean"].accuracy - two["clean"].accuracy
    assert entry["difference"] == pytest.approx(difference)
    assert {"low", "high", "p_value", "detectable_difference", "num_images"} <= entry.keys()
    print_done(console, done)
    shown = text(console)
    assert "net0 against net1" in shown
    assert "speaks of these two networks only" in shown
    assert "on the same 20 images" in shown


def test_the_second_is_measured_as_the_first_is(tiny_config):
    other = dataclasses.replace(tiny_config.evaluation, batch_size=5, seed=3)
    first = module_target("first", linear(0), tiny_config)
    second = module_target("second", linear(1), dataclasses.replace(tiny_config, evaluation=other))
    done = compare_targets(first, second, Request(attacks=["pgd2"], checks=False))
    assert done.second.result["pgd2_linf_0.05"].seed == tiny_config.evaluation.seed


def test_other_images_are_refused(tiny_config):
    fewer = dataclasses.replace(tiny_config, data=dataclasses.replace(tiny_config.data, holdout=29))
    first = module_target("first", linear(0), tiny_config)
    second = module_target("second", linear(1), fewer)
    compare_targets(first, second, Request(attacks=["pgd2"], checks=False))  # the test set is one
    with pytest.raises(MorelError, match="--against second: its holdout images are not those of"):
        compare_targets(first, second, Request(attacks=["pgd2"], split="holdout"))


# --- what is shown -------------------------------------------------------------------------------

HALF = Status(
    attack="pgd20_linf_8-255", done=500, total=1000, standing=250, restored=100, seconds=70,
    seconds_left=87.5,
)  # fmt: skip


def test_a_line_of_progress():
    assert progress_line(HALF) == (
        "pgd20_linf_8-255: 500/1000 images, 50.0 [45.6, 54.4] % stand, 100 of them measured "
        "before, 1 min 28 s left"
    )
    begun = dataclasses.replace(
        HALF, done=0, standing=0, restored=0, seconds=0.0, seconds_left=None
    )
    assert progress_line(begun) == "pgd20_linf_8-255: 0/1000 images"
    ended = dataclasses.replace(HALF, done=1000, restored=0, seconds=4020)
    assert progress_line(ended).endswith("% stand, 1 h 7 min")
    assert [duration(s) for s in (0.4, 59.4, 61, 3600)] == ["0 s", "59 s", "1 min 1 s", "1 h 0 min"]


def test_plain_lines_now_and_then_without_a_terminal(console, monkeypatch):
    clock = iter([0.0, 1.0, 5.0, 12.0, 13.0])
    monkeypatch.setattr("orchestrator.evaluation.view.time.monotonic", lambda: next(clock))
    with EvaluationProgress(console) as view:
        for done in (100, 200, 300, 1000):
            view.update(dataclasses.replace(HALF, done=done, standing=50))
    assert "\x1b" not in text(console)
    assert [line.split()[1] for line in text(console).splitlines()] == ["300/1000", "1000/1000"]


def test_one_line_is_redrawn_on_a_terminal():
    console = Console(file=io.StringIO(), width=160, force_terminal=True)
    with EvaluationProgress(console) as view:
        view.update(HALF)
        assert view.live.is_started
    assert not view.live.is_started
    assert "500/1000 images" in text(console)


def test_the_table_shows_stages_and_the_worst_case(tiny_config, console):
    attacks = {"pair": Pair(eps=0.05), "weak": Pair(eps=0.01)}
    evaluation = evaluate_model(linear(0), tiny_config, attacks, num_images=5, checks=False)
    console.print(evaluation_table(evaluation.result))
    shown = text(console)
    assert "… after pgd3_linf_0.05" in shown
    assert "worst of 2, linf 0.05" in shown
    low, high = evaluation.result["clean"].interval
    assert f"[{100 * low:.1f}, {100 * high:.1f}]" in shown


def test_warnings_are_shown_with_their_reason(tiny_config, console):
    evaluation = evaluate_model(linear(0), tiny_config, ["fgsm"], num_images=5, checks=False)
    found = Finding(code="square", reason="Square broke [3] images more", evidence={"images": 3.0})
    print_done(console, dataclasses.replace(evaluation, findings=[found]))
    assert "warning (square): Square broke [3] images more" in text(console)
    assert dataclasses.replace(evaluation, findings=[found]).record()["warnings"] == [
        {"code": "square", "reason": "Square broke [3] images more", "evidence": {"images": 3.0}}
    ]
    assert evaluation.record()["warnings"] is None  # nobody has looked


def test_a_masked_network_is_flagged_and_an_honest_one_is_not(tiny_config):
    honest = linear(0)
    masked = nn.Sequential(honest, Scale(1e5))
    codes = [
        {found.code for found in evaluate_model(net, tiny_config, ["pgd2"]).findings or ()}
        for net in (honest, masked)
    ]
    assert codes[0] == set()
    assert "extreme_logits" in codes[1]


class Scale(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, logits):
        return logits * self.factor
