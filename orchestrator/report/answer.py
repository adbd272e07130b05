"""What a reader came for: which configuration, how sure, at what cost, and how to get it again."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.compare.runs import Score
from orchestrator.report.aims import aims, ranges
from orchestrator.report.ball import ball_of
from orchestrator.report.charts import attacks_of
from orchestrator.report.course_charts import total_cost
from orchestrator.report.data import Measured, Recorded, Trial, scores, value_text
from orchestrator.report.evaluations import next_one, paired, worst_record
from orchestrator.report.repeat import RECIPE, SEARCH, run_file, search_files

BIASED = (
    "Search numbers are the largest of several noisy ones, chosen on the same held-out images: "
    "they are biased upwards."
)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Sentences and tables for the top of the page."""

    headline: str
    because: str
    """The number that it stands on, and how that was measured."""
    numbers: list[tuple[str, str, str]]
    """What, accuracy with interval, measured how."""
    settings: list[tuple[str, str]]
    """Searched parameter, value."""
    sure: list[str]
    aims: list[tuple[str, str]]
    """How the search was set up; empty without one."""
    ranges: list[tuple[str, str]]
    """Parameter, where it was searched."""
    cost: list[tuple[str, str]]
    commands: list[tuple[str, str]]
    """What it does, command."""
    config: str
    """YAML."""
    files: dict[str, str]
    """File → YAML, of the search."""
    environment: list[tuple[str, str]]


def answer(recorded: Recorded) -> Answer | None:
    """The answer; None if no trial was measured."""
    winner = recorded.winner
    if winner is None:
        return None
    return Answer(
        headline=_headline(recorded, winner),
        because=_because(recorded, winner),
        numbers=_numbers(recorded, winner),
        settings=[(key, value_text(value)) for key, value in _settings(recorded, winner).items()],
        sure=_sure(recorded, winner),
        aims=aims(recorded),
        ranges=ranges(recorded),
        cost=cost_rows(recorded),
        commands=_commands(recorded, winner),
        config=run_file(recorded.config),
        files=search_files(recorded),
        environment=_environment(winner),
    )


def _settings(recorded: Recorded, winner: Trial) -> dict[str, Any]:
    """What was searched; of a campaign what makes the method, and what its tuning chose."""
    for row in recorded.campaign.methods if recorded.campaign else ():
        if row.method == winner.run.tags.get("morel.method"):
            return {**row.given, **(row.tuning.settings if row.tuning else {})}
    return winner.point


def _headline(recorded: Recorded, winner: Trial) -> str:
    name = winner.name if winner.baseline is None else f"the baseline {winner.name}"
    if winner.run.kind == "trial" and winner.baseline:
        name += f" (trial {winner.number})"
    method = winner.run.tags.get("morel.method")
    if recorded.campaign and method and not recorded.provisional:
        return f"The method {method} has the highest mean of the primary number."
    if not recorded.provisional:
        return f"Use {name}."
    if recorded.subject is None:
        return f"Of the trainings, {name} has the largest held-out robust accuracy."
    return f"Nobody has won yet; the best so far is {name}."


def _because(recorded: Recorded, winner: Trial) -> str:
    if recorded.campaign and not recorded.provisional:
        return (
            f"Whether that is more than chance is said below; shown is {winner.run.run_id} of it."
        )
    aim = _aim(recorded, winner)
    if winner.verified is None:
        value = f"{winner.robust} % under {winner.attack}"
        if recorded.metric == "clean_accuracy":
            value = f"{winner.clean} % clean, {value}"
        return f"{aim}Its search number is {value}, on held-out images. It was not verified."
    flagged = " It shows signs of masked gradients: see the warnings." if winner.masking else ""
    clean = f"Verified clean accuracy {winner.verified_clean} %. " if aim else ""
    value = f"{winner.verified} % in the worst case of {attacks_of(winner)}"
    return f"{aim}{clean}Verified robust accuracy {value}, held-out.{flagged}"


def _aim(recorded: Recorded, winner: Trial) -> str:
    """Why it was chosen, where that was not for robust accuracy alone."""
    if recorded.metric == "clean_accuracy":
        return "The search looked for clean accuracy. "
    if recorded.metric == "tradeoff":
        on = "of the front" if winner in recorded.front else "measured"
        return (
            "The search looked for the front of clean and robust accuracy; this is the most robust "
            f"{on}, and others of it may suit you better: see the picture. "
        )
    return ""


