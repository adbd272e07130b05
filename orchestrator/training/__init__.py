"""What `orchestrator.train` is made of: workers, what they report, how they go on after a fault."""
