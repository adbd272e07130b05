"""What a registered version says of its run, and whose it is to be the champion."""

import pytest

from morel_core.errors import MorelError
from orchestrator.compare import RunRecord
from orchestrator.taking_home.registration import _chosen, registration

ATTACK, WORST = "pgd20_linf_0.1", "verified.robust.worst_case"
HELD_OUT = {
    f"best.holdout.robust.{ATTACK}": 0.55,
    f"best.holdout.robust.{ATTACK}_low": 0.5,
    f"best.holdout.robust.{ATTACK}_high": 0.6,
    "best.holdout.clean": 0.95,
}
TEST = {f"test.robust.{ATTACK}": 0.52, "test.robust.square_linf_0.1": 0.5, "test.images": 360}
VERIFIED = {WORST: 0.4, "verified.images": 100}
PARAMS = {
    "data.name": "digits",
    "data.holdout": "300",
    "evaluation.num_images": "null",
    "evaluation.attack.eps": "0.1",
    "evaluation.attack.step_size": "0.02",
    "evaluation.attack.init": "gaussian",
    "evaluation.attack.init_scale": "0.001",
    "evaluation.seed": "0",
    "objective.accuracy": "trades",
    "model.name": "digits_cnn",
}
WON = {
    "morel.winner": "true",
    "morel.masking": "no evidence",
    "morel.verified.attacks": "apgd-ce_linf_0.1, square_linf_0.1",
    "morel.seed": "3",
    "morel.commit": "abc",
}


def run(run_id="hunt/t1", metrics=HELD_OUT, tags=WON, kind="trial", **keys):
    return RunRecord(
        run_id=run_id,
        mlflow_id=run_id,
        parent_mlflow_id=run_id.partition("/")[0] if kind == "trial" else None,
        name=run_id,
        kind=kind,
        search="hunt",
        status="FINISHED",
        started=0.0,
        ended=1.0,
        params=PARAMS,
        metrics=dict(metrics),
        tags=dict(tags),
        **keys,
    )


SEARCH = run("hunt", kind="search", dataset="0123456789abcdef")


def test_a_verified_winner_has_its_whole_record():
    made = registration(run(metrics=HELD_OUT | TEST | VERIFIED), [SEARCH], "robust")
    assert (made["champion"], made["score"]) == ("better", 0.4)
    assert made["protocol"] == (
        "apgd-ce_linf_0.1, square_linf_0.1; step_size 0.02; init gaussian; init_scale 0.001; first "
        "100 held-out images of digits 0123456789ab; seed 0"
    )
    tags = made["tags"]
    assert tags["attack"] == "square_linf_0.1"  # that which found most
    assert tags["robust_accuracy"] == "50.0 % of 360 test images"
    assert tags["verified"] == "yes: 40.0 % of 100 held-out images"
    assert tags["verified_robust_accuracy"] == "0.4"
    assert (tags["eps"], tags["seed"], tags["commit"]) == ("0.1", "3", "abc")
    assert made["description"].startswith("Robust accuracy 40.0 % (worst case")
    assert "morel reproduce hunt/t1" in made["description"]


def test_without_a_test_number_the_held_out_one_is_named_as_such():
    made = registration(run(), [SEARCH], "robust")
    assert made["tags"]["robust_accuracy"] == (
        "55.0 [50.0, 60.0] % of 300 held-out images, best epoch"
    )
    assert made["tags"]["verified"] == "no"
    assert made["score"] is None
    assert "verified_robust_accuracy" not in made["tags"]


@pytest.mark.parametrize(
    ("tags", "champion", "scored"),
    [
        ({**WON, "morel.winner": "false"}, "never", True),
        ({**WON, "morel.masking": "the gradient is zero"}, "better", False),
    ],
)
def test_nobody_else_can_be_the_champion(tags, champion, scored):
    made = registration(run(metrics=HELD_OUT | VERIFIED, tags=tags), [SEARCH], "robust")
    assert (made["champion"], made["score"] is not None) == (champion, scored)


def test_what_was_never_measured_is_refused():
    with pytest.raises(MorelError, match="hunt/t1 was never measured"):
        registration(run(metrics={}), [SEARCH], "robust")


def test_of_a_campaign_the_best_verified_winner_of_its_tuning():
    campaign = run("paper", kind="campaign")
    runs = [
        run(f"{name}/t", metrics=HELD_OUT | {WORST: value, "verified.images": 100})
        for name, value in (("a", 0.3), ("b", 0.5))
    ] + [
        run(name, kind="search", tags={"morel.campaign": "paper", "morel.winner_run": f"{name}/t"})
        for name in ("a", "b")
    ]
    assert _chosen(campaign, runs).run_id == "b/t"
    with pytest.raises(MorelError, match="none of its tuning searches has a verified winner"):
        _chosen(campaign, [])
