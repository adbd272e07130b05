"""The epoch loop: train, measure on the held-out split, keep the best, save and resume exactly."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from morel_core import checkpoint
from morel_core.attacks import PGD, Attack, in_slices
from morel_core.averaging import WeightAverage
from morel_core.capture import CapturedAttack
from morel_core.config import ExperimentConfig, ObjectiveConfig
from morel_core.data import Batch, Batches, Dataset, load_data
from morel_core.distributed import (
    Shard,
    average_over_ranks,
    broadcast_buffers,
    data_parallel,
    rank,
    world_size,
)
from morel_core.errors import MorelError
from morel_core.evaluation import CLEAN, EvaluationResult, evaluate
from morel_core.finite import FiniteGuard
from morel_core.ladder import Ladder
from morel_core.losses import MorelObjective, Outputs, Terms
from morel_core.models import MorelNet, build_net
from morel_core.optim import (
    learning_rate,
    load_optimizer_state,
    make_optimizer,
    set_learning_rate,
)
from morel_core.precision import EncoderPasses
from morel_core.published_batchnorm import PublishedBatchNorm
from morel_core.seeding import derive_seed, sliced_randn
from morel_core.step import gradient_shares, train_step
from morel_core.stopping import (
    GUARD_IMAGES,
    guard_attack,
    guard_metrics,
    measurements_since_best,
)

Metrics = dict[str, float]
EpochCallback = Callable[[Metrics], None]


class Trainer:
    """Trains one network; ``for metrics in trainer.epochs(): …`` or ``trainer.fit()``.

    Runs alone or as one rank of an initialised process group. All randomness follows from
    (seed, epoch, step), so that a run resumed from a checkpoint goes on as if nothing had happened.

    Args:
        config: what to train.
        data: the data set; default: loaded as ``config.data`` says.
        net: the network; default: built as ``config.model`` says, with weights from the seed. It
            trains in train mode: frozen parameters stay, BatchNorm's statistics move all the same.
        device: where to train.
        accuracy: a user's own accuracy objective, with ``config.objective.accuracy = "custom"``.

    Raises:
        ConfigError: settings that do not fit the data.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        *,
        data: Dataset | None = None,
        net: MorelNet | None = None,
        device: torch.device | str = "cpu",
        accuracy: Callable[[Outputs, ObjectiveConfig], dict[str, Tensor]] | None = None,
    ) -> None:
        self.config = config
        self.device = torch.device(device)
        self.data = data or load_data(config.data, self.device)
        self.objective = MorelObjective(config.objective, accuracy)
        self.attack = PGD.from_config(config.attack, self.objective.attack_loss)
        self.ladder = Ladder.of(config.evaluation)
        self.eval_attack = self.ladder.last.attack
        self.net = net or build_net(
            config.model,
            num_classes=self.data.num_classes,
            shape=self.data.shape,
            seed=derive_seed(config.seed, "weights"),
        )
        self.net.to(self.device).train()
        for parameter in self.net.embedder_parameters():
            parameter.requires_grad_(config.objective.morel)  # DDP wants every parameter used
        self.batches = Batches(
            self.data.train,
            config.training.batch_size,
            seed=config.seed,
            augmentation=config.data.augmentation,
            crop_padding=config.data.crop_padding,
            rank=rank(),
            world_size=world_size(),
            extra=self.data.extra,
            extra_ratio=config.data.extra_ratio,
            erasing=config.data.erasing,
            cutmix=config.data.cutmix,
            num_classes=self.data.num_classes,
        )
        self.optimizer = make_optimizer(config.optimizer, self.net)
        self.parallel_objective = data_parallel(
            self.net,
            PublishedBatchNorm(self.objective)
            if config.training.published_batchnorm
            else self.objective,
        )
        if config.training.compile:
            # Beyond eight versions of a function, those of earlier runs in this process among them,
            # torch would run it uncompiled.
            torch.compiler.reset()
        self.passes = self._encoder_passes(compile=config.training.compile)
        # Measuring shares goes back through the graph several times: compiled, it would be freed.
        self.passes_for_shares = self._encoder_passes(compile=False)
        self.attack_for_shares = in_slices(self.attack, config.training.micro_batches)
        self.attack_for_steps = (
            CapturedAttack(self.attack_for_shares)
            if config.training.capture_attack
            else self.attack_for_shares
        )
        self.average = WeightAverage.of(config.training, self.net)
        self.epoch = 0
        self.history: list[Metrics] = []
        self.best: Metrics | None = None
        self.best_state = self._copy_of_state()

    @property
    def network(self) -> MorelNet:
        """What is measured and kept as best: the averaged network where there is one."""
        if self.average is not None and self.average.began(self.epoch):
            return self.average.net
        return self.net

    @property
    def done(self) -> bool:
        """Whether the run is at its end: all epochs trained, diverged or stopped."""
        if self.epoch >= self.config.training.epochs or self.diverged or self.stopped_early:
            return True
        return bool(self.history) and self.history[-1].get("catastrophic_overfitting", 0.0) > 0

    @property
    def stopped_early(self) -> bool:
        """Whether ``training.patience`` ended the run before its last epoch."""
        patience = self.config.training.patience
        if patience is None or self.epoch >= self.config.training.epochs:
            return False
        return measurements_since_best(self.history) >= patience

    @property
    def diverged(self) -> bool:
        """Whether a loss or gradient was not finite."""
        return bool(self.history) and self.history[-1]["diverged"] > 0

    def fit(self, callback: EpochCallback | None = None) -> list[Metrics]:
        """Train to the end; ``callback`` sees each epoch's metrics. Returns all epochs' metrics."""
        for metrics in self.epochs():
            if callback is not None:
                callback(metrics)
        return self.history

    def epochs(self) -> Iterator[Metrics]:
        """The remaining epochs, one after the other."""
        self._check_whole()
        while not self.done:
            yield self.run_epoch()

    def run_epoch(self) -> Metrics:
        """Train one epoch and measure.

        Returns:
            Plain floats: ``epoch``, ``num_epochs``, ``lr``, ``loss.*`` (means over the epoch),
            ``gradient_share.*`` (of its first batch), ``seconds``, ``images_per_second``,
            ``diverged``, and if so ``diverged_step``, the step (counted from 1) whose loss or
            gradient was not finite and which, like those after it, updated nothing; where the
            epoch was measured: ``clean_accuracy``, ``robust_accuracy``,
            each with ``_low`` and ``_high``, and ``best_*`` of the best epoch so far; with
            ``evaluation.rungs`` ``rung`` and ``num_images``, and the newest rung's best; with
            ``training.patience`` ``stopped_early``; with ``training.overfitting_guard`` see
            `guard_metrics`. An epoch in which the guard fires is always measured.

        Raises:
            MorelError: all epochs are trained, or the one before was interrupted.
        """
        self._check_whole()
        if self.epoch >= self.config.training.epochs:
            raise MorelError(f"all {self.config.training.epochs} epochs are trained")
        started = time.perf_counter()
        self.epoch += 1
        metrics: Metrics = {
            "epoch": self.epoch,
            "num_epochs": self.config.training.epochs,
            **self._train(),
        }
        if self.average is not None and not metrics["diverged"]:
            self.average.after_epoch(self.net, self.epoch)
        metrics["seconds"] = time.perf_counter() - started
        images = len(self.batches) * self.config.training.batch_size
        metrics["images_per_second"] = images / metrics["seconds"]
        if not metrics["diverged"]:
            if self.config.training.overfitting_guard:
                metrics |= self._guard()
            if self.is_measured or metrics.get("catastrophic_overfitting"):
                self._before_measuring()
                if self.config.evaluation.asynchronous:
                    self.best_state = self._copy_of_state()  # whoever measures it, decides
                else:
                    metrics |= self.measure()
                    self._keep_best(metrics)
        if self.best is not None:
            metrics |= {f"best_{key}": value for key, value in self.best.items()}
        self.history.append(metrics)
        if self.config.training.patience is not None:
            metrics["stopped_early"] = float(self.stopped_early)
        return metrics

    def _encoder_passes(self, *, compile: bool) -> EncoderPasses:
        settings = self.config.training
        return EncoderPasses(
            self.net,
            precision=settings.precision,
            channels_last=settings.channels_last,
            compile=compile,
            cudnn_benchmark=settings.cudnn_benchmark,
            micro_batches=settings.micro_batches,
        )

    def _train(self) -> Metrics:
        config, steps = self.config, len(self.batches)
        torch.manual_seed(derive_seed(config.seed, "dropout", self.epoch, rank()))
        self.net.train()
        sums: dict[str, Tensor] = {}
        shares: dict[str, Tensor] = {}
        nets = [self.net] if self.average is None else [self.net, self.average.net]
        guard = FiniteGuard(nn.ModuleList(nets), self.device)
        lr = 0.0
        for step, batch in enumerate(self.batches.epoch(self.epoch)):
            lr = learning_rate(
                config.optimizer, self.epoch - 1 + step / steps, config.training.epochs
            )
            set_learning_rate(self.optimizer, lr)
            guard.before_step()
            terms, finite = self.step(batch, shares if step == 0 else None, guard.allowed)
            guard.after_step(finite)
            for name, value in terms.scalars().items():
                sums[name] = sums.get(name, 0.0) + value.detach()
            if self.average is not None:
                self.average.after_step(self.net, (self.epoch - 1) * steps + step)
        means = average_over_ranks(torch.stack([s.double() for s in sums.values()]) / steps)
        done = guard.steps_done()
        metrics: Metrics = {"lr": lr, "diverged": float(done < steps)}
        if done < steps:
            guard.restore_buffers()
            metrics["diverged_step"] = done + 1.0
        metrics |= {f"loss.{k}": v for k, v in zip(sums, means.tolist(), strict=True)}
        return metrics | {f"gradient_share.{k}": v.item() for k, v in shares.items()}

    def step(
        self,
        batch: Batch,
        shares: dict[str, Tensor] | None = None,
        allowed: Tensor | None = None,
    ) -> tuple[Terms, Tensor]:
        """One optimisation step of the network in train mode; fills ``shares`` if it is given.

        Takes ``allowed`` and returns what `train_step` does.
        """
        awp = self.config.training.awp
        broadcast_buffers(self.net)
        noise = sliced_randn(
            batch.seed, batch.sizes, batch.rank, batch.x.shape[1:], batch.x.dtype, self.device
        )

        def note_shares(terms: Terms) -> None:
            if shares is not None:
                shares.update(gradient_shares(terms, self.net))

        passes = self.passes if shares is None else self.passes_for_shares
        with passes.active():
            return train_step(
                self.net,
                self.parallel_objective,
                self.attack_for_steps if shares is None else self.attack_for_shares,
                self.optimizer,
                batch.x,
                batch.y,
                noise=noise,
                epoch=self.epoch,
                num_epochs=self.config.training.epochs,
                shard=Shard(batch.sizes, batch.rank),
                clip_norm=self.config.optimizer.clip_norm,
                awp_gamma=awp.gamma if self.epoch > awp.warmup_epochs else 0.0,
                allowed=allowed,
                inspect=note_shares,
            )

    @property
    def is_measured(self) -> bool:
        """Whether the epoch just trained is one of those to be measured."""
        last = self.epoch == self.config.training.epochs
        return last or self.epoch % self.config.evaluation.every == 0

    def _before_measuring(self) -> None:
        """Bring the statistics of the network to be measured up to date, on all ranks alike."""
        if self.average is not None and self.network is self.average.net:
            self.average.before_measuring(batch.x for batch in self.batches.epoch(self.epoch))
        broadcast_buffers(self.network)

    def measure(self) -> Metrics:
        """Held-out accuracies of the network as it stands, by the rung of its epoch.

        Returns:
            ``clean_accuracy`` and ``robust_accuracy``, each with ``_low`` and ``_high``,
            ``seconds_evaluation``, and with ``evaluation.rungs`` ``rung`` and ``num_images``.
        """
        rung = self.ladder.at(self.epoch)
        attacks = {"robust": rung.attack}
        result = self._evaluate(self.network, "holdout", attacks, rung.num_images)
        metrics: Metrics = {"seconds_evaluation": sum(o.seconds for o in result.values())}
        if rung.number:
            metrics |= {"rung": rung.number, "num_images": result[CLEAN].num_images}
        for key, name in (("clean_accuracy", CLEAN), ("robust_accuracy", "robust")):
            low, high = result[name].interval
            metrics |= {key: result[name].accuracy, f"{key}_low": low, f"{key}_high": high}
        return metrics

    def _keep_best(self, metrics: Metrics) -> None:
        """Keep a copy of the network if it is its rung's best so far."""
        if (
            self.best is None
            or self.best.get("rung") != metrics.get("rung")
            or metrics["robust_accuracy"] > self.best["robust_accuracy"]
        ):
            kept = ("clean_accuracy", "robust_accuracy", "rung", "num_images")
            self.best = {k: v for k, v in metrics.items() if k.startswith(kept)}
            self.best["epoch"] = self.epoch
            self.best_state = self._copy_of_state()

    def _guard(self) -> Metrics:
        """The trained network, average or not, against several steps and against its own one."""
        broadcast_buffers(self.net)
        attacks = {"multi_step": guard_attack(self.attack), "single_step": self.attack}
        result = self._evaluate(self.net, "holdout", attacks, GUARD_IMAGES)
        return guard_metrics(result, self.history)

    def evaluate(self, split: str, attacks: Mapping[str, Attack]) -> EvaluationResult:
        """The network as it stands on "holdout" or "test", by the config's evaluation settings."""
        limit = self.config.evaluation.num_images if split == "holdout" else None
        return self._evaluate(self.network, split, attacks, limit)

    def _evaluate(
        self, net: MorelNet, split: str, attacks: Mapping[str, Attack], limit: int | None
    ) -> EvaluationResult:
        settings = self.config.evaluation
        source = self.data.holdout if split == "holdout" else self.data.test
        indices = torch.arange(len(source))[:limit]
        return evaluate(
            net,
            source.fetch(indices).to(self.device),
            source.labels[indices].to(self.device),
            {name: in_slices(a, self.config.training.micro_batches) for name, a in attacks.items()},
            batch_size=settings.batch_size,
            seed=settings.seed,
            split=split,
        )

    def _copy_of_state(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.network.state_dict().items()}

    def save(self, folder: Path | str) -> None:
        """Write a checkpoint: the network as it stands and the best one, optimiser and progress.

        One of an epoch that an exception has ended holds the best network, but is not gone on from.
        """
        networks = {"last": self.net.state_dict(), "best": self.best_state}
        if self.average is not None:
            networks["averaged"] = self.average.net.state_dict()
        checkpoint.save_checkpoint(
            Path(folder),
            networks=networks,
            optimizer=self.optimizer.state_dict(),
            progress={
                "config": dataclasses.asdict(self.config),
                "epoch": self.epoch,
                "history": self.history,
                "best": self.best,
                "diverged": self.divergence(),
            },
        )

    def _check_whole(self) -> None:
        if self.epoch != len(self.history):
            raise MorelError(
                f"epoch {self.epoch} was interrupted, and its steps cannot be told from those that "
                "are left: load the last checkpoint, or begin with a new Trainer"
            )

    def divergence(self) -> dict[str, Any] | None:
        """The step at which training diverged, for whoever repeats it; None if it did not.

        ``epoch`` and ``step`` (from 1), ``seed`` of its attack's noise, and ``images``: the places
        of the global batch's images in the training split (those beyond it are extra ones). The
        trained network is the one before that step. An average goes on to the end of the epoch,
        towards that network, with BatchNorm's statistics from before the step.
        """
        if not self.diverged:
            return None
        epoch, step = self.epoch, int(self.history[-1].get("diverged_step", 1))
        return {
            "epoch": epoch,
            "step": step,
            "seed": derive_seed(self.config.seed, "step", epoch, step - 1),
            "images": self.batches.places(epoch, step - 1).tolist(),
        }

    def load(self, folder: Path | str) -> None:
        """Go on from a checkpoint; raises `MorelError` if it is damaged or of another network.

        Weights, the optimiser's buffers and progress come from there, all settings from this
        trainer's own config: a run may go on with another learning rate, decay or momentum, but not
        with other parameters to train, another optimiser or another average.
        """
        folder = Path(folder)
        progress = checkpoint.load_progress(folder)
        checkpoint.check_kind(folder, progress["config"], dataclasses.asdict(self.config))
        self._load_state(checkpoint.load_network(folder, "last"), folder)
        if self.average is not None:
            self.average.net.load_state_dict(checkpoint.load_network(folder, "averaged"))
        load_optimizer_state(self.optimizer, checkpoint.load_optimizer(folder))
        self.best_state = {
            name: value.to(self.device) for name, value in checkpoint.load_network(folder).items()
        }
        self.epoch = progress["epoch"]
        self.history = progress["history"]
        self.best = progress["best"]

    def load_best(self) -> None:
        """Put the best network so far in place."""
        self.net.load_state_dict(self.best_state)
        if self.average is not None:
            self.average.net.load_state_dict(self.best_state)

    def _load_state(self, state: dict[str, Tensor], folder: Path) -> None:
        try:
            self.net.load_state_dict(state)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:300]
            raise MorelError(f"{folder}: belongs to another network: {reason}") from None
