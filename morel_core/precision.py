"""How training runs the encoder: number format, memory layout, in slices or not, compiled or not.

Only the encoder's passes are concerned (METHOD, "Numerical policy"): images, perturbation, heads
and losses stay fp32, and so does every evaluation.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from morel_core.config import Precision
from morel_core.micro_batches import pass_in_slices

if TYPE_CHECKING:
    from morel_core.models import MorelNet


def at_least_fp32(values: Tensor) -> Tensor:
    """Losses are computed in fp32 whatever the network computes in."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


class EncoderPasses:
    """Runs a net's encoder as training asks for; takes effect inside `active`.

    The net's parameters keep their type and layout, so that checkpoints, optimiser and DDP see no
    difference.

    Args:
        net: whose encoder is run.
        precision: "fp32"; "tf32" for TF32 in convolutions on CUDA, which elsewhere is fp32; "bf16"
            for autocast of the encoder. fp64 networks stay fp64.
        channels_last: hand the images over in that layout, which the convolutions then keep.
        compile: through `torch.compile`, which happens at the first pass of each kind.
        cudnn_benchmark: whether cuDNN times its algorithms and takes the fastest.
        micro_batches: slices in which a batch is passed in train mode, see `micro_batches`.
    """

    def __init__(
        self,
        net: MorelNet,
        *,
        precision: Precision = "fp32",
        channels_last: bool = False,
        compile: bool = False,
        cudnn_benchmark: bool = False,
        micro_batches: int = 1,
    ) -> None:
        self.net = net
        self.precision = precision
        self.channels_last = channels_last
        self.cudnn_benchmark = cudnn_benchmark
        self.micro_batches = micro_batches
        self._encoder = torch.compile(net.encoder) if compile else net.encoder

    def __call__(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, D), fp32 where the encoder computed in less."""
        if self.micro_batches > 1 and self.net.encoder.training:
            return pass_in_slices(self._one_pass, self.net.encoder, x, self.micro_batches)
        return self._one_pass(x)

    def _one_pass(self, x: Tensor) -> Tensor:
        if self.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        # A context for each pass: weights cast in one are stale, or without graph, in another.
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            features = self._encoder(x)
        return at_least_fp32(features)

    @contextmanager
    def active(self) -> Generator[None]:
        """Inside, the net's encoder passes are these, and TF32 is used with "tf32" alone.

        As for TF32, what the process had set for `cudnn_benchmark` does not count, and is put back.
        """
        cudnn: Any = torch.backends.cudnn
        before, self.net.encoder_passes = self.net.encoder_passes, self
        benchmark, cudnn.benchmark = cudnn.benchmark, self.cudnn_benchmark
        try:
            with float32_arithmetic("tf32" if self.precision == "tf32" else "ieee"):
                yield
        finally:
            self.net.encoder_passes = before
            cudnn.benchmark = benchmark


@contextmanager
def float32_arithmetic(convolutions: Literal["ieee", "tf32"]) -> Generator[None]:
    """Inside, CUDA multiplies fp32 matrices in fp32, and convolutions as told.

    The one place that decides on TF32 (10 bits of mantissa): torch's own default, TF32 in
    convolutions alone, or what a user set, holds neither for training nor for evaluation. Switched
    for the whole process, since a backward pass runs outside of its forward pass, and put back.
    """
    backends: Any = torch.backends
    wanted = {
        backends.cudnn.conv: convolutions,
        backends.cudnn.rnn: "ieee",
        backends.cuda.matmul: "ieee",
    }
    before = {setting: setting.fp32_precision for setting in wanted}
    for setting, value in wanted.items():
        setting.fp32_precision = value
    try:
        yield
    finally:
        for setting, value in before.items():
            setting.fp32_precision = value


@contextmanager
def full_precision(device: torch.device) -> Generator[None]:
    """Inside, fp32 is fp32: no autocast on ``device``, no TF32."""
    with float32_arithmetic("ieee"), torch.autocast(device.type, enabled=False):
        yield
