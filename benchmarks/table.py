"""Rewrites README's blocks on speed and on searches from the files in `benchmarks/results`.

python -m benchmarks.table
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.measure import RESULTS

README = Path(__file__).parents[1] / "README.md"


def cell(value: dict[str, float] | None) -> str:
    """``1.04 (1.01 to 1.09)``; a dash where it was not measured."""
    if value is None:
        return "–"
    return f"{value['median']:.2f} ({value['min']:.2f} to {value['max']:.2f})"


def table(head: list[str], rows: list[list[str]]) -> str:
    """Markdown."""
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *rows])


def folded(title: str, content: str) -> str:
    """Markdown that shows its title until it is clicked."""
    return f"<details><summary>{title}</summary>\n\n{content}\n\n</details>"


def machine(result: dict[str, Any]) -> str:
    """Hardware and version."""
    hardware = result["hardware"]
    threads = hardware["threads"]
    name = (
        f"{hardware['cpu']['name']}, {threads} thread{'s' if threads > 1 else ''}"
        if hardware["device"] == "cpu"
        else hardware["device"]
    )
    return f"{name}, torch {result['versions']['torch']}"


def where(result: dict[str, Any], clock: str | None = None) -> str:
    """One line on hardware, version and clock; by default that of `measure.interleaved`."""
    return f"{machine(result)}, {clock or result['hardware']['clock']} seconds"


def passes(row: dict[str, Any]) -> str:
    """How a step ran the network."""
    how = [row["precision"]]
    how += ["channels-last"] * row["channels_last"] + ["compiled"] * row["compile"]
    how += ["cudnn-benchmark"] * row.get("cudnn_benchmark", False)
    captured = "step" if row.get("capture_step") else "attack"
    how += [f"captured {captured}"] * row.get("capture", False)
    return ", ".join(how)


SUMMARY_HEAD = ["where", "network", "classes", "passes", "TRADES", "MART", "LOAT", "AT"]


def summary_rows(result: dict[str, Any]) -> list[list[str]]:
    """One line a network, number of classes and kind of passes."""
    found: dict[tuple[str, str, str], dict[str, str]] = {}
    for row in result["rows"]:
        ratios = row["ratios"]
        found.setdefault((row["model"], str(row["classes"]), passes(row)), {})[
            row["objective"].upper()
        ] = f"{ratios['published / ours']['median']:.2f} ({ratios['ours / floor']['median']:.2f})"
    device = machine(result).partition(",")[0]
    return [
        [device, *key, *(cells.get(objective, "–") for objective in SUMMARY_HEAD[4:])]
        for key, cells in found.items()
    ]


def step_rows(result: dict[str, Any]) -> list[list[str]]:
    """One line a row of the result."""
    lines: list[list[str]] = []
    for row in result["rows"]:
        ratios = row["ratios"]
        used = row["flop_utilisation"]
        lines.append(
            [
                f"{row['model']}, batch {row['batch_size']}",
                f"{row['objective'].upper()}, {row['classes']} classes",
                passes(row),
                cell(ratios["ours / floor"]),
                cell(ratios["published / ours"]),
                cell(ratios.get("published_same / ours")),
                cell(ratios.get("ours_plain / ours")),
                f"{row['images_per_second']['ours']:.{'1f' if used is None else '0f'}}",
                "–" if used is None else f"{used['ours']:.0%} of {used['of']}",
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
    "speed-up on our own plain passes",
    "images/s",
    "of the peak FLOP/s",
    "peak MiB, ours / published",
]


def performance(results: Path = RESULTS) -> str:
    """README's block on speed: a summary, each number with its spread, and what else there is."""
    summary: list[list[str]] = []
    parts: list[str] = []
    evaluations: list[str] = []
    for path in sorted(results.glob("*.json")):
        result = json.loads(path.read_text())
        if result.get("benchmark") == "step":
            rounds = sorted({row["n"] for row in result["rows"]})
            note = f"{where(result)}; n = {', '.join(map(str, rounds))} ({path.name})"
            summary += summary_rows(result)
            parts.append(folded(note, table(STEP_HEAD, step_rows(result))))
        elif result.get("benchmark") == "evaluation":
            evaluations.append(
                f"Evaluation with {result['attack']} takes {cell(result['ratio'])} times its raw "
                f"passes ({where(result)}, n = {result['n']}, `{path.name}`)."
            )
        elif result.get("benchmark") == "accuracy" and result["difference"]:
            evaluations.append(trained(result, path.name))
        elif result.get("benchmark") == "attention":
            evaluations.append(attention(result, path.name))
        elif result.get("benchmark") == "loader":
            shares = [
                f"{cell({k: 100 * v for k, v in row['share'].items()})} % of a step of `{name}`"
                for name, row in result["recipes"].items()
            ]
            evaluations.append(
                f"Loading a batch takes {', '.join(shares)} ({where(result)}, `{path.name}`)."
            )
        elif result.get("benchmark") == "attacks":
            times = {name: cell(value) for name, value in result["ratio"].items()}
            evaluations.append(
                f"For the same images torchattacks' PGD takes {times['torchattacks']} times as "
                f"long as ours in an evaluation, ART's {times['art']}; ours without the memory "
                f"layout of an evaluation {times['ours_as_given']} ({where(result)}, "
                f"n = {result['n']}, `{path.name}`)."
            )
    return "\n\n".join([table(SUMMARY_HEAD, summary), *parts, *evaluations])


