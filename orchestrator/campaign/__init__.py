"""Comparison campaigns: methods, not points, tuned with one budget and trained over many seeds.

from orchestrator.campaign.definition import load_campaign
from orchestrator.campaign.report import to_markdown
from orchestrator.campaign.run import run_campaign

result = run_campaign(load_campaign("paper_comparison", ["seeds=[1,2,3]"]))
print(to_markdown(result.report))
"""
