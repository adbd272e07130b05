"""What the ranks of test_worker_parity.py compute; it calls the same functions in one process.

``python parity_workers.py FOLDER`` runs the groups of 2 and 4 ranks (gloo, meeting at a file), each
rank a process forked from this one, and leaves FOLDER/<world size>/rank<rank>.pt.
"""

from __future__ import annotations

import dataclasses
import math
import multiprocessing
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from parity_cases import grads, small_batch, small_net, state
from torch import Tensor, nn

from morel_core import (
    PGD,
    AttackConfig,
    AwpConfig,
    EvaluationConfig,
    ExperimentConfig,
    MorelNet,
    MorelObjective,
    ObjectiveConfig,
    OptimizerConfig,
    Terms,
    Trainer,
    TrainingConfig,
)
from morel_core.attacks import in_slices
from morel_core.averaging import reestimate_batchnorm
from morel_core.awp import perturbed_weights
from morel_core.data import SyntheticConfig
from morel_core.distributed import data_parallel
from morel_core.models import DigitsCnnConfig, build_net
from morel_core.optim import make_optimizer
from morel_core.precision import EncoderPasses
from morel_core.seeding import sliced_randn
from morel_core.step import gradient_shares, train_step

NUM_EPOCHS = 20
SIZES = {  # global batch → rows on each rank
    2: ((4, 4), (3, 2)),
    4: ((2, 2, 2, 1),),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """An objective, and which samples the natural prediction gets wrong: None leaves it to y."""

    config: ObjectiveConfig
    epoch: int = 1
    norm: str = "linf"
    wrong: tuple[int, ...] | None = None
    awp_gamma: float = 0.0
    micro_batches: int = 1
    """Of the ranks; one process takes whole batches."""


def heavy(**settings: Any) -> ObjectiveConfig:
    """Weights under which an error in any term shows."""
    return ObjectiveConfig(**{"alpha": 0.5, "preference": (0.5, 0.5), **settings})


def loat(**settings: Any) -> ObjectiveConfig:
    return heavy(accuracy="loat", loat_lore=True, **settings)


CASES = {
    "trades": Case(heavy(accuracy="trades")),
    "trades both l2": Case(heavy(accuracy="trades", features="both"), norm="l2"),
    "mart adversarial": Case(heavy(accuracy="mart", features="adversarial")),
    "mart both": Case(heavy(accuracy="mart", features="both")),
    "at": Case(heavy(accuracy="at")),
    "at both l2": Case(heavy(accuracy="at", features="both"), norm="l2"),
    # The first row is on the first rank, the last on the last: their groups are empty elsewhere.
    "loat early": Case(loat(), wrong=(0,)),
    "loat late": Case(loat(), epoch=NUM_EPOCHS, wrong=(0,)),
    "loat kl early": Case(loat(loat_measure="kl"), wrong=(0, 1, 3)),
    "loat kl late, right at the end": Case(
        loat(loat_measure="kl", loat_base="trades"), epoch=NUM_EPOCHS, wrong=(0, 1, 2, 3)
    ),
    "loat all right": Case(loat(), wrong=()),
    "loat middle": Case(loat(), epoch=5),
    "chebyshev": Case(heavy(accuracy="trades", scalarisation="chebyshev")),
    "chebyshev, robustness larger": Case(
        heavy(accuracy="at", scalarisation="chebyshev", alpha=5.0, preference=(0.9, 0.1), gamma=0.3)
    ),
    "chebyshev, ranks disagree": Case(
        heavy(
            accuracy="at",
            scalarisation="chebyshev",
            features="both",
            preference=(0.443, 0.557),
            gamma=0.3,
        )
    ),
    "smooth chebyshev": Case(
        heavy(accuracy="mart", scalarisation="smooth_chebyshev", mu=0.7, reference=(0.2, 0.1))
    ),
    "awp": Case(heavy(accuracy="trades"), awp_gamma=0.05),
    "micro-batches": Case(heavy(accuracy="trades", features="both"), micro_batches=2),
    "micro-batches, loat, awp": Case(loat(), wrong=(0,), micro_batches=2, awp_gamma=0.05),
    "plain trades": Case(ObjectiveConfig(accuracy="trades", morel=False)),
    "plain mart": Case(ObjectiveConfig(accuracy="mart", morel=False)),
    "plain loat": Case(ObjectiveConfig(accuracy="loat", morel=False), wrong=(0,)),
    "plain at": Case(ObjectiveConfig(accuracy="at", morel=False)),
}


def gradients(case: Case, sizes: tuple[int, ...], rank: int) -> dict[str, Any]:
    """Attack, objective and backward pass over ``sizes[rank]`` rows of the global batch."""
    net = small_net(num_classes=3, spread=4.0, seed=1)
    for parameter in net.embedder_parameters():
        parameter.requires_grad_(case.config.morel)
    x, y, _ = small_batch(sum(sizes), num_classes=3, seed=1)
    if case.wrong is not None:
        with torch.no_grad():
            y = net(x).argmax(1)
        for i in case.wrong:
            y[i] = (y[i] + 1) % 3
    first = sum(sizes[:rank])
    mine = slice(first, first + sizes[rank])
    noise = sliced_randn(7, sizes, rank, x.shape[1:], x.dtype, "cpu")
    objective = MorelObjective(case.config)
    attack = PGD(
        eps=0.1 if case.norm == "linf" else 0.5,
        step_size=0.03 if case.norm == "linf" else 0.2,
        num_steps=3,
        norm=case.norm,
        loss=objective.attack_loss,
    )
    micro_batches = case.micro_batches if len(sizes) > 1 else 1
    x_adv = in_slices(attack, micro_batches)(net, x[mine], y[mine], noise=noise)
    parallel_objective = data_parallel(net, objective)  # must outlive the backward pass

    def weighed() -> Terms:
        return parallel_objective(
            net, x[mine], x_adv, y[mine], epoch=case.epoch, num_epochs=NUM_EPOCHS, shard=None
        )

    with (
        EncoderPasses(net, micro_batches=micro_batches).active(),
        perturbed_weights(net, case.awp_gamma, lambda: weighed().total),
    ):
        terms = weighed()
        shares = gradient_shares(terms, net)
        terms.total.backward()
    with torch.no_grad():
        right = net(x).argmax(1) == y
    return {
        "x_adv": x_adv,
        "terms": {name: value.detach() for name, value in terms.scalars().items()},
        "grads": grads(net),
        "shares": shares,
        "right": right,
        "classes": y.unique().numel(),
    }


def experiment(*, data: dict[str, Any], **sections: Any) -> ExperimentConfig:
    """Batches of 15 over two ranks, measured in chunks that do not come out even."""
    return ExperimentConfig(
        seed=3,
        data=SyntheticConfig(
            num_classes=4,
            image_size=8,
            num_train=139,
            num_test=8,
            holdout=49,
            noise=0.3,
            crop_padding=1,
            **data,
        ),
        model=DigitsCnnConfig(width=8, norm="none", embed_dim=8),
        attack=AttackConfig(num_steps=2),
        evaluation=EvaluationConfig(
            attack=AttackConfig(num_steps=3, init="uniform", loss="ce"), batch_size=12
        ),
        **sections,
    )


def training(**settings: Any) -> TrainingConfig:
    return TrainingConfig(epochs=2, batch_size=15, **settings)


RUNS = {
    "trades": experiment(
        data={"augmentation": "crop_flip"},
        objective=ObjectiveConfig(accuracy="trades", features="both", alpha=0.1),
        optimizer=OptimizerConfig(lr=0.05),
        training=training(),
    ),
    "mart, ema, awp": experiment(
        data={"augmentation": "idbh", "erasing": 0.5},
        objective=ObjectiveConfig(accuracy="mart", alpha=0.1),
        optimizer=OptimizerConfig(lr=0.05, clip_norm=1.0),
        training=training(ema_decay=0.9, awp=AwpConfig(gamma=0.01)),
    ),
    "trades, micro-batches": experiment(
        data={"augmentation": "crop_flip"},
        objective=ObjectiveConfig(accuracy="trades", features="both", alpha=0.1),
        optimizer=OptimizerConfig(lr=0.05),
        training=training(micro_batches=3),
    ),
    "loat, swa": experiment(
        data={"augmentation": "crop"},
        objective=ObjectiveConfig(accuracy="loat", alpha=0.1, scalarisation="smooth_chebyshev"),
        optimizer=OptimizerConfig(lr=0.05, schedule="one_cycle"),
        training=training(swa_start_epoch=1),
    ),
    "plain trades, cutmix, ema": experiment(
        data={"augmentation": "crop_flip", "cutmix": 0.6},
        objective=ObjectiveConfig(accuracy="trades", morel=False, label_smoothing=0.1),
        optimizer=OptimizerConfig(lr=0.05, no_decay_on_norm_and_bias=True),
        training=training(ema_decay=0.9),
    ),
    "plain at, cutmix, swa": experiment(
        data={"augmentation": "none", "cutmix": 1.0},
        objective=ObjectiveConfig(accuracy="at", morel=False),
        optimizer=OptimizerConfig(name="adamw", lr=0.005),
        training=training(swa_start_epoch=2),
    ),
}


def in_double(net: MorelNet) -> MorelNet:
    """``net`` computing in float64 on float32 images.

    The sign of a gradient near zero depends on the order of sums: in float32 often enough for two
    runs of the same steps to part.
    """
    net.encoder.register_forward_pre_hook(lambda _, images: (images[0].double(),))
    return net.double()


def train(config: ExperimentConfig) -> dict[str, Any]:
    """A whole run; alone on whole batches."""
    if not dist.is_initialized():
        settings = dataclasses.replace(config.training, micro_batches=1)
        config = dataclasses.replace(config, training=settings)
    net = build_net(config.model, num_classes=4, shape=(3, 8, 8), seed=config.seed)
    trainer = Trainer(config, net=in_double(net))
    trainer.fit()
    result = trainer.evaluate("holdout", {"robust": trainer.eval_attack})
    return {
        "net": state(trainer.net),
        "measured": state(trainer.network),
        "history": trainer.history,
        "correct": {name: outcome.correct for name, outcome in result.items()},
    }


def train_with_batchnorm() -> dict[str, Any]:
    """A run whose ranks see statistics of their own: what each of them attacks, and its end."""
    config = dataclasses.replace(
        RUNS["trades"],
        model=DigitsCnnConfig(width=4, norm="batch", embed_dim=8),
        training=training(swa_start_epoch=2),
    )
    trainer = Trainer(config)
    layer = next(m for m in trainer.net.modules() if isinstance(m, nn.BatchNorm2d))
    attacked: list[Tensor] = []

    def watch(module: nn.Module, _images: Any) -> None:
        if not module.training:
            assert layer.running_mean is not None
            attacked.append(layer.running_mean.clone())

    trainer.net.encoder.register_forward_pre_hook(watch)
    trainer.fit()
    return {"attacked": torch.stack(attacked), "measured": state(trainer.network)}


def reestimated(rank: int) -> tuple[float, float]:
    """Mean and variance of a BatchNorm, estimated from one batch on each rank: 0, 2 and 4, 8."""
    net = nn.BatchNorm1d(1).double()
    batch = torch.tensor([[0.0, 2.0], [4.0, 8.0]][rank], dtype=torch.float64)
    reestimate_batchnorm(net, iter([batch[:, None]]))
    assert net.running_mean is not None
    assert net.running_var is not None
    return net.running_mean.item(), net.running_var.item()


def spoiled(objective: Callable[..., Terms], value: float) -> Callable[..., Terms]:
    """``objective`` whose total is NaN, or infinite with gradients that are finite."""

    def call(net: MorelNet, *batch: Tensor, **where: Any) -> Terms:
        terms = objective(net, *batch, **where)
        total = terms.total * value if math.isnan(value) else terms.total + value
        return dataclasses.replace(terms, total=total)

    return call


def snapshot(net: MorelNet, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Tensor]]:
    """Copies of parameters and of all tensors that the optimiser keeps."""
    kept = {
        f"{index}.{name}": value.clone()
        for index, entry in optimizer.state_dict()["state"].items()
        for name, value in entry.items()
        if isinstance(value, Tensor)
    }
    return {"net": state(net), "optimizer": kept}


