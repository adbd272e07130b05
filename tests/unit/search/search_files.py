"""Beginnings and parts of search files."""

HEAD = """
recipe: digits
overrides: {training.epochs: 4}
scheduler: {name: none}
num_trials: 6
"""
ALPHA = """
parameters:
  objective.alpha: {type: float, low: 1.0e-6, high: 1.0, log: true}
baselines:
  paper: {objective.alpha: 1.0e-5}
"""
