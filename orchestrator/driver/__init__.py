"""Who drives a run: its lease, what is asked of it, how a signal ends it."""
