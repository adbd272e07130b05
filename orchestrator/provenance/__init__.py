"""What a run stands for: its commit, its code, and what its name was first used for."""
