"""What leaves this machine with a job: sources, whatever else lies in the checkout."""

import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
from ray._private.ray_constants import get_runtime_env_default_excludes
from ray._private.runtime_env.packaging import create_package

from morel_core import MorelError
from orchestrator.submission import upload
from orchestrator.submission.upload import upload_of

ROOT = Path(__file__).parents[3]
LITTER = [
    ".venv/lib/python3.11/site-packages/torch/lib.so",
    ".venv-other/bin/python",
    ".data/cifar-10-batches-py/data_batch_1",
    "data/train/cat/1.png",
    "runs/demo/journal/events.jsonl",
    "mlruns/0/meta.yaml",
    "mlflow.db",
    "runs.db",
    "best.pt",
    "model/model.safetensors",
    "extra.npz",
    "orchestrator/__pycache__/cli.cpython-311.pyc",
    ".pytest_cache/v/cache/lastfailed",
    "morel_orchestrator.egg-info/PKG-INFO",
    "docs/operations.md",
]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """The tracked files of this checkout with all that may lie beside them, 20 MB a piece."""
    folder = tmp_path_factory.mktemp("checkout")
    tracked = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", "--cached"], check=True, capture_output=True
    )
    for name in tracked.stdout.decode().split("\0"):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    subprocess.run(["git", "init", "--quiet", str(folder)], check=True)
    for name in LITTER:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.truncate(20_000_000)
    return folder


def test_sources_are_uploaded_and_nothing_else(checkout):
    found = upload_of(checkout)
    found.check()
    assert not set(LITTER) & set(found.files)
    tops = {name.partition("/")[0] for name in found.files}
    assert tops.isdisjoint({".git", ".venv", ".data", "data", "runs", "tests", "docs"})
    assert found.megabytes < 3
    for package in upload.PACKAGES:
        sources = {
            path.relative_to(checkout).as_posix()
            for path in (checkout / package).rglob("*")
            if path.suffix in (".py", ".yaml")
        }
        assert sources
        assert sources <= set(found.files)
    assert "morel_core/data/base.py" in found.files  # not the folder of data


def test_it_is_what_ray_packs(checkout, tmp_path):
    package = tmp_path / "package.zip"
    excludes = get_runtime_env_default_excludes()
    create_package(str(checkout), package, include_gitignore=True, excludes=excludes)
    with zipfile.ZipFile(package) as packed:
        names = {name for name in packed.namelist() if not name.endswith("/")}
    assert names == set(upload_of(checkout).files)
    assert package.stat().st_size < 3_000_000


def test_a_folder_of_data_is_refused_before_it_is_read(checkout, monkeypatch):
    monkeypatch.setattr(upload, "LIMIT_MB", 0.5)
    with pytest.raises(
        MorelError, match=r"MB would be uploaded, at most 0\.5; largest: .* MB\).*\.rayignore"
    ):
        upload_of(checkout).check()


def test_another_folder_is_refused(tmp_path):
    (tmp_path / "orchestrator").mkdir()
    (tmp_path / "orchestrator" / "cli.py").write_text("")
    with pytest.raises(MorelError, match=r"holds no morel_core, recipes, search_spaces: give the"):
        upload_of(tmp_path)
    with pytest.raises(MorelError, match="there is no such folder"):
        upload_of(tmp_path / "missing")