def attention(result: dict[str, Any], name: str) -> str:
    """What the number of classes costs."""
    more = {n: cell(value) for n, value in result["to 10 classes"].items()}
    loop = {n: cell(value) for n, value in result["loop / masked"].items()}
    return (
        f"Class-adaptive attention over {result['rows']} rows, forward and backward, takes "
        f"{more['100']} times as long with 100 classes as with 10, {more['1000']} times with "
        f"1,000; a call for each class {loop['10']}, {loop['100']} and {loop['1000']} times as "
        f"long as ours ({where(result)}, n = {result['n']}, `{name}`)."
    )


def trained(result: dict[str, Any], name: str) -> str:
    """What became of the networks that the fast and the published step trained."""
    asked, found, runs = result["config"], result["difference"], result["runs"]
    robust = {
        contender: statistics.mean(
            r["robust_accuracy"] for r in runs if r["contender"] == contender
        )
        for contender in ("fast", "published")
    }
    net = "the digits' network" if asked["data"] == "digits" else asked["model"]
    difference, low, high = (f"{100 * found[key]:+.2f}" for key in ("mean", "low", "high"))
    within = "within" if found["within"] else "beyond"
    return (
        f"Held-out robust accuracy of {net} after {asked['epochs']} epochs of "
        f"{runs[0]['num_train']:,} images with {asked['objective'].upper()}: {robust['fast']:.1%} "
        f"with the fast step, {robust['published']:.1%} with the published, {difference} points "
        f"[{low} to {high}], {found['seeds']} seeds; the mean is {within} the margin of "
        f"{100 * found['margin']:g} points that was stated beforehand "
        f"({machine(result)}, `{name}`)."
    )


REPLAY_HEAD = [
    "search",
    "cost to find what random search found ÷ its cost",
    "found it",
    "hypervolume less random search's",
]
TOLD = {
    "default": "ours, by default",
    "default without reuse": "the same, paying for settings tried before (`reuse=false`)",
    "tradeoff": "ours, `tradeoff` and `pareto`",
    "random + ASHA": "random with our `asha`",
}


def replay_rows(result: dict[str, Any]) -> list[list[str]]:
    """One line a search."""
    lines: list[list[str]] = []
    for name, values in result["contenders"].items():
        ratio, gain = values["cost ratio"], values["hypervolume difference"]
        found = "not found by half of the seeds"
        if ratio["median"] is not None:
            ends = ("∞" if end is None else f"{end:.2f}" for end in (ratio["low"], ratio["high"]))
            found = f"{ratio['median']:.2f} [{' to '.join(ends)}]"
        volume = f"{gain['mean']:+.4f} [{gain['low']:+.4f} to {gain['high']:+.4f}]"
        share = f"{values['reached']:.0%} of seeds"
        lines.append([TOLD.get(name, name), found, share, "–" if name == "random" else volume])
    return lines


def searches(results: Path = RESULTS) -> str:
    """README's block on searches: the replay, and what a search costs beside its trials."""
    parts: list[str] = []
    for path in sorted(results.glob("search_*.json")):
        result = json.loads(path.read_text())
        source = f"({where(result, 'wall')}, `{path.name}`)"
        match result.get("benchmark"):
            case "search_replay":
                asked = result["config"]
                parts.append(
                    f"Searches replayed on {result['settings']} settings of digits, each trained "
                    f"once (`search_table.json`); {result['n']} seeds, {asked['workers']} trials "
                    f"at a time, the same first point; random search trains {asked['trials']} of "
                    "them. A setting that was trained before costs nothing (`reuse`) but for "
                    "Optuna as it comes. Medians and means with 95 % intervals over seeds "
                    f"(`{path.name}`). That nobody is stopped in the first quarter of a run was "
                    "made our default after a look at the ranks in this table, which favours us "
                    f"on it:\n\n{table(REPLAY_HEAD, replay_rows(result))}"
                )
            case "search_thousand":
                parts.append(
                    f"{result['trials']:,} trials of 0.3 s through Ray Tune, Optuna and MLflow on "
                    f"SQLite: {result['lost']} lost, {result['doubled_in_mlflow']} doubled; "
                    f"recording takes {result['recording_share_of_loop']:.1%} of the driver's "
                    f"loop, the writer is done {result['drained_after_s']:.0f} s after it; the "
                    f"driver needs {result['driver_peak_mib']:,.0f} MiB; `morel compare` on them "
                    f"takes {result['compare_cold_s']:.1f} s, its query "
                    f"{result['compare_query_s']:.1f} s {source}."
                )
            case "search_overhead":
                seconds = {name: cell(value) for name, value in result["seconds"].items()}
                parts.append(
                    f"Beside its training a trial of one worker takes {seconds['one worker']} s; "
                    f"one of two workers through Ray Train {seconds['two workers']} s, which is "
                    f"{result['two workers / empty job']:.2f} times an empty Ray Train job "
                    f"{source}."
                )
            case "search_parallel":
                parts.append(
                    f"Two trials of one thread at a time get through {result['ratio']:.2f} times "
                    f"as many a minute as one {source}."
                )
            case _:
                continue
    return "\n\n".join(parts)


BLOCKS = {"performance": performance, "search": searches}


def with_block(readme: str, name: str, content: str) -> str:
    """``readme`` with everything between the markers of a block replaced."""
    first, last = f"<!-- {name}:start -->", f"<!-- {name}:end -->"
    before, start, rest = readme.partition(first)
    _, end, after = rest.partition(last)
    if not start or not end:
        raise ValueError(f"README.md has no block between {first} and {last}")
    return f"{before}{first}\n{content}\n{last}{after}"


def rewritten(readme: str) -> str:
    """``readme`` with all blocks as the results have them."""
    for name, block in BLOCKS.items():
        readme = with_block(readme, name, block())
    return readme


if __name__ == "__main__":
    README.write_text(rewritten(README.read_text()))
