"""Keys of reports that a search reads."""

TRAIN_SECONDS = "train_seconds"
"""Key of a report: what all epochs of its network took, those that a twin had trained too."""
TWIN = "twin"
"""Key of a report: the run id of the trial whose training was taken over …"""
TRAINED = "trained"
"""… and up to which epoch the network in place is trained, whatever epoch is told of again."""
