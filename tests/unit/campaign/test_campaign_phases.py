"""What a repeated campaign runs again: what was not settled, and nothing else."""

import pytest

from orchestrator.campaign import run
from orchestrator.campaign.outcomes import OutcomeStore, settled
from orchestrator.search.result import SearchResult
from orchestrator.search.trial import Trial

BROKEN = "its verification failed: OSError: a node was lost"


def ended(search, winner=None, cut="", **trial):
    trials = [
        Trial(run_id=f"{search.base.name}/{n}", number=n, label="", params={"seed": n},
              state="finished", **trial)
        for n in range(1, search.total_trials + 1)
    ]  # fmt: skip
    return SearchResult(
        search=search, trials=trials, winner=winner, seconds=1.0, recorded=True, cut=cut
    )


@pytest.fixture
def outcomes(load, tmp_path, monkeypatch):
    """Runs both phases of a campaign; searches named in ``results`` end as these say."""
    campaign = load()

    def phases(results):
        ran = []

        def tune(search, **rest):
            ran.append(search.base.name)
            return results.get(search.base.name, won)(search)

        def won(search):
            last = {"best_clean_accuracy": 0.9, "best_robust_accuracy": 0.5}
            found = Trial(run_id="w", number=1, label="", params={}, state="finished", last=last)
            return ended(search, found)

        monkeypatch.setattr(run, "tune", tune)
        monkeypatch.setattr(type(campaign.searches["plain"].space), "overrides", lambda *_: {})
        found = run._outcomes(campaign, OutcomeStore(str(tmp_path)), run.Unseen(), False)
        return ran, found

    return phases


FIRST = ["mine-plain", "mine-morel", "mine-plain-seeds", "mine-morel-seeds"]


def test_a_tuning_whose_verifications_failed_is_looked_at_again(outcomes):
    ran, found = outcomes({"mine-morel": lambda search: ended(search, standing=BROKEN)})
    assert ran == FIRST[:3]
    assert found["morel"].replicates is None
    ran, found = outcomes({})
    assert ran == ["mine-morel", "mine-morel-seeds"]
    assert found["morel"].replicates is not None
    assert outcomes({})[0] == []


@pytest.mark.parametrize("cut", ["", "budget.wall_time_s spent"])
def test_a_tuning_that_never_has_a_winner_is_not(outcomes, cut):
    assert outcomes({"mine-morel": lambda search: ended(search, cut=cut)})[0] == FIRST[:3]
    assert outcomes({})[0] == []


def test_what_is_settled(load):
    search = load().searches["plain"]
    assert settled(ended(search))
    assert not settled(ended(search, untested="a node was lost"))
    assert not settled(ended(search, standing=BROKEN))
    short = ended(search)
    del short.trials[1:]
    assert not settled(short)
