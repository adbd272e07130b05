"""The model card of an exported network (Mitchell et al. 2019): what it is, how it was judged."""

from __future__ import annotations

from collections.abc import Mapping

from omegaconf import OmegaConf

from morel_core.config import ResNetConfig
from morel_core.data import Dataset
from morel_core.evaluation import EvaluationResult
from morel_core.models import MorelNet
from orchestrator.config import RunConfig, scientific
from orchestrator.evaluation.targets import Target
from orchestrator.notes import accuracy_table, method_name

TORCHVISION = ("resnet18", "resnet34", "resnet50")


def model_card(
    target: Target,
    data: Dataset,
    net: MorelNet,
    result: EvaluationResult,
    differences: Mapping[str, float],
) -> str:
    """Markdown.

    Args:
        target: what was exported.
        data: its data set.
        net: with its embedder, for the normalisation.
        result: of the exported program on the test set.
        differences: of the files' logits from the network's, relative.
    """
    config = target.config
    return "\n".join(
        [
            f"# {target.run_id or target.name}",
            "",
            f"A {config.model.name} for {data.num_classes} classes of {data.name}, images "
            f"{data.shape} in [0, 1], trained against adversarial images with "
            f"{method_name(config)}. The architecture is the plain one: what MOREL trains beside "
            "it is left out.",
            "",
            "## How robust it is",
            "",
            *_evaluation(result),
            "",
            "Accuracies with their 95 % Wilson intervals, measured on `model.pt2` when it was "
            "exported. They hold for this attack and this radius: another attack may find more, "
            "and images outside the ball are not covered at all.",
            *_recorded(target),
            "",
            "## How to load it",
            "",
            "```python",
            snippet(config, data, net),
            "```",
            "",
            "| file | largest difference of a logit, relative to the largest |",
            "| --- | --- |",
            *(f"| `{name}` | {value:.2g} |" for name, value in differences.items()),
            "",
            "## What it comes from",
            "",
            f"- run: `{target.run_id or target.name}`",
            *([f"- commit: `{target.commit}`"] if target.commit else []),
            f"- data: {data.name}, fingerprint `{data.fingerprint}`",
            f"- weights: `{result.model_hash}`",
            *(f"- {package}: {version}" for package, version in result.versions.items()),
            "",
            "```yaml",
            OmegaConf.to_yaml(scientific(config)).rstrip(),
            "```",
            "",
        ]
    )


def _recorded(target: Target) -> list[str]:
    """What its run says of it: numbers of before, and what there was to doubt in them."""
    lines: list[str] = []
    if table := accuracy_table(target.metrics):
        lines += ["", "Recorded of the network before it was exported:", "", table]
    if target.warnings:
        lines += ["", f"Earlier evaluations warned: {target.warnings}"]
    return lines


def snippet(config: RunConfig, data: Dataset, net: MorelNet) -> str:
    """Python that loads the model: with torchvision alone where it has the architecture."""
    model = config.model
    if isinstance(model, ResNetConfig) and model.name in TORCHVISION:
        published = model.width == 64 and net.mean is None
        if published:
            return _torchvision(model.name, data)
    return "\n".join(
        [
            "import torch",
            'model = torch.export.load("model.pt2").module()',
            f"images = torch.rand(4, {', '.join(map(str, data.shape))})  # in [0, 1]",
            "logits = model(images)",
        ]
    )


def _torchvision(name: str, data: Dataset) -> str:
    channels = data.shape[0]
    return "\n".join(
        [
            "import safetensors.torch, torch, torchvision",
            f"model = torchvision.models.{name}(num_classes={data.num_classes})",
            f"model.conv1 = torch.nn.Conv2d({channels}, 64, 3, padding=1, bias=False)",
            "model.maxpool = torch.nn.Identity()",
            'model.load_state_dict(safetensors.torch.load_file("model.safetensors"))',
            "logits = model.eval()(torch.rand(4, "
            f"{', '.join(map(str, data.shape))}))  # images in [0, 1]",
        ]
    )


def _evaluation(result: EvaluationResult) -> list[str]:
    lines = ["| attack | accuracy | images |", "| --- | --- | --- |"]
    for name, outcome in result.items():
        low, high = outcome.interval
        accuracy = f"{outcome.accuracy:.1%} [{low:.1%}, {high:.1%}]"
        lines.append(f"| {name} | {accuracy} | {outcome.num_images} of the test set |")
    return lines