def _numbers(recorded: Recorded, winner: Trial) -> list[tuple[str, str, str]]:
    run = winner.run
    images = {split: run.metrics.get(f"{split}.images") for split in ("test", "verified")}

    def on(split: str, words: str) -> str:
        count = images[split]
        return f"{count:.0f} {words}" if count else words

    rows: list[tuple[str, Score | None, str]] = [*_test_rows(recorded, winner)]
    rows.append(("test, clean", run.clean("test"), on("test", "test images")))
    if winner.verified:
        rows.append(
            ("verified, robust", winner.verified, f"worst case of {attacks_of(winner)}, held-out")
        )
        rows.append(("verified, clean", winner.verified_clean, on("verified", "held-out images")))
    held = _held_out_images(recorded, winner)
    rows.append(("search, robust", winner.any_robust, f"{winner.attack} on {held}"))
    rows.append(("search, clean", winner.clean, held))
    return [(what, f"{value} %", how) for what, value, how in rows if value]


def _test_rows(recorded: Recorded, winner: Trial) -> list[tuple[str, Score | None, str]]:
    """Robust accuracies on the test set in the deciding ball, the strongest attack first."""
    ball = ball_of(recorded)
    records = [
        each for each in recorded.measured(winner) if each.record["split"].startswith("test")
    ]
    tests = scores(winner.run, "test.robust.")
    inside = {name: value for name, value in tests.items() if ball and ball.named(name)}
    rows = [
        (value, f"{name} on {_test_images(records, name, value)}")
        for name, value in (inside or tests).items()
    ]
    worst = worst_record(records, ball) if ball else None
    if worst is not None:
        value, names, count = worst
        rows.insert(0, (value, f"worst case of {', '.join(names)} on {count} test images"))
    rows.sort(key=lambda row: row[0].value)
    return [("test, robust", value, how) for value, how in rows]


def _test_images(records: Sequence[Measured], attack: str, value: Score) -> str:
    """How many an attack was measured on: evaluations differ in that."""
    outcomes = [each.record["outcomes"].get(attack) for each in records]
    counts = [len(o["correct"]) for o in outcomes if o and o["accuracy"] == value.value]
    return f"{counts[-1]} test images" if counts else "test images"


def _held_out_images(recorded: Recorded, winner: Trial) -> str:
    """How many the best epoch was measured on; a run without rungs has that in its config alone."""
    metrics, config = winner.run.metrics, recorded.config
    count = (
        metrics.get("best.holdout.images")
        or config.get("evaluation", {}).get("num_images")
        or config.get("data", {}).get("holdout")
    )
    return f"{count:.0f} held-out images" if count else "held-out images"


def _sure(recorded: Recorded, winner: Trial) -> list[str]:
    seeds = sorted({run.tags.get("morel.seed", "?") for run in recorded.runs})
    lines = ["Intervals are 95 % Wilson intervals over images."]
    lines.append(
        f"One seed ({seeds[0]}): they say nothing of training again."
        if len(seeds) == 1
        else f"{len(seeds)} seeds: {', '.join(seeds[:12])}."
    )
    if recorded.campaign:
        return [*lines, "The tables below have the methods' means and intervals over seeds."]
    lines += _against(recorded, winner)
    lines.append(BIASED)
    if winner.verified is None:
        lines.append(
            "Nothing was verified: the search's command with ladder.verify.top=2 does it later."
        )
    if not winner.run.robust("test"):
        command = f"morel evaluate {quoted(winner)}{place(recorded)}"
        lines.append(f"Not measured on the test set: {command} does it.")
    return lines


def _against(recorded: Recorded, winner: Trial) -> list[str]:
    """The winner compared with the next one and with the published setting."""
    if winner.run.kind != "trial":
        return []
    rival = next_one(recorded, winner)
    paper = next((t for t in recorded.trials if t.baseline == "paper"), None)
    lines = [paired(recorded, winner, rival, f"{_known(rival)}, the next one")] if rival else []
    if paper is not None and paper not in (winner, rival):
        lines.append(_against_paper(recorded, winner, paper))
    return [line for line in lines if line]


def _known(trial: Trial) -> str:
    return f"the baseline {trial.name}" if trial.baseline else trial.name


