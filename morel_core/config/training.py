"""How long a run is, in which batches, and what is added to its steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from morel_core.errors import check

Precision = Literal["fp32", "tf32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class AwpConfig:
    """Adversarial weight perturbation (Wu et al. 2020)."""

    gamma: float = 0.0
    """Length of a layer's perturbation, relative to its weights (TRADES: 0.005, AT: 0.01); 0: off.

    The reported losses are then those at the perturbed weights.
    """
    warmup_epochs: int = 0
    """Epochs before it begins."""

    def __post_init__(self) -> None:
        check(0 <= self.gamma < 1, "gamma", self.gamma, "0 (off) or in (0, 1), say 0.005")
        check(self.warmup_epochs >= 0, "warmup_epochs", self.warmup_epochs, "must be >= 0")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Length and batches of a run."""

    epochs: int = 10
    """Passes over the training images."""
    batch_size: int = 128
    """Of all workers together: the number of workers does not change the batch."""
    micro_batches: int = 1
    """Slices in which each worker passes its part of a batch: less memory, one more forward pass.

    The terms over the whole batch stay exact (`morel_core.micro_batches`): without BatchNorm the
    step is the same. With BatchNorm each slice has its own statistics, which makes another run.
    """
    precision: Precision = "fp32"
    """tf32: convolutions on CUDA in TF32, torch's own default, which fp32 does without. bf16: the
    encoder's passes under autocast; a CPU without AVX512-BF16 or AMX emulates it, and takes several
    times as long as in fp32. Images, losses and evaluation stay fp32."""
    channels_last: bool = False
    """Memory layout of the encoder's passes; pays with bf16, and on GPUs."""
    compile: bool = False
    """torch.compile the encoder's passes: minutes at the start, then fewer and larger kernels."""
    cudnn_benchmark: bool = False
    """On CUDA, let cuDNN time its convolutions and take the fastest for each shape of a step.

    It may choose otherwise in the next run, whose last bits then differ. Not measured here yet.
    """
    capture_attack: bool = False
    """On CUDA, replay the training attack as one CUDA graph: for networks whose passes are shorter
    than the launching of their kernels. Takes the memory of one more pass."""
    published_batchnorm: bool = False
    """Move BatchNorm's running statistics as often as the published step's repeated passes do."""
    ema_decay: float | None = None
    """Measure, keep and export an exponential moving average of the weights, updated each step.

    In adversarial training since Gowal et al. 2020, who took 0.995.
    """
    swa_start_epoch: int | None = None
    """Average the weights at the end of this epoch (counted from 1) and of every one after it.

    Stochastic weight averaging (Izmailov et al. 2018): measured, kept and exported from then on.
    """
    awp: AwpConfig = field(default_factory=AwpConfig)
    patience: int | None = None
    """Stop after so many measurements in a row without a better held-out robust accuracy.

    Against robust overfitting (Rice et al. 2020).
    """
    overfitting_guard: bool = False
    """With attack.num_steps: 1, measure PGD-10 on 256 held-out images after each epoch and stop on
    catastrophic overfitting (Wong et al. 2020)."""

    def __post_init__(self) -> None:
        check(self.epochs >= 1, "epochs", self.epochs, "must be >= 1")
        check(self.batch_size >= 2, "batch_size", self.batch_size, "must be >= 2")
        check(
            1 <= self.micro_batches <= self.batch_size // 2,
            "micro_batches",
            self.micro_batches,
            f"from 1 to {self.batch_size // 2}: at least 2 of the batch_size = {self.batch_size} "
            "images in each",
        )
        check(
            self.micro_batches == 1 or not self.published_batchnorm,
            "micro_batches",
            self.micro_batches,
            "1 with published_batchnorm, whose statistics are those of whole batches",
        )
        check(
            self.precision in get_args(Precision),
            "precision",
            self.precision,
            f"one of {', '.join(get_args(Precision))}",
        )
        check(
            self.ema_decay is None or 0 < self.ema_decay < 1,
            "ema_decay",
            self.ema_decay,
            "null (off) or in (0, 1), say 0.995",
        )
        check(
            self.swa_start_epoch is None or 1 <= self.swa_start_epoch <= self.epochs,
            "swa_start_epoch",
            self.swa_start_epoch,
            f"null (off) or an epoch from 1 to epochs = {self.epochs}",
        )
        check(
            self.ema_decay is None or self.swa_start_epoch is None,
            "swa_start_epoch",
            self.swa_start_epoch,
            "one average at a time: set ema_decay or swa_start_epoch to null",
        )
        check(
            self.patience is None or self.patience >= 1,
            "patience",
            self.patience,
            "null (train to the end) or a number of measurements >= 1",
        )
