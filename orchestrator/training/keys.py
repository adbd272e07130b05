"""Keys of reports that a search reads."""

TRAIN_SECONDS = "train_seconds"
"""What all epochs of its network took, those that a twin had trained too."""
TWIN = "twin"
"""The run id of the trial whose training was taken over …"""
TRAINED = "trained"
"""… and up to which epoch the network in place is trained, whatever epoch is told of again."""
