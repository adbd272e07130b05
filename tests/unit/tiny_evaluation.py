"""A tiny trained network and its config, for the tests of ``morel evaluate``."""

TINY = {
    "data": {
        "name": "synthetic", "num_classes": 4, "image_size": 8, "channels": 1, "num_train": 78,
        "num_test": 20, "holdout": 30,
    },
    "model": {"name": "digits_cnn", "width": 4, "embed_dim": 8},
    "attack": {"eps": 0.05, "step_size": 0.02, "num_steps": 1},
    "evaluation": {"attack": {"eps": 0.05, "step_size": 0.02, "num_steps": 2}, "batch_size": 8},
    "training": {"epochs": 2, "batch_size": 16},
    "name": "tiny",
}  # fmt: skip