def steps(
    spoil: list[float | None], name: str, sizes: tuple[int, ...], rank: int
) -> list[dict[str, Any]]:
    """Steps of ``train_step``, the last rank's loss spoiled in some: what each left behind."""
    net = small_net()
    optimizer = make_optimizer(OptimizerConfig(name=name, lr=0.05), net)
    x, y, noise = small_batch(sum(sizes), seed=2)
    first = sum(sizes[:rank])
    mine = slice(first, first + sizes[rank])
    after: list[dict[str, Any]] = []
    for value in spoil:
        objective: Callable[..., Terms] = MorelObjective(ObjectiveConfig())
        if value is not None and rank == len(sizes) - 1:
            objective = spoiled(objective, value)
        _, finite = train_step(
            net,
            data_parallel(net, objective),
            PGD(eps=0.1, step_size=0.05, num_steps=1, loss="kl"),
            optimizer,
            x[mine],
            y[mine],
            noise=noise[mine],
            epoch=1,
            num_epochs=2,
        )
        after.append({"finite": bool(finite), **snapshot(net, optimizer)})
    return after


def run_rank(rank: int, world_size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=world_size
    )
    result: dict[str, Any] = {
        "gradients": {
            (name, sizes): gradients(case, sizes, rank)
            for sizes in SIZES[world_size]
            for name, case in CASES.items()
        }
    }
    if world_size == 2:
        result["train"] = {name: train(config) for name, config in RUNS.items()}
        result["batchnorm"] = train_with_batchnorm()
        result["reestimated"] = reestimated(rank)
        result["steps"] = {
            (name, value): steps([None, value, None], name, (3, 2), rank)
            for name in ("sgd", "adamw")
            for value in (math.nan, math.inf)
        }
    torch.save(result, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


def main(folder: Path) -> None:
    import torch._dynamo  # noqa: F401  # DDP imports it: once here, not seconds in every rank

    context = multiprocessing.get_context("fork")
    for world_size in SIZES:
        place = folder / str(world_size)
        place.mkdir()
        ranks = [
            context.Process(target=run_rank, args=(rank, world_size, place))
            for rank in range(world_size)
        ]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
        if any(process.exitcode for process in ranks):
            sys.exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
