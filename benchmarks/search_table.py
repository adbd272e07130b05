"""Train every point of a search space once, and keep what each epoch measured.

    python -m benchmarks.search_table --out benchmarks/results/search_table.json

Searches are replayed on this table by `benchmarks.search_replay`. Half an hour on one core; what is
there already is not trained again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import record, settings, write
from morel_core import Trainer
from morel_core.data import load_data
from orchestrator.search.parameters import IntParameter, Values
from orchestrator.search.space import SearchConfig, load_search

SPACE = Path(__file__).parent / "spaces" / "digits_table.yaml"
MEASURED = ("clean_accuracy", "robust_accuracy")


def points(search: SearchConfig) -> Iterator[Values]:
    """Every point of a space of whole numbers."""
    sampled = search.space.sampled
    ranges: list[range] = []
    for parameter in sampled.values():
        assert isinstance(parameter, IntParameter)
        ranges.append(range(parameter.low, parameter.high + 1))
    for values in itertools.product(*ranges):
        yield dict(zip(sampled, values, strict=True))


def key(params: Values) -> str:
    """A point's name in the table: ``"0 3 1 2 0"``."""
    return " ".join(str(value) for value in params.values())


def train(search: SearchConfig, params: Values, data: Any) -> dict[str, Any]:
    """Held-out images right after each epoch, ``"265 288 …"``, and the CPU seconds.

    Fewer epochs than others: it diverged in the one after.
    """
    trainer = Trainer(search.trial_config(params), data=data)
    started = time.process_time()
    history = trainer.fit()
    images = len(data.holdout)
    right = {
        name: " ".join(str(round(images * m[name])) for m in history if name in m)
        for name in MEASURED
    }
    return {**right, "cpu_seconds": round(time.process_time() - started, 3)}


def main() -> None:
    """Train what is missing, write after each point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    search = load_search(str(SPACE))
    data = load_data(search.base.data)
    rows: dict[str, Any] = json.loads(args.out.read_text())["rows"] if args.out.exists() else {}
    for params in points(search):
        if key(params) in rows:
            continue
        rows[key(params)] = train(search, params, data)
        result = {
            "benchmark": "search_table",
            "space": SPACE.name,
            "parameters": list(search.space.sampled),
            "epochs": search.base.training.epochs,
            "holdout": len(data.holdout),
            "fingerprint": data.fingerprint,
            **record(torch.device("cpu"), settings(args)),
            "rows": rows,
        }
        write(args.out, result)
        print(key(params), rows[key(params)]["robust_accuracy"], flush=True)


if __name__ == "__main__":
    main()
