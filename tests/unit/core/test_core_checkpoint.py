"""A checkpoint is whole or does not exist, and reading one executes nothing."""

import json
import os
import pickle

import pytest
import safetensors.torch
import torch
from tiny_run import tiny_run

from morel_core import (
    MorelError,
    ObjectiveConfig,
    OptimizerConfig,
    Trainer,
    TrainingConfig,
    checkpoint,
)
from morel_core.checkpoint import MANIFEST, load_network, load_optimizer, load_progress
from morel_core.models import DigitsCnnConfig

NETWORK = {"weight": torch.arange(6.0).reshape(2, 3), "steps": torch.tensor(7)}
BEST = {"weight": torch.ones(2, 3), "steps": torch.tensor(3)}
PROGRESS = {"epoch": 3, "history": [{"loss": 0.5}], "best": None}
LOADERS = [load_network, load_optimizer, load_progress]


def save(folder):
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    parameter.grad = torch.tensor([1.0, 2.0])
    optimizer.step()
    checkpoint.save_checkpoint(
        folder,
        networks={"last": NETWORK, "best": BEST},
        optimizer=optimizer.state_dict(),
        progress=PROGRESS,
    )
    return optimizer.state_dict()


@pytest.fixture
def folder(tmp_path):
    save(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def edit_manifest(folder, **changes):
    path = folder / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def sign(folder, name):
    """Give a file the checksum that its content has now, as one who means harm would."""
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["sha256"][name] = checkpoint.sha256(folder / name)
    (folder / MANIFEST).write_text(json.dumps(manifest))


def test_round_trip(tmp_path):
    folder = tmp_path / "deep" / "checkpoint"
    state = save(folder)
    for name, saved in (("last", NETWORK), ("best", BEST)):
        loaded = load_network(folder, name)
        assert loaded.keys() == saved.keys()
        assert all(torch.equal(loaded[key], saved[key]) for key in saved)
        assert all(loaded[key].dtype == saved[key].dtype for key in saved)
    optimizer = load_optimizer(folder)
    assert optimizer["param_groups"] == state["param_groups"]
    buffer = optimizer["state"][0]["momentum_buffer"]
    assert torch.equal(buffer, torch.tensor([1.0, 2.0]))
    assert load_progress(folder) == PROGRESS


def test_weights_that_share_storage_are_saved_under_both_names(tmp_path):
    tied = torch.rand(2, 2)
    path = tmp_path / "tied.safetensors"
    checkpoint.save_tensors(path, {"a": tied, "b": tied, "view": tied[0]})
    loaded = checkpoint.load_tensors(path)
    assert torch.equal(loaded["a"], loaded["b"])
    assert torch.equal(loaded["view"], tied[0])


@pytest.mark.parametrize("load", LOADERS)
@pytest.mark.parametrize(
    "name", ["last.safetensors", "best.safetensors", "optimizer.pt", "progress.json"]
)
@pytest.mark.parametrize("damage", ["truncated", "altered", "missing", "emptied"])
def test_any_damage_anywhere_is_noticed_by_every_reader(folder, load, name, damage):
    path = folder / name
    content = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "altered":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    else:
        path.write_bytes(content[: len(content) // 2 if damage == "truncated" else 0])
    with pytest.raises(MorelError, match=f"{name}: missing, truncated or altered"):
        load(folder)


@pytest.mark.parametrize("load", LOADERS)
def test_without_manifest_there_is_no_checkpoint(folder, load):
    (folder / MANIFEST).unlink()
    with pytest.raises(MorelError, match=r"no manifest\.json, so no finished checkpoint"):
        load(folder)


def test_no_folder_at_all(tmp_path):
    with pytest.raises(MorelError, match="no finished checkpoint"):
        load_progress(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"format": 1, "sha2', "not JSON"),
        ('{"format": 2, "sha256": {}}', "format 2, this version reads 1"),
        ("{}", "format None, this version reads 1"),
        ("[]", "format None, this version reads 1"),
        ('{"format": 1}', "missing, truncated or altered"),
        ('{"format": 1, "sha256": {}}', "missing, truncated or altered"),
        ('{"format": 1, "sha256": ["best.safetensors"]}', "missing, truncated or altered"),
    ],
)
@pytest.mark.parametrize("load", LOADERS)
def test_foreign_or_torn_manifest(folder, load, content, message):
    (folder / MANIFEST).write_text(content)
    with pytest.raises(MorelError, match=message):
        load(folder)


@pytest.mark.parametrize(
    ("load", "name"),
    [
        (load_network, "best.safetensors"),
        (load_optimizer, "optimizer.pt"),
        (load_progress, "progress.json"),
    ],
)
def test_a_file_that_the_manifest_does_not_vouch_for_is_not_read(folder, load, name):
    manifest = json.loads((folder / MANIFEST).read_text())
    del manifest["sha256"][name]
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(MorelError, match=f"{name}: missing, truncated or altered"):
        load(folder)


@pytest.mark.parametrize("name", ["../outside.bin", "sub/inside.bin", "..", "."])
def test_a_manifest_cannot_reach_out_of_its_folder(folder, name):
    (folder / "sub").mkdir()
    for place in ("../outside.bin", "sub/inside.bin"):
        (folder / place).write_bytes(b"secret")
    digest = checkpoint.sha256(folder / "../outside.bin")
    manifest = json.loads((folder / MANIFEST).read_text())
    edit_manifest(folder, sha256=manifest["sha256"] | {name: digest})
    with pytest.raises(MorelError, match="missing, truncated or altered"):
        checkpoint.verify(folder)


def test_an_absolute_name_is_refused(folder, tmp_path):
    outside = tmp_path / "outside.bin"
    outside.write_bytes(b"secret")
    manifest = json.loads((folder / MANIFEST).read_text())
    sums = manifest["sha256"] | {str(outside): checkpoint.sha256(outside)}
    edit_manifest(folder, sha256=sums)
    with pytest.raises(MorelError, match=r"outside\.bin: missing, truncated or altered"):
        checkpoint.verify(folder)


class MakesFile:
    """Pickled, it runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("form", ["torch", "pickle", "pickle 2", "torch legacy"])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_malicious_optimizer_is_not_executed(folder, tmp_path, form):
    marker, path = tmp_path / "executed", folder / "optimizer.pt"
    harm = {"state": MakesFile(marker), "param_groups": []}
    if form.startswith("torch"):
        torch.save(harm, path, _use_new_zipfile_serialization=form == "torch")
    else:
        path.write_bytes(pickle.dumps(harm, protocol=2 if form == "pickle 2" else 4))
    sign(folder, "optimizer.pt")
    with pytest.raises(MorelError, match=r"optimizer\.pt: holds anything but tensors and numbers"):
        load_optimizer(folder)
    assert not marker.exists()
    if form == "pickle":  # the bait is real: whoever unpickles it is caught
        pickle.loads(path.read_bytes())
        assert marker.exists()


@pytest.mark.parametrize("content", [b"", b"hello world", b"PK\x03\x04 no archive"])
def test_an_optimizer_that_is_no_torch_file(folder, content):
    (folder / "optimizer.pt").write_bytes(content)
    sign(folder, "optimizer.pt")
    with pytest.raises(MorelError, match=r"optimizer\.pt: holds anything but") as caught:
        load_optimizer(folder)
    assert "\n" not in str(caught.value)


def test_a_network_that_is_no_safetensors_file(folder):
    torch.save(BEST, folder / "best.safetensors")
    sign(folder, "best.safetensors")
    with pytest.raises(MorelError, match=r"best\.safetensors: not a safetensors file"):
        load_network(folder)


@pytest.mark.parametrize("step", range(5))
@pytest.mark.parametrize("over_an_old_one", [False, True])
def test_a_crash_between_files_leaves_no_checkpoint(tmp_path, monkeypatch, step, over_an_old_one):
    """Whichever of the five files is being written; an old one's manifest fits no new file."""
    if over_an_old_one:
        save(tmp_path)
    writes = []

    def crash_at(step, write):
        def wrapped(*arguments, **options):
            if len(writes) == step:
                raise KeyboardInterrupt
            writes.append(write)
            return write(*arguments, **options)

        return wrapped

    for module, name in (
        (safetensors.torch, "save_file"),
        (torch, "save"),
        (type(tmp_path), "write_text"),
        (checkpoint, "write_durably"),
    ):
        monkeypatch.setattr(module, name, crash_at(step, getattr(module, name)))
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save_checkpoint(
            tmp_path,
            networks={"last": BEST, "best": NETWORK},
            optimizer={"state": {}, "param_groups": []},
            progress={"epoch": 4},
        )
    assert len(writes) == step
    monkeypatch.undo()
    if over_an_old_one and step == 0:
        assert load_progress(tmp_path) == PROGRESS  # nothing was touched yet
        return
    for load in LOADERS:
        with pytest.raises(MorelError):
            load(tmp_path)


def test_durable_write_leaves_the_old_content_until_it_is_done(tmp_path, monkeypatch):
    path = tmp_path / "file.json"
    checkpoint.write_durably(path, "old")

    def no_disk(_descriptor):
        raise OSError("disk gone")

    monkeypatch.setattr(os, "fsync", no_disk)
    with pytest.raises(OSError, match="disk gone"):
        checkpoint.write_durably(path, "new")
    assert path.read_text() == "old"


# --- through the trainer -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    trainer = Trainer(tiny_run())
    trainer.run_epoch()
    trainer.save(folder)
    return folder


def test_another_network_is_refused(trained):
    other = Trainer(tiny_run(model=DigitsCnnConfig(width=8, embed_dim=8)))
    with pytest.raises(MorelError, match="belongs to another network") as caught:
        other.load(trained)
    assert "\n" not in str(caught.value)


def test_another_optimizer_is_refused(trained):
    other = Trainer(tiny_run(optimizer=OptimizerConfig(name="adamw")))
    with pytest.raises(MorelError, match=r"trained with optimizer\.name = 'sgd', not 'adamw'"):
        other.load(trained)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"optimizer": OptimizerConfig(no_decay_on_norm_and_bias=True)},
            "optimizer.no_decay_on_norm_and_bias = False, not True",
        ),
        ({"objective": ObjectiveConfig(morel=False)}, "objective.morel = True, not False"),
        (
            {"training": TrainingConfig(batch_size=16, ema_decay=0.9)},
            "training.ema_decay = None, not 0.9",
        ),
        (
            {"training": TrainingConfig(batch_size=16, swa_start_epoch=2)},
            "training.swa_start_epoch = None, not 2",
        ),
    ],
)
def test_tensors_that_would_mean_something_else_are_refused(trained, sections, message):
    """Another average above all: what was saved of it would be counted as epochs of the new one."""
    with pytest.raises(MorelError) as caught:
        Trainer(tiny_run(**sections)).load(trained)
    assert str(caught.value) == f"{trained}: was trained with {message}"


def test_other_trainable_parameters_are_refused(trained):
    net = Trainer(tiny_run()).net
    next(net.encoder.parameters()).requires_grad_(False)
    with pytest.raises(MorelError, match="of other trainable parameters"):
        Trainer(tiny_run(), net=net).load(trained)


def test_another_decay_of_the_average_is_a_setting_like_others(tmp_path):
    first = Trainer(tiny_run(training=TrainingConfig(batch_size=16, ema_decay=0.9)))
    first.save(tmp_path)
    Trainer(tiny_run(training=TrainingConfig(batch_size=16, ema_decay=0.8))).load(tmp_path)


def test_these_are_the_files_of_a_checkpoint(trained):
    assert sorted(path.name for path in trained.iterdir()) == [
        "best.safetensors",
        "last.safetensors",
        "manifest.json",
        "optimizer.pt",
        "progress.json",
    ]
