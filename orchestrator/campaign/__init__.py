"""Comparison campaigns: methods, not points, tuned with one budget and trained over many seeds.

    result = run_campaign(load_campaign("paper_comparison", ["seeds=[1,2,3]"]))
    print(to_markdown(result.report))

`settings` are the keys of a file and `definition` reads one; `run` tunes and replicates, `report`
compares, `tables` writes it down.
"""
