"""A command is judged before it is sent: its settings, its files, what it needs."""

import shutil
from pathlib import Path

import pytest

from morel_core import ConfigError, MorelError
from orchestrator.submission import there
from orchestrator.submission.asked import read_command
from orchestrator.submission.there import There, api_address, check_versions, needed_packages

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    for name in ("MLFLOW_TRACKING_URI", "RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


def asked(*argv, folder=ROOT, uploaded=()):
    return read_command(argv, folder, dict.fromkeys(uploaded, 1))


def test_a_search_says_what_runs_on_the_cluster():
    found = asked("tune", "smoke", "storage_path=/data", "name=s")
    assert found.argv == ["tune", "smoke", "storage_path=/data", "name=s"]
    assert found.name == "s"
    (plan,) = found.check(1, 4, 0, {})
    assert plan.startswith("a trial takes 1 worker(s), 1 CPUs and 0 GPUs together; 4 CPUs")
    with pytest.raises(ConfigError, match=r"one trial asks for 1 CPUs \(1 x 1\), but there are 0"):
        found.check(1, 0, 0, {})


def test_a_campaign_too():
    found = asked("campaign", "paper_comparison", "storage_path=/data", "name=c")
    assert found.check(1, 4, 0, {})
    with pytest.raises(ConfigError, match="one trial asks for"):
        found.check(1, 0, 0, {})


def test_a_campaign_is_named_by_its_file_as_where_it_is_not_submitted():
    found = asked("campaign", "paper_comparison", "storage_path=/data")
    assert found.argv == ["campaign", "paper_comparison", "storage_path=/data"]
    assert found.name == "paper_comparison"


def test_a_run_needs_all_its_workers():
    found = asked("train", "digits", "storage_path=/data", "name=t", "scaling.num_workers=3")
    found.check(1, 3, 0, {})
    with pytest.raises(ConfigError, match=r"3 worker\(s\) × 1 = 3 CPUs, but 2 are there"):
        found.check(1, 2, 0, {})


def test_sqlite_is_refused_for_several_nodes_but_the_clusters_own_server_is_not():
    found = asked("train", "digits", "storage_path=/data", "name=t")
    found.check(1, 4, 0, {})
    with pytest.raises(ConfigError, match="not SQLite on a cluster of 2 nodes"):
        found.check(2, 4, 0, {})
    found.check(2, 4, 0, {"MLFLOW_TRACKING_URI": "http://"})


def test_our_own_environment_does_not_count_there(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://here:5000")
    with pytest.raises(ConfigError, match="not SQLite"):
        asked("train", "digits", "storage_path=/data", "name=t").check(2, 4, 0, {})


@pytest.mark.parametrize("argv", [("train",), ("train", "digits"), ("tune", "smoke")])
def test_a_run_gets_the_name_under_which_it_is_resumed(argv):
    found = asked(*argv, "storage_path=/data")
    assert found.argv == [*argv, "storage_path=/data", f"name={found.name}"]
    assert found.name.startswith("smoke-" if argv[0] == "tune" else "digits-")


def test_a_name_in_the_file_is_the_runs_own(tmp_path):
    """Submitted again, it goes on."""
    (tmp_path / "mine.yaml").write_text("name: my-run\ndata: {name: digits}\n")
    command = ["train", "mine.yaml", "storage_path=/data"]
    found = asked(*command, folder=tmp_path, uploaded=["mine.yaml"])
    assert (found.argv, found.name) == (command, "my-run")
    for empty in ("name=", "name=null"):
        found = asked("train", "digits", "storage_path=/data", empty)
        assert found.name.startswith("digits-")
        assert found.argv[-1] == f"name={found.name}"


def test_settings_of_an_evaluation_are_those_of_what_is_evaluated():
    asked("evaluate", "wide_resnet", "storage_path=/data", "model.depth=10", "--weights=/w.pt")


def test_other_commands_are_sent_as_they_are():
    found = asked("morel", "status", "demo", "storage_path=/data")
    assert found.argv == ["status", "demo", "storage_path=/data"]
    assert (found.name, found.base, found.check(3, 0, 0, {})) == (None, None, [])


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        ((), "nothing to run"),
        (("submit", "--", "train"), "give it the command that is to run"),
        (
            ("tune", "smoke", "storage_path=runs"),
            "storage_path = 'runs': must be absolute in",
        ),
        (("train", "training.epochs=0"), "training.epochs = 0"),
        (("status", "s", "storage_path=runs"), "storage_path = 'runs': must be absolute in"),
        (("sync", "tracking.url=http://h"), "tracking.url = 'http://h': unknown key; did you"),
        (("evaluate", "r", "modle.width=3"), "unknown key; did you mean 'model'?"),
        (("fork", "r", "model.width=3", "storage_path=runs"), "storage_path = 'runs': must be"),
        (("validate", "digits", "training.epochs=0"), "training.epochs = 0"),
        (
            ("export", "r", "--to", "new"),
            "--to = 'new': must be absolute in a Ray job, as in --to /",
        ),
        (("export", "r", "--to", "s3://b/new"), "--to = 's3://b/new': must be absolute"),
        (("report", "--out", "a.html"), "--out = 'a.html': must be absolute in a Ray job"),
        (("report",), "--out = None: must be absolute in a Ray job, as in --out /shared/"),
        (("evaluate", "digits_cnn", "--weights", "m.pt"), "--weights = 'm.pt': must be absolute"),
        (
            ("train", "tracking.uri=http://me:planted@host:5000"),
            "tracking.uri: holds a password, and a job's command is shown to all",
        ),
        (("train", "tracking.uri=http://me:a/planted@host:5000"), "tracking.uri: holds a password"),
        (("status", "http://me:planted=@host"), "http://***@host: holds a password"),
    ],
)
def test_mistakes_are_found_before_anything_is_sent(argv, reason):
    with pytest.raises(MorelError) as caught:
        asked(*argv)
    assert reason in str(caught.value)
    assert "planted" not in str(caught.value)


