"""A file from a stranger that would run code when unpickled, given to every place that reads."""

from __future__ import annotations

import contextlib
import json
import pickle
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from bait import Bait
from mlflow import MlflowClient
from tiny_evaluation import TINY

from morel_core import MorelError, Trainer
from morel_core.checkpoint import MANIFEST, load_network, load_optimizer, load_progress, sha256
from morel_core.config import DataConfig
from morel_core.data import load_data
from morel_core.data.extra import load_extra
from orchestrator.campaign.definition import load_campaign
from orchestrator.cli import main
from orchestrator.config import RunConfig, compose
from orchestrator.provenance import identity
from orchestrator.search import status
from orchestrator.search.operations import look
from orchestrator.search.space import load_search
from orchestrator.settings.building import build
from orchestrator.tracking import Journal


@pytest.fixture(params=["torch", "torch, old form", "pickle", "numpy"])
def bait(request, tmp_path, marker) -> Path:
    """A malicious file, in each form that something might unpickle."""
    path = tmp_path / "bait"
    harm = {"weight": Bait(marker)}
    if request.param == "pickle":
        path.write_bytes(pickle.dumps(harm))
    elif request.param == "numpy":
        with path.open("wb") as file:
            np.save(file, np.array([Bait(marker)], dtype=object), allow_pickle=True)
    else:
        torch.save(harm, path, _use_new_zipfile_serialization=request.param == "torch")
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A real one, with a run's config."""
    folder = tmp_path_factory.mktemp("checkpoint")
    config = build(RunConfig, TINY)
    trainer = Trainer(config)
    trainer.fit()
    trainer.save(folder)
    return folder


@pytest.fixture(params=["best.safetensors", "last.safetensors", "optimizer.pt", "progress.json"])
def tampered(request, checkpoint, bait, tmp_path) -> Path:
    """A checkpoint with one file replaced by somebody who has also corrected the checksum."""
    folder = tmp_path / "tampered"
    folder.mkdir()
    for file in checkpoint.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / request.param).write_bytes(bait.read_bytes())
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["sha256"][request.param] = sha256(folder / request.param)
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder


def test_bait_is_real(bait, marker):
    """Whoever unpickles it is caught."""
    try:
        torch.load(bait, weights_only=False)
    except Exception:
        np.load(bait, allow_pickle=True)
    assert marker.exists()
    marker.unlink()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_checkpoint_folder(tampered, marker):
    refused = 0
    for read in (load_network, partial(load_network, name="last"), load_optimizer, load_progress):
        try:
            read(tampered)
        except MorelError:
            refused += 1
    assert refused == 1  # the one whose file it is
    with pytest.raises(MorelError):
        Trainer(build(RunConfig, TINY)).load(tampered)


def test_evaluated_checkpoint(tampered, marker, tmp_path, capfd):
    code = main(["evaluate", str(tampered), "--attacks", "fgsm", f"storage_path={tmp_path}/runs"])
    # Evaluated is the best network: what lies beside it is not even opened.
    read = {"best.safetensors", "progress.json"}
    changed = {f.name for f in tampered.iterdir() if b"executed" in f.read_bytes()}
    assert (code != 0) is bool(read & changed)
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt", ".safetensors"])
def test_evaluated_weights(bait, marker, tmp_path, capfd, suffix):
    weights = bait.rename(bait.with_suffix(suffix))
    argv = ["evaluate", "digits_cnn", "--weights", str(weights), "--attacks", "fgsm"]
    assert main([*argv, "data.name=digits", f"storage_path={tmp_path}/runs"]) == 2
    assert str(weights) in capfd.readouterr().err


def test_artifact_that_a_record_in_mlflow_points_to(checkpoint, marker, tmp_path, capfd):
    """Whoever can write to MLflow can have a run's checkpoint be any folder."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    for file in checkpoint.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    torch.save({"weight": Bait(marker)}, folder / "best.safetensors")
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["sha256"]["best.safetensors"] = sha256(folder / "best.safetensors")
    (folder / MANIFEST).write_text(json.dumps(manifest))
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    tags = {"morel.run_id": "lent", "morel.kind": "train", "morel.checkpoint": str(folder)}
    run = client.create_run(client.create_experiment("morel"), tags=tags, run_name="lent")
    client.set_terminated(run.info.run_id)
    assert main(["evaluate", "lent", "--attacks", "fgsm", f"storage_path={tmp_path}"]) == 2
    assert "not a safetensors file" in capfd.readouterr().err


def test_extra_images(bait, marker, tmp_path):
    with pytest.raises(MorelError, match=r"data\.extra"):
        load_extra(str(bait), (1, 8, 8), 10)
    np.savez(tmp_path / "extra.npz", image=np.array([Bait(marker)], dtype=object), label=[0])
    with pytest.raises(MorelError, match=r"data\.extra"):
        load_extra(str(tmp_path / "extra.npz"), (1, 8, 8), 10)


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("cifar10", "cifar-10-batches-py/data_batch_1"),
        ("cifar100", "cifar-100-python/train"),
        ("svhn", "train_32x32.mat"),
        ("fashion_mnist", "FashionMNIST/raw/train-images-idx3-ubyte"),
    ],
)
def test_data_set_that_is_not_the_published_one(bait, marker, tmp_path, name, place):
    """torchvision unpickles CIFAR's batches, but only those of the published checksums."""
    target = tmp_path / "data" / place
    target.parent.mkdir(parents=True)
    bait.rename(target)
    with pytest.raises(MorelError, match="missing or damaged"):
        load_data(DataConfig(name=name, root=str(tmp_path / "data")))


def test_state_files_of_runs(bait, marker, tmp_path):
    """A run's definition, journal and status are text."""
    folder = tmp_path / "mine"
    (folder / "journal").mkdir(parents=True)
    for name in (identity.FILE, "journal/events.jsonl", status.FILE):
        (folder / name).write_bytes(bait.read_bytes())
    with pytest.raises(MorelError):
        identity.check_identity(str(folder), {"seed": 1}, may_change=set())
    with contextlib.suppress(MorelError, ValueError):
        assert list(Journal(str(folder / "journal")).events()) == []
    with pytest.raises(MorelError):
        look("mine", build(RunConfig, {"storage_path": str(tmp_path)}))


@pytest.mark.parametrize("load", [compose, load_search, load_campaign])
@pytest.mark.parametrize(
    "text",
    [
        "name: !!python/object/apply:builtins.open ['{marker}', w]",
        "name: !!python/object/new:builtins.open ['{marker}', w]",
        "recipe: !!python/object/apply:builtins.open ['{marker}', w]",
        "data: {{name: !!python/object/apply:builtins.open ['{marker}', w]}}",
        "parameters: {{a: {{type: !!python/object/apply:builtins.open ['{marker}', w]}}}}",
        "constraints: [\"open('{marker}', 'w')\"]",
        "where: \"open('{marker}', 'w')\"",
    ],
)
def test_yaml(load, text, marker, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(text.format(marker=marker))
    with pytest.raises(MorelError):
        load(str(file))


def test_overrides(marker):
    with pytest.raises(MorelError):
        compose("digits", [f"seed=!!python/object/apply:builtins.open ['{marker}', w]"])
