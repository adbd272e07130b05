"""Rewrites README's block on speed from the files in `benchmarks/results`.

python -m benchmarks.table
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.measure import RESULTS

README = Path(__file__).parents[1] / "README.md"
START, END = "<!-- performance:start -->", "<!-- performance:end -->"


def cell(value: dict[str, float] | None) -> str:
    """``1.04 (1.01 to 1.09)``; a dash where it was not measured."""
    if value is None:
        return "–"
    return f"{value['median']:.2f} ({value['min']:.2f} to {value['max']:.2f})"


def table(head: list[str], rows: list[list[str]]) -> str:
    """Markdown."""
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *rows])


def where(result: dict[str, Any]) -> str:
    """One line on hardware, versions and clock."""
    hardware = result["hardware"]
    threads, clock = hardware["threads"], hardware["clock"]
    machine = (
        f"{hardware['cpu']['name']}, {threads} thread{'s' if threads > 1 else ''}"
        if hardware["device"] == "cpu"
        else hardware["device"]
    )
    return f"{machine}, torch {result['versions']['torch']}, {clock} seconds"


def step_rows(result: dict[str, Any]) -> list[list[str]]:
    """One line a row of the result."""
    lines: list[list[str]] = []
    for row in result["rows"]:
        ratios = row["ratios"]
        how = [row["precision"]]
        how += ["channels-last"] * row["channels_last"] + ["compiled"] * row["compile"]
        lines.append(
            [
                f"{row['model']}, batch {row['batch_size']}",
                f"{row['objective'].upper()}, {row['classes']} classes",
                ", ".join(how),
                cell(ratios["ours / floor"]),
                cell(ratios["published / ours"]),
                cell(ratios.get("published_same / ours")),
                f"{row['images_per_second']['ours']:.1f}",
                f"{row['peak_mib']['ours']:.0f} / {row['peak_mib']['published']:.0f}",
            ]
        )
    return lines


STEP_HEAD = [
    "network",
    "objective",
    "passes",
    "step ÷ its raw passes",
    "speed-up on the published step",
    "… given the same passes",
    "images/s",
    "peak MiB, ours / published",
]


def block(results: Path = RESULTS) -> str:
    """What stands between the markers: medians with the smallest and largest of n rounds."""
    parts: list[str] = []
    evaluations: list[str] = []
    for path in sorted(results.glob("*.json")):
        result = json.loads(path.read_text())
        if result["benchmark"] == "step":
            rounds = sorted({row["n"] for row in result["rows"]})
            note = f"{where(result)}; n = {', '.join(map(str, rounds))} (`{path.name}`):"
            parts.append(f"{note}\n\n{table(STEP_HEAD, step_rows(result))}")
        elif result["benchmark"] == "evaluation":
            evaluations.append(
                f"Evaluation with {result['attack']} takes {cell(result['ratio'])} times its raw "
                f"passes ({where(result)}, n = {result['n']}, `{path.name}`)."
            )
        elif result["benchmark"] == "attacks":
            times = {name: cell(value) for name, value in result["ratio"].items()}
            evaluations.append(
                f"For the same images torchattacks' PGD takes {times['torchattacks']} times as "
                f"long as ours in an evaluation, ART's {times['art']}; ours without the memory "
                f"layout of an evaluation {times['ours_as_given']} ({where(result)}, "
                f"n = {result['n']}, `{path.name}`)."
            )
    return "\n\n".join([*parts, *evaluations])


def with_block(readme: str, content: str) -> str:
    """``readme`` with everything between the markers replaced."""
    before, start, rest = readme.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise ValueError(f"README.md has no block between {START} and {END}")
    return f"{before}{START}\n{content}\n{END}{after}"


if __name__ == "__main__":
    README.write_text(with_block(README.read_text(), block()))
