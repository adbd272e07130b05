"""Names from users cannot leave their directory, whatever is in them."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from morel_core.errors import MorelError
from orchestrator.campaign.definition import load_campaign
from orchestrator.config import RunConfig
from orchestrator.evaluation.shards import file_name
from orchestrator.search.operations import look, stop
from orchestrator.search.space import load_search
from orchestrator.settings.building import build
from orchestrator.tracking.events import check_run_id

WICKED = [
    *("..", ".", "../up", "a/../../up", "/etc", "~", "~root", "a/b", "a\\b", "", " ", "-rf"),
    *(
        "a\n",
        "\na",
        "a\x00",
        "a\x1b[2J",
        "a\r",
        "caf\u00e9",
        "\u202eabc",
        "a" * 101,
        "C:\\a",
        "s3://b",
    ),
]
NAMES = st.one_of(
    st.sampled_from(WICKED),
    st.text(alphabet=st.sampled_from("abZ09._-/\\~ \n\r\t\x00\x1b:@%$"), max_size=12),
    st.text(max_size=20),
)


def inside(storage: str, name: str) -> bool:
    """Whether the folder of ``name`` lies in ``storage`` and shows as what it is."""
    path = os.path.normpath(f"{storage}/{name}")
    return path.startswith(f"{storage}/") and path != storage and name.isprintable()


def judged(name: str) -> RunConfig | str:
    """The config of that name, or what is said of the name."""
    try:
        return build(RunConfig, {"name": name, "storage_path": "/storage"})
    except MorelError as error:
        return str(error)


@given(name=NAMES)
def test_run_of_any_name_stays_in_its_storage(name):
    found = judged(name)
    if isinstance(found, str):
        assert found.isprintable()  # one line, and nothing that steers a terminal
    else:
        assert inside("/storage", name)
        assert "/" not in name


@given(name=NAMES)
def test_run_id_stays_in_its_storage(name):
    """A trial's has its search's name before a slash; `morel status NAME` and others read it."""
    try:
        check_run_id(name)
    except MorelError:
        return
    assert inside("/storage", name)


@given(name=NAMES)
def test_outcomes_of_an_attack_of_any_name_stay_in_their_folder(name):
    assert inside("/storage", f"{file_name(name)}-00000-0123456789abcdef.json")


@pytest.mark.parametrize("name", WICKED)
def test_wicked_name_is_no_run_search_or_campaign(name, tmp_path):
    for make in (
        lambda: build(RunConfig, {"name": name, "storage_path": str(tmp_path)}),
        lambda: load_search("smoke", [f"name={name!r}", f"storage_path={tmp_path}"]),
        lambda: load_campaign("paper_comparison", [f"name={name!r}", f"storage_path={tmp_path}"]),
        lambda: look(name, build(RunConfig, {"storage_path": str(tmp_path / "inner")})),
        lambda: stop(name, [], build(RunConfig, {"storage_path": str(tmp_path / "inner")})),
    ):
        with pytest.raises(MorelError):
            make()
    assert list(tmp_path.iterdir()) == []
