"""What a training run is made of: frozen dataclasses that check themselves.

Every class raises `ConfigError` (a ValueError) that names the key, the value and what is allowed.
Data sets and models with settings of their own register a subclass of `DataConfig`, `ModelConfig`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from morel_core.errors import ConfigError, check

Norm = Literal["linf", "l2"]
AttackLoss = Literal["auto", "ce", "kl"]
Init = Literal["gaussian", "uniform", "none"]
Iterate = Literal["last", "worst"]
Accuracy = Literal["trades", "mart", "loat", "at", "custom"]
Precision = Literal["fp32", "tf32", "bf16"]
Scalarisation = Literal["weighted_sum", "chebyshev", "smooth_chebyshev"]

KL_START = "gaussian or uniform with loss: kl, whose gradient at x itself is zero"
EPS_HINT = "images lie in [0, 1], so 8/255 is written ${frac:8,255}"


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images, and how they are divided. The split follows from ``split_seed`` alone."""

    name: str = "digits"
    root: str | None = None
    """Folder of the files; default: the environment's MOREL_DATA_ROOT, else ~/.cache/morel/data."""
    download: bool = False
    """Let torchvision fetch the files into ``root`` when they are missing."""
    holdout: int = 200
    """Images of the training set kept out of training: what selects is measured on them."""
    split_seed: int = 0
    train_size: int | None = None
    """Use only this many training images (class-balanced draw); default: all that are left."""
    test_size: int | None = None
    augmentation: Literal["none", "crop", "crop_flip", "idbh"] = "none"
    """idbh: flips, CropShift and ColorShape (Li & Spratling 2023); with ``erasing`` 0.5 or 1 it is
    the whole of their IDBH-weak or -strong."""
    crop_padding: int = 4
    """Pixels on each side; crop and crop_flip only."""
    erasing: float = 0.0
    """Probability that a box of an image is erased with random pixels (Zhong et al. 2020)."""
    cutmix: float = 0.0
    """Probability that a box of an image comes from another one (CutMix, Yun et al. 2019).

    Labels are then (b, K) shares, which an objective of your own must expect.
    """
    extra: str | None = None
    """An npz of more training images (image: NHWC uint8, label: int), as public EDM sets come.

    Generated ones help (Gowal et al. 2021), those of diffusion models most (Wang et al. 2023).
    """
    extra_ratio: float = 0.7
    """Share of each batch that is taken from ``extra`` (Gowal et al. 2021: 0.7 of CIFAR-10's
    batches); the steps of an epoch stay as many."""

    def __post_init__(self) -> None:
        check(self.holdout >= 1, "holdout", self.holdout, "at least 1 image must be held out")
        for key in ("train_size", "test_size"):
            size = getattr(self, key)
            check(size is None or size >= 1, key, size, "null (all) or a number of images >= 1")
        check(self.crop_padding >= 0, "crop_padding", self.crop_padding, "pixels >= 0")
        for key in ("erasing", "cutmix"):
            check(0 <= getattr(self, key) <= 1, key, getattr(self, key), "a probability in [0, 1]")
        check(0 < self.extra_ratio < 1, "extra_ratio", self.extra_ratio, "a share in (0, 1)")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which network, and the embedding space that training adds to it."""

    name: str = "digits_cnn"
    embed_dim: int = 128
    attention: bool = True
    """False leaves the class-adaptive attention out (ablation): projections are compared as is."""
    num_heads: int = 2
    dropout: float = 0.0
    mean: list[float] | None = None
    """Per-channel mean that the network itself subtracts; inputs always lie in [0, 1]."""
    std: list[float] | None = None

    def __post_init__(self) -> None:
        check(self.embed_dim >= 1, "embed_dim", self.embed_dim, "a width >= 1")
        check(
            self.num_heads >= 1 and self.embed_dim % self.num_heads == 0,
            "num_heads",
            self.num_heads,
            f"must divide embed_dim = {self.embed_dim}",
        )
        check(0.0 <= self.dropout < 1.0, "dropout", self.dropout, "a probability in [0, 1)")
        check(
            (self.mean is None) == (self.std is None),
            "std",
            self.std,
            "give mean and std, or neither",
        )
        check(self.std is None or all(s > 0 for s in self.std), "std", self.std, "all entries > 0")


@dataclass(frozen=True, kw_only=True)
class AttackConfig:
    """Projected gradient descent in a ball (Madry et al. 2018); the published one by default."""

    norm: Norm = "linf"
    eps: float = 0.031
    step_size: float = 0.007
    num_steps: int = 10
    init: Init = "gaussian"
    """gaussian: x + init_scale·N(0, I) (TRADES); uniform: in the ball (Madry); none: x itself."""
    init_scale: float = 0.001
    loss: AttackLoss = "auto"
    """What it maximises; auto: KL for TRADES, cross-entropy otherwise."""

    def __post_init__(self) -> None:
        bound = 1.0 if self.norm == "linf" else 100.0
        check(0.0 < self.eps <= bound, "eps", self.eps, f"must be in (0, {bound:g}]; {EPS_HINT}")
        check(self.step_size > 0, "step_size", self.step_size, f"must be > 0; {EPS_HINT}")
        check(
            self.step_size <= 2 * self.eps,
            "step_size",
            self.step_size,
            f"must be at most the ball's diameter, 2·eps = {2 * self.eps:g}",
        )
        check(self.num_steps >= 1, "num_steps", self.num_steps, "must be >= 1")
        check(self.init_scale >= 0, "init_scale", self.init_scale, "must be >= 0")
        check(self.loss != "kl" or self.init != "none", "init", self.init, KL_START)


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """The two objectives of MOREL and how they are weighed (arXiv 2410.01697)."""

    accuracy: Accuracy = "trades"
    morel: bool = True
    """False trains the accuracy objective alone: the plain TRADES, MART, LOAT or AT baseline."""
    beta: float = 6.0
    """Weight of the KL term in TRADES, MART and LOAT."""
    preference: tuple[float, float] = (0.1, 0.9)
    """k = (k₁, k₂): weight of the robustness and of the accuracy objective."""
    reference: tuple[float, float] = (0.0, 0.0)
    """a: reference point. In the weighted sum it has no gradient and is kept for fidelity."""
    gamma: float = 2e-5
    """γ: augmentation, which adds γ times the plain sum to any scalarisation."""
    scalarisation: Scalarisation = "weighted_sum"
    """chebyshev (Steuer & Choo 1983) and smooth_chebyshev (Lin et al. 2024) also reach the
    non-convex parts of the front; distances count from ``reference``."""
    mu: float = 0.1
    """μ of smooth_chebyshev: the smaller, the closer to the maximum."""
    alpha: float = 1e-5
    """α: weight of the contrastive term inside the robustness objective."""
    temperature: float = 0.1
    """τ of the contrastive term."""
    label_smoothing: float = 0.0
    """Share of the target that is uniform (Szegedy et al. 2016), in the CE of TRADES and AT."""
    features: Literal["natural", "adversarial", "both"] = "natural"
    """Rows of the contrastive term: natural in the 2024 experiments, both in advermorel."""
    loat_base: Literal["mart", "trades"] = "mart"
    loat_measure: Literal["mse", "kl"] = "mse"
    loat_theta: float = 1.0
    """θ: weight of the logit fluctuation (advermorel 1, its authors' script 0.1)."""
    loat_lore: bool = False
    """Add the LORE term, weighted loat_gamma."""
    loat_gamma: float = 0.05
    loat_early_epochs: int = 1
    loat_late_start: int | None = None
    """First epoch (counted from 1) of the late phase; default: the last tenth of training."""

    def __post_init__(self) -> None:
        for key in ("preference", "reference"):  # YAML has lists only
            object.__setattr__(self, key, tuple(getattr(self, key)))
        for key in ("beta", "gamma", "alpha", "loat_theta", "loat_gamma"):
            check(getattr(self, key) >= 0, key, getattr(self, key), "must be >= 0")
        check(self.temperature > 0, "temperature", self.temperature, "must be > 0 (published: 0.1)")
        check(self.mu > 0, "mu", self.mu, "must be > 0")
        check(
            self.morel or self.scalarisation == "weighted_sum",
            "scalarisation",
            self.scalarisation,
            "weighted_sum with morel: false, which leaves a single objective",
        )
        check(
            0 <= self.label_smoothing < 1,
            "label_smoothing",
            self.label_smoothing,
            "a share in [0, 1)",
        )
        check(
            self.label_smoothing == 0 or self.accuracy in ("trades", "at"),
            "label_smoothing",
            self.label_smoothing,
            f"0 with accuracy: {self.accuracy}; MART and LOAT boost the margin to one hard label, "
            "an objective of your own smooths for itself",
        )
        check(
            len(self.preference) == 2
            and all(0.0 <= k <= 1.0 for k in self.preference)
            and sum(self.preference) > 0,
            "preference",
            list(self.preference),
            "two weights (k1, k2), each in [0, 1], not both 0 (published: [0.1, 0.9])",
        )
        check(len(self.reference) == 2, "reference", list(self.reference), "two numbers")
        check(
            self.loat_early_epochs >= 0, "loat_early_epochs", self.loat_early_epochs, "must be >= 0"
        )
        check(
            self.loat_late_start is None or self.loat_late_start >= 1,
            "loat_late_start",
            self.loat_late_start,
            "null or an epoch counted from 1",
        )

    @property
    def attack_loss(self) -> Literal["ce", "kl"]:
        """What ``attack.loss: auto`` stands for: KL for TRADES and for LOAT on TRADES."""
        base = self.loat_base if self.accuracy == "loat" else self.accuracy
        return "kl" if base == "trades" else "ce"


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Optimiser and learning-rate schedule, in epochs.

    adamw decouples the weight decay from the gradient (Loshchilov & Hutter 2019), sgd adds it.
    """

    name: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.01
    momentum: float = 0.9
    """sgd only, as is nesterov."""
    nesterov: bool = False
    weight_decay: float = 2e-4
    no_decay_on_norm_and_bias: bool = False
    """Decay weight matrices and kernels alone, no parameter of one dimension (He et al. 2019)."""
    schedule: Literal["constant", "piecewise", "cosine", "one_cycle"] = "constant"
    """cosine: Loshchilov & Hutter 2017, without restarts; one_cycle: Smith 2018."""
    milestones: list[int] = field(default_factory=lambda: list[int]())
    """piecewise: after this many epochs …"""
    factors: list[float] = field(default_factory=lambda: list[float]())
    """… the learning rate is lr times this (not cumulative)."""
    warmup_epochs: int = 0
    """Linear warm-up over the first epochs, step by step (Goyal et al. 2017)."""
    one_cycle_peak: float = 0.45
    """one_cycle: fraction of the run after which lr is reached; as long again, and it is back …"""
    one_cycle_start: float = 0.1
    """… at lr times this, where it also starts; from there it falls to 0."""
    clip_norm: float | None = None
    """Clip the global gradient norm to this (Pascanu et al. 2013)."""

    def __post_init__(self) -> None:
        check(self.lr > 0, "lr", self.lr, "must be > 0")
        check(0 <= self.momentum < 1, "momentum", self.momentum, "must be in [0, 1)")
        check(
            not self.nesterov or self.momentum > 0, "nesterov", self.nesterov, "needs momentum > 0"
        )
        check(self.weight_decay >= 0, "weight_decay", self.weight_decay, "must be >= 0")
        check(
            len(self.milestones) == len(self.factors),
            "factors",
            self.factors,
            f"one factor for each milestone of {self.milestones}",
        )
        check(
            self.schedule == "piecewise" or not self.milestones,
            "milestones",
            self.milestones,
            "only with schedule: piecewise",
        )
        check(
            self.milestones == sorted(set(self.milestones))
            and all(m >= 1 for m in self.milestones),
            "milestones",
            self.milestones,
            "rising epochs >= 1",
        )
        check(
            all(f >= 0 for f in self.factors), "factors", self.factors, "multiples of lr, each >= 0"
        )
        check(self.warmup_epochs >= 0, "warmup_epochs", self.warmup_epochs, "must be >= 0")
        check(
            self.warmup_epochs == 0 or self.schedule != "one_cycle",
            "warmup_epochs",
            self.warmup_epochs,
            "0 with schedule: one_cycle, which is its own warm-up",
        )
        check(
            0 < self.one_cycle_peak <= 0.5,
            "one_cycle_peak",
            self.one_cycle_peak,
            "a fraction of the run in (0, 0.5]",
        )
        check(
            0 <= self.one_cycle_start <= 1,
            "one_cycle_start",
            self.one_cycle_start,
            "a multiple of lr in [0, 1]",
        )
        check(
            self.clip_norm is None or self.clip_norm > 0, "clip_norm", self.clip_norm, "null or > 0"
        )


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
    batch_size: int = 128
    """Of all workers together: the number of workers does not change the batch."""
    precision: Precision = "fp32"
    """tf32: convolutions on CUDA in TF32, torch's own default, which fp32 does without. bf16: the
    encoder's passes under autocast. Images, losses and evaluation stay fp32."""
    channels_last: bool = False
    """Memory layout of the encoder's passes; pays with bf16, and on GPUs."""
    compile: bool = False
    """torch.compile the encoder's passes: minutes at the start, then fewer and larger kernels."""
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


@dataclass(frozen=True, kw_only=True)
class RungConfig:
    """How strongly is measured from one epoch on; what is left out is as in ``evaluation``."""

    epoch: int = 1
    """First epoch (counted from 1) that is measured so."""
    num_steps: int | None = None
    """Of the evaluation attack, as is step_size; its ball is the same on every rung."""
    step_size: float | None = None
    restarts: int = 1
    """Random starts; later ones attack only the images that are still right."""
    iterate: Iterate = "last"
    """worst: an image is broken as soon as any iterate is wrong."""
    num_images: int | None = None
    """Only the first so many held-out images."""

    def __post_init__(self) -> None:
        check(self.epoch >= 1, "epoch", self.epoch, "an epoch counted from 1")
        check(self.restarts >= 1, "restarts", self.restarts, "must be >= 1")
        for key in ("num_steps", "num_images"):
            value = getattr(self, key)
            check(value is None or value >= 1, key, value, "null (evaluation's own) or >= 1")


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How robust accuracy is measured while training: one fixed attack, on the held-out split."""

    attack: AttackConfig = field(
        default_factory=lambda: AttackConfig(
            eps=8 / 255, step_size=2 / 255, num_steps=20, init="uniform", loss="ce"
        )
    )
    every: int = 1
    """Measure after every so many epochs, and after the last."""
    batch_size: int = 256
    num_images: int | None = None
    """Use only the first so many held-out images; default: all."""
    seed: int = 0
    rungs: list[RungConfig] = field(default_factory=lambda: list[RungConfig]())
    """Weaker attacks on fewer images at first, cheap ones: `morel_core.ladder`. Default: none."""
    asynchronous: bool = False
    """Training does not wait: `morel train` measures the checkpoints in tasks beside it, with the
    same numbers. In code: ``Trainer.measure`` of a loaded checkpoint."""

    def __post_init__(self) -> None:
        check(self.every >= 1, "every", self.every, "must be >= 1")
        check(self.batch_size >= 1, "batch_size", self.batch_size, "must be >= 1")
        check(
            self.num_images is None or self.num_images >= 1,
            "num_images",
            self.num_images,
            "null (all) or >= 1",
        )
        check(
            self.attack.loss != "auto",
            "attack.loss",
            self.attack.loss,
            "ce or kl: the evaluation attack is the same whatever a run trains with",
        )
        self._check_rungs()

    def _check_rungs(self) -> None:
        """The first begins with training, each later than the one before, all in the same ball."""
        last, seen = 0, list[RungConfig]()
        for index, rung in enumerate(self.rungs):
            place = f"rungs[{index}]"
            whole = replace(
                rung,
                epoch=1,
                num_steps=rung.num_steps or self.attack.num_steps,
                step_size=rung.step_size or self.attack.step_size,
            )
            twin = "measures what an earlier rung does: leave it out"
            check(whole not in seen, f"{place}.epoch", rung.epoch, twin)
            seen.append(whole)
            check(
                rung.restarts == 1 or self.attack.init != "none",
                f"{place}.restarts",
                rung.restarts,
                "1 with evaluation.attack.init: none, which starts every time from the same image",
            )
            check(index > 0 or rung.epoch == 1, f"{place}.epoch", rung.epoch, "1 for the first")
            check(rung.epoch > last, f"{place}.epoch", rung.epoch, f"later than epoch {last}")
            last = rung.epoch
            parameters = {
                key: value
                for key in ("num_steps", "step_size")
                if (value := getattr(rung, key)) is not None
            }
            try:
                replace(self.attack, **parameters)
            except ConfigError as error:
                raise error.within(place) from None


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """Everything that decides the numbers of a training run."""

    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    attack: AttackConfig = field(default_factory=AttackConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        check(
            self.evaluation.num_images is None or self.evaluation.num_images <= self.data.holdout,
            "evaluation.num_images",
            self.evaluation.num_images,
            f"at most data.holdout = {self.data.holdout}",
        )
        for index, rung in enumerate(self.evaluation.rungs):
            for key, value, most in (
                ("num_images", rung.num_images, "data.holdout"),
                ("epoch", rung.epoch, "training.epochs"),
            ):
                limit = self.data.holdout if key == "num_images" else self.training.epochs
                check(
                    value is None or value <= limit,
                    f"evaluation.rungs[{index}].{key}",
                    value,
                    f"at most {most} = {limit}",
                )
        check(
            self.objective.accuracy != "custom" or self.attack.loss != "auto",
            "attack.loss",
            self.attack.loss,
            "say ce or kl: a custom objective does not imply the attack's loss",
        )
        check(
            self.objective.accuracy != "custom" or not self.training.published_batchnorm,
            "training.published_batchnorm",
            self.training.published_batchnorm,
            "false: a custom objective has no published step",
        )
        check(
            not self.training.overfitting_guard or self.attack.num_steps == 1,
            "training.overfitting_guard",
            True,
            f"only with attack.num_steps = 1, not {self.attack.num_steps}: training with several "
            "steps does not overfit catastrophically",
        )
        for key, waits in (
            ("training.patience", self.training.patience is not None),
            ("training.overfitting_guard", self.training.overfitting_guard),
        ):
            check(
                not (self.evaluation.asynchronous and waits),
                "evaluation.asynchronous",
                True,
                f"false with {key}, which must know an epoch's numbers before the next one begins",
            )
        check(
            self.data.cutmix == 0 or self.objective.accuracy not in ("mart", "loat"),
            "data.cutmix",
            self.data.cutmix,
            f"0 with objective.accuracy: {self.objective.accuracy}, which needs one hard label to "
            "tell the right class from the others",
        )
        check(
            self.data.cutmix == 0 or not self.objective.morel,
            "data.cutmix",
            self.data.cutmix,
            "0 with objective.morel: true, whose attention and contrastive term group images by "
            "one hard label",
        )
        implied = self.objective.attack_loss if self.attack.loss == "auto" else self.attack.loss
        check(implied != "kl" or self.attack.init != "none", "attack.init", "none", KL_START)
