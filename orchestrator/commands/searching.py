"""Commands that search."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from orchestrator.commands.common import consoles

if TYPE_CHECKING:
    from orchestrator.search.space import SearchConfig


def tune_command(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """``morel tune``."""
    from orchestrator.search.space import load_search

    search = load_search(arguments.space, overrides)
    if arguments.dry_run:
        return dry_tune(arguments, search)

    from orchestrator.search.view import SearchProgress, print_search, search_summary
    from orchestrator.tracking.records import ladder_label
    from orchestrator.tune import tune

    progress, results = consoles(arguments)
    with SearchProgress(progress, ladder_label(search.base), search.total_trials) as view:
        result = tune(search, view=view, force_code=arguments.force_code)
    if arguments.json:
        print(json.dumps(search_summary(result)))
    else:
        print_search(results, result)
    return 0 if result.winner is not None else 3


def dry_tune(arguments: argparse.Namespace, search: SearchConfig) -> int:
    """``morel tune --dry-run``."""
    from orchestrator.search.dry_run import dry_run, lines

    found = dry_run(search)
    print(json.dumps(found) if arguments.json else "\n".join(lines(found)))
    return 0


def campaign_command(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """``morel campaign``."""
    from orchestrator.campaign.definition import load_campaign, plan

    campaign = load_campaign(arguments.file, overrides)

    from orchestrator.campaign import view
    from orchestrator.campaign.run import run_campaign

    progress, results = consoles(arguments)
    if arguments.dry_run:
        planned = plan(campaign)
        print(json.dumps(planned)) if arguments.json else view.print_plan(results, planned)
        return 0
    shown = view.CampaignProgress(progress)
    result = run_campaign(campaign, view=shown, force_code=arguments.force_code)
    if arguments.json:
        print(json.dumps(view.campaign_summary(result)))
    else:
        view.print_report(results, result)
    return 0 if result.report.complete else 3
