"""A data set as arrays that several processes share, and whom it is for."""

import dataclasses
import warnings

import numpy as np
import pytest
import torch
from tiny_evaluation import TINY

from morel_core import MorelError, Trainer
from morel_core.config import DataConfig
from morel_core.data import Dataset, ImageFolderConfig, ImageFolderSource, load_data
from orchestrator.config import RunConfig, with_overrides
from orchestrator.settings.building import build
from orchestrator.training import staging
from orchestrator.training.staging import Staged, packed, same_images, unpacked

EXTRA_SEED = 3


@pytest.fixture
def extra(tmp_path):
    draws = np.random.default_rng(EXTRA_SEED)
    path = tmp_path / "extra.npz"
    np.savez(
        path,
        image=draws.integers(256, size=(20, 8, 8, 1), dtype=np.uint8),
        label=draws.integers(3, size=20),
    )
    return str(path)


@pytest.fixture
def config(extra):
    run = build(RunConfig, TINY | {"storage_path": "/nowhere"})
    return with_overrides(run, {"data.extra": extra, "data.augmentation": "crop_flip"})


def locked(content):
    """As Ray hands arrays out: nobody may write into them."""
    for name in (*staging.PARTS, *staging.INDICES):
        arrays = content[name] if isinstance(content[name], tuple) else (content[name],)
        for array in arrays:
            if array is not None:
                array.setflags(write=False)
    return content


def tensors(data: Dataset):
    yield from (data.train_indices, data.holdout_indices)
    for name in staging.PARTS:
        yield from (getattr(data, name).images, getattr(data, name).labels)


def test_a_data_set_comes_back_from_arrays_without_a_copy_or_a_warning(config):
    data = load_data(config.data)
    content = locked(packed(data))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shared = unpacked(content)
    for field in dataclasses.fields(data):
        if field.name not in (*staging.PARTS, *staging.INDICES):
            assert getattr(shared, field.name) == getattr(data, field.name)
    for there, here in zip(tensors(shared), tensors(data), strict=True):
        assert torch.equal(there, here)
        assert there.data_ptr() == here.data_ptr()


def test_training_on_shared_images_is_training_and_leaves_them_as_they_are(config):
    data = load_data(config.data)
    digests = [data.train.digest(), data.holdout.digest(), data.test.digest(), data.extra.digest()]
    own, shared = Trainer(config), Trainer(config, data=unpacked(locked(packed(data))))
    own.fit()
    shared.fit()
    shared.evaluate("test", {"robust": shared.eval_attack})
    for name, value in own.net.state_dict().items():
        assert torch.equal(value, shared.net.state_dict()[name]), name
    parts = (data.train, data.holdout, data.test, data.extra)
    assert [part.digest() for part in parts] == digests


def test_images_that_are_read_from_files_stay_where_they_are(config, tmp_path):
    data = load_data(config.data)
    files = ImageFolderSource(tmp_path, [], torch.zeros(0, dtype=torch.int64), 8)
    assert packed(dataclasses.replace(data, train=files)) is None
    assert Staged(config.data, data.fingerprint, None).take(config.data, "cpu") is None


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"augmentation": "idbh", "erasing": 0.5, "cutmix": 0.5, "crop_padding": 1}, True),
        ({"holdout": 100}, False),
        ({"split_seed": 1}, False),
        ({"train_size": 100}, False),
        ({"root": "/other"}, False),
        ({"extra": "more.npz"}, False),
        ({"name": "cifar10"}, False),
    ],
)
def test_who_loads_the_same_images(changes, same):
    config = DataConfig()
    assert same_images(dataclasses.replace(config, **changes), config) == same
    assert same_images(config, dataclasses.replace(config, **changes)) == same


def test_the_share_of_extra_images_changes_none_of_them():
    one, other = (DataConfig(extra="more.npz", extra_ratio=share) for share in (0.1, 0.7))
    assert same_images(one, other)


def test_another_kind_of_data_set_has_other_images():
    assert not same_images(ImageFolderConfig(), DataConfig())
    assert not same_images(DataConfig(), ImageFolderConfig())


def test_every_setting_decides_on_images_or_on_what_is_done_with_them():
    """A new setting is taken to decide on images until it is listed."""
    known = {field.name for field in dataclasses.fields(DataConfig)}
    assert set(staging.NOT_IMAGES) < known


def test_a_node_with_other_files_is_refused():
    """Of images that each node reads for itself nobody else would notice."""
    config = DataConfig(name="digits")
    data = load_data(config)
    read_here = Staged(config, "0" * 64, None)
    with pytest.raises(MorelError, match=r"are not the driver's \(fingerprint .*, not 0{12}\)"):
        read_here.check(config, data)
    read_here.check(dataclasses.replace(config, split_seed=1), data)  # nobody hashed these
    Staged(config, data.fingerprint, None).check(config, data)
