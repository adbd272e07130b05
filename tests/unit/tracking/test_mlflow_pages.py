"""What MLflow's own pages show of our runs: notes, links, saved views, what a trial carries."""

import base64
import json
import zlib

import pytest

from orchestrator import notes
from orchestrator.tracking import all_tags, own_tags
from orchestrator.tracking.note import END, LONGEST, linked, merged
from orchestrator.tracking.saved_view import AXES, PREFIX, saved_view

ATTACK = "pgd20_linf_0.1"


def accuracy(key, value, images=None):
    split = key.partition(".robust")[0].removesuffix(".clean")
    found = {key: value, f"{key}_low": value - 0.1, f"{key}_high": value + 0.1}
    return found | ({f"{split}.images": images} if images else {})


HELD_OUT = accuracy(f"best.holdout.robust.{ATTACK}", 0.5, 300) | accuracy(
    "best.holdout.clean", 0.75
)
VERIFIED = (
    accuracy("verified.robust.apgd-ce_linf_0.1", 0.45, 100)
    | accuracy("verified.robust.worst_case", 0.4)
    | accuracy("verified.clean", 0.8)
)
TEST = accuracy(f"test.robust.{ATTACK}", 0.55, 360) | accuracy("test.robust.square", 0.52)


# --- the text -------------------------------------------------------------------------------------


def test_search_numbers_are_not_called_verified():
    assert notes.headline(HELD_OUT) == (
        f"Robust accuracy 50.0 [40.0, 60.0] % ({ATTACK}, 300 held-out images, best epoch), "
        "clean 75.0 [65.0, 85.0] %; not verified."
    )
    assert notes.headline({}) == "Nothing was measured."


def test_the_verified_worst_case_comes_first():
    assert notes.headline(HELD_OUT | TEST | VERIFIED) == (
        "Robust accuracy 40.0 [30.0, 50.0] % (worst case of these attacks, 100 held-out images, "
        "verified), clean 80.0 [70.0, 90.0] %; verified."
    )


def test_of_several_attacks_the_strongest_is_quoted():
    assert notes.headline(HELD_OUT | TEST).startswith("Robust accuracy 52.0 [42.0, 62.0] % (square")


def test_a_larger_ball_is_not_the_one_that_counts():
    swept = {"test.robust.pgd20_linf_0.2": 0.1, "test.robust.pgd50_linf_0.1": 0.51}
    assert notes.headline(HELD_OUT | swept).startswith("Robust accuracy 51.0 % (pgd50_linf_0.1, ")


def test_the_table_has_each_number_with_interval_attack_and_count():
    text = notes.accuracy_table(HELD_OUT | VERIFIED).replace(notes.GAP, "").replace("\xa0", " ")
    assert (
        "| robust | 45.0 [35.0, 55.0] | apgd-ce_linf_0.1, 100 held-out images, verified |" in text
    )
    assert "| clean | 75.0 [65.0, 85.0] | 300 held-out images, best epoch |" in text
    assert len(text.splitlines()) == 2 + 5


def test_text_of_users_marks_nothing():
    assert notes.cell("a|b\n*c* `d` <e>") == "a\\|b \\*c\\* \\`d\\` \\<e>"
    assert notes.link("point [1] x", "run:s/t") == "[point (1) x](run:s/t)"


def test_links_lead_to_pages_and_fall_back_to_text():
    pages = {("run", "s/t1"): "#/runs/1", ("view", "s"): "#/view"}
    text = "[one](run:s/t1), [two](run:s/t2), [all](view:s), [web](https://example.org)"
    assert linked(text, lambda kind, name: pages.get((kind, name))) == (
        "[one](#/runs/1), two, [all](#/view), [web](https://example.org)"
    )


# --- what a person wrote stays --------------------------------------------------------------------


def test_what_a_person_wrote_is_kept_and_ours_is_replaced():
    first = merged("ours", "mine, written while it ran")
    assert first == f"ours\n\n{END}\n\nmine, written while it ran"
    assert merged("newer", first) == f"newer\n\n{END}\n\nmine, written while it ran"
    assert merged("newer", merged("ours", None)) == f"newer\n\n{END}"


def test_a_long_note_is_cut_never_the_persons():
    mine = "m" * 3_000
    whole = merged("o" * 9_000, mine)
    assert len(whole) <= LONGEST
    assert whole.endswith(mine)
    assert "…" in whole


# --- saved views ----------------------------------------------------------------------------------


def view(params):
    return {
        "params": params,
        "clean": "best.holdout.clean",
        "robust": f"best.holdout.robust.{ATTACK}",
        "more": ["verified.robust.worst_case"],
        "curves": [f"holdout.robust.{ATTACK}"],
        "tags": ["morel.stop_reason"],
    }


def test_a_view_holds_the_trials_of_its_search_in_mlflows_form():
    params = [f"objective.p{i}" for i in range(9)]
    key, value = saved_view("hunt", view(params), "abc", 1_000)
    assert key == f"{PREFIX}hunt"
    envelope = json.loads(value)
    assert (envelope["name"], envelope["createdAt"]) == ("hunt", 1_000)
    packed = envelope["state"].removeprefix("deflate;")
    state = json.loads(zlib.decompress(base64.b64decode(packed)))
    assert state["searchFilter"] == "tags.mlflow.parentRunId = 'abc'"
    assert state["orderByKey"] == f"metrics.`best.holdout.robust.{ATTACK}`"
    assert {f"params.`{name}`" for name in params} <= set(state["selectedColumns"])
    assert set(state["columnWidths"]) <= set(state["columnOrder"])
    parallel, scatter, line = state["compareRunCharts"]
    assert parallel["selectedParams"] == params[:AXES]
    assert scatter["yaxis"]["key"] == f"best.holdout.robust.{ATTACK}"
    assert line["selectedMetricKeys"] == [f"holdout.robust.{ATTACK}"]
    sections = {section["uuid"] for section in state["compareRunSections"]}
    assert {chart["metricSectionId"] for chart in state["compareRunCharts"]} < sections


def test_a_view_that_mlflow_could_not_hold_is_refused():
    names = [f"section.{i * 7919 % 10_007:x}{i * 104_729 % 99_991:x}" for i in range(600)]
    with pytest.raises(ValueError, match="too long for MLflow"):
        saved_view("hunt", view(names), "abc", 1_000)


# --- what a trial carries -------------------------------------------------------------------------


def test_versions_are_recorded_once_unless_they_differ():
    shared = {"morel.version.torch": "2.14", "morel.python": "3.12", "morel.commit": "a"}
    same = {**shared, "morel.seed": "1"}
    assert own_tags(same, shared) == {"morel.commit": "a", "morel.seed": "1"}
    assert all_tags(own_tags(same, shared), shared) == same
    newer = {**same, "morel.version.torch": "2.15"}
    assert own_tags(newer, shared)["morel.version.torch"] == "2.15"
    assert all_tags(own_tags(newer, shared), shared) == newer
