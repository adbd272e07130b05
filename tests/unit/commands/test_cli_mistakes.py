"""What a new user gets wrong: exit code 2, one line that says what to do, before Ray starts."""

import re
from pathlib import Path

import pytest
import ray

from orchestrator import cli, train, tune


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    """A machine with 2 CPUs and no GPU, no settings of its own, and a Ray that must not start."""
    for name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS", "MOREL_DATA_ROOT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for module in (train, tune):
        monkeypatch.setattr(module, "local_resources", lambda: (2.0, 0.0))

    def refuse(*arguments, **options):
        raise AssertionError("Ray was started")

    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setattr(
        ray, "is_initialized", lambda: False
    )  # another test's Ray is not to be used


@pytest.fixture
def complaint(capsys):
    """Run a command that has to fail; its one line without the leading ``morel: ``."""

    def run(*argv, code=2):
        assert cli.main(argv) == code
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("morel: ")
        assert err.count("\n") == 1
        assert "Traceback" not in err
        return err.removeprefix("morel: ").rstrip("\n")

    return run


@pytest.mark.parametrize(
    ("argv", "pattern"),
    [
        ("train training.epoch=5", r"training\.epoch = 5: unknown key; did you mean 'epochs'\?"),
        ("tune smoke traning.epochs=5", r".*unknown key; did you mean 'training'\?"),
        ("tune smoke num_trails=5", r".*unknown key; did you mean 'num_trials'\?"),
        ("validate digits modle.width=5", r"modle = .*unknown key; did you mean 'model'\?"),
        ("compare tracking.url=http://h", r"tracking\.url = .*unknown key; did you mean 'uri'\?"),
        ("train attack.eps=8", r"attack\.eps = 8\.0: must be in \(0, 1\]; .* \$\{frac:8,255\}"),
        (
            "tune smoke evaluation.attack.eps=8",
            r"command line: evaluation\.attack\.eps = 8\.0: must be in \(0, 1\]; .*frac:8,255",
        ),
        (
            "train objective.preference=[1.5,0.1]",
            r"objective\.preference = \[1\.5, 0\.1\]: two weights \(k1, k2\), each in \[0, 1\]",
        ),
        (
            "tune demo parameters.k1.high=1.5",
            r"command line: parameters\.k1\.high = 1\.5: gives objective\.preference = \[1\.5, ",
        ),
        (
            "train training.batch_size=5000",
            r"training\.batch_size = 5000: at most the 1138 training images of data\.name = '",
        ),
        (
            "tune smoke training.batch_size=5000",
            r"training\.batch_size = 5000: at most the 1138 training images of data\.name = '",
        ),
        ("train data.name=digitz", r"data\.name = 'digitz': did you mean 'digits'\? known: "),
        ("tune smoke data.name=mnist", r".*data\.name = 'mnist': .*known: cifar10,"),
        (
            "train cifar10_resnet18 data.root=nowhere scaling.gpus_per_worker=0",
            r"data\.root = '/.*/nowhere': No such file or directory; set data\.root=.* cifar10; "
            r"data\.download=true fetches torchvision's sets into it$",
        ),
        (
            "train digits data.name=image_folder data.root=nowhere",
            r"data\.root = '/.*/nowhere': No such .* which is train/<class>/\* and test/<class>/",
        ),
        (
            "train fashion_mnist data.root=. scaling.gpus_per_worker=0",
            r"data\.name = 'fashion_mnist': missing or damaged in .*; set data\.download=true",
        ),
        (
            "train scaling.gpus_per_worker=1",
            r"scaling\.gpus_per_worker = 1\.0: .* = 1 GPUs, but 0 are there: ask for fewer, or",
        ),
        ("train cifar10_wrn34_10", r"scaling\.gpus_per_worker = 1\.0: .* but 0 are there"),
        (
            "train scaling.num_workers=3",
            r"scaling\.cpus_per_worker = 1: 3 worker\(s\) × 1 = 3 CPUs, but 2 are there",
        ),
        (
            "tune smoke resources.gpus_per_worker=2",
            r".*resources\.gpus_per_worker = 2\.0: one trial asks for 2 GPUs .* but there are 0",
        ),
        (
            "tune smoke resources.workers=5",
            r".*resources\.cpus_per_worker = 1: one trial asks for 5 CPUs .* but there are 2",
        ),
        ("train storage_path=file/runs", r"storage_path = '/.*/file/runs': cannot be written \(N"),
        ("tune smoke storage_path=file/runs", r"storage_path = .*: cannot be written \(Not a dir"),
        (
            "train tracking.uri=http://127.0.0.1:9",
            r"MLflow at tracking\.uri = http://127\.0\.0\.1:9 does not answer \(.*\): start it, ",
        ),
        (
            "tune smoke tracking.uri=http://127.0.0.1:9",
            r"MLflow at tracking\.uri = http://127\.0\.0\.1:9 does not answer \(.*\): start it, ",
        ),
        (
            "compare tracking.uri=http://127.0.0.1:9",
            r"MLflow at tracking\.uri = http://127\.0\.0\.1:9 does not answer \(.*\): start it, ",
        ),
        ("train tracking.uri=mlruns", r"tracking\.uri = 'mlruns': MLflow 3 keeps no runs in plain"),
        (
            "train model.name=torchvision/resnet18 model.head=classifier",
            r"model\.head = 'classifier': is no nn\.Linear of ResNet; choose one of: fc",
        ),
        (
            "tune smoke model.name=torchvision/resnet18 model.head=classifier",
            r"model\.head = 'classifier': is no nn\.Linear of ResNet; choose one of: fc",
        ),
        ("train model.name=torchvision/resnet81", r"model\.name = .*did you mean torchvision/"),
        ("train model.mean=[0.5,0.5] model.std=[1,1]", r"model\.mean = \[0\.5, 0\.5\]: one entry "),
        ("train digit", r"recipe 'digit' is neither a file nor .* mean 'digits'\?"),
        ("tune dmeo", r"search space 'dmeo' is neither a file nor .* mean 'demo'"),
        ("validate digit", r"recipe 'digit' is neither a file nor a known name"),
        ("train name=a/b", r"name = 'a/b': letters, digits"),
        ("train name=${oc.env:PATH}", r"name = .*: a config may read HOME, USER, MLFLOW_TRACK"),
        ("train name=${oc.dict.keys:a}", r"name = .*: the only interpolations in a config are \$"),
        (
            "tune smoke objective.constraints=[robust_accuracy<=1.5]",
            r".*objective\.constraints = 'robust_accuracy<=1\.5': accuracies .* is written 0\.015",
        ),
        (
            "tune smoke budget.target=90",
            r".*budget\.target = 90\.0: accuracies are in \[0, 1\]: 90 % is written 0\.9",
        ),
        ("compare --sort epochs --group-by method", r"--sort = 'epochs': not with --group-by, who"),
        (
            "submit --address http://h:1 tune demo --dry-run name=x",
            r"-- comes before the command: write morel submit -- tune demo --dry-run name=x",
        ),
        ("compare storage_path=empty", r"tracking\.uri = sqlite:.*: there is no file .*\.db;"),
        ("evaluate nothing storage_path=empty", r"tracking\.uri = sqlite:.*: there is no file"),
    ],
)  # fmt: skip
def test_one_line_that_says_what_to_do(complaint, tmp_path, argv, pattern):
    (tmp_path / "file").write_text("not a folder")
    said = complaint(*argv.split())
    assert re.match(pattern, said), said


@pytest.mark.parametrize("command", ["report", "export run --to new"])
def test_a_job_writes_nothing_into_its_folder(complaint, monkeypatch, command):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert re.match(
        r"--(out|to) = .*: must be absolute in a Ray job, ", complaint(*command.split())
    )


def test_a_broken_file_is_named(complaint, tmp_path):
    (tmp_path / "mine.yaml").write_text("training: {epochs: [\n")
    for command in ("train", "tune", "validate"):
        assert complaint(command, "mine.yaml").startswith("mine.yaml: not valid YAML: ")


@pytest.mark.parametrize("option", ["--json", "--debug"])
def test_the_exit_code_is_the_same_with_options(capsys, option):
    assert cli.main(["train", "attack.eps=8", option]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert ("Traceback" in err) == (option == "--debug")


def test_mistakes_leave_nothing_behind(complaint, tmp_path):
    complaint("train", "attack.eps=8")
    complaint("tune", "nowhere")
    complaint("train", "scaling.num_workers=64", "training.batch_size=128", "storage_path=runs")
    left = [path for path in Path(tmp_path).rglob("*") if path.is_file()]
    assert left == []