@pytest.mark.parametrize(
    "argv",
    [
        ("fork", "r", "model.width=3", "training.epochs=2", "storage_path=/data"),
        ("reproduce", "r", "--check", "storage_path=/data"),
        ("export", "r", "--to", "/data/new", "storage_path=/data"),
        ("report", "--out", "/data/page.html", "tracking.uri=http://h:1"),
        ("compare", "tracking.uri=http://h:1"),
        ("validate", "digits", "training.epochs=3"),
    ],
)
def test_what_is_right_is_sent(argv):
    assert asked(*argv).argv == list(argv)


def test_files_must_be_among_what_is_uploaded(tmp_path):
    shutil.copy(ROOT / "recipes" / "digits.yaml", tmp_path / "mine.yaml")
    command = ("train", "mine.yaml", "storage_path=/data", "name=t")
    assert asked(*command, folder=tmp_path, uploaded=["mine.yaml"]).name == "t"
    with pytest.raises(MorelError, match=r"^mine\.yaml: is not among the files of .* uploaded"):
        asked(*command, folder=tmp_path)
    outside = ("train", str(tmp_path / "mine.yaml"), "storage_path=/data")
    with pytest.raises(MorelError, match="is not among the files"):
        asked(*outside)


# --- the cluster ---------------------------------------------------------------------------------


def test_the_address(monkeypatch):
    assert api_address(None) == "http://127.0.0.1:8265"
    monkeypatch.setenv("RAY_ADDRESS", "http://a:1")
    assert api_address(None) == "http://a:1"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://b:2/")
    assert api_address(None) == "http://b:2"
    assert api_address("https://c") == "https://c"
    with pytest.raises(MorelError, match=r"^--address 10\.0\.0\.1:6379: write the address of the"):
        api_address("10.0.0.1:6379")


def test_nobody_at_the_address():
    with pytest.raises(MorelError, match=r"127\.0\.0\.1:1 does not answer \(.*refused\): start it"):
        there.connect("http://127.0.0.1:1")


def cluster(**changes):
    import platform
    from importlib.metadata import version

    import ray

    needed = needed_packages(ROOT)
    assert needed[0] == "morel-orchestrator"
    assert {"torch", "ray", "mlflow"} <= set(needed)
    same = {
        "python": platform.python_version(),
        "ray": ray.__version__,
        "packages": {name: version(name) for name in needed[1:]} | {needed[0]: None},
        "nodes": 1, "cpus": 2.0, "gpus": 0.0, "tracking": "",
    }  # fmt: skip
    return There(**{**same, **changes})


def test_versions_that_do():
    assert check_versions(cluster(), ROOT) == []
    older = cluster(ray="2.60.99")
    assert check_versions(older, ROOT)[0].endswith(" here, 2.60.99 there")
    packages = cluster().packages | {"morel-orchestrator": "0.0.9"}
    (said,) = check_versions(cluster(packages=packages), ROOT)
    assert said.endswith("0.0.9 there; the uploaded code is used")


@pytest.mark.parametrize(
    ("package", "version", "reason"),
    [
        ("mlflow", None, "the cluster's image does not do: mlflow is missing: install what pyp"),
        ("ray", "2.9.0", "the cluster's image does not do: ray is 2.9.0, not <2.70,>=2.60"),
    ],
)
def test_an_image_that_does_not_do(package, version, reason):
    packages = cluster().packages | {package: version}
    with pytest.raises(MorelError) as caught:
        check_versions(cluster(packages=packages), ROOT)
    assert str(caught.value).startswith(reason)


def test_a_python_that_does_not_do():
    with pytest.raises(MorelError, match=r"^the cluster's Python is 3\.9\.1, the code needs >="):
        check_versions(cluster(python="3.9.1"), ROOT)
