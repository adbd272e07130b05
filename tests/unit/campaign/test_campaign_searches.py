"""`morel status` and `morel stop` on a campaign: its searches, and who may be asked what."""

import json

import pytest

from orchestrator import cli
from orchestrator.campaign import run
from orchestrator.driver import control, lease
from orchestrator.search import status

TUNED = {
    "name": "mine-plain",
    "state": "finished",
    "updated": 0.0,
    "total_trials": 2,
    "counts": {"finished": 2},
}
AT_WORK = TUNED | {"name": "mine-morel", "state": "training", "counts": {"running": 1}}


@pytest.fixture
def campaign(load):
    """Of two methods; one is tuned, the other's search is at work or was cut off."""
    campaign = load()
    storage = campaign.base.storage_path
    run.register(campaign, f"{storage}/mine")
    for search in (TUNED, AT_WORK):
        status.write(f"{storage}/{search['name']}", search)
    return campaign


@pytest.fixture
def morel(campaign, capsys):
    def run(*arguments):
        code = cli.main([*arguments, f"storage_path={campaign.base.storage_path}"])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


@pytest.fixture
def driver(campaign):
    with lease.held(f"{campaign.base.storage_path}/mine", 30.0):
        yield


def test_status_shows_every_search(morel, driver):
    code, shown, _ = morel("status", "mine")
    head, plain, other, *rest = shown.splitlines()
    assert code == 0
    assert head.startswith("mine: a campaign; driver on ")
    assert plain == "mine-plain: finished; 2 trials: 2 finished"
    assert other.startswith("mine-morel: training; 2 trials: 1 running; no driver has been heard")
    assert rest == ["mine-plain-seeds: not begun", "mine-morel-seeds: not begun"]


def test_status_as_json(morel):
    found = json.loads(morel("status", "mine", "--json")[1])
    assert found["kind"] == "campaign"
    assert found["holder"] is None
    assert found["searches"][:2] == [TUNED, AT_WORK]
    assert "no driver is at work" in morel("status", "mine")[1]


def test_without_tuning_there_are_the_replicates_alone(load, capsys):
    campaign = load(tuning=None)
    storage = campaign.base.storage_path
    run.register(campaign, f"{storage}/mine")
    assert cli.main(["status", "mine", "--json", f"storage_path={storage}"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [s["name"] for s in found["searches"]] == ["mine-plain-seeds", "mine-morel-seeds"]


@pytest.mark.parametrize("arguments", [("top", "mine"), ("logs", "mine"), ("stop", "mine", "1")])
def test_what_is_asked_of_a_search_names_the_searches(morel, driver, arguments):
    code, _, said = morel(*arguments)
    assert code == 2
    assert "mine is a campaign: name one of its searches, mine-plain (finished), mine-morel" in said


def test_stop_asks_the_campaigns_driver(morel, campaign, driver):
    code, said, _ = morel("stop", "mine")
    assert code == 0
    assert "the same command goes on" in said
    assert control.is_paused(f"{campaign.base.storage_path}/mine")


def test_stop_is_refused_where_nobody_would_hear_it(morel, campaign):
    code, _, said = morel("stop", "mine")
    assert code == 2
    assert "no driver of the campaign is at work" in said
    assert not control.is_paused(f"{campaign.base.storage_path}/mine")


def test_a_pause_of_an_earlier_driver_is_forgotten(campaign, monkeypatch):
    folder = f"{campaign.base.storage_path}/mine"
    control.ask_pause(folder)
    monkeypatch.setattr(run, "_run_campaign", lambda *_: control.is_paused(folder))
    monkeypatch.setattr(run, "check_resources", lambda *_: None)
    assert run.run_campaign(campaign) is False