def _against_paper(recorded: Recorded, winner: Trial, paper: Trial) -> str:
    """By test where both were verified on the same images, else by their search intervals."""
    found = paired(recorded, winner, paper, f"the baseline {paper.name}, the published setting")
    if found:
        return found
    own, other = _decisive(recorded, winner), _decisive(recorded, paper)
    if not (paper.whole and winner.whole and own and other):
        return "The baseline paper, the published setting, has no number that compares."
    text = (
        f"In search numbers it is {100 * (own.value - other.value):+.1f} points from the baseline "
        f"paper, the published setting ({other} %)"
    )
    if None in (own.low, own.high, other.low, other.high):
        return f"{text}."
    if max(own.low or 0.0, other.low or 0.0) <= min(own.high or 0.0, other.high or 0.0):
        return f"{text}; the 95 % intervals overlap: this does not show that either is better."
    return f"{text}; the 95 % intervals do not overlap."


def _decisive(recorded: Recorded, trial: Trial) -> Score | None:
    """The search number that the objective ranks by."""
    return trial.clean if recorded.metric == "clean_accuracy" else trial.robust


def cost_rows(recorded: Recorded) -> list[tuple[str, str]]:
    """What was spent, in words."""
    metrics = recorded.subject.metrics if recorded.subject else {}
    spent = total_cost(recorded, verification_seconds(recorded))
    devices = {t.run.tags.get("morel.device", "") for t in recorded.trials} - {"", "unknown"}

    def total(key: str) -> float:
        return metrics.get(key) or sum(t.run.metrics.get(key, 0.0) for t in recorded.trials)

    names = {"training": "spent on training", "evaluation": "spent on measuring epochs"}
    names |= {"verification": "besides: verification and tests of the best"}
    rows = [
        ("GPU-seconds of trials", total("cost.gpu_seconds")),
        ("CPU-seconds of trials", total("cost.cpu_seconds")),
        *((names[kind], seconds) for kind, seconds in spent.items()),
        ("wall time", metrics.get("cost.wall_seconds", 0.0)),
    ]
    found = [(name, f"{seconds:,.0f} s{_long(seconds)}") for name, seconds in rows if seconds]
    if devices:
        found.append(("on", ", ".join(sorted(devices))))
    return found


def verification_seconds(recorded: Recorded) -> dict[str, float]:
    """Run id → seconds of its evaluations after training."""
    found: dict[str, float] = {}
    for each in recorded.evaluations:
        found[each.run_id] = found.get(each.run_id, 0.0) + each.seconds
    return found


def quoted(trial: Trial) -> str:
    """A run's id for a command line."""
    return shlex.quote(trial.run.run_id)


def place(recorded: Recorded) -> str:
    """What tells a command where the runs are recorded; empty for the default."""
    return (
        ""
        if recorded.experiment == "morel"
        else f" tracking.experiment={shlex.quote(recorded.experiment)}"
    )


def reproduce(recorded: Recorded, trial: Trial) -> str:
    """The command that trains a run again and compares the numbers."""
    return f"morel reproduce {quoted(trial)}{place(recorded)}"


def _commands(recorded: Recorded, winner: Trial) -> list[tuple[str, str]]:
    run, where = quoted(winner), place(recorded)
    commands = [
        ("train it again and compare the numbers", reproduce(recorded, winner)),
        ("train the configuration below, saved as winner.yaml", f"morel train winner.yaml{where}"),
        ("change something", f"morel fork {run} seed=1{where}"),
        ("take the network home", f"morel export {run} --to winner{where}"),
        ("measure it with AutoAttack", f"morel evaluate {run} --attacks autoattack{where}"),
    ]
    if search_files(recorded):
        again = f"morel tune {SEARCH} reuse=false{where}"
        commands.append((f"repeat the search: {SEARCH} and {RECIPE} below, saved together", again))
    return commands


def _environment(winner: Trial) -> list[tuple[str, str]]:
    tags = winner.run.tags
    rows = [("run", winner.run.run_id), ("commit", tags.get("morel.commit", "unknown"))]
    rows += [("changes (hash of git diff)", tags["morel.diff"])] if "morel.diff" in tags else []
    rows += [("seed", tags.get("morel.seed", "")), ("data", winner.run.dataset or "")]
    rows += [("python", tags.get("morel.python", ""))]
    rows += [
        (k.removeprefix("morel.version."), v)
        for k, v in sorted(tags.items())
        if k.startswith("morel.version.")
    ]
    return [(name, value) for name, value in rows if value]


def _long(seconds: float) -> str:
    """The same in minutes or hours, for many of them."""
    if seconds < 120:
        return ""
    return f" ({seconds / 3600:.3g} h)" if seconds >= 3600 else f" ({seconds / 60:.1f} min)"
