"""Run a campaign, or finish one that was interrupted, and keep its report with the machine's name.

    python -m benchmarks.campaign paper_comparison max_concurrent=1 \\
        --out benchmarks/results/campaign_digits

Writes ``<out>.md`` and ``<out>.json``. It is what `morel campaign` with the same overrides runs.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from benchmarks.measure import record, settings, write
from orchestrator.campaign.definition import load_campaign
from orchestrator.campaign.run import REGISTRATION, run_campaign
from orchestrator.campaign.tables import to_json, to_markdown


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("file", help="campaign by name or file")
    parser.add_argument("overrides", nargs="*", help="key=value")
    parser.add_argument("--out", type=Path, required=True, help="without ending")
    args = parser.parse_args()
    campaign = load_campaign(args.file, args.overrides)
    report = run_campaign(campaign).report
    fixed = json.loads(Path(campaign.base.storage_path, campaign.name, REGISTRATION).read_text())
    # Where it lay is nobody's concern.
    overrides = [item for item in args.overrides if not item.startswith("storage_path=")]
    called = {**settings(args), "overrides": overrides}
    about = record(torch.device("cpu"), called)
    command = " ".join(["morel campaign", args.file, *overrides])
    result = {
        "benchmark": "campaign",
        "command": command,
        **about,
        "fixed_beforehand": fixed,
        "report": json.loads(to_json(report)),
    }
    write(args.out.with_suffix(".json"), result)
    machine = f"Command: `{command}`. CPU: {about['hardware']['cpu']['name']}."
    args.out.with_suffix(".md").write_text(f"{to_markdown(report)}\n{machine}\n")
    print(to_markdown(report))


if __name__ == "__main__":
    main()
