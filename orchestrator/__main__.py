"""``python -m orchestrator``, which is what a Ray job runs."""

from orchestrator.cli import entry

if __name__ == "__main__":
    entry()
